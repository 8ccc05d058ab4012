"From decided statements to a verdict: what follows, what is named, what to collect."

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from scipy import stats
from small_checks import checked

from interpkit.drift.actions import action_for, holds_up
from interpkit.drift.measure import measure
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.drift.verdict import Verdict, judge, naming, sensitivity, to_collect, worst


def statement(name="effect", outcome="PASS", **fields):
    "A decided statement at a limit of 25 %."
    known = dict(ratio=0.1, lower=0.08, upper=0.12, n=1000, n_eff=1000.0, spread=0.005)
    question = "valid" if "error" in name else "same"
    known |= dict(question=question)
    return Statement(name=name, limit=0.25, outcome=outcome, **known | fields)


UNKNOWN = dict(ratio=None, lower=None, upper=None, n=0, n_eff=0.0)  # a feature that never fired
PLAN = Plan(
    (statement(),),
    old=dict(name="v1"),
    new=dict(name="v2"),
    dictionary="d",
    check_set="c",
    sequences=1000,
    groups=1000,
    features=16,
)


# the verdict

P, F, U = "PASS", "FAIL", "INCONCLUSIVE"


def by_the_table(valid, activation, effect, inputs, decisions):
    "The first line of the table of actions that holds."
    if F in (inputs, decisions):
        return "REVIEW"
    if effect == F and activation == P:
        return "REVIEW"
    model_holds = inputs == decisions == P
    if valid == F:
        return "RETRAIN" if model_holds else "COLLECT"
    if valid == effect == inputs == decisions == P:
        return "REUSE"
    if valid == P and model_holds and activation == F:
        return "RETRAIN"
    return "COLLECT"


ASKED = dict(
    zip(
        ("splice error", "activation", "effect", "inputs", "decisions"),
        ("valid", "moved", "same", "same", "same"),
        strict=True,
    )
)


def asked(outcomes, segment=""):
    "One decided statement of each family."
    names = zip(ASKED, outcomes, strict=True)
    return [statement(n, o, segment=segment, question=ASKED[n]) for n, o in names]


@pytest.mark.parametrize("order", [1, -1])
def test_actions(order):
    "All 243 ways in which five questions can end, as statements of the whole set or of alerts."
    for outcomes in product((P, F, U), repeat=5):
        fine = asked([P] * 5)
        action = by_the_table(*outcomes)
        v = judge(asked(outcomes)[::order], PLAN)
        valid, same = outcomes[0], worst(outcomes[2:])
        assert (v.valid, v.same, v.outcome) == (valid, same, worst((valid, same)))
        assert v.action == action, outcomes
        assert int(v.exit_code) == {P: 0, F: 10, U: 11}[v.outcome]
        assert v.passed == (v.outcome == P)
        assert (v.collect is not None) == (action == "COLLECT")
        among_alerts = asked(outcomes, "alerts")
        assert judge([*fine, *among_alerts][::order], PLAN).action == action, outcomes


@pytest.mark.parametrize(
    "one, action",
    [
        (statement("effect: travel", "FAIL"), "REVIEW"),
        (statement("effect", "FAIL", segment="north"), "REVIEW"),
        (statement("inputs", "FAIL", segment="alerts"), "REVIEW"),
        (statement("mine", "FAIL"), "REVIEW"),
        (statement("splice error", "FAIL", segment="north"), "RETRAIN"),
        (statement("effect: travel", "INCONCLUSIVE", n_eff=12.0), "COLLECT"),
        (statement("decisions", "INCONCLUSIVE", segment="alerts"), "COLLECT"),
    ],
    ids=range(7),
)
def test_one_watched_feature_or_segment_decides(one, action):
    assert judge([*asked([P] * 5), one], PLAN).action == action


def test_where_the_site_moved_in_one_segment_a_change_there_is_no_review():
    moved = asked([P, F, F, P, P], "north")
    assert judge([*asked([P] * 5), *moved], PLAN).action == "RETRAIN"
    held = statement("effect", F, segment="south")
    stayed = statement("activation", P, segment="south", question="moved")
    assert judge([*asked([P] * 5), *moved, held, stayed], PLAN).action == "REVIEW"


def test_a_verdict_is_no_boolean():
    v = judge([statement("splice error"), statement("effect")], PLAN)
    for use in (lambda: bool(v), lambda: not v, lambda: 1 if v else 0):
        with pytest.raises(TypeError, match="passed"):
            use()


def test_the_worst_outcome():
    assert worst(["PASS", "INCONCLUSIVE", "PASS"]) == "INCONCLUSIVE"
    assert worst(["INCONCLUSIVE", "FAIL"]) == "FAIL"


def verdict():
    c = checked()
    return judge(decide(c.table, c.plan), c.plan, c.table, notes=("a note",))


def test_a_verdict_is_read_as_it_was_written():
    v = verdict()
    text = json.dumps(v.to_dict(), allow_nan=False)
    again = Verdict.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.changed == v.changed
    assert len(v.changed) > 0
    assert not set(json.loads(text)) & {"time", "host", "path", "cost"}


def test_a_verdict_shows_its_statements():
    v = verdict()
    assert v.statement("effect", "north").segment == "north"
    refused(lambda: v.statement("efect"), "effect", code=64)
    assert "v1 -> v2" in repr(v)
    assert len(v.table()) == len(v.statements)
    assert "v1" in v._repr_html_()


def test_a_verdict_with_an_unknown_share_can_be_written_down():
    unknown = statement("effect: never", "INCONCLUSIVE", spread=0.0, **UNKNOWN)
    v = judge([statement("splice error"), unknown], replace(PLAN, new={}))
    text = json.dumps(v.to_dict(), allow_nan=False)
    assert Verdict.from_dict(json.loads(text)).statements[1] == unknown
    assert v.table().share.iloc[1] == "-"
    assert "v1 -> the new release" in v.headline


def test_sensitivity_is_the_verdict_at_other_limits():
    c = checked()
    for name, factor in (("half", 0.5), ("double", 2.0)):
        scaled = []
        for s in c.plan.statements:
            own = s.own or 0.0  # half and double of what is allowed, not of what it has
            scaled.append(replace(s, limit=own + factor * (s.limit - own)))
        limit = factor * c.plan.watched_limit
        other = replace(c.plan, statements=tuple(scaled), watched_limit=limit)
        v = judge(decide(c.table, other), c.plan)
        assert sensitivity(decide(c.table, c.plan))[name] == dict(valid=v.valid, same=v.same)
    assert verdict().sensitivity == sensitivity(decide(c.table, c.plan))


# what to collect

# its interval reaches twice as far as the limit: four times as many sequences settle it
OPEN = dict(
    outcome="INCONCLUSIVE",
    ratio=0.2,
    lower=0.1,
    upper=0.2 * math.exp(2 * math.log(0.25 / 0.2)),
)
RARE = dict(ratio=0.0, lower=0.0, upper=0.1, n=10, n_eff=10.0)


@pytest.mark.parametrize(
    "is_open, sequences",
    [
        (statement("effect", **OPEN), 4000),
        # a tenth of the traffic: 400 there are 4,000 in all
        (statement("effect", segment="north", n=100, n_eff=100.0, **OPEN), 4000),
        (statement("effect: rare", "INCONCLUSIVE", **RARE), 5000),
        (statement("effect: never", "INCONCLUSIVE", **UNKNOWN), 50_000),
        (statement("effect", "INCONCLUSIVE", ratio=0.25, lower=0.2, upper=0.3), None),
        # forty alerts say too little to know that they sit at the limit
        (
            statement(
                "effect",
                "INCONCLUSIVE",
                segment="alerts",
                **dict(ratio=0.25, lower=0.1, upper=0.6, n=40, n_eff=40.0),
            ),
            2500,
        ),
        # its upper end is cut at 100 %; the limit is on the other side
        (statement("effect", "INCONCLUSIVE", ratio=0.5, lower=0.125, upper=1.0), 4000),
    ],
    ids=range(7),
)
def test_collect_counts_sequences_of_the_whole_set(is_open, sequences):
    assert to_collect([statement(n=1000), is_open]) == sequences


def test_where_one_of_several_sits_at_its_limit_the_others_keep_their_number():
    at_limit = statement("effect", "INCONCLUSIVE", ratio=0.2499, lower=0.2, upper=0.3)
    wide = statement("splice error", "INCONCLUSIVE", ratio=0.01, lower=0.001, upper=0.4)
    assert to_collect([statement(n=1000), at_limit]) is None
    assert to_collect([statement(n=1000), at_limit, wide]) == to_collect([statement(n=1000), wide])


def settled(statements):
    "Every way in which the open ones can come out."
    outcomes = [(P, F) if s.outcome == U else (s.outcome,) for s in statements]
    for chosen in product(*outcomes):
        yield [replace(s, outcome=o) for s, o in zip(statements, chosen, strict=True)]


def test_collect_waits_for_no_statement_that_can_not_change_what_to_do():
    "Brute force: whatever else comes out, the action is the same whether it PASSes or FAILs."
    idle = 0
    for outcomes in product((P, F, U), repeat=5):
        for second in product((P, F, U), repeat=2):
            more = [statement("effect: rare", second[0]), statement("error share", second[1])]
            known = [*asked(outcomes), *more]
            if action_for(known) != "COLLECT":
                continue
            for i, s in enumerate(known):
                if s.outcome != U or s.question == "moved" or holds_up(s, known):
                    continue
                idle += 1
                for all_settled in settled(known):
                    other = {P: F, F: P}[all_settled[i].outcome]
                    turned = [*all_settled]
                    turned[i] = replace(turned[i], outcome=other)
                    assert action_for(all_settled) == action_for(turned), (s.name, outcomes)
    assert idle > 50


def test_collect_counts_what_decides_and_not_an_effect_at_a_site_that_moved():
    "An honest refresh of a credit model asked for 135,200 customers for an effect at its limit."
    moved = statement("activation", F, question="moved")
    failed, is_open = statement("effect: late", F), statement("effect", **OPEN | dict(ratio=0.24))
    inputs = statement("inputs", **OPEN)
    assert action_for([moved, failed, is_open, inputs]) == "COLLECT"
    assert to_collect([moved, failed, is_open, inputs]) == to_collect([inputs, moved])
    assert to_collect([failed, is_open, inputs]) != to_collect([failed, inputs])


def test_nothing_to_collect_where_nothing_is_open():
    assert to_collect([statement(n=1000)]) == 0


# naming


def holm_by_hand(p: dict, m: int, alpha=0.01) -> set:
    """Names that step down: the k-th smallest of m p-values has to be at most alpha / (m - k + 1).

    The first that is not ends it.
    """
    names = set()
    for k, (name, value) in enumerate(sorted(p.items(), key=lambda x: x[1])):
        if value > alpha / (m - k):
            break
        names.add(name)
    return names


def features_of_shares(shares):
    "For each share the rows of one feature, and its p-value by the formula."
    rng = np.random.default_rng(0)
    parts, p_values = [], {}
    for i, share in enumerate(shares):
        n = 60 + 5 * i if i % 2 else 400
        denominator = rng.lognormal(0, 0.6, n)
        change = rng.lognormal(-0.08, 0.4, n)
        numerator = np.minimum(share * denominator * change, denominator)
        name = f"{'effect' if i % 3 else 'activation'}: feature: {i}"
        rows = dict(statement=name, segment="", sequence=range(n), group=range(n), weight=1.0)
        rows |= dict(numerator=numerator, denominator=denominator)
        rows |= dict(change=-numerator, base=denominator)
        parts.append(pd.DataFrame(rows))
        ratio = numerator.sum() / denominator.sum()
        rest = numerator - ratio * denominator
        error = np.std(rest, ddof=1) * math.sqrt(n) / denominator.sum()
        held = denominator.sum() ** 2 / (denominator**2).sum()  # groups of equal size
        p_values[name] = stats.t.sf(math.log(ratio / 0.5) * ratio / error, held - 1)
    return parts, p_values


def test_naming_is_holms_procedure_over_all_features():
    parts, p = features_of_shares(np.linspace(0.5, 0.75, 60))
    too_few = (
        parts[-1].head(40).assign(statement="effect: few", numerator=lambda t: 0.99 * t.denominator)
    )
    together = parts[-1].assign(statement="effect")
    statements = (Statement("effect", "same", 0.25), Statement("effect: x", "same", 0.5))
    plan = replace(PLAN, features=40, statements=statements, watched_limit=0.5)
    named = naming(pd.concat([*parts, too_few, together]), plan)
    names = {f"{r.family}: {r.feature}" for r in named.itertuples()}
    assert names == holm_by_hand(p, 2 * 40)
    over_those_measured = len(holm_by_hand(p, len(p)))
    by_bonferroni = sum(x <= 0.01 / (2 * 40) for x in p.values())
    assert len({len(names), over_those_measured, by_bonferroni}) == 3  # it is neither
    assert named.family.tolist() == sorted(named.family, reverse=True)
    assert (named.share > 0.5).all()
    assert (named.lower < named.share).all()
    assert (named.share < named.upper).all()
    assert (named.change < 0).all()


def test_nothing_is_named_where_nothing_changed():
    c = checked()
    w = c.world
    table = measure(w.old, w.old, w.dictionary, c.rows, c.plan)
    assert len(naming(table, c.plan)) == 0
