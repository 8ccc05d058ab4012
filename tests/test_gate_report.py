"The report: what it says in each case, word by word, and what it must never hold."

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from helpers import refused

from interpkit.core.errors import InterpkitError
from interpkit.core.files import write_json
from interpkit.drift.comparison import Comparison
from interpkit.drift.figures import (
    deletion_figure,
    firing_figure,
    statements_figure,
    watched_figure,
)
from interpkit.drift.measure import measure_all
from interpkit.drift.page import page_one, short_html, summary_lines
from interpkit.drift.plan import plan_check, preview
from interpkit.drift.printed import printed
from interpkit.drift.simulate import small_world
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.drift.verdict import judge
from interpkit.drift.words import interval, share
from interpkit.gate import report
from interpkit.gate.report import report_html, write_report

LIMITS = {
    "splice error": ("valid", 0.051),
    "error share": ("valid", 0.07),
    "activation": ("same", 0.25),
    "effect": ("same", 0.25),
}


def statement(name, ratio, lower, upper, change=None, segment="", n=1000, n_eff=None):
    question, limit = LIMITS.get(name, ("same", 0.5))
    n_eff = n if n_eff is None else n_eff
    outcome, reason = "INCONCLUSIVE", "the limit lies inside of the interval"
    if n_eff < 50:
        reason = f"{n_eff} effective groups, at least 50 needed"
    elif upper < limit:
        outcome = "PASS"
    elif lower > limit:
        outcome = "FAIL"
    return Statement(
        name,
        question,
        limit,
        segment,
        ratio,
        lower,
        upper,
        n,
        float(n_eff),
        ratio / 30 or 1e-9,
        change,
        outcome,
        reason,
    )


FINE = [
    statement("splice error", 0.002, 0.001, 0.004),
    statement("error share", 0.02, 0.018, 0.022),
    statement("activation", 0.0, 0.0, 0.001),
    statement("effect", 0.11, 0.1, 0.12),
]
CHANGED = FINE[:3] + [statement("effect", 0.91, 0.85, 0.98)]
TRAVEL = statement("effect: foreign travel", 0.62, 0.57, 0.68, -0.38)
PRINTED = dict(
    behaviour=dict(
        auc_old=0.8051,
        auc_new=0.7338,
        labelled=880,
        rank_correlation=0.708,
        flipped=0.061,
        top_replaced=0.34,
    ),
    reconstruction=dict(
        sites={"model.layers.1:out": dict(fvu_old=0.009, fvu_new=0.009, l0_old=8.1, l0_new=8.2)},
        firing=[dict(feature="foreign travel", old=0.2, new=0.31)],
    ),
    subspace={
        "model.layers.1:out": dict(
            outside_old=0.01, outside_new=0.012, largest_angle=12.0, mean_angle=3.0
        )
    },
    deletion={
        side: dict(steps=[1, 2], attributed=[0.4, 0.6], random=[0.1, 0.2])
        for side in ("new", "old")
    },
)


def plan_of(statements, new="v2-concept", **kw):
    return Plan(
        tuple(statements),
        (0,),
        dict(name="v1", fingerprint="a" * 64),
        dict(name=new, fingerprint="b" * 64),
        "d" * 64,
        "c" * 64,
        "e" * 64,
        (),
        dict(splice_error=0.001, error_share=0.02),
        512,
        1000,
        1000,
        **kw,
    )


def verdict(statements, new="v2-concept", notes=(), collect="as judged", sensitivity=None):
    v = judge(statements, plan_of(statements, new), notes=notes)
    return replace(
        v,
        sensitivity=sensitivity
        or {k: dict(valid=v.valid, same=v.same) for k in ("half", "double")},
        collect=v.collect if collect == "as judged" else collect,
    )


def folder_of(path, v, plan=None, printed=PRINTED, preview=None):
    path.mkdir(exist_ok=True)
    for name, content in (
        ("verdict", v.to_dict()),
        ("preregistration", (plan or plan_of(v.statements, v.new["name"])).to_dict()),
        ("printed", printed),
        ("preview", preview),
    ):
        if content is not None:
            write_json(path / f"{name}.json", content)
    return path


def said(v, title):
    "The sentences of one part of page 1, as one text."
    parts = page_one(v, PRINTED, plan_of(v.statements))
    return " ".join(next(p for p in parts if p.title == title).sentences)


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.out = []
        self.tags = []
        self.attributes = []
        self.hidden = 0

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.hidden += tag in ("style", "title", "desc")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("style", "title", "desc")

    def handle_data(self, data):
        self.out += [] if self.hidden else [data]


def read(html):
    p = Text()
    p.feed(html)
    return p, re.sub(r"\s+", " ", " ".join(p.out)).replace(" .", ".")


# what it says


def test_review_says_what_the_design_says():
    v = verdict([*CHANGED, TRAVEL, statement("effect: salary in", 0.2, 0.18, 0.23, 0.01)])
    lines = summary_lines(v, PRINTED)
    assert lines[:2] == [
        "v1 -> v2-concept: FAIL, REVIEW.",
        "The old explanations must not be used for this release.",
    ]
    assert "Valid? PASS (splice error 0.2 %, at most 5.1 %; error share 2 %, at most 7 %)." in lines
    assert said(v, "Same?") == (
        "FAIL: 91 % of the explanations changed [85, 98], at most 25 % may; "
        "activations changed by 0 % [0, 0.1], at most 25 % may (PASS). "
        "1 of 2 watched features acts differently (at most 50 % of each may change): "
        '"foreign travel" 62 % changed [57, 68], on the whole weaker by 38 %.'
    )
    assert (
        "AUC 0.805 old and 0.734 new on 880 labelled sequences; rank correlation 0.71; "
        "6.1 % of the decisions flipped; 34 % of the highest 5 % replaced."
    ) in said(v, "Behaviour")
    assert "signs" in said(v, "Next")
    assert lines[-1].strip() == "ipk verify evidence"


def test_reuse_holds_and_keeps_the_dictionary():
    v = verdict(
        [
            *FINE,
            statement("effect: salary in", 0.2, 0.18, 0.23, 0.01),
            statement("activation: salary in", 0.1, 0.08, 0.13, 0.01),
        ],
        "v1-tail",
    )
    assert v.headline == "v1 -> v1-tail: PASS, REUSE"
    lead = said(v, "v1 -> v1-tail: PASS, REUSE.")
    assert lead.startswith("The old explanations hold for this release.")
    assert said(v, "Same?").endswith(
        "The one watched feature acts and fires as before (at most 50 % of each may change)."
    )
    assert said(v, "Next").startswith("Keep the dictionary of v1 for v1-tail")


def test_retrain_gives_the_interval_and_the_command():
    v = verdict([statement("splice error", 0.39, 0.31, 0.5), *FINE[1:]])
    assert (
        said(v, "Valid?")
        == "FAIL (splice error 39 % [31, 50], at most 5.1 %; error share 2 %, at most 7 %)."
    )
    assert v.action == "RETRAIN"
    assert summary_lines(v)[-1].strip().startswith("ipk train --release")
    assert "does not carry its decisions" in summary_lines(v)[1]


def test_collect_says_how_many_more_and_what_is_open():
    v = verdict(
        [
            *FINE,
            statement("effect: foreign travel", 0.4, 0.28, 0.57, n=120),
            statement("effect", 0.2, 0.15, 0.27, segment="online", n=300),
        ],
        collect=2400,
    )
    assert v.action == "COLLECT"
    assert (
        "Collect about 2,400 sequences, 1,400 more than these 1,000. 2 of 6 statements are open: "
        'effect of "foreign travel"; effect in segment "online".'
    ) in said(v, "Next")
    assert (
        'Of 1 segment, 1 open: "online" '
        "(20 % of the explanations changed [15, 27], at most 25 % may)."
    ) in said(v, "Same?")
    assert "yet" in summary_lines(v)[1]


def test_collect_never_asks_for_fewer_than_there_are():
    v = verdict([*FINE, statement("effect: rare", 0.1, 0.05, 0.2, n_eff=31)], collect=100)
    assert "more than these" not in said(v, "Next")
    assert "beyond these 1,000" in said(v, "Next")
    assert '"rare" 10 % changed [5, 20], in 31 sequences only' in said(v, "Same?")


def test_a_share_at_its_limit_is_not_a_matter_of_numbers():
    v = verdict([*FINE[:3], statement("effect", 0.2501, 0.23, 0.27)], collect=None)
    assert said(v, "Next").startswith(
        "No number of sequences would settle it: a share sits at its limit. "
        "1 of 4 statements is open: effect."
    )


def test_a_release_of_another_width_is_said_once():
    whole = [
        replace(s, ratio=1.0, lower=1.0, upper=1.0, spread=0.0, outcome="FAIL")
        for s in [*FINE, TRAVEL]
    ]
    v = verdict(whole, "v3-wide", notes=("1:out is 24 wide in v3-wide and 16 in the dictionary",))
    assert "1:out is 24 wide in v3-wide and 16 in the dictionary." in summary_lines(v)
    assert said(v, "Same?") == "FAIL: every explanation counts as changed."
    assert "can't be read on this release" in said(v, "Valid?")
    assert "foreign travel" not in "".join(summary_lines(v))
    printed = dict(behaviour=PRINTED["behaviour"])
    assert "<svg" not in report_html(v, plan_of(whole), printed)


def test_no_labels_no_watched_features_constant_decisions():
    v = verdict(FINE)
    b = dict(PRINTED["behaviour"], auc_old=None, auc_new=None, labelled=0, rank_correlation=None)
    text = "\n".join(summary_lines(v, dict(behaviour=b)))
    no_auc = (
        "No labels, so no AUC; no rank correlation, because one release always decides the same"
    )
    assert no_auc in text
    assert "No feature is watched on its own." in text
    alike = "\n".join(summary_lines(v, dict(behaviour=b | dict(labelled=5))))
    assert "No AUC, because all labels are alike" in alike


def test_large_shares_are_multiples():
    v = verdict(
        [
            *FINE[:3],
            statement("effect", 2.91, 2.12, 3.94),
            statement("effect: rare", 1.4, 1.2, 1.7, -1.3),
            statement("effect: more", 3.1, 2.5, 3.9, 2.9),
        ]
    )
    text = said(v, "Same?")
    assert "the explanations changed by 2.9x their size [2.1x, 3.9x]" in text
    assert '"more" 3.1x changed [2.5x, 3.9x], on the whole 3.9 times as strong' in text
    assert '"rare" 140 % changed [120, 170], on the whole in the opposite direction' in text


def test_sensitivity_names_what_would_change():
    v = verdict(
        CHANGED,
        sensitivity=dict(
            half=dict(valid="PASS", same="FAIL"), double=dict(valid="PASS", same="INCONCLUSIVE")
        ),
    )
    title = "Would the verdict change at half or double the limits?"
    assert said(v, title) == "Yes: INCONCLUSIVE at double the limits."
    assert [r["verdict"] for r in next(p for p in page_one(v) if p.title == title).rows] == [
        "FAIL",
        "FAIL",
        "INCONCLUSIVE",
    ]


def test_an_interval_never_reads_like_its_limit():
    for lower, upper in ((0.2504, 0.31), (0.21, 0.2496), (0.2451, 0.2549)):
        middle = (lower + upper) / 2
        near = Statement("effect", "same", 0.25, ratio=middle, lower=lower, upper=upper)
        ends = interval(near).strip("[]").split(", ")
        assert "25" not in ends
        assert (float(ends[0]) > 25) == (lower > 0.25)
        assert (float(ends[1]) > 25) == (upper > 0.25)
    assert share(float("inf")) == "unknown"


def test_what_could_not_be_measured_is_not_said_to_be_zero(tmp_path):
    for ratio, upper, reason in (
        (None, None, "no sequence"),
        (0.0, None, "nothing to compare with"),
    ):
        lost = Statement(
            "effect: rare",
            "same",
            0.5,
            "",
            ratio,
            None if ratio is None else 0.0,
            upper,
            60,
            60.0,
            0.0,
            None,
            "INCONCLUSIVE",
            reason,
        )
        v = verdict([*FINE, lost], collect=2000)
        assert (
            "Whether 1 of 1 watched features acts differently is open "
            f'(at most 50 % of each may change): "rare" ({reason}).'
        ) in said(v, "Same?")
        _, text = read(write_report(folder_of(tmp_path / "run", v)).read_text())
        assert f"INCONCLUSIVE : {reason}" in text


def test_a_teams_own_family_is_named_and_its_error_rates_are_not_claimed():
    own = Statement(
        "calibration", "same", 0.2, "", 0.3, 0.26, 0.35, 1000, 1000.0, 0.01, None, "FAIL", ""
    )
    v = verdict([*FINE, own])
    assert "calibration 30 % [26, 35], at most 20 %" in said(v, "Same?")
    plan = replace(plan_of([*FINE, own]), families=("bank.tests:Mine",))
    errors = next(p for p in page_one(v, plan=plan) if p.title == "Error rates")
    not_covered = "Not covered by that benchmark: the team's own bank.tests:Mine"
    assert not_covered in " ".join(errors.sentences)


# the page


def test_page_one_is_in_the_order_in_which_a_person_asks(tmp_path):
    v = verdict([*CHANGED, TRAVEL])
    _, text = read(write_report(folder_of(tmp_path / "run", v)).read_text())
    order = [
        "v1 -> v2-concept: FAIL, REVIEW.",
        "The old explanations must not be used for this release.",
        "Valid?",
        "Same?",
        "Behaviour",
        "Would the verdict change",
        "Error rates",
        "Not tested",
        "Next",
        "ipk verify evidence",
        "Statements",
        "The plan",
        "Printed, not judged",
        "Words",
    ]
    at = [text.index(x) for x in order]
    assert at == sorted(at)
    error_rates, not_tested = text[at[6] : at[7]], text[at[7] : at[8]]
    assert "gate_error_rates" in error_rates
    assert "the other 511 of 512 features" in not_tested
    assert "model.layers.1:out alone" in not_tested
    for number in (
        "1,000",
        "85, 98",
        "a" * 64,
        "b" * 64,
        "c" * 64,
        "d" * 64,
        "e" * 64,
        "0.8051",
        "principal angle",
    ):
        assert number in text[at[10] :]


def test_words_are_the_same_in_terminal_and_page(tmp_path):
    v = verdict([*CHANGED, TRAVEL])
    _, text = read(write_report(folder_of(tmp_path / "run", v)).read_text())
    html = (tmp_path / "run/report.html").read_text()
    for part in page_one(v, PRINTED, plan_of(v.statements)):
        for sentence in part.sentences:
            assert sentence in text or sentence.split(" ", 1)[1] in text, sentence
    assert "</span> PASS</b> (splice error 0.2 %, at most 5.1 %;" in html
    assert "</span> FAIL</b>: 91 % of the explanations changed [85, 98], at most 25 % may;" in html


NASTY = "<script>alert('1')</script> & \"$x^2$\" \x1b[31m\nnext <img src=http://evil.example/x.png>"


def test_everything_is_escaped_and_nothing_runs_or_loads(tmp_path):
    own = [
        statement(f"effect: {NASTY}", 0.62, 0.57, 0.68, -0.38),
        statement("effect", 0.3, 0.26, 0.35, segment=NASTY),
    ]
    v = replace(
        verdict([*CHANGED, *own], new=NASTY, notes=(NASTY,)),
        changed=(
            dict(
                family="effect", feature=NASTY + "2", share=0.9, lower=0.8, upper=1.1, change=-0.2
            ),
        ),
    )
    printed = dict(
        PRINTED,
        reconstruction=dict(
            PRINTED["reconstruction"], firing=[dict(feature=NASTY, old=0.1, new=0.2)]
        ),
    )
    foreseen = dict(
        statement="effect", segment=NASTY, limit=0.25, sequences=10, needed=99, settles=False
    )
    run = folder_of(tmp_path / "run", v, printed=printed, preview=[foreseen])
    html = write_report(run).read_text()
    p, _ = read(html)
    assert not {"script", "img", "link", "iframe", "object", "embed", "form", "base"} & set(p.tags)
    assert not [k for k, _ in p.attributes if k.startswith("on") or k == "src"]
    links = [value for k, value in p.attributes if k in ("href", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert re.findall(r"url\((?!#)[^)]*\)|@import", html) == []
    assert "default-src 'none'" in html
    assert "\x1b" not in html
    for line in summary_lines(v, printed):
        assert "\x1b" not in line
        assert "\n" not in line
    fragment, _ = read(short_html(v, printed))
    assert "script" not in fragment.tags
    assert "img" not in fragment.tags


def test_ids_are_unique_and_references_resolve(tmp_path):
    fires = statement("activation: foreign travel", 0.2, 0.1, 0.3, 0.1)
    run = folder_of(tmp_path / "run", verdict([*CHANGED, TRAVEL, fires]))
    p, _ = read(write_report(run).read_text())
    ids = [value for k, value in p.attributes if k == "id"]
    assert len(ids) == len(set(ids)) > 10
    assert p.tags.count("svg") == 5
    links = {value[1:] for k, value in p.attributes if k in ("href", "xlink:href")}
    assert links <= set(ids)
    labels = [value.split() for k, value in p.attributes if k == "aria-labelledby"]
    assert set().union(*labels) <= set(ids)


def test_same_folder_same_bytes(tmp_path):
    v = verdict([*CHANGED, TRAVEL])
    one, two = (
        write_report(folder_of(tmp_path / name, v), tmp_path / f"{name}.html").read_bytes()
        for name in ("a", "another-name")
    )
    assert one == two
    assert str(tmp_path).encode() not in one
    assert b"dc:date" not in one
    assert sorted(x.name for x in (tmp_path / "a").iterdir()) == [
        "preregistration.json",
        "printed.json",
        "verdict.json",
    ]
    assert write_report(tmp_path / "a").name == "report.html"


def test_figures_say_in_words_what_they_show():
    svg = statements_figure(
        [statement("effect", 0.91, 0.85, 0.98), statement("splice error", 0.002, 0.001, 0.004)]
    )
    shown = (
        "effect: 91 % [85, 98], limit 25 %: FAIL; splice error: 0.2 % [0.1, 0.4], limit 5.1 %: PASS"
    )
    assert shown in unescape(svg)
    assert ">FAIL<" in svg
    assert 'role="img"' in svg
    assert "−38 %" in watched_figure([TRAVEL])
    assert "20 % → 31 %" in firing_figure(PRINTED["reconstruction"]["firing"])
    turned = dict(reversed(PRINTED["deletion"].items()))
    assert deletion_figure(PRINTED["deletion"]) == deletion_figure(turned)
    assert svg.lstrip().startswith("<svg")
    assert "<?xml" not in svg
    assert "DOCTYPE" not in svg


def test_figures_do_not_depend_on_a_persons_matplotlib_style():
    import matplotlib

    plain = watched_figure([TRAVEL])
    with matplotlib.rc_context(
        {"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "black"}
    ):
        assert watched_figure([TRAVEL]) == plain


def test_many_segments_are_drawn_in_part_and_listed_in_full(tmp_path):
    many = [
        statement("effect", 0.11 + i / 1000, 0.1, 0.2, segment=f"segment {i}") for i in range(60)
    ]
    v = verdict([*FINE, *many])
    _, text = read(write_report(folder_of(tmp_path / "run", v)).read_text())
    assert "Each of the 60 segments passes as well." in text
    assert "closest to their limit" in text
    assert text.count('"segment 7"') == 1


def test_a_foreign_file_is_refused(tmp_path):
    folder = folder_of(tmp_path / "run", verdict(FINE))
    write_json(folder / "verdict.json", dict(verdict="PASS"))
    refused(lambda: write_report(folder))
    assert not (folder / "report.html").exists()
    write_json(
        folder / "verdict.json", dict(verdict(FINE).to_dict(), verdict="PASS onclick=alert(1)")
    )
    refused(lambda: write_report(folder), "onclick")
    (folder / "verdict.json").unlink()
    with pytest.raises(InterpkitError, match="verdict.json"):
        write_report(folder)


def test_a_full_disk_leaves_no_half_report(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "run", verdict(FINE))
    write_report(folder).write_text("old")

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(InterpkitError) as e:
        write_report(folder)
    assert e.value.code == 75
    assert (folder / "report.html").read_text() == "old"
    assert not [x for x in folder.iterdir() if "aside" in x.name]


def test_no_customer_id_reaches_the_report(tmp_path):
    world = small_world(n=300)
    rows = world.rows.assign(
        sequence_id=[f"customer-{i:06d}" for i in range(300)],
        group_id=[f"household-{i // 2:06d}" for i in range(300)],
    )
    new = dict(name="v2", fingerprint="b" * 64)
    plan, scores = plan_check(world.old, world.dictionary, rows, new=new)
    comparison = Comparison(world.old, world.new, world.dictionary, rows, plan, salt="salt")
    table = measure_all(comparison)
    v = judge(decide(table, plan), plan, table)
    run = folder_of(tmp_path / "run", v, plan, printed(comparison))
    html = write_report(run, preview=preview(plan, scores, rows)).read_text()
    assert "customer-" not in html
    assert "household-" not in html
    assert not set(comparison.frame.sequence) & set(re.findall(r"[0-9a-f]{16}", html))
    assert "v1 -&gt; v2" in html
    assert "150 groups" in html
