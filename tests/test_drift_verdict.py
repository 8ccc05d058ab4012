"From a plan to a verdict: what is written down first, what follows, what is named, what to collect."

import json
import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from small_language import truth, world

import interpkit.drift.verdict as verdict_module
from interpkit.core.errors import InterpkitError
from interpkit.core.statistics import Interval
from interpkit.drift.comparison import Comparison
from interpkit.drift.families import load_families, measure
from interpkit.drift.limits import Limits
from interpkit.drift.printed import auc, printed
from interpkit.drift.simulate import small_world
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.drift.verdict import (
    OldScores,
    Verdict,
    code_digest,
    fit_or_raise,
    judge,
    naming,
    plan_check,
    preview,
    score_old,
    sensitivity,
    to_collect,
    worst,
)


def statement(name="effect", outcome="PASS", question=None, **kw):
    return Statement(
        name,
        question or ("valid" if "error" in name else "same"),
        0.25,
        **dict(dict(ratio=0.1, lower=0.08, upper=0.12, n=1000, n_eff=1000.0, spread=0.005), **kw),
        outcome=outcome,
    )


PLAN = Plan(
    (statement(),),
    (),
    dict(name="v1"),
    dict(name="v2"),
    "d",
    "c",
    sequences=1000,
    groups=1000,
    features=16,
)


@lru_cache
def checked(moved=0.3, n=400):
    w = small_world(n, moved)
    rows = w.rows.assign(label=(np.arange(n) % 7 == 0) * 1.0)
    plan, scores = plan_check(
        w.old,
        w.dictionary,
        rows,
        new=dict(name="v2", fingerprint=w.new.fingerprint),
        check_set="digest",
    )
    return w, rows, plan, scores, measure(w.old, w.new, w.dictionary, rows, plan)


# scores of the old release


def test_score_old_by_hand():
    w, seen = world(), truth("old")
    s, weight, group = (
        score_old(w.old, w.dictionary, w.rows),
        w.rows.weight.to_numpy(),
        np.arange(14) // 2,
    )
    bare, spliced = (np.array([getattr(t, n) for t in seen]) for n in ("decision", "spliced"))
    mean = (weight * bare).sum() / weight.sum()
    assert (
        s.splice.ratio
        == pytest.approx(
            (weight * (spliced - bare) ** 2).sum() / (weight * (bare - mean) ** 2).sum(), rel=1e-3
        )
        and s.splice.n == 7
    )
    for k in (0, 1):
        E, A = (
            np.array([t.site[k].error for t in seen]),
            np.array([float(t.site[k].at.abs().sum()) for t in seen]),
        )
        assert s.error[k].ratio == pytest.approx(
            (weight * E).sum() / (weight * (A + E)).sum(), rel=1e-3
        )
    size = sum(
        x * np.concatenate([t.site[k].at.abs().sum(0).numpy() for k in (0, 1)])
        for x, t in zip(weight, seen)
    )
    assert s.attribution.tolist() == pytest.approx((size / size.sum()).tolist(), abs=1e-4)
    fires = np.stack(
        [np.concatenate([(t.site[k].codes > 0).any(0).numpy() for k in (0, 1)]) for t in seen]
    )
    W = np.stack([(weight[:, None] * fires)[group == g].sum(0) for g in range(7)])
    assert (
        s.firing.tolist()
        == pytest.approx(
            np.divide(W.sum(0) ** 2, (W**2).sum(0), out=np.zeros(44), where=W.sum(0) > 0).tolist()
        )
        and 1 < s.firing.max() < 7
    )


# the plan


def interval(ratio, spread=0.01, n=1000):
    return Interval(ratio, 0.0, 1.0, n, float(n), spread, 10.0)


def scores(splice=0.01, error=(0.02,), F=16, attribution=None, firing=None):
    return OldScores(
        interval(splice),
        tuple(map(interval, error)),
        np.full(F, 1 / F) if attribution is None else np.array(attribution),
        np.full(F, 300.0) if firing is None else np.array(firing),
    )


def test_valid_limits_tighten_to_what_the_old_release_has():
    w, rows, plan, s, _ = checked()
    limit = {x.name: x.limit for x in plan.statements if not x.watched}
    assert (
        limit
        == {
            "splice error": pytest.approx(0.05),
            "error share": pytest.approx(0.05),
            "activation": 0.25,
            "effect": 0.25,
        }
        and plan.own["splice_error"] < 1e-6
    )
    given = lambda own, limits=Limits(): {
        x.name: x.limit
        for x in plan_check(w.old, w.dictionary, rows, limits, own=own)[0].statements
        if not x.watched
    }
    assert given(dict(splice_error=0.02, error_share=0.1))["splice error"] == pytest.approx(
        0.07
    ) and given(dict(error_share=0.1))["error share"] == pytest.approx(0.15)
    assert given(dict(splice_error=0.9))["splice error"] == 0.10 and given(
        {}, Limits(allowance=0.01)
    )["splice error"] == pytest.approx(0.01)
    for own in (dict(splice_error=math.nan), dict(splice_error=-0.1), dict(splice=0.1)):
        with pytest.raises(InterpkitError) as e:
            given(own)
        assert e.value.code == 64


def test_each_site_has_its_own_limit():
    w = world()
    found = verdict_module._limits(
        scores(error=(0.02, 0.20)), Limits(), {}, ["error share at a", "error share at b"]
    )
    assert found["error share at a"] == pytest.approx(0.07) and found[
        "error share at b"
    ] == pytest.approx(0.25)
    assert verdict_module._limits(
        scores(error=(0.02, 0.20)),
        Limits(),
        dict(error_share=0.1),
        ["error share at a", "error share at b"],
    )["error share at b"] == pytest.approx(0.15)


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
        dict(allowance=-0.01),
    ],
)
def test_limits_that_would_let_everything_pass_are_refused(broken):
    with pytest.raises(InterpkitError) as e:
        Limits(**broken)
    assert e.value.code == 64


def test_the_plan_counts_its_statements_and_names_what_it_is_about():
    w, rows, plan, s, _ = checked()
    most = [f for f in np.argsort(-s.attribution) if s.attribution[f] >= 0.02]
    assert (
        list(plan.watched) == most
        and len(plan.statements) == 4 * (1 + 2) + 2 * len(most)
        and len({x.key for x in plan.statements}) == len(plan.statements)
    )
    assert plan.segments == rows.segment.value_counts().to_dict() and (
        plan.sequences,
        plan.groups,
        plan.features,
        plan.check_set,
    ) == (400, 400, 16, "digest")
    assert (plan.old["fingerprint"], plan.new["fingerprint"], plan.dictionary) == (
        w.old.fingerprint,
        w.new.fingerprint,
        w.dictionary.fingerprint,
    )
    thirds = plan_check(w.old, w.dictionary, rows, Limits(effect=1 / 3, watched=2 / 3))[0]
    assert (
        Plan.from_dict(thirds.to_dict()).statements == thirds.statements
    )  # limits are decided on as they are written down
    text = json.dumps(plan.to_dict(), allow_nan=False)
    assert (
        json.dumps(Plan.from_dict(json.loads(text)).to_dict()) == text
        and Plan.from_dict(plan.to_dict()).statements == plan.statements
    )


def test_watched_features_by_name_by_number_and_not_by_a_label_of_several():
    w, rows, *_ = checked()
    d = replace(w.dictionary, labels=("a", "b", "a", "7", *map(str, range(100, 112))))
    watch = lambda *named: plan_check(w.old, d, rows, watched=named, watched_share=2.0)[0].watched
    assert (
        watch("b", 5, "7", np.int64(6), "b") == (1, 5, 3, 6)
        and watch("a (feature 2)") == (2,)
        and watch("9") == (9,)
    )
    for wrong in ("a", "c", 16, -1, "16"):
        with pytest.raises(InterpkitError) as e:
            watch(wrong)
        assert e.value.code == 64


def test_fit_or_raise_reads_every_number():
    fit_or_raise(None, scores(0.10, (0.30,)), Limits())
    for bad in (scores(0.11), scores(0.01, (0.02, 0.31)), scores(math.nan)):
        with pytest.raises(InterpkitError) as e:
            fit_or_raise(None, bad, Limits())
        assert e.value.code == 65


def test_a_foreign_dictionary_has_no_plan():
    w = small_world(300)
    with pytest.raises(InterpkitError, match="made for 'v1'"):
        plan_check(w.new, w.dictionary, w.rows)


# preview


def test_preview_needs_what_the_formula_says_and_counts_groups():
    n = 400
    rows = pd.DataFrame(
        dict(
            sequence_id=range(n),
            group_id=np.arange(n) // 2,
            weight=np.where(np.arange(n) < 200, 3.0, 1.0),
            segment=np.where(np.arange(n) % 4 < 2, "north", "south"),
        )
    )
    names = (
        "splice error",
        "error share at a",
        "error share at b",
        "activation",
        "effect",
        "team's own",
    )
    plan = Plan(
        tuple(
            Statement(x, "valid" if "error" in x or "own" in x else "same", 0.25, s)
            for s in ("", "north", "south")
            for x in names
        )
        + tuple(
            Statement(f"{f}: {x}", "same", 0.5)
            for f in ("activation", "effect")
            for x in ("amount", "age")
        ),
        (4, 9),
        sequences=n,
        groups=200,
    )
    s = replace(
        scores(0.02, (0.05, 0.1), firing=[0.0] * 4 + [123.4] + [0.0] * 4 + [77.0] + [0.0] * 6),
        splice=interval(0.02, 0.004),
        error=(interval(0.05, 0.001), interval(0.1, 0.009)),
    )
    found = preview(plan, s, rows).set_index(["statement", "segment"])

    def needed(
        c, limit
    ):  # from where on the group that changed wholly leaves room between half the limit and the limit
        q = lambda k: stats.t.ppf(1 - 0.01 / (2 * len(plan.statements)), k - 1)
        return next(
            k
            for k in range(10, 10**6)
            if k >= ((q(k) + 1.645) * c / math.log(limit * (1 + 1 / k) / (limit / 2 + 1 / k))) ** 2
        )

    spread = {
        "splice error": 0.004 * math.sqrt(1000) / 0.02,
        "error share at a": 0.001 * math.sqrt(1000) / 0.05,
        "error share at b": 0.009 * math.sqrt(1000) / 0.1,
        "activation: age": 1.5,
    }
    for name in names + ("activation: age",):
        assert found.needed[name, ""] == max(
            50, needed(spread.get(name, 1.0), 0.5 if ":" in name else 0.25)
        ), name
    eff = lambda w: w.sum() ** 2 / (w**2).sum()
    W = np.r_[np.full(100, 6.0), np.full(100, 2.0)]
    assert found.sequences["effect", ""] == int(eff(W)) and found.sequences[
        "effect", "north"
    ] == int(eff(W[::2]))
    assert (
        found.sequences["effect: amount", ""] == 123
        and found.sequences["activation: age", ""] == 77
    )
    assert (found.settles == (found.sequences >= found.needed)).all() and not found.settles[
        "effect: amount", ""
    ]


# the verdict


@pytest.mark.parametrize(
    "valid, same, verdict, action",
    [
        ("PASS", "PASS", "PASS", "REUSE"),
        ("PASS", "FAIL", "FAIL", "REVIEW"),
        ("PASS", "INCONCLUSIVE", "INCONCLUSIVE", "COLLECT"),
        ("FAIL", "PASS", "FAIL", "RETRAIN"),
        ("FAIL", "FAIL", "FAIL", "RETRAIN"),
        ("FAIL", "INCONCLUSIVE", "FAIL", "RETRAIN"),
        ("INCONCLUSIVE", "PASS", "INCONCLUSIVE", "COLLECT"),
        ("INCONCLUSIVE", "FAIL", "FAIL", "REVIEW"),
        ("INCONCLUSIVE", "INCONCLUSIVE", "INCONCLUSIVE", "COLLECT"),
    ],
)
def test_actions(valid, same, verdict, action):
    others = [statement("error share"), statement("activation"), statement("effect: x")]
    for order in (1, -1):
        v = judge(
            [statement("splice error", valid), statement("effect", same), *others][::order], PLAN
        )
        assert (v.valid, v.same, v.outcome, v.action, v.passed, int(v.exit_code)) == (
            valid,
            same,
            verdict,
            action,
            verdict == "PASS",
            {"PASS": 0, "FAIL": 10, "INCONCLUSIVE": 11}[verdict],
        )
        assert (v.collect is not None) == (action == "COLLECT")


def test_one_watched_feature_or_segment_decides():
    fine = [statement("splice error"), statement("effect")]
    assert (
        judge([*fine, statement("effect: travel", "FAIL")], PLAN).action == "REVIEW"
        and judge([*fine, statement("effect", "FAIL", segment="north")], PLAN).action == "REVIEW"
    )
    assert (
        judge([*fine, statement("splice error", "FAIL", segment="north")], PLAN).action == "RETRAIN"
        and judge([*fine, statement("effect: travel", "INCONCLUSIVE", n_eff=12.0)], PLAN).action
        == "COLLECT"
    )


def test_a_verdict_is_no_boolean():
    v = judge([statement("splice error"), statement("effect")], PLAN)
    for use in (lambda: bool(v), lambda: not v, lambda: 1 if v else 0):
        with pytest.raises(TypeError, match="passed"):
            use()
    assert (
        worst(["PASS", "INCONCLUSIVE", "PASS"]) == "INCONCLUSIVE"
        and worst(["INCONCLUSIVE", "FAIL"]) == "FAIL"
    )


def test_verdict_round_trip_and_lookup():
    w, rows, plan, s, table = checked()
    v = judge(decide(table, plan), plan, table, notes=("a note",))
    text = json.dumps(v.to_dict(), allow_nan=False)
    again = Verdict.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text and again.changed == v.changed and len(v.changed) > 0
    assert (
        not set(json.loads(text)) & {"time", "host", "path", "cost"}
        and v.statement("effect", "north").segment == "north"
    )
    with pytest.raises(InterpkitError, match="effect"):
        v.statement("efect")
    assert (
        "v1 -> v2" in repr(v) and len(v.table()) == len(plan.statements) and "v1" in v._repr_html_()
    )


def test_a_verdict_with_an_unknown_share_can_be_written_down():
    unknown = statement(
        "effect: never",
        "INCONCLUSIVE",
        ratio=None,
        lower=None,
        upper=None,
        n=0,
        n_eff=0.0,
        spread=0.0,
    )
    v = judge([statement("splice error"), unknown], replace(PLAN, new={}))
    assert (
        Verdict.from_dict(json.loads(json.dumps(v.to_dict(), allow_nan=False))).statements[1]
        == unknown
        and v.table().share.iloc[1] == "-"
        and "v1 -> new" in v.headline
    )


def test_sensitivity_is_the_verdict_at_other_limits():
    w, rows, plan, s, table = checked()
    for name, factor in (("half", 0.5), ("double", 2.0)):
        other = judge(
            decide(
                table,
                replace(
                    plan,
                    statements=tuple(replace(x, limit=factor * x.limit) for x in plan.statements),
                ),
            ),
            plan,
        )
        assert sensitivity(table, plan)[name] == dict(valid=other.valid, same=other.same)
    assert judge(decide(table, plan), plan, table).sensitivity == sensitivity(table, plan)


# what to collect


def test_collect_counts_sequences_of_the_whole_set():
    open_ = dict(
        outcome="INCONCLUSIVE", ratio=0.2, upper=0.2 * math.exp(2 * math.log(0.25 / 0.2)), lower=0.1
    )  # reaches twice as far as the limit: four times as many
    whole = statement(n=1000)
    assert to_collect([whole, statement("effect", **open_)]) == 4100
    assert (
        to_collect([whole, statement("effect", segment="north", n=100, n_eff=100.0, **open_)])
        == 4100
    )  # a tenth of the traffic: 400 there are 4,000 in all
    assert (
        to_collect(
            [
                whole,
                statement(
                    "effect: rare",
                    "INCONCLUSIVE",
                    n=10,
                    n_eff=10.0,
                    ratio=0.0,
                    lower=0.0,
                    upper=0.1,
                ),
            ]
        )
        == 5000
    )
    assert (
        to_collect(
            [
                whole,
                statement(
                    "effect: never",
                    "INCONCLUSIVE",
                    n=0,
                    n_eff=0.0,
                    ratio=None,
                    lower=None,
                    upper=None,
                ),
            ]
        )
        == 50_000
    )
    assert (
        to_collect([whole, statement("effect", "INCONCLUSIVE", ratio=0.25, lower=0.2, upper=0.3)])
        is None
    )
    assert (
        to_collect(
            [
                whole,
                statement("effect", "INCONCLUSIVE", ratio=0.2499, lower=0.2, upper=0.3),
                statement("splice error", "INCONCLUSIVE", ratio=0.01, lower=0.001, upper=0.4),
            ]
        )
        is None
    )
    assert to_collect([whole]) == 0


# naming


def holm_by_hand(p: dict, m: int, alpha=0.01) -> set:
    "Step down: the k-th smallest of m p-values has to be at most alpha / (m - k + 1); the first that isn't ends it."
    named = set()
    for k, (name, value) in enumerate(sorted(p.items(), key=lambda x: x[1])):
        if value > alpha / (m - k):
            break
        named.add(name)
    return named


def test_naming_is_holms_procedure_over_all_features():
    rng, parts, p, F = np.random.default_rng(0), [], {}, 40
    for i, share in enumerate(np.linspace(0.5, 0.75, 60)):
        n = 60 + 5 * i if i % 2 else 400
        den, name = rng.lognormal(0, 0.6, n), f"{'effect' if i % 3 else 'activation'}: feature: {i}"
        num = share * den * rng.lognormal(-0.08, 0.4, n)
        parts.append(
            pd.DataFrame(
                dict(
                    statement=name,
                    segment="",
                    sequence=range(n),
                    group=range(n),
                    weight=1.0,
                    numerator=num,
                    denominator=den,
                    change=-num,
                    base=den,
                )
            )
        )
        R = num.sum() / den.sum()
        se = np.std(num - R * den, ddof=1) * math.sqrt(n) / den.sum()
        p[name] = stats.t.sf(math.log(R / 0.5) * R / se, n - 1)
    few = parts[-1].head(40).assign(statement="effect: few", numerator=9.0)
    found = naming(
        pd.concat([*parts, few, parts[-1].assign(statement="effect")]),
        replace(
            PLAN,
            features=F,
            statements=(Statement("effect", "same", 0.25), Statement("effect: x", "same", 0.5)),
        ),
    )
    named = {f"{r.family}: {r.feature}" for r in found.itertuples()}
    assert (
        named == holm_by_hand(p, 2 * F)
        and len(
            {len(named), len(holm_by_hand(p, len(p))), sum(x <= 0.01 / (2 * F) for x in p.values())}
        )
        == 3
    )  # neither over those measured alone, nor Bonferroni
    assert (
        found.family.tolist() == sorted(found.family, reverse=True)
        and (found.share > 0.5).all()
        and ((found.lower < found.share) & (found.share < found.upper)).all()
        and (found.change < 0).all()
    )


def test_nothing_is_named_where_nothing_changed():
    w, rows, plan, *_ = checked()
    assert len(naming(measure(w.old, w.old, w.dictionary, rows, plan), plan)) == 0


# own families and the digest of the code

OWN = """
import numpy as np
from interpkit.drift.families import rows_of
class Mine:
    name, question, limit = "mine", "same", 0.25
    def measure(self, comparison):
        o = comparison.observed
        return rows_of(comparison, self.name, np.abs(o.decision_new - o.decision_old), np.abs(o.decision_old))
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    import uuid

    name = f"bank_{uuid.uuid4().hex[:8]}"
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_a_teams_own_family_is_checked_like_the_others(module):
    w, rows, *_ = checked()
    name = module(OWN)
    plan, _ = plan_check(w.old, w.dictionary, rows, families=[f"{name}:Mine"])
    mine = [
        s for s in decide(measure(w.old, w.new, w.dictionary, rows, plan), plan) if s.name == "mine"
    ]
    old, new = (r.run(rows).numpy() for r in (w.old, w.new))
    assert [s.segment for s in mine] == ["", "north", "south"] and mine[0].ratio == pytest.approx(
        np.abs(new - old).sum() / np.abs(old).sum(), rel=1e-4
    )
    north = (rows.segment == "north").to_numpy()
    assert mine[1].ratio == pytest.approx(
        np.abs(new - old)[north].sum() / np.abs(old)[north].sum(), rel=1e-4
    ) and plan.families == (f"{name}:Mine",)


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
    with pytest.raises(InterpkitError) as e:
        load_families([f"{module(OWN.replace(old, new))}:Mine"])
    assert e.value.code == 64


@pytest.mark.parametrize("name", ["no_colon", "nowhere:Mine", "a:b:c", "__main__:Mine", ""])
def test_names_of_families_that_lead_nowhere(name):
    with pytest.raises(InterpkitError) as e:
        load_families([name])
    assert e.value.code == 64


def test_the_code_digest_changes_with_a_family_and_with_each_floor(module, tmp_path, monkeypatch):
    import interpkit

    name = module(OWN)
    own = load_families([f"{name}:Mine"])
    first = code_digest(own)
    assert first == code_digest(own) != code_digest(load_families()) and re.fullmatch(
        "[0-9a-f]{64}", first
    )
    module(OWN + "\n# a comment\n")
    assert code_digest(own) != first
    import shutil

    copied = tmp_path / "interpkit"
    shutil.copytree(
        Path(interpkit.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(interpkit, "__file__", str(copied / "__init__.py"))
    assert (base := code_digest(load_families())) == code_digest(load_families())
    for file in (
        "core/statistics.py",
        "model/sites.py",
        "dictionary/evaluate.py",
        "explain/ablation.py",
        "drift/families.py",
    ):
        with open(copied / file, "a") as f:
            f.write("\n")
        assert base != (base := code_digest(load_families())), file
    with open(copied / "release" / "report.py", "a") as f:
        f.write("\n")
    assert base == code_digest(load_families())


# what is printed


def test_auc_counts_pairs():
    label, score = np.array([1, 0, 1, 0, np.nan, 0]), np.array([0.9, 0.1, 0.5, 0.5, 7.0, 0.6])
    pairs = [(a > b) + 0.5 * (a == b) for a in (0.9, 0.5) for b in (0.1, 0.5, 0.6)]
    assert (
        auc(label, score) == pytest.approx(np.mean(pairs))
        and auc(np.ones(3), np.arange(3)) is None
        and auc(np.full(3, np.nan), np.arange(3)) is None
    )


def test_printed_behaviour_by_hand():
    w, rows, plan, s, table = checked()
    rows = rows.assign(label=pd.array([None, 1, 0, 0] * 100, dtype="Int64"))
    p = printed(Comparison(w.old, w.new, w.dictionary, rows, plan), most=40)
    old, new = (r.run(rows).numpy() for r in (w.old, w.new))
    y = np.array([np.nan, 1, 0, 0] * 100)
    b = p["behaviour"]
    assert (
        b["labelled"] == 300
        and b["auc_old"] == pytest.approx(auc(y, old))
        and b["auc_new"] == pytest.approx(auc(y, new))
        and b["rank_correlation"] == pytest.approx(stats.spearmanr(old, new).statistic, abs=1e-5)
    )
    assert b["flipped"] == pytest.approx(((old > 0) != (new > 0)).mean()) and b[
        "top_replaced"
    ] == pytest.approx(len(set(np.argsort(-old)[:20]) - set(np.argsort(-new)[:20])) / 20)
    site = p["reconstruction"]["sites"]["1:out"]
    assert site["fvu_old"] < 1e-9 and site["l0_old"] == pytest.approx(
        float(
            (w.old.model[:2](torch.tensor(rows[[f"x{i}" for i in range(6)]].to_numpy())) > 0)
            .sum(1)
            .float()
            .mean()
        ),
        rel=1e-4,
    )
    json.dumps(p, allow_nan=False)
    nobody = printed(
        Comparison(w.old, w.new, w.dictionary, rows.drop(columns="label"), plan), most=40
    )["behaviour"]
    assert (
        nobody["labelled"] == 0 and nobody["auc_old"] is None and nobody["flipped"] == b["flipped"]
    )
