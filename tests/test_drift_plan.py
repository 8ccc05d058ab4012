"What is written down before a new release is scored: scores, limits, watched features, code."

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import refused
from scipy import stats
from small_checks import checked
from small_families import OWN, writer
from small_language import truth, world

import interpkit
from interpkit.core.digests import canonical
from interpkit.core.statistics import Interval
from interpkit.dictionary.validity import certify
from interpkit.drift.limits import Limits
from interpkit.drift.measure import load_families, measure
from interpkit.drift.parts import pool_words
from interpkit.drift.plan import code_digest, limits_by_segment, limits_of, plan_check, preview
from interpkit.drift.scores import OldScores, fit_or_raise, score_old
from interpkit.drift.segments import ALL, pooled_in
from interpkit.drift.simulate import small_world
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.gate.forecast import rare_words
from interpkit.gate.standard import deviations


@pytest.fixture
def module(tmp_path, monkeypatch):
    "Writes a text as a module that can be imported; its name."
    return writer(tmp_path, monkeypatch)


def interval(ratio, spread=0.01, n=1000):
    return Interval(ratio, 0.0, 1.0, n, float(n), spread, 10.0)


def scores(splice=0.01, error=(0.02,), firing=(300.0,) * 16):
    errors = tuple(map(interval, error))
    share = np.full(16, 1 / 16)
    alerts = np.arange(400) < 40
    whole = np.ones((400, 1 + len(errors)))
    lost = whole * [splice, *error]
    return OldScores(interval(splice), errors, share, share, alerts, np.array(firing), lost, whole)


def effective(weight):  # [n, ...] -> [...]
    "(sum of W)^2 over the sum of W^2."
    total, square = weight.sum(0), (weight**2).sum(0)
    return np.divide(total**2, square, out=np.zeros_like(total), where=square > 0)


# scores of the old release


def both(t, of):
    "A number of each feature of both sites of one sequence."
    return np.concatenate([of(t.site[k]).numpy() for k in (0, 1)])


def test_splice_error_and_error_share_of_the_old_release_by_hand():
    w, seen = world(), truth("old")
    found = score_old(w.old, w.dictionary, w.rows)
    weight = w.rows.weight.to_numpy()
    bare = np.array([t.decision for t in seen])
    spliced = np.array([t.spliced for t in seen])
    mean = (weight * bare).sum() / weight.sum()
    lost, variance = weight * (spliced - bare) ** 2, weight * (bare - mean) ** 2
    assert found.splice.ratio == pytest.approx(lost.sum() / variance.sum(), rel=1e-3)
    assert found.splice.n == 7
    some = (
        np.arange(len(weight)) < 3
    )  # as the statement of a segment has it: over the variance of all
    of_some = lost[some].sum() / (weight[some].sum() * variance.sum() / weight.sum())
    assert found.own(weight * some)[0] == pytest.approx(of_some, rel=1e-3)
    for k in (0, 1):
        error = weight * np.array([t.site[k].error for t in seen])
        features = weight * np.array([float(t.site[k].at.abs().sum()) for t in seen])
        share = error.sum() / (features + error).sum()
        assert found.error[k].ratio == pytest.approx(share, rel=1e-3)


def test_attribution_and_firing_of_the_old_release_by_hand():
    w, seen = world(), truth("old")
    found = score_old(w.old, w.dictionary, w.rows)
    weight = w.rows.weight.to_numpy()
    size = weight @ np.stack([both(t, lambda site: site.at.abs().sum(0)) for t in seen])
    assert found.attribution.tolist() == pytest.approx((size / size.sum()).tolist(), abs=1e-4)
    fires = np.stack([both(t, lambda site: (site.codes > 0).any(0)) for t in seen])
    group = np.arange(14) // 2
    per_group = np.stack([(weight[:, None] * fires)[group == g].sum(0) for g in range(7)])
    assert found.firing.tolist() == pytest.approx(effective(per_group).tolist())
    assert 1 < found.firing.max() < 7


def test_fit_or_raise_reads_every_number():
    fit_or_raise(None, scores(0.10, (0.30,)), Limits())


@pytest.mark.parametrize(
    "splice, error", [(0.11, (0.02,)), (0.01, (0.02, 0.31)), (math.nan, (0.02,))]
)
def test_an_unfit_dictionary_is_refused(splice, error):
    refused(lambda: fit_or_raise(None, scores(splice, error), Limits()), "unfit")


# limits

LIMITS = Limits()


def limits_by_name(own=None, limits=LIMITS):
    c = checked()
    plan, _ = plan_check(c.world.old, c.world.dictionary, c.rows, limits, own=own)
    return {s.name: s.limit for s in plan.statements if not s.watched and not s.segment}


def test_valid_limits_tighten_to_what_the_old_release_has():
    plan = checked().plan
    assert {s.name: s.limit for s in plan.statements if not s.watched} == {
        "splice error": pytest.approx(0.05),
        "error share": pytest.approx(0.05),
        "active features": 1.5,
        "activation": 0.05,
        "effect": 0.15,
        "inputs": 0.15,
        "decisions": 0.10,
    }
    own = {s.name: s.own for s in plan.statements if not s.watched}
    assert own["active features"] == 1.0  # its limit is an allowance over what there was
    assert own["splice error"] == plan.own["splice_error"]
    assert own["effect"] is None
    assert plan.own["splice_error"] < 1e-6


def test_valid_limits_tighten_to_what_a_policy_states():
    both_stated = limits_by_name(dict(splice_error=0.02, error_share=0.1))
    assert both_stated["splice error"] == pytest.approx(0.07)
    assert limits_by_name(dict(error_share=0.1))["error share"] == pytest.approx(0.15)
    assert limits_by_name(dict(splice_error=0.9))["splice error"] == 0.10
    strict = limits_by_name({}, Limits(allowance=0.01))
    assert strict["splice error"] == pytest.approx(0.01)


def test_a_segment_is_allowed_over_what_the_dictionary_has_there():
    c = checked()
    alerts = np.zeros(len(c.rows), bool)
    alerts[:100] = True
    own = scores(splice=0.01)
    own.lost[:100, 0] = 0.04  # among alerts; 1.75 % of all
    own = replace(own, alerts=alerts)
    found = limits_by_segment(own, c.rows.iloc[:400], ["alerts"], LIMITS, {}, ["error share"])
    assert found["alerts"]["splice error"] == pytest.approx((0.09, 0.04))
    assert found[""]["splice error"] == pytest.approx((0.0675, 0.0175))
    assert found["alerts"]["error share"] == pytest.approx((0.07, 0.02))
    own.lost[:, 0] = 0.03
    own.lost[:100, 0] = 0.0  # better among alerts: no reason to ask more of them
    found = limits_by_segment(own, c.rows.iloc[:400], ["alerts"], LIMITS, {}, ["error share"])
    assert found["alerts"] == found[""]
    stated = limits_by_segment(
        own, c.rows.iloc[:400], ["alerts"], LIMITS, dict(splice_error=0.04), ["error share"]
    )
    assert stated["alerts"]["splice error"] == pytest.approx((0.09, 0.04))


@pytest.mark.parametrize(
    "own", [dict(splice_error=math.nan), dict(splice_error=-0.1), dict(splice=0.1)]
)
def test_what_no_share_can_be_is_refused_as_own(own):
    refused(lambda: limits_by_name(own), code=64)


def test_each_site_has_its_own_limit():
    shares = ["error share at a", "error share at b"]
    two = scores(error=(0.02, 0.20)).own(np.ones(400))
    measured = limits_of(two, Limits(), {}, shares)
    assert measured["error share at a"] == pytest.approx((0.07, 0.02))  # limit, own
    assert measured["error share at b"] == pytest.approx((0.25, 0.20))
    stated = limits_of(two, Limits(), dict(error_share=0.1), shares)
    assert stated["error share at b"] == pytest.approx((0.15, 0.1))
    loose = limits_of(two, Limits(), dict(error_share=0.4), shares)
    assert loose["error share at b"] == (0.30, None)  # the policy's limit allows over nothing


@pytest.mark.parametrize(
    "broken",
    [
        dict(effect=0),
        dict(effect=-0.1),
        dict(effect=math.nan),
        dict(activation=math.inf),
        dict(splice_error=1.0),
        dict(error_share=1.5),
        dict(watched=0.0),
        dict(allowance=0.0),
        dict(active_features=0.0),
        dict(active_features=math.inf),
        dict(inputs=1.0),
        dict(decisions=math.nan),
        dict(allowance=-0.01),
    ],
)
def test_limits_that_would_let_everything_pass_are_refused(broken):
    refused(lambda: Limits(**broken), code=64)


# the plan


def test_the_plan_counts_its_statements():
    c = checked()
    attribution = np.maximum(c.scores.attribution, c.scores.among_alerts)
    most = [f for f in np.argsort(-attribution) if attribution[f] >= 0.02]
    assert list(c.plan.watched) == most
    assert len(c.plan.statements) == 7 * (1 + 4) + len(most)
    assert c.plan.count == len(c.plan.statements) + c.plan.emerging
    assert c.plan.emerging == min(10, 16 - len(most))
    assert len({s.key for s in c.plan.statements}) == len(c.plan.statements)


def test_the_plan_names_what_it_is_about():
    c = checked()
    w, plan = c.world, c.plan
    declared = c.rows.segment.value_counts().to_dict()
    assert plan.segments == declared | {"alerts": 40, "label 1": int(c.rows.label.sum())}
    assert len(plan.alerts) == 40
    assert plan.too_small == {}
    assert (plan.sequences, plan.groups, plan.features) == (400, 400, 16)
    assert plan.check_set == "digest"
    assert plan.old["fingerprint"] == w.old.fingerprint
    assert plan.new["fingerprint"] == w.new.fingerprint
    assert plan.dictionary == w.dictionary.fingerprint


def test_a_plan_is_read_as_it_was_written():
    c = checked()
    text = json.dumps(c.plan.to_dict(), allow_nan=False)
    assert json.dumps(Plan.from_dict(json.loads(text)).to_dict()) == text
    assert Plan.from_dict(c.plan.to_dict()).statements == c.plan.statements


def test_limits_are_decided_on_as_they_are_written_down():
    c = checked()
    thirds = Limits(effect=1 / 3, watched=2 / 3)
    plan, _ = plan_check(c.world.old, c.world.dictionary, c.rows, thirds)
    assert Plan.from_dict(plan.to_dict()).statements == plan.statements


def watched(*named):
    "Watched features of a dictionary in which two labels are alike, and one is a number."
    c = checked()
    labels = ("a", "b", "a", "7", *map(str, range(100, 112)))
    d = replace(c.world.dictionary, labels=labels)
    return plan_check(c.world.old, d, c.rows, watched=named, watched_share=2.0)[0].watched


def test_watched_features_by_name_and_by_number():
    largest = watched()
    size = np.maximum(checked().scores.attribution, checked().scores.among_alerts)
    assert list(largest) == np.argsort(-size, kind="stable")[:10].tolist()  # none has the share

    def added(*numbers):
        return largest + tuple(f for f in numbers if f not in largest)

    assert watched("b", 5, "7", np.int64(6), "b") == added(1, 5, 3, 6)
    assert watched("a (feature 2)") == added(2)
    assert watched("9") == added(9)
    assert watched(*range(16)) == added(*range(16))


def test_declared_segments_that_are_too_small_decide_nothing():
    c = checked()
    rows = c.rows.assign(segment=["rare"] * 49 + ["other"] * 351)
    plan, _ = plan_check(c.world.old, c.world.dictionary, rows)
    assert plan.too_small == {"rare": 49}
    assert "rare" not in {s.segment for s in plan.statements}
    one_more = rows.assign(segment=["rare"] * 50 + ["other"] * 350)
    assert plan_check(c.world.old, c.world.dictionary, one_more)[0].segments["rare"] == 50


RARE = ["a"] * 30 + ["b"] * 30 + ["main"] * 340


def test_rare_segments_are_asked_together_under_the_name_of_a_policy():
    c = checked()
    rows = c.rows.assign(segment=RARE)
    plan, scores = plan_check(c.world.old, c.world.dictionary, rows, pool="other")
    assert plan.pooled == {"other": {"a": 30, "b": 30}}
    assert plan.segments["other"] == 60
    assert plan.too_small == {}
    alone, _ = plan_check(
        c.world.old, c.world.dictionary, rows.assign(segment=["other"] * 60 + RARE[60:])
    )
    assert plan.statements == alone.statements  # the limits too are those of one segment
    seen = preview(plan, scores, rows)
    assert set(seen[seen.segment == "other"].sequences) == {60}
    apart, _ = plan_check(c.world.old, c.world.dictionary, rows, pool="other", segments=False)
    assert apart.pooled == {} and "other" not in apart.segments
    assert Plan.from_dict(json.loads(canonical(plan.to_dict()))) == plan


def test_what_is_pooled_follows_from_numbers_of_sequences_and_their_weights_alone():
    rows = checked().rows.assign(segment=RARE)
    pooled = {"other": {"a": 30, "b": 30}}
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = rows.assign(label=rng.integers(0, 2, 400), x0=rng.normal(size=400)).sample(
            frac=1, random_state=rng.integers(100)
        )
        assert pooled_in(other, "other") == pooled
    weight = np.where(np.arange(400) == 399, 1000.0, 1.0)
    assert pooled_in(rows.assign(weight=weight), "other")["other"] == dict(a=30, b=30, main=340)
    one_customer = rows.assign(group_id=np.where(np.arange(400) < 60, np.arange(400), 77))
    assert "main" in pooled_in(one_customer, "other")["other"]
    assert pooled_in(rows.drop(columns="segment"), "other") == {}


def test_a_pool_that_is_too_small_is_listed_as_any_other_segment():
    c = checked()
    rows = c.rows.assign(segment=["a"] * 20 + ["b"] * 20 + ["main"] * 360)
    plan, _ = plan_check(c.world.old, c.world.dictionary, rows, pool="other")
    assert plan.too_small == {"other": 40}
    assert plan.pooled == {"other": {"a": 20, "b": 20}}
    assert pool_words(plan) == [
        'Too rare alone, and too rare together as "other": "a" (20), "b" (20).'
    ]
    assert "2 rare segments are too rare together as 'other' (apart)" in deviations(plan)
    assert "they are too rare together, as 'other'" in rare_words(plan.pooled["other"], "other")


@pytest.mark.parametrize("name", ["main", "a", "alerts", "label 1", " ", ALL])
def test_a_pool_has_a_name_of_its_own(name):
    rows = checked().rows.assign(segment=RARE)
    refused(lambda: pooled_in(rows, name), "pool = ", code=64)


@pytest.mark.parametrize("name", ["alerts", "label 1"])
def test_a_segment_that_is_called_like_a_built_in_one_is_refused(name):
    c = checked()
    rows = c.rows.assign(segment=np.where(np.arange(400) < 200, name, "north"))
    refused(lambda: plan_check(c.world.old, c.world.dictionary, rows), repr(name))


@pytest.mark.parametrize("wrong", ["a", "c", 16, -1, "16"])
def test_watched_features_that_are_none_or_several_are_refused(wrong):
    refused(lambda: watched(wrong), code=64)


def test_a_foreign_dictionary_has_no_plan():
    w = small_world(300)
    refused(lambda: plan_check(w.new, w.dictionary, w.rows), "made for 'v1'")


# preview

NAMES = ("splice error", "error share at a", "error share at b", "activation", "effect", "our own")


def previewed():
    "Plan and preview of 400 sequences in groups of two, of unequal weight, in two segments."
    n = 400
    rows = pd.DataFrame(
        dict(
            sequence_id=range(n),
            group_id=np.arange(n) // 2,
            weight=np.where(np.arange(n) < 200, 3.0, 1.0),
            segment=np.where(np.arange(n) % 4 < 2, "north", "south"),
        )
    )
    statements = []
    for segment in ("", "north", "south"):
        for name in NAMES:
            question = "valid" if "error" in name or "own" in name else "same"
            statements.append(Statement(name, question, 0.25, segment))
    for family in ("activation", "effect"):
        for feature in ("amount", "age"):
            statements.append(Statement(f"{family}: {feature}", "same", 0.5))
    sizes = {"north": 200, "south": 200}
    plan = Plan(tuple(statements), (4, 9), sequences=n, groups=200, segments=sizes)
    firing = [0.0] * 4 + [123.4] + [0.0] * 4 + [77.0] + [0.0] * 6
    errors = (interval(0.05, 0.001), interval(0.1, 0.009))
    old = replace(scores(firing=firing), splice=interval(0.02, 0.004), error=errors)
    return plan, preview(plan, old, rows).set_index(["statement", "segment"])


def needed(statements: int, spread: float, limit: float) -> int:
    "Where the group that changed wholly leaves room between half the limit and the limit."

    def settles(k):
        quantile = stats.t.ppf(1 - 0.01 / (2 * statements), k - 1)
        left = limit * (1 + 1 / k) - 1 / k  # for the share itself
        if left <= limit / 2:
            return False
        gap = math.log(left / (limit / 2))
        return k >= ((quantile + 1.645) * spread / gap) ** 2

    return max(50, next(k for k in range(10, 10**6) if settles(k)))


def test_preview_needs_what_the_formula_says():
    plan, found = previewed()
    spread = {
        "splice error": 0.004 * math.sqrt(1000) / 0.02,
        "error share at a": 0.001 * math.sqrt(1000) / 0.05,
        "error share at b": 0.009 * math.sqrt(1000) / 0.1,
        "activation: age": 1.5,
    }
    for name in (*NAMES, "activation: age"):
        limit = 0.5 if ":" in name else 0.25
        expected = needed(len(plan.statements), spread.get(name, 1.0), limit)
        assert found.needed[name, ""] == expected, name


def test_preview_counts_effective_groups():
    _, found = previewed()
    weight = np.r_[np.full(100, 6.0), np.full(100, 2.0)]
    assert found.sequences["effect", ""] == int(effective(weight))
    assert found.sequences["effect", "north"] == int(effective(weight[::2]))
    assert found.sequences["effect: amount", ""] == 123
    assert found.sequences["activation: age", ""] == 77
    assert (found.settles == (found.sequences >= found.needed)).all()
    assert not found.settles["effect: amount", ""]


# a team's own families


def test_a_teams_own_family_is_checked_like_the_others(module):
    c = checked()
    w, name = c.world, f"{module(OWN)}:Mine"
    plan, _ = plan_check(w.old, w.dictionary, c.rows, families=[name])
    table = measure(w.old, w.new, w.dictionary, c.rows, plan)
    mine = {s.segment: s.ratio for s in decide(table, plan) if s.name == "mine"}
    was, now = (r.run(c.rows).numpy() for r in (w.old, w.new))
    north = (c.rows.segment == "north").to_numpy()
    whole = np.abs(now - was).sum() / np.abs(was).sum()
    in_north = np.abs(now - was)[north].sum() / np.abs(was)[north].sum()
    assert list(mine) == ["", "alerts", "label 1", "north", "south"]
    assert mine[""] == pytest.approx(whole, rel=1e-4)
    assert mine["north"] == pytest.approx(in_north, rel=1e-4)
    assert plan.families == (name,)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"same"', '"both"'),
        ("0.25", "float('nan')"),
        ("0.25", "0.0"),
        ("0.25", "'25 %'"),
        ('"mine"', '"bank: mine"'),
        ('"mine"', '""'),
        ('"mine"', '"effect"'),
        ("def measure", "def measured"),
        ("class Mine", "class Other"),
        ("import numpy", "import numpyy"),
    ],
)
def test_families_that_could_not_be_read_are_refused(module, old, new):
    name = f"{module(OWN.replace(old, new))}:Mine"
    refused(lambda: load_families([name]), code=64)


@pytest.mark.parametrize("name", ["no_colon", "nowhere:Mine", "a:b:c", "__main__:Mine", ""])
def test_names_of_families_that_lead_nowhere(name):
    refused(lambda: load_families([name]), code=64)


# the digest of the code


def test_the_code_digest_changes_with_a_family(module):
    own = load_families([f"{module(OWN)}:Mine"])
    first = code_digest(own)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert first == code_digest(own)
    assert first != code_digest(load_families())
    module(OWN + "\n# a comment\n")
    assert code_digest(own) != first


@pytest.fixture
def copied(tmp_path, monkeypatch):
    "A copy of the package, of which digests are made."
    source = Path(interpkit.__file__).parent
    copy = tmp_path / "interpkit"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(interpkit, "__file__", str(copy / "__init__.py"))
    return copy


def add_a_line(file: Path):
    with open(file, "a") as f:
        f.write("\n")


@pytest.mark.parametrize(
    "file",
    [
        "core/statistics.py",
        "model/sites.py",
        "sparse/codes.py",
        "dictionary/evaluate.py",
        "explain/ablation.py",
        "drift/families.py",
    ],
)
def test_the_code_digest_changes_with_each_floor_that_a_table_depends_on(copied, file):
    before = code_digest(load_families())
    assert before == code_digest(load_families())
    add_a_line(copied / file)
    assert before != code_digest(load_families())


def test_the_code_digest_does_not_change_with_the_report(copied):
    before = code_digest(load_families())
    add_a_line(copied / "gate" / "report.py")
    assert before == code_digest(load_families())


def test_a_chain_of_updates_is_judged_by_what_its_first_dictionary_had():
    c = small_world(n=400)
    loose = Limits(splice_error=0.99, error_share=0.9)
    coarse = certify(c.old, c.dictionary.subset(range(1, 16)), c.rows)
    plain, scores = plan_check(c.old, coarse, c.rows, limits=loose)
    assert scores.splice.ratio > 0.001
    first = dict(splice_error=scores.splice.ratio / 2, error_share=1.0)  # the second had more
    followed = replace(coarse, training=coarse.training | dict(first=first))
    chained, _ = plan_check(c.old, followed, c.rows, limits=loose)
    was, now = ({s.name: s for s in p.statements if not s.segment} for p in (plain, chained))
    assert now["splice error"].limit == pytest.approx(first["splice_error"] + 0.05, rel=1e-3)
    assert now["splice error"].limit < was["splice error"].limit
    assert now["error share"] == was["error share"]
    stated, _ = plan_check(c.old, followed, c.rows, limits=loose, own=dict(splice_error=0.2))
    assert stated.own["splice_error"] == 0.2  # what a policy states goes before
