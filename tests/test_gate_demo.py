"The demo: its table, how it is judged, and the whole of it behind a marker."

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from interpkit.core.files import read_json
from interpkit.data.demo import demo_folder
from interpkit.drift.statements import Statement
from interpkit.drift.verdict import Verdict
from interpkit.gate import demo, demo_table

TRUTH = dict(
    shares={"effect": dict(share=0.4), "splice error": dict(share=0.01)},
    watched_effect={"travel": 0.7},
    watched_activation={},
)


def verdict(*statements):
    made = tuple(
        Statement(
            name,
            "valid" if "error" in name else "moved" if name == "activation" else "same",
            limit,
            segment,
            ratio=ratio,
            lower=ratio,
            upper=ratio,
            outcome=outcome,
        )
        for name, segment, ratio, limit, outcome in statements
    )
    outcomes = [s.outcome for s in made]
    whole = "FAIL" if "FAIL" in outcomes else "PASS"
    action = "REVIEW" if whole == "FAIL" else "REUSE"
    return Verdict(
        dict(name="v1"), dict(name="v2"), "", "", 100, "PASS", whole, whole, action, made
    )


def unmet(name, verdict, truth, through="dictionary"):
    return demo.unmet(name, verdict, verdict, truth, through)


@pytest.mark.parametrize(
    "statement, wrong",
    [
        (("effect", "", 0.41, 0.25, "FAIL"), False),
        (("effect", "", 0.2, 0.25, "PASS"), True),
        (("splice error", "", 0.2, 0.05, "FAIL"), True),
        (("splice error", "", 0.01, 0.05, "PASS"), False),
        (("effect: travel", "", 0.6, 0.5, "PASS"), True),
        (("effect: travel", "", 0.6, 0.5, "INCONCLUSIVE"), False),
        (("effect: unknown", "", 0.6, 0.5, "FAIL"), False),
        (("effect", "long", 0.1, 0.25, "PASS"), False),
    ],
)
def test_an_outcome_that_is_not_true_contradicts(statement, wrong):
    assert bool(demo.contradictions(verdict(statement), TRUTH)) == wrong


def test_v2_concept_has_to_fail_by_effect_at_a_site_that_did_not_move():
    fine = verdict(("effect", "", 0.41, 0.25, "FAIL"))
    assert unmet("v2-concept", fine, TRUTH) == []
    inputs = verdict(("effect", "", 0.41, 0.25, "FAIL"), ("inputs", "", 0.41, 0.25, "FAIL"))
    assert unmet("v2-concept", inputs, TRUTH) == []
    both = verdict(("effect", "", 0.41, 0.25, "FAIL"), ("activation", "", 0.41, 0.25, "FAIL"))
    assert any("did not move" in x for x in unmet("v2-concept", both, TRUTH))
    assert any("REUSE is right" in x for x in unmet("v1-tail", fine, TRUTH))


def test_a_dictionary_that_followed_has_to_be_told_of_as_due():
    first = replace(verdict(("effect", "", 0.9, 0.25, "FAIL")), action="RETRAIN")
    last = replace(verdict(("effect", "", 0.1, 0.25, "PASS")), action="ADAPT")
    assert demo.unmet("v2-rotated", first, last, TRUTH) == []
    assert demo.unmet("v2-rotated", first, first, TRUTH) == ["RETRAIN where ADAPT is right"]
    assert demo.unmet("v2", first, last, TRUTH) == ["ADAPT where ADAPT + REVIEW is right"]


def test_the_gates_judge_by_their_own_rules():
    def printed(auc, fvu):
        return dict(
            behaviour=dict(auc_old=0.8, auc_new=auc),
            reconstruction=dict(sites={"a": dict(fvu_old=0.01, fvu_new=fvu)}),
        )

    assert demo.other_gates(printed(0.791, 0.0109), 0.4) == {
        "behaviour": "PASS",
        "reconstruction": "PASS",
        "input drift": "PASS",
    }
    assert demo.other_gates(printed(0.789, 0.0111), 0.5) == {
        "behaviour": "FAIL",
        "reconstruction": "FAIL",
        "input drift": "FAIL",
    }


def test_the_truth_knows_every_release_and_says_what_the_table_needs():
    truth = read_json(demo_folder() / "truth.json")["releases"]
    assert set(demo.SHOULD) | {"v1"} == set(truth)
    for name in demo.SHOULD:
        families = {"effect", "activation", "splice error", "error share"}
        assert families <= set(truth[name]["shares"]), name
        assert truth[name]["sequences"] >= 3 * demo.CUSTOMERS, name


def test_through_a_clt_effect_has_to_fail_with_whatever_else():
    both = verdict(("effect", "", 0.41, 0.25, "FAIL"), ("activation", "", 0.41, 0.25, "FAIL"))
    without = verdict(("activation", "", 0.41, 0.25, "FAIL"))
    assert unmet("v2-concept", both, TRUTH, "clt") == []
    assert unmet("v2-concept", without, TRUTH, "clt") != []
    truth = demo.truth_about("v2-concept", "clt")
    assert truth["sequences"] >= 3 * demo.CUSTOMERS
    assert truth["shares"]["effect"]["share"] > 0.25
    assert demo.row_name("v2", "dictionary") == "v2"


def test_the_picture_escapes_what_it_shows_and_names_each_release():
    row = {
        "release": "v<2>",
        "behaviour": "PASS",
        "reconstruction": "FAIL",
        "input drift": "FAIL",
        "valid": "FAIL",
        "before": "RETRAIN",
        "followed by": "polish",
        "valid now": "PASS",
        "same": "FAIL",
        "changed": 0.41,
        "verdict": "FAIL",
        "action": "ADAPT + REVIEW",
        "truth": 0.4,
        "story": "a & b",
    }
    wide, narrow = demo_table.table_svg([row]), demo_table.narrow_svg([row])
    for svg in (wide, narrow):
        assert "v&lt;2&gt;" in svg
        assert "a &amp; b" in svg
        assert "<script" not in svg
        assert "before: RETRAIN" in svg and "ADAPT + REVIEW" in svg and "41 %" in svg
    assert "now PASS, polish" in wide and "by polish: now PASS" in narrow
    assert "41 %" in demo_table.table_text([row])


def test_the_picture_for_a_phone_is_of_the_same_run_and_fits_there():
    "What the wide one says of each release stands in it too, in letters of 12 pixels or more."
    images = Path(__file__).parents[1] / "nbs" / "images"
    wide, narrow = ((images / name).read_text() for name in demo.PICTURES)
    title = re.compile("<title>(.*)</title>")
    assert title.search(wide)[1] == title.search(narrow)[1]
    for shown in re.findall(r">[●■◆] (?:PASS|FAIL) ([^<]*%)<", wide):
        assert shown in narrow
    assert 'viewBox="0 0 390 ' in narrow
    texts = re.findall(r'<text x="(\d+)"([^>]*)>([^<]*)<', narrow)
    for x, how, text in texts:
        size = int(re.search(r'font-size="(\d+)"', how)[1])
        assert size >= 12
        if "anchor" not in how:
            assert int(x) + 0.5 * size * len(unescape(text)) <= 388, text
    page = (images.parent / "index.ipynb").read_text()
    assert "demo-narrow.svg" in page and "max-width" in page


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    rows = demo.run_demo(tmp_path / "demo")
    assert [r["unmet"] for r in rows] == [[]] * 6
    assert rows[-1]["release"] == "v2-concept, CLT"
    assert demo.keep(tmp_path / "demo", tmp_path / "nbs").joinpath("report.html").exists()
