"Tables and what is decided on them: nothing broken, empty or not finite ever passes."

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import printed_by, refused
from scipy import stats

from interpkit.drift.segments import ALL, segments_of
from interpkit.drift.statements import COLUMNS, Plan, Statement, decide
from interpkit.drift.verdict import judge, sensitivity

EFFECT = Statement("effect", "same", 0.25)
WATCHED = Statement("effect: travel", "same", 0.5)
VALID = Statement("splice error", "valid", 0.1)


def table(n=200, statement="effect", segment="", share=0.1, seed=0, **columns):
    "A table of one statement over `n` sequences, whose true share is `share`."
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 0.5, n)
    return pd.DataFrame(
        dict(
            statement=statement,
            segment=segment,
            sequence=[f"h{i}" for i in range(n)],
            group=[f"h{i}" for i in range(n)],
            weight=1.0,
            numerator=np.minimum(share * size * rng.lognormal(-0.02, 0.2, n), size),
            denominator=size,
        )
        | columns
    )


def plan(*statements, n=200, **fields):
    return Plan(statements or (EFFECT,), sequences=n, **fields)


def not_decided(rows, *parts, by=None):
    "Deciding on these rows is refused, with `parts` in the message."
    refused(lambda: decide(rows, by or plan()), *parts)


# arithmetic


def test_one_statement_by_the_formulas():
    t = table(
        weight=np.where(np.arange(200) % 3 == 0, 4.0, 1.0),
        group=[f"g{i // 2}" for i in range(200)],
        change=-0.5,
        base=2.0,
    )
    s, watched = decide(t, plan(EFFECT, WATCHED))  # two statements share alpha
    weight, numerator, denominator = (
        t[c].to_numpy() for c in ("weight", "numerator", "denominator")
    )
    columns = (weight * numerator, weight * denominator, weight)
    N, M, W = (x.reshape(100, 2).sum(1) for x in columns)  # groups of two
    R = N.sum() / M.sum()
    n_eff = W.sum() ** 2 / (W**2).sum()
    spread = np.std(N - R * M, ddof=1) * math.sqrt(100) / M.sum()
    n_held = M.sum() ** 2 / (M**2).sum()
    q = stats.t.ppf(1 - 0.01 / 4, min(n_eff, n_held) - 1)
    assert s.ratio == pytest.approx(R)
    assert s.n_eff == pytest.approx(n_eff)
    assert s.spread == pytest.approx(spread)
    assert s.n == 200
    assert s.lower == pytest.approx(R * math.exp(-q * spread / R))
    widened = N.sum() * math.exp(q * spread / R)
    assert s.upper == pytest.approx((widened + M.max()) / (M.sum() + M.max()))
    assert s.change == pytest.approx(-0.25)
    assert s.outcome == "PASS"
    assert watched.outcome == "INCONCLUSIVE"  # the table has no row of it


@pytest.mark.parametrize(
    "base, change, expected",
    [(2.0, -1.0, -0.5), (-2.0, 1.0, -0.5), (2.0, 1.0, 0.5), (-2.0, -1.0, 0.5)],
)
def test_change_is_negative_where_an_effect_weakens_whatever_its_sign(base, change, expected):
    assert decide(table(change=change, base=base), plan())[0].change == pytest.approx(expected)


def test_change_is_unknown_without_a_base_or_without_columns():
    assert decide(table(change=1.0, base=0.0), plan())[0].change is None
    assert decide(table(), plan())[0].change is None


@pytest.mark.parametrize("share, outcome", [(0.1, "PASS"), (0.25, "INCONCLUSIVE"), (0.6, "FAIL")])
def test_outcomes(share, outcome):
    assert decide(table(share=share), plan())[0].outcome == outcome


def test_statements_are_decided_on_their_own_rows():
    t = pd.concat(
        [
            table(),
            table(60, segment="north", share=0.6),
            table(80, "effect: travel", share=0.9),
            table(200, "effect: other", share=0.9),
        ]
    )
    north = Statement("effect", "same", 0.25, "north")
    by = plan(EFFECT, north, WATCHED, segments={"north": 60}, emerging=1)
    decided = decide(t, by)
    assert [s.outcome for s in decided] == ["PASS", "FAIL", "FAIL", "FAIL"]
    assert [s.n for s in decided] == [200, 60, 80, 200]
    assert decided[-1].name == "effect: other"  # nobody watched it: it emerged
    assert decided[-1].limit == by.watched_limit
    not_decided(t, "at most 0", by=replace(by, emerging=0))


# what is refused


@pytest.mark.parametrize("column", COLUMNS)
def test_missing_columns(column):
    not_decided(table().drop(columns=column), column)


@pytest.mark.parametrize("column", ["weight", "numerator", "denominator", "change", "base"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(column, value):
    t = table(change=0.0, base=1.0)
    t.loc[17, column] = value
    not_decided(t, "finite")
    unplanned = pd.concat([table(), t.assign(statement="something else")])
    not_decided(unplanned, "finite")


@pytest.mark.parametrize("column", ["weight", "numerator", "denominator"])
def test_negative_numbers(column):
    t = table()
    t.loc[3, column] = -1e-9
    not_decided(t)
    if column != "weight":  # naming reads rows that no statement is about
        not_decided(pd.concat([table(), t.assign(statement="something else")]))


def test_missing_and_doubled_rows():
    north = Statement("effect", "same", 0.25, "north")
    not_decided(table().head(199), "200 rows")
    not_decided(table().head(0), "200 rows")
    not_decided(table(statement="another"), "200 rows")
    not_decided(pd.concat([table().head(199), table().head(1)]), "some twice")
    whole = pd.concat([table(), table(60, segment="north")])
    not_decided(whole, "61 rows", by=plan(EFFECT, north, segments={"north": 61}))
    not_decided(table(), "segment 'north'", by=plan(EFFECT, north, segments={"north": 60}))


def test_plans_without_statements_or_with_two_of_one_name():
    not_decided(table(), "none", by=Plan((), sequences=200))
    not_decided(table(), "twice", by=plan(EFFECT, replace(EFFECT, limit=0.9)))


# no path to PASS


@pytest.mark.parametrize(
    "broken",
    [
        table(0),
        table(1),
        table(49),
        table(200, share=0.0, denominator=0.0),
        table(200, share=0.0, weight=0.0),
        table(200, share=0.0, group="one"),
        table(200, share=0.0, weight=[1e6] + [1.0] * 199),
        table(98, share=0.0, group=[f"g{i // 2}" for i in range(98)]),
    ],
    ids=range(8),
)
def test_too_little_is_inconclusive_even_where_nothing_changed(broken):
    s = decide(broken, plan(n=len(broken)))[0]
    assert s.outcome == "INCONCLUSIVE"
    assert s.reason


def test_fifty_groups_are_enough():
    assert decide(table(50, share=0.0), plan(n=50))[0].outcome == "PASS"
    assert decide(table(49, share=0.0), plan(n=49))[0].outcome == "INCONCLUSIVE"


def test_a_share_of_nothing_is_unknown_and_can_be_written_down():
    for t in (table(200, share=0.0, denominator=0.0), table(1)):
        s = decide(t, plan(n=len(t)))[0]
        text = json.dumps(s.to_dict(), allow_nan=False)
        assert Statement(**json.loads(text)).outcome == "INCONCLUSIVE"
    nothing, one = (
        decide(t, plan(n=len(t)))[0] for t in (table(200, share=0.0, denominator=0.0), table(1))
    )
    assert (nothing.ratio, nothing.upper) == (None, None)
    assert (one.lower, one.upper) == (0, 1)  # a share of a whole, of which nothing is known


@pytest.mark.parametrize("limit", [math.nan, 0.0, -1.0])
def test_a_limit_that_is_none_never_passes(limit):
    assert decide(table(share=0.0), plan(replace(EFFECT, limit=limit)))[0].outcome != "PASS"


DECIDED = decide(table(), plan())  # 'same' alone


@pytest.mark.parametrize(
    "statements", [[], DECIDED, [EFFECT, VALID], [*DECIDED, VALID]], ids=range(4)
)
def test_judge_needs_decided_statements_of_both_questions(statements):
    refused(lambda: judge(statements, plan()))


def test_sensitivity_needs_decided_statements_of_both_questions():
    refused(lambda: sensitivity(DECIDED))
    refused(lambda: sensitivity([EFFECT, VALID]))


# plans and segments


def test_plan_round_trip():
    p = Plan(
        (EFFECT, WATCHED, replace(VALID, own=0.02)),
        (3,),
        dict(name="v1"),
        dict(name="v2"),
        "d",
        "c",
        "code",
        ("bank:Mine",),
        dict(splice_error=0.01),
        emerging=4,
        alerts=("a1", "b2"),
        too_small={"south": 3},
        features=512,
        sequences=200,
        groups=190,
        draws=16,
        seed=7,
        segments={"north": 60, "alerts": 2},
        about=dict(decision="a function", period=["2026-07-01", "2026-08-30"]),
    )
    assert Plan.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    assert p.count == 3 + 4
    # 2 % of its own and 8 points more: what is allowed is doubled, what it has is not
    assert [s.limit for s in p.scaled(2).statements] == pytest.approx([0.5, 1.0, 0.18])
    assert p.scaled(2).watched_limit == 0.6


def test_segments_are_text_and_none_is_the_whole_set():
    rows = pd.DataFrame(dict(segment=["", "a: b", 3, "é\n"]))
    assert segments_of(rows).tolist() == [ALL, "a: b", "3", "é\n"]
    assert segments_of(rows[[]]).tolist() == [""] * 4


# who reads a verdict needs no model


READ_BY_VERIFY = (
    *("statements", "limits", "segments", "actions", "verdict"),
    *("words", "answers", "parts", "caveats", "changed", "page"),
)


def test_what_reads_a_verdict_imports_no_torch():
    heavy = ("torch", "transformers", "triton", "jax", "matplotlib")
    modules = [*READ_BY_VERIFY, "canvas", "figures"]
    codes = [
        f"import interpkit.drift.{module}\n"
        f"print(sorted(m for m in sys.modules if m.split('.')[0] in {heavy}))"
        for module in modules
    ]
    printed = printed_by(codes, first="import sys, numpy, pandas, pydantic, scipy.stats")
    assert dict(zip(modules, printed, strict=True)) == dict.fromkeys(modules, "[]")
