"The report: what it says in each case, word by word, and what it must never hold."

import random
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from helpers import refused

from interpkit.core import files
from interpkit.core.errors import InterpkitError
from interpkit.core.files import write_json
from interpkit.core.row_words import row_words
from interpkit.drift.caveats import CONDITIONS
from interpkit.drift.changed import contributor_rows
from interpkit.drift.comparison import Comparison
from interpkit.drift.figures import (
    deletion_figure,
    firing_figure,
    statements_figure,
    watched_figure,
)
from interpkit.drift.measure import measure_all
from interpkit.drift.page import FOLLOW, page_one, short_html, summary_lines
from interpkit.drift.plan import plan_check, preview
from interpkit.drift.printed import printed
from interpkit.drift.simulate import small_world
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.drift.verdict import judge
from interpkit.drift.words import interval, share
from interpkit.gate import report
from interpkit.gate.numbers import statement_rows
from interpkit.gate.report import HOW_SURE, report_html, write_report

LIMITS = {
    "splice error": ("valid", 0.051),
    "error share": ("valid", 0.07),
    "active features": ("valid", 1.5),
    "activation": ("moved", 0.05),
    "effect": ("same", 0.15),
    "inputs": ("same", 0.15),
    "decisions": ("same", 0.10),
}


def statement(name, ratio, lower, upper, change=None, segment="", n=1000, n_eff=None):
    question, limit = LIMITS.get(name, ("same", 0.3))
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


VALID = [
    statement("splice error", 0.002, 0.001, 0.004),
    statement("error share", 0.02, 0.018, 0.022),
    statement("active features", 1.01, 0.98, 1.04),
]
HERE = statement("activation", 0.0, 0.0, 0.001)
MOVED = statement("activation", 0.94, 0.9, 0.97)
EFFECT = statement("effect", 0.11, 0.1, 0.12)
MODEL = [statement("inputs", 0.05, 0.04, 0.06), statement("decisions", 0.02, 0.015, 0.03)]
FINE = [*VALID, HERE, EFFECT, *MODEL]
CHANGED = [*VALID, HERE, statement("effect", 0.59, 0.54, 0.64), *MODEL]
OTHER_INPUTS = [
    *CHANGED[:5],
    statement("inputs", 0.52, 0.47, 0.58),
    statement("decisions", 0.36, 0.33, 0.4),
]
TRAVEL = statement("effect: foreign travel", 0.62, 0.57, 0.68, -0.38)


def alerts(effect=0.04, inputs=0.05, n=100, **more):
    "Effect and inputs of the alerts, with intervals a quarter wide."
    pairs = (("effect", effect), ("inputs", inputs))
    return [statement(k, x, x * 0.8, x * 1.25, None, "alerts", n, **more) for k, x in pairs]


def contributor(name, was, now, lost, change):
    return dict(name=name, was=was, now=now, lost=lost, change=change)


NIGHT = contributor("night", 0.0, 0.21, 0.48, 0.3)
HOUR = contributor("hour", 0.01, 0.3, 0.55, 0.31)
COUNTRY = contributor("country", 0.4, 0.28, 0.2, -0.1)
PRINTED = dict(
    behaviour=dict(
        auc_old=0.8051,
        auc_new=0.7338,
        labelled=880,
        rank_correlation=0.708,
        flipped=0.061,
        threshold=0.5,
        top_replaced=0.34,
        factor=1.0,
        identical=False,
        main_reason_replaced=0.21,
        sign_turned=dict(effect=0.08, inputs=0.09),
        unexplained=0.12,
    ),
    contributions={
        "effect": {"": [NIGHT], "alerts": [NIGHT]},
        "inputs": {"": [HOUR, COUNTRY], "alerts": [COUNTRY]},
    },
    bypass=dict(old=0.1, new=0.12),
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


def plan_of(statements, new="v2-concept", about=None, **kw):
    plan = Plan(
        tuple(statements),
        (0,),
        dict(name="v1", fingerprint="a" * 64),
        dict(name=new, fingerprint="b" * 64),
        "d" * 64,
        "c" * 64,
        "e" * 64,
        (),
        dict(splice_error=0.001, error_share=0.02),
        features=512,
        **dict(sequences=1000, groups=1000) | kw,
    )
    if about is not None:
        object.__setattr__(plan, "about", about)
    return plan


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


def part(v, title, printed=PRINTED, plan=None, run=None):
    "One part of page 1, or None."
    parts = page_one(v, printed, plan or plan_of(v.statements), run)
    return next((p for p in parts if p.title == title), None)


def said(v, title, printed=PRINTED, plan=None, run=None):
    "The sentences of one part of page 1, as one text."
    return " ".join(part(v, title, printed, plan, run).sentences)


def led(v, printed=PRINTED, plan=None):
    "What leads the page."
    return said(v, v.headline + ".", printed, plan)


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


def test_review_names_what_changed():
    v = verdict([*OTHER_INPUTS, TRAVEL, statement("effect: salary in", 0.2, 0.18, 0.23, 0.01)])
    lines = summary_lines(v, PRINTED)
    assert lines[:2] == [
        "v1 -> v2-concept: FAIL, REVIEW.",
        "The old explanations must not be used for this release: "
        "it decides in part for other reasons than v1.",
    ]
    assert said(v, "Valid?") == (
        "PASS: 0.2 % of the decision's variation is lost when the dictionary stands in, at most "
        "5.1 %; 2 % of what moves the decision is left out, at most 7 %; it needs as many features "
        "as before, at most 1.5 times."
    )
    assert said(v, "Same?") == (
        "FAIL: 59 % of what the reasons weigh is not shared by both releases [54, 64], at most "
        "15 %. Without the dictionary, 52 % of what the inputs weigh is not shared [47, 58], at "
        "most 15 %. 36 % of what the decisions say is not shared [33, 40], at most 10 %. "
        "What the dictionary reads is as before: 0 % of the activations are not shared [0, 0.1], "
        "at most 5 %. 1 of 2 watched features acts differently (at most 30 % of each may differ): "
        '"foreign travel" 62 % not shared [57, 68], on the whole weaker by 38 %.'
    )
    assert said(v, "Next").startswith(
        "v2-concept does not reason as v1 did. The change shows in effect, inputs and decisions; "
        'in the effect of the feature "foreign travel". The largest parts of the change lie in '
        'the feature "night" (48 %), and in the inputs "hour" (55 %) and "country" (20 %). '
        "The person who answers"
    )
    assert part(v, "What changed").rows[0] == {
        "reason": 'feature "night"',
        "weight before": "none",
        "weight now": "21 %",
        "of the change": "48 %",
        "pushes decisions": "higher",
    }


def test_behaviour_is_told_at_the_threshold_of_the_policy():
    assert said(verdict(CHANGED), "Behaviour") == (
        "6.1 % of the decisions flip at the threshold 0.5; 34 % of the highest 10 % are replaced. "
        "AUC 0.805 old and 0.734 new on 880 labelled sequences; rank correlation 0.71. "
        "Another main reason in 21 % of the sequences; the sign turned for 8 % of what the reasons "
        "weigh and 9 % of what the inputs weigh; 12 % of the new decisions' variation is not in "
        "the old ones. This is printed and decides nothing."
    )


def test_reuse_is_no_approval():
    well = statement("effect: salary in", 0.2, 0.18, 0.23, 0.01)
    v = verdict([*FINE, *alerts(), well], "v1-tail")
    assert v.headline == "v1 -> v1-tail: PASS, REUSE"
    assert led(v).startswith(
        "The old explanations hold for this release. This is no approval of the release. "
        "6.1 % of the decisions flip at the threshold 0.5 and 34 % of the highest 10 % are replaced"
    )
    assert said(v, "Same?").endswith(
        "The one watched feature acts as before (at most 30 % of each may differ)."
    )
    assert said(v, "Alerts").startswith(
        "PASS for the 100 sequences with the highest decisions of v1: 5 % of what the inputs weigh"
    )
    assert part(v, "What changed") is None
    assert said(v, "Next").startswith("Keep the dictionary of v1 for v1-tail")


def test_retrain_says_that_the_model_is_the_same():
    lost = statement("splice error", 1.39, 1.31, 1.5)
    effect = statement("effect", 0.96, 0.94, 0.97)
    there = [replace(MOVED, segment="alerts"), *alerts(0.9, 0.05)]
    v = verdict([lost, *VALID[1:], MOVED, effect, *MODEL, TRAVEL, *there])
    assert v.action == "RETRAIN"
    assert led(v).startswith(
        "The model's reasons are the same, as far as inputs and decisions show, but the old "
        "dictionary no longer fits it."
    )
    assert said(v, "Same?") == (
        "PASS without the dictionary: 5 % of what the inputs weigh is not shared [4, 6], at most "
        "15 %. 2 % of what the decisions say is not shared [1.5, 3], at most 10 %. "
        "The dictionary does not fit this release, so it is no witness: by it, 96 % of what the "
        "reasons weigh is not shared by both releases [94, 97], at most 15 % (FAIL). "
        "What the dictionary reads has moved: 94 % "
        "of the activations are not shared [90, 97], at most 5 %. "
        "So nothing is said here of single features."
    )
    assert said(v, "Alerts").startswith("PASS for the 100 sequences")
    assert "foreign travel" not in "".join(summary_lines(v, PRINTED))
    assert "night" not in "".join(summary_lines(v, PRINTED))
    assert "no cause to send v2-concept back" in said(v, "Next")
    assert summary_lines(v)[-1].strip().startswith("ipk adapt --old OLD --new NEW")


def test_review_says_that_the_dictionary_does_not_fit_and_how_to_get_another():
    lost = statement("splice error", 0.39, 0.31, 0.5)
    v = verdict([lost, *VALID[1:], MOVED, *OTHER_INPUTS[4:]])
    assert v.action == "REVIEW"
    assert "Nor does the old dictionary carry its decisions." in led(v)
    assert (
        "Before decisions of v2-concept can be explained, the dictionary has to follow "
        "v2-concept, by several thousand sequences that no check uses: "
        "`ipk adapt --old OLD --new NEW --dictionary DIR --data FILE --out DIR`."
    ) in said(v, "Next")
    assert "ipk adapt" not in said(verdict(OTHER_INPUTS), "Next")
    assert said(v, "Same?").startswith("FAIL without the dictionary: 52 % of what the inputs weigh")
    assert [r["reason"] for r in part(v, "What changed").rows] == [
        'input "hour"',
        'input "country"',
    ]


LOST = statement("splice error", 3.9, 3.1, 4.8)
UNFIT = {
    "retrain": [LOST, MOVED, EFFECT, *MODEL, TRAVEL],
    "review": [LOST, MOVED, EFFECT, *OTHER_INPUTS[5:], TRAVEL],
    "collect": [LOST, MOVED, EFFECT, statement("inputs", 0.14, 0.1, 0.2), MODEL[1], TRAVEL],
}


@pytest.mark.parametrize("action", UNFIT)
def test_what_an_unfit_dictionary_says_is_told_as_no_fact(action):
    v = verdict(UNFIT[action])
    assert v.action == action.upper()
    assert "of what inputs weigh is not shared" in repr(v)
    page = "\n".join(summary_lines(v, PRINTED, plan_of(v.statements)))
    for fact in ("main reason", "of what the reasons weigh and", "foreign travel", "but for 1"):
        assert fact not in page
    assert "The sign turned for 9 % of what the inputs weigh; 12 % of the new" in page
    assert "Any feature on its own: on this release, the dictionary is no witness for it." in page
    assert f"`{FOLLOW}`" in page or page.endswith(FOLLOW)
    _, report = read(report_html(v, plan_of(v.statements), PRINTED))
    reserved = "it is no witness: all that is told below of effects, features and reasons"
    assert report.count(reserved) == 2
    _, fine = read(report_html(verdict(CHANGED), plan_of(CHANGED), PRINTED))
    assert "no witness: all" not in fine


def test_an_error_larger_than_the_whole_is_no_share():
    text = said(verdict([LOST, *FINE[1:]]), "Valid?")
    assert text.startswith(
        "FAIL: the dictionary's account of the decision is worse than none, its error being 3.9 "
        "times the decision's own variation, and at most 5.1 % may be lost; 2 % of what moves"
    )
    assert "all of" not in text


@pytest.mark.parametrize(
    "statements, why",
    [
        (UNFIT["collect"], "it fails, because the old dictionary does not carry its decisions;"),
        (
            [
                *VALID,
                replace(MOVED, outcome="INCONCLUSIVE"),
                statement("effect", 0.9, 0.8, 1),
                *MODEL,
            ],
            "it fails, because what the dictionary reads in it weighs otherwise than in v1;",
        ),
    ],
    ids=("valid", "same"),
)
def test_a_fail_that_has_to_collect_says_both_in_one_sentence(statements, why):
    "Page 1, exit code and the words for exit codes agree: it is a FAIL, 10."
    v = verdict(statements)
    assert (v.outcome, v.action, int(v.exit_code)) == ("FAIL", "COLLECT", 10)
    assert led(v).startswith(
        f"The old explanations must not be used for this release: {why} and whether the release "
        "itself decides for other reasons than v1 is open. "
    )
    assert "Collect about" in said(v, "Next")


def test_ranks_that_agree_nearly_are_not_said_to_agree():
    for rho, text in ((1.0, "1"), (0.996, "0.996"), (0.9999999, "over 0.9999"), (0.708, "0.71")):
        behaviour = dict(PRINTED["behaviour"], rank_correlation=rho, auc_old=0.99971)
        words = said(verdict(FINE), "Behaviour", dict(behaviour=behaviour))
        assert f"rank correlation {text}." in words
        assert "AUC 0.9997 old" in words
    assert [share(x) for x in (0.994, 0.9962, 0.9997, 1.0)] == [
        "99 %",
        "99.6 %",
        "over 99.9 %",
        "100 %",
    ]
    nearly = statement("effect", 0.9962, 0.9951, 0.99999)
    assert interval(nearly) == "[99.5, 99.9]"


def test_two_releases_of_one_name_are_told_apart():
    new = dict(name="v1", fingerprint="b" * 64)
    v = replace(verdict([*OTHER_INPUTS, *alerts(0.9, 0.95)]), new=new)
    plan = replace(plan_of(v.statements), new=new)
    assert v.headline == "v1 (aaaaaa) -> v1 (bbbbbb): FAIL, REVIEW"
    page = "\n".join(summary_lines(v, PRINTED, plan))
    assert "v1 (bbbbbb) does not reason as v1 (aaaaaa) did." in page
    assert not re.search(r"\bv1\b(?! \()", page)
    again = replace(v, new=v.old)
    assert again.headline == "v1 -> v1: FAIL, REVIEW"  # one release, checked against itself


def test_alerts_decide_the_answer_where_the_dictionary_is_no_witness_too():
    "A FAIL by the alerts alone read 'Same? PASS' on a page whose verdict was FAIL."
    lost = statement("splice error", 3.8, 3.0, 4.6)
    alone = statement("inputs", 0.4, 0.3, 0.5, segment="alerts", n=100)
    v = verdict([lost, MOVED, EFFECT, *MODEL, alone])
    assert (v.same, v.action) == ("FAIL", "REVIEW")
    words = said(v, "Same?")
    assert "FAIL by the alerts; all sequences together PASS, without the dictionary" in words


def test_a_reason_that_lifts_some_and_lowers_others_pushes_both_ways():
    row = dict(name="inquiries", was=0.01, now=0.2, lost=0.6, change=-0.07, moved=0.78)
    assert contributor_rows([row], "inputs")[0]["pushes decisions"] == "both ways"
    assert contributor_rows([row | dict(moved=0.08)], "inputs")[0]["pushes decisions"] == "lower"


def test_the_signed_whole_is_told():
    behaviour = dict(PRINTED["behaviour"], factor=1.3, identical=True, flipped=0.2)
    none = [replace(s, ratio=0.0, lower=0.0, upper=0.001) for s in [EFFECT, *MODEL]]
    text = said(verdict([*VALID, HERE, *none]), "Same?", dict(behaviour=behaviour))
    assert (
        "Decisions lie 1.3 times as far apart as before. That factor is left out of all shares; "
        "apart from it, 0 % changed."
    ) in text
    assert "Apart from a common factor or shift, the two releases decide identically." in text


@pytest.mark.parametrize(
    "statements, text",
    [
        (FINE, "The two releases decide identically."),
        (
            [*VALID, MOVED, statement("effect", 0.9, 0.8, 0.95), *MODEL],
            "decide identically; inner units were rescaled, permuted, rotated or renamed.",
        ),
        (OTHER_INPUTS, "decide identically here, but not where an input is replaced."),
    ],
    ids=("same", "moved", "other inputs"),
)
def test_identical_decisions_are_told_for_what_they_are(statements, text):
    behaviour = dict(PRINTED["behaviour"], identical=True, flipped=0.0)
    assert text in said(verdict(statements), "Same?", dict(behaviour=behaviour))


def test_alerts_stand_before_other_segments_and_decide():
    north = statement("effect", 0.05, 0.04, 0.06, segment="north")
    v = verdict([*FINE, north, *alerts(0.47, 0.56)])
    assert (v.action, v.same) == ("REVIEW", "FAIL")
    titles = [
        p.title for p in page_one(v, PRINTED, plan_of(v.statements, too_small=dict(abroad=7)))
    ]
    assert titles.index("Alerts") < titles.index("Segments")
    assert said(v, "Alerts") == (
        "FAIL for the 100 sequences with the highest decisions of v1: 56 % of what the inputs "
        "weigh is not shared [45, 70], at most 15 %; 47 % of what the reasons weigh is not shared "
        "by both releases [38, 59], at most 15 %."
    )
    assert "The change shows among the alerts in effect and inputs." in said(v, "Next")
    assert [r["reason"] for r in part(v, "What changed among the alerts").rows] == [
        'feature "night"',
        'input "country"',
    ]
    small = plan_of(v.statements, too_small={"feature night": 31, "abroad": 7, "label 1": 9})
    assert said(v, "Segments", plan=small) == (
        "PASS in the one segment. Too few sequences to judge, so they decide nothing: those with "
        'label 1 (9); "abroad" (7); those with the feature "night" (31).'
    )


def test_too_few_alerts_say_how_to_get_more():
    v = verdict([*FINE, *alerts(n=30)])
    assert v.action == "COLLECT"
    for title in ("Alerts", "Next"):
        assert (
            "Alerts need 100 sequences, and there are 30: that takes at least 3,400 sequences in "
            "all, or more of those with high decisions, with the weight of every sequence in the "
            "column `weight`."
        ) in said(v, title)


def test_a_reason_that_did_not_exist_is_named():
    new = statement("effect: night", 0.99, 0.98, 1.0, 90.0)
    v = judge([*FINE, new], plan_of(FINE))
    text = said(v, "Same?", plan=plan_of(FINE))
    assert "No feature is watched on its own." in text
    assert (
        "One feature carries a part of the new decisions and carried under 2 % of the old ones: "
        '"night" 99 % not shared [98, 100], was hardly a reason before (FAIL).'
    ) in text
    wholly = replace(new, ratio=1.0, change=None)
    assert '"night" 100 % not shared [98, 100], was no reason before' in said(
        judge([*FINE, wholly], plan_of(FINE)), "Same?", plan=plan_of(FINE)
    )


def test_collect_says_how_many_more_and_what_is_open():
    v = verdict(
        [
            *FINE,
            statement("effect: foreign travel", 0.25, 0.2, 0.35, n=120),
            statement("effect", 0.14, 0.1, 0.19, segment="online", n=300),
        ],
    )
    assert v.action == "COLLECT"
    assert v.collect == 19_600
    assert (
        "Collect about 19,600 sequences in all, 18,600 more than these 1,000. 2 of 9 statements "
        "are open and can be settled, by so many sequences: "
        'effect in segment "online" (19,600); effect of "foreign travel" (3,500).'
    ) in said(v, "Next")
    assert said(v, "Segments") == (
        'INCONCLUSIVE: of 1 segment, 1 is open: "online" '
        "(14 % of what the reasons weigh is not shared by both releases [10, 19], at most 15 %)."
    )
    assert "yet" in summary_lines(v)[1]


def test_collect_never_asks_for_fewer_than_there_are():
    wide = statement("effect: wide", 0.9, 0.25, 1.0)  # an end is cut off at 100 %
    v = verdict([*FINE, statement("effect: rare", 0.1, 0.05, 0.2, n_eff=31), wide])
    counts = [int(x.replace(",", "")) for x in re.findall(r"\(([\d,]+)\)", said(v, "Next"))]
    assert len(counts) == 2
    assert min(counts) > 1000
    assert v.collect == max(counts)
    assert '"rare" 10 % not shared [5, 20], in 31 sequences only' in said(v, "Same?")


AT_LIMIT = statement("effect", 0.1501, 0.13, 0.17)


def test_a_share_at_its_limit_is_not_a_matter_of_numbers():
    v = verdict([*VALID, HERE, *MODEL, AT_LIMIT])
    text = said(v, "Next")
    assert (
        "No number of sequences would settle effect (15 %, at most 15 %), which sits at the limit: "
        "a person decides it, or the owner of the limits sets a wider one, with its `why`, and "
        "checks other sequences than these."
    ) in text
    assert "Collect about" not in text


def test_advice_does_not_contradict_itself():
    "'No number of sequences would settle it' stood beside 'take 1,000 sequences'."
    near = [statement("inputs", 0.1499, 0.1, 0.25, segment="alerts", n=30, n_eff=30)]
    v = verdict([*VALID, HERE, *MODEL, AT_LIMIT, *near])
    assert v.collect == 3400
    text = said(v, "Next")
    assert "Collect about 3,400 sequences in all" in text
    assert "inputs among the alerts (3,400)" in text
    assert "at least 3,400 sequences in all" in text
    assert "No number of sequences would settle effect (15 %, at most 15 %)" in text


def test_an_answer_that_is_not_of_the_whole_set_says_by_what():
    north = statement("effect", 0.3, 0.25, 0.36, segment="north")
    v = verdict([*FINE, *alerts(0.47, 0.05), north, TRAVEL])
    assert said(v, "Same?").startswith(
        "FAIL by the alerts, a segment and a feature; all sequences together PASS: 11 % of what"
    )
    lost = statement("splice error", 0.39, 0.31, 0.5, segment="alerts")
    text = said(verdict([*FINE, lost]), "Valid?")
    assert text.startswith("FAIL by the alerts; all sequences together PASS: 0.2 % of the")
    assert "(PASS)" not in text


def test_where_nothing_asks_without_the_dictionary_no_number_is_promised():
    v = verdict([statement("splice error", 0.39, 0.31, 0.5), *VALID[1:], HERE, EFFECT])
    assert v.action == "COLLECT"
    assert "More sequences would not help" in said(v, "Next")


def test_a_release_of_another_width_is_said_once():
    whole = [
        replace(s, ratio=1.0 + (s.limit >= 1) * s.limit, upper=3.0, spread=0.0, outcome="FAIL")
        for s in [*VALID, HERE, EFFECT, TRAVEL]
    ]
    v = verdict(
        [*whole, *MODEL], "v3-wide", notes=("1:out is 24 wide in v3-wide and 16 in the dictionary",)
    )
    assert v.action == "RETRAIN"
    assert "1:out is 24 wide in v3-wide and 16 in the dictionary." in summary_lines(v)
    assert said(v, "Same?").startswith("PASS without the dictionary: 5 % of what the inputs weigh")
    assert "no witness" not in said(v, "Same?")
    assert "account of the decision" not in said(v, "Valid?")
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


EVERY = {
    "reuse": [*FINE, *alerts(), TRAVEL],
    "review": [*OTHER_INPUTS, *alerts(0.9, 0.95), TRAVEL],
    "retrain": [statement("splice error", 3.39, 2.31, 5.5), *VALID[1:], MOVED, *FINE[4:]],
    "dense": [*VALID[:2], statement("active features", 18.9, 18.0, 19.9), *FINE[3:]],
    "collect": [*FINE, *alerts(n=30), statement("effect: rare", 1.0, 0.2, 1.0, 900.0, n=20)],
    "a team's": [*FINE, statement("drift", 2.9, 2.1, 3.9), statement("effect: x", 1, 1, 1, -1.9)],
}


@pytest.mark.parametrize("statements", EVERY.values(), ids=EVERY)
def test_no_number_is_above_one_hundred_per_cent(statements):
    v = verdict(statements)
    rows = [str(x) for r in statement_rows(v.statements) for x in r.values()]
    text = "\n".join([*summary_lines(v, PRINTED, plan_of(statements)), *rows])
    shares = [float(x) for x in re.findall(r"([\d.]+) %", text)]
    assert max(shares) <= 100
    ends = re.findall(r"\[([\d.]+), ([\d.]+)\]", text)
    multiples = [pair for pair in ends if "18.0" in pair[0] or pair == ("18", "19.9")]
    assert all(float(x) <= 100 for pair in ends for x in pair if pair not in multiples)


@pytest.mark.parametrize("statements", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("printed", [None, {}, dict(behaviour={}), dict(contributions={})])
def test_what_was_not_printed_is_left_out(statements, printed):
    v = verdict(statements)
    text = "\n".join(summary_lines(v, printed))
    assert "None" not in text
    assert "nan" not in text
    assert "Behaviour" not in text
    assert "What changed" not in text


def any_statement(rng, name, segment):
    "A statement of this name with any share and any outcome."
    question, limit = LIMITS.get(name, ("same", 0.2))
    ratio = rng.choice([None, 0.0, 0.1, 0.5, 1.0, 3.3])
    ends = (None, None) if ratio is None else (ratio * 0.8, rng.choice([None, ratio * 1.2]))
    numbers = dict(n=rng.choice([30, 1000]), n_eff=rng.choice([5.0, 1000.0]))
    numbers |= dict(spread=rng.choice([0.0, 0.1]), change=rng.choice([None, -1.0, -3.0, 0.3, 99.0]))
    outcome = rng.choices(["PASS", "FAIL", "INCONCLUSIVE"], [6, 1, 1])[0]
    numbers |= dict(outcome=outcome, reason="why")
    return Statement(name, question, limit, segment, ratio, *ends, **numbers)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_decided_reads_as_sentences(seed):
    rng = random.Random(seed)
    names = [*LIMITS, "a {team}'s own", "effect: {a}", "effect: b"]
    keys = [
        (n, k) for n in names for k in ("", "alerts", "label 1", "north") if ":" not in n or not k
    ]
    for _ in range(60):
        some = [
            key
            for key in keys
            if key in (("splice error", ""), ("effect", "")) or rng.random() > 0.3
        ]
        statements = [any_statement(rng, *key) for key in some]
        plan = plan_of([s for s in statements if rng.random() < 0.95])
        plan = rng.choice([plan, replace(plan, old={}, new={})])
        v = judge(statements, plan, notes=rng.choice([(), ("a note",)]))
        printed = dict(rng.sample(list(PRINTED.items()), 3))
        text = "\n".join(summary_lines(v, printed, plan))
        assert "None" not in text
        assert not re.search(r": \.|; \.|\bby ;|\(\)", text)
        assert max(float(x) for x in re.findall(r"([\d.]+) %", text)) <= 100
        assert ("The change shows " in text) == (v.action == "REVIEW")


def test_active_features_are_said_as_a_multiple():
    v = verdict([*VALID[:2], statement("active features", 18.9, 18.0, 19.9), *FINE[3:]])
    assert "it needs 19 times as many features [18, 19.9], at most 1.5 times" in said(v, "Valid?")
    assert statement_rows(v.statements)[2]["limit"] == "1.5 times"


def test_sensitivity_names_what_would_change():
    v = verdict(
        CHANGED,
        sensitivity=dict(
            half=dict(valid="PASS", same="FAIL"), double=dict(valid="PASS", same="INCONCLUSIVE")
        ),
    )
    title = "Another verdict at half or double?"
    assert said(v, title) == "Yes: INCONCLUSIVE at double of what the limits allow."
    assert [r["verdict"] for r in part(v, title).rows] == ["FAIL", "FAIL", "INCONCLUSIVE"]


def test_an_interval_never_reads_like_its_limit():
    for lower, upper in ((0.2504, 0.31), (0.21, 0.2496), (0.2451, 0.2549)):
        middle = (lower + upper) / 2
        near = Statement("effect", "same", 0.25, ratio=middle, lower=lower, upper=upper)
        ends = interval(near).strip("[]").split(", ")
        assert "25" not in ends
        assert (float(ends[0]) > 25) == (lower > 0.25)
        assert (float(ends[1]) > 25) == (upper > 0.25)
    assert share(float("inf")) == "unknown"
    assert [share(x) for x in (1.0, 1.004, 1.01, 2.9)] == ["100 %"] * 2 + ["over 100 %"] * 2


def test_what_could_not_be_measured_is_not_said_to_be_zero(tmp_path):
    for ratio, upper, reason in (
        (None, None, "no sequence"),
        (0.0, None, "nothing to compare with"),
    ):
        lost = Statement(
            "effect: rare",
            "same",
            0.3,
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
            f'(at most 30 % of each may differ): "rare" ({reason}).'
        ) in said(v, "Same?")
        rows = statement_rows(v.statements)
        assert rows[-1]["outcome"] == f"INCONCLUSIVE: {reason}"
        assert rows[-1]["share"] == "unknown"


def test_a_teams_own_family_is_named_and_its_error_rates_are_not_claimed():
    own = Statement(
        "calibration", "same", 0.2, "", 0.3, 0.26, 0.35, 1000, 1000.0, 0.01, None, "FAIL", ""
    )
    v = verdict([*FINE, own])
    assert "Calibration 30 % [26, 35], at most 20 %." in said(v, "Same?")
    plan = plan_of([*FINE, own])
    plan = replace(plan, families=("bank.tests:Mine",))
    not_covered = "Not covered by the simulations: the team's own bank.tests:Mine"
    assert not_covered in said(v, "Error rates", plan=plan)


# what a row is called

CLIENT = dict(row=row_words(("client", "clientele"), token="client").to_dict())
EXAMPLES = dict(examples={"night": [dict(sequence="a1b2", row=dict(age=41))]})
WHAT_IS_SAID = {
    "in order": [*FINE, *alerts()],
    "changed": [*CHANGED, *alerts(0.4), TRAVEL],
    "at its limit": [*VALID, HERE, *MODEL, AT_LIMIT],
    "unfit": [statement("splice error", 0.5, 0.4, 0.6), *FINE[1:]],
    "few": [
        *FINE,
        *alerts(0.1, n=30, n_eff=30),
        statement("effect: rare", 0.1, 0.05, 0.2, n_eff=31),
    ],
    "labels": [*FINE, statement("effect", 0.4, 0.35, 0.45, segment="label 1")],
}


@pytest.mark.parametrize("statements", WHAT_IS_SAID.values(), ids=WHAT_IS_SAID)
def test_a_page_calls_rows_as_its_plan_does(statements):
    "Each line is the one about sequences with another noun; what people wrote stays as it is."
    v = verdict(statements, notes=("pilots: sequences of ours",))
    about = dict(whys=dict(effect="sequences of ours"), decision="the logit of sequences of ours")
    foreseen = [
        dict(statement="effect", segment="", limit=0.15, sequences=9, needed=99, settles=False)
    ]
    plain, named = (plan_of(statements, about=about | more) for more in ({}, CLIENT))

    def told(plan):
        page = report_html(v, plan, PRINTED | EXAMPLES, foreseen)
        return [*summary_lines(v, PRINTED, plan), *page.splitlines()]

    was, now = told(plain), told(named)
    assert len(was) == len(now)
    kept = "sequences of ours"
    for before, after in zip(was, now, strict=True):
        spoken = before.replace(kept, "KEPT").replace(HOW_SURE, "STUDY").replace(CONDITIONS, "SIM")
        spoken = spoken.replace("fewer sequences than that", "FEWER")
        spoken = spoken.replace("sequences", "clientele").replace("sequence", "client")
        spoken = spoken.replace("per token", "per client").replace(
            "FEWER", "fewer sequences than that"
        )
        spoken = spoken.replace("KEPT", kept).replace("STUDY", HOW_SURE).replace("SIM", CONDITIONS)
        assert " ".join(spoken.split()) == " ".join(after.split())
    assert sum("clientele" in line for line in now) >= 10
    assert sum(kept in line for line in now) >= 3


def test_words_of_a_plan_that_are_none_are_not_spoken():
    for row in ({"one": "<b>", "many": "x", "token": "y"}, {"one": "a"}, "client", 3, None):
        v, plan = verdict(FINE), plan_of(FINE, about=dict(row=row))
        assert "1,000 sequences through both" in " ".join(summary_lines(v, PRINTED, plan))


# what a validator asks for


def test_error_rates_are_those_that_were_measured():
    v = verdict([*FINE, *alerts()])
    published = said(v, "Error rates")
    assert "Measured on simulated checks" in published
    assert "not on this one" in published
    rates = dict(false_fail=0.002, false_pass=0.006, checks=1000)
    own = said(v, "Error rates", PRINTED | dict(error_rates=rates))
    assert "1,000 checks were drawn from v1's own results" in own
    assert "FAIL was wrong in 0.2 % and PASS in 0.6 % of them" in own
    assert "simulated" not in own
    for text in (published, own):
        assert "A change confined to fewer than 1 in 217 sequences may be total and unseen" in text
        assert "among the alerts, to fewer than 1 in 21" in text


def test_the_blind_spot_holds():
    v = verdict(FINE)
    few = int(re.search(r"fewer than 1 in (\d+)", said(v, "Error rates"))[1])
    assert (1 - 1 / few) ** 1000 < 0.01 < (1 - 1 / (few + 1)) ** 1000 * 1.01


def test_what_was_checked_and_why_stands_on_the_page():
    about = dict(
        decision="the logit of default",
        sites=["1:out", "2:out"],
        period="July to September 2026",
        sampling="every 40th application",
        whys=dict(effect="agreed with model risk"),
    )
    statements = [replace(FINE[0], own=0.001), *FINE[1:], *alerts(), TRAVEL]
    plan = plan_of(statements, about=about, groups=400)
    rows = {r["what"]: r["is"] for r in part(verdict(statements), "Checked", plan=plan).rows}
    assert rows == {
        "decision": "the logit of default",
        "read at": "1:out, 2:out",
        "period": "July to September 2026",
        "sampling": "every 40th application",
        "check set": "1,000 sequences in 400 groups, 100 of them alerts",
        "dictionary": "that of v1, 512 features",
    }
    limits = {r["what"]: r for r in part(verdict(statements), "Limits", plan=plan).rows}
    assert limits["reasons not shared"]["why"] == "agreed with model risk"
    assert limits["inputs not shared"]["why"] == "interpkit's default"
    splice = limits["variation lost when the dictionary stands in"]
    assert splice["at most"] == "5.1 % (0.1 % on v1 itself)"
    assert splice["why"] == "5 points over v1"
    about = dict(
        period=["2026-07-01", "2026-09-30"], sampling=dict(weights=True), renamed=dict(a="b")
    )
    plan = plan_of(statements, about=about)
    rows = {r["what"]: r["is"] for r in part(verdict(statements), "Checked", plan=plan).rows}
    assert rows["period"] == "2026-07-01 to 2026-09-30"
    assert rows["sampling"] == "unequal: each sequence counts by its weight"
    assert rows["renamed"] == "a is b"
    unknown = part(verdict(statements), "Checked", printed=None).rows
    assert [r["is"] for r in unknown][2:4] == ["not stated", "not stated"]


def test_what_is_not_for_sign_off_says_so_and_has_no_line_to_sign():
    v = verdict(OTHER_INPUTS)
    plan = plan_of(v.statements, about=dict(not_for_sign_off="the code is not fingerprinted"))
    assert "Not for sign-off: the code is not fingerprinted." in led(v, plan=plan)
    assert report.SIGN in report.page_one_html(v, PRINTED, plan_of(v.statements))
    by_name = plan_of(v.statements, about=dict(not_for_sign_off=["v1", "v2"]))
    assert "v1 and v2 are not loaded from a folder" in led(v, plan=by_name)
    assert "sign-off" not in led(v, plan=plan_of(v.statements, about=dict(not_for_sign_off=[])))
    html = report.page_one_html(v, PRINTED, plan)
    assert report.SIGN not in html
    assert "Not for sign-off" in html
    assert "signs" not in html


@pytest.mark.parametrize(
    "old, new, told",
    [(0.1, 0.12, False), (0.31, 0.67, True), (0.1, 0.31, True), (0.55, 0.52, True)],
)
def test_what_bypasses_the_sites_is_told_where_it_is_much(old, new, told):
    text = said(verdict(FINE), "Valid?", PRINTED | dict(bypass=dict(old=old, new=new)))
    assert ("does not go through the sites" in text) == told


@pytest.mark.parametrize("action", ["reuse", "review", "retrain", "collect"])
def test_the_last_line_is_what_to_run(action):
    v = verdict(EVERY[action]) if action != "reuse" else verdict(FINE)
    assert v.action == action.upper()
    unsaved, saved = summary_lines(v), summary_lines(v, run="runs/of Q4")
    assert 'result.save("DIR")' in "\n".join(unsaved)
    assert "memory" not in "\n".join(saved)
    if action in ("reuse", "review"):
        assert unsaved[-1].strip() == 'result.save("DIR")'
        assert saved[-1].strip() == "ipk verify 'runs/of Q4'"
        assert "ipk verify .</pre>" in report.page_one_html(v)


# the page


def test_page_one_is_in_the_order_in_which_a_person_asks(tmp_path):
    north = statement("effect", 0.05, 0.04, 0.06, segment="north")
    v = verdict([*CHANGED, TRAVEL, north, *alerts()])
    _, text = read(write_report(folder_of(tmp_path / "run", v)).read_text())
    order = [
        "v1 -> v2-concept: FAIL, REVIEW.",
        "The old explanations must not be used for this release",
        "Checked",
        "Same?",
        "Alerts",
        "What changed",
        "Segments",
        "Valid?",
        "Behaviour",
        "Limits",
        "Another verdict at half or double?",
        "Error rates",
        "Not tested",
        "Next",
        "ipk verify",
        "Statements",
        "The plan",
        "Printed, not judged",
        "Words",
    ]
    at = [text.index(x) for x in order]
    assert at == sorted(at)
    not_tested = text[at[order.index("Not tested")] : at[order.index("Next")]]
    assert "gate_error_rates" in text
    assert "the other 511 of 512 features" in not_tested
    assert "model.layers.1:out alone" in not_tested
    for number in (
        "1,000",
        "54, 64",
        "a" * 64,
        "b" * 64,
        "c" * 64,
        "d" * 64,
        "e" * 64,
        "0.8051",
        "principal angle",
    ):
        assert number in text[at[order.index("Statements")] :]


def test_words_are_the_same_in_terminal_and_page(tmp_path):
    v = verdict([*CHANGED, TRAVEL])
    _, text = read(write_report(folder_of(tmp_path / "run", v)).read_text())
    html = (tmp_path / "run/report.html").read_text()
    for p in page_one(v, PRINTED, plan_of(v.statements), run="."):
        for sentence in p.sentences:
            assert sentence in text or sentence.split(" ", 1)[1] in text, sentence
        for row in p.rows:
            for cell in row.values():
                assert cell in text
    assert "</span> PASS</b>: 0.2 % of the decision&#x27;s variation" in html
    assert "</span> FAIL</b>: 59 % of what the reasons weigh is not shared by both" in html


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
                family="effect", feature=NASTY + "2", share=0.9, lower=0.8, upper=1.0, change=-0.2
            ),
        ),
    )
    bad = contributor(NASTY, 0.1, 0.2, 0.5, 0.1)
    both = {"": [bad], "alerts": [bad]}
    printed = dict(
        PRINTED,
        contributions=dict(effect=both, inputs=both),
        reconstruction=dict(
            PRINTED["reconstruction"], firing=[dict(feature=NASTY, old=0.1, new=0.2)]
        ),
    )
    foreseen = dict(
        statement="effect", segment=NASTY, limit=0.15, sequences=10, needed=99, settles=False
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


def test_a_notebook_shows_the_figure_in_the_colours_of_its_theme():
    "White boxes and black text are those of a light page only."
    shown = [short_html(verdict(statements)) for statements in (CHANGED, [*CHANGED, TRAVEL][1:])]
    for html in shown:
        p, _ = read(html)
        assert p.tags.count("svg") == 1
        assert "currentColor" in html
        assert not re.findall(r"#(?:fff|1a1a1a|000)", html, re.IGNORECASE)
    ids = [[v for k, v in read(html)[0].attributes if k == "id"] for html in shown]
    assert not set(ids[0]) & set(ids[1])  # both in one notebook
    none = dict(ratio=None, lower=None, upper=None, outcome="INCONCLUSIVE")
    assert "<svg" not in short_html(verdict([replace(s, **none) for s in CHANGED]))


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
        [*CHANGED[4:5], *VALID[::2]]  # active features are a multiple: not drawn
    )
    shown = (
        "effect: 59 % [54, 64], limit 15 %: FAIL; splice error: 0.2 % [0.1, 0.4], limit 5.1 %: PASS"
    )
    assert shown in unescape(svg)
    assert ">FAIL<" in svg
    assert "active features" not in svg
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
        statement("effect", 0.05 + i / 1000, 0.04, 0.14, segment=f"segment {i}") for i in range(60)
    ]
    v = verdict([*FINE, *many])
    _, text = read(write_report(folder_of(tmp_path / "run", v)).read_text())
    assert "PASS in each of the 60 segments." in text
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

    monkeypatch.setattr(files.os, "replace", full)
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
    plan, scores = plan_check(world.old, world.dictionary, rows, new=new, salt="salt")
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
