"The tables of the four families, worked out one sequence at a time from their definitions."

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import refused
from small_language import SITES, causal, every_effect, truth, world
from torch import nn

from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.drift.comparison import Comparison, hashed
from interpkit.drift.families import Activation, Effect, ErrorShare, SpliceError, draw, firing
from interpkit.drift.measure import measure, measure_all
from interpkit.drift.plan import plan_check
from interpkit.drift.simulate import small_world
from interpkit.drift.segments import ALL
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.drift.verdict import judge
from interpkit.explain.ablation import Ablation
from interpkit.model.releases import Release

WATCHED = (3, 30)  # one feature of each site


NAMES = (
    "splice error",
    "error share at model.layers.0:out",
    "error share at model.layers.1:out",
    "activation",
    "effect",
)


def plan_of(draws=8, seed=0):
    statements = []
    for segment in ("", "north", "south"):
        for name in NAMES:
            question = "valid" if "error" in name else "same"
            statements.append(Statement(name, question, 0.25, segment))
    sizes = dict(sequences=14, groups=7, features=44)
    return Plan(tuple(statements), WATCHED, draws=draws, seed=seed, **sizes)


def compare(plan=None, rows=None, new=None):
    w = world()
    rows = w.rows if rows is None else rows
    return Comparison(w.old, new or w.new, w.dictionary, rows, plan or plan_of(), "salt")


def of(table, name, segment=""):
    "Numerators and denominators of a statement by number of the sequence."
    t = table[(table.statement == name) & (table.segment == segment)].set_index("sequence")
    back = {h: i for i, h in enumerate(hashed(world().rows.sequence_id, "salt"))}
    t.index = [back[h] for h in t.index]
    return t.sort_index()


def codes(side):
    "For each sequence the codes of both sites, [T, F]."
    return [torch.cat([t.site[k].codes for k in (0, 1)], 1).double().numpy() for t in truth(side)]


def sizes(side):
    "The size of each feature's attribution, [sequences, features]."
    both = [[t.site[k].at.abs().sum(0).numpy() for k in (0, 1)] for t in truth(side)]
    return np.stack([np.concatenate(sites) for sites in both]).astype(float)


# each family


def test_splice_error():
    w = world().rows.weight.to_numpy()
    table = SpliceError().measure(compare())
    bare = np.array([x.decision for x in truth("new")])
    spliced = np.array([x.spliced for x in truth("new")])
    square = (bare - (w * bare).sum() / w.sum()) ** 2
    whole = of(table, "splice error")
    assert whole.numerator.tolist() == pytest.approx(((spliced - bare) ** 2).tolist(), abs=1e-2)
    assert whole.denominator.tolist() == pytest.approx(square.tolist(), abs=1e-3)
    for s in ("north", "south"):
        part = of(table, "splice error", s)
        i = np.flatnonzero(world().rows.segment == s)
        assert part.index.tolist() == i.tolist()
        assert part.numerator.tolist() == pytest.approx(whole.numerator[i].tolist())
        assert part.denominator.tolist() == pytest.approx(
            [(w * square).sum() / w.sum()] * len(i), rel=1e-4
        )


def test_error_share_at_each_site():
    table = ErrorShare().measure(compare())
    for k in (0, 1):
        t = of(table, f"error share at {SITES[k]}")
        error = np.array([x.site[k].error for x in truth("new")])
        features = np.array([float(x.site[k].at.abs().sum()) for x in truth("new")])
        assert t.numerator.tolist() == pytest.approx(error.tolist(), rel=1e-2)
        assert t.denominator.tolist() == pytest.approx((error + features).tolist(), rel=1e-2)


def test_one_site_has_one_error_share():
    one = Dictionary(SITES[:1], world().dictionary.weights[:1])
    assert ErrorShare().names(one) == ["error share"]


def activations():
    "Old, new and moved: sums over tokens, [sequences, features]."
    old, new = codes("old"), codes("new")
    moved = [np.abs(b - a).sum(0) for a, b in zip(old, new, strict=True)]
    return (
        np.stack([a.sum(0) for a in old]),
        np.stack([a.sum(0) for a in new]),
        np.stack(moved),
    )


def test_activation_of_all_features():
    was, now, moved = activations()
    w = world().rows.weight.to_numpy()
    attribution = w @ (sizes("old") + sizes("new"))
    weight = attribution / np.maximum(w @ (was + now), 1e-30)  # one number per feature
    t = of(Activation().measure(compare()), "activation")
    assert t.numerator.tolist() == pytest.approx((moved @ weight).tolist(), rel=1e-2)
    assert t.denominator.tolist() == pytest.approx((was @ weight).tolist(), rel=1e-2)
    assert (t.numerator < np.abs(now - was) @ weight).sum() == 0
    assert (t.numerator > np.abs(now - was) @ weight + 1e-3).any()  # token by token, not by sums


def test_activation_of_watched_features():
    table = Activation().measure(compare())
    was, now, moved = activations()
    for f in WATCHED:
        t = of(table, f"activation: {world().dictionary.labels[f]}")
        fires = np.flatnonzero((was + now)[:, f] > 0)
        assert t.index.tolist() == fires.tolist()
        assert t.numerator.tolist() == pytest.approx(moved[fires, f].tolist(), abs=1e-4)
        assert t.denominator.tolist() == pytest.approx(was[fires, f].tolist(), abs=1e-4)
        assert t.change.tolist() == pytest.approx((now - was)[fires, f].tolist(), abs=1e-4)
        assert t.base.tolist() == pytest.approx(was[fires, f].tolist(), abs=1e-4)


def test_watched_effect_is_by_ablation_in_both_models():
    table = Effect().measure(compare())
    old, new = every_effect("old"), every_effect("new")
    was, now, _ = activations()
    active = was + now > 0
    for f in WATCHED:
        t = of(table, f"effect: {world().dictionary.labels[f]}")
        i = np.flatnonzero(active[:, f])
        assert t.index.tolist() == i.tolist()
        assert t.numerator.tolist() == pytest.approx(np.abs(new - old)[i, f].tolist(), abs=5e-4)
        assert t.denominator.tolist() == pytest.approx(np.abs(old)[i, f].tolist(), abs=5e-4)
        assert t.change.tolist() == pytest.approx((new - old)[i, f].tolist(), abs=5e-4)


def p_by_hand():
    "The chance of each feature in each sequence."
    size = sizes("old") + sizes("new")
    was, now, _ = activations()
    active = was + now > 0
    share = size / size.sum(1, keepdims=True)
    return 0.9 * share + 0.1 * active / active.sum(1, keepdims=True)


def test_draws_have_the_probabilities_of_the_definition():
    p = p_by_hand()
    s, f, chance = draw(compare(plan_of(draws=4000)))
    assert p.sum(1).tolist() == pytest.approx([1.0] * 14)
    assert (np.bincount(s) == 4000).all()
    assert chance.tolist() == pytest.approx(p[s, f].tolist(), rel=1e-2)
    count = np.zeros_like(p)
    np.add.at(count, (s, f), 1)
    z = (count - 4000 * p) / np.sqrt(np.maximum(4000 * p * (1 - p), 1e-9))
    assert np.abs(z[p > 1e-3]).max() < 4.5
    assert not count[p == 0].any()


def test_sampled_effect_has_the_full_ablation_as_its_mean():
    t = of(Effect().measure(compare(plan_of(draws=4000))), "effect")
    old, new = every_effect("old"), every_effect("new")
    p = p_by_hand()
    expected = dict(
        numerator=np.abs(new - old), denominator=np.abs(old), change=new - old, base=old
    )
    for column, e in expected.items():
        square = np.divide(e**2, p, out=np.zeros_like(e), where=p > 0).sum(1)
        variance = square - e.sum(1) ** 2
        off = np.abs(t[column] - e.sum(1))
        assert (off < 4.5 * np.sqrt(variance / 4000) + 2e-3).all(), column
    share = np.abs(new - old).sum() / np.abs(old).sum()
    assert t.numerator.sum() / t.denominator.sum() == pytest.approx(share, rel=0.02)


def test_a_sequence_without_active_features_counts_as_nothing_and_stays():
    w = world()
    weights = []
    for x in w.dictionary.weights:
        never = torch.full_like(x.threshold, 1e6)
        weights.append(SiteWeights(**{**vars(x), "threshold": never}))
    deaf = Dictionary(SITES, tuple(weights))
    c = Comparison(w.old, w.new, deaf, w.rows, plan_of(), "salt")
    t = Effect().measure(c)
    whole = t[t.statement == "effect"]
    assert len(whole) == 14
    assert (whole.numerator == 0).all()
    assert (whole.denominator == 0).all()
    assert len(t) == 14
    plan = Plan((Statement("effect", "same", 0.25),), sequences=14)
    assert decide(whole, plan)[0].outcome == "INCONCLUSIVE"


# the left part of every table


def test_groups_and_weights_are_those_of_the_rows():
    whole = of(measure_all(compare()), "effect")
    assert whole.weight.tolist() == world().rows.weight.tolist()
    assert [len(set(whole.group[whole.index // 2 == g])) for g in range(7)] == [1] * 7
    assert whole.group.nunique() == 7


def test_ids_are_hashed_with_a_salt():
    t, w = measure_all(compare()), world()
    rows = w.rows
    assert not set(t.sequence) & set(rows.sequence_id)
    assert not set(t.group) & set(rows.group_id)
    assert set(t.sequence.str.len()) == {16}
    other = Comparison(w.old, w.new, w.dictionary, rows, plan_of(), "other")
    assert set(compare().frame.sequence) != set(other.frame.sequence)


def test_segments_hold_the_rows_of_their_sequences():
    t, rows = measure_all(compare()), world().rows
    for name in ("effect", "activation", "error share at model.layers.1:out"):
        for s in ("north", "south"):
            part = of(t, name, s)
            assert part.index.tolist() == np.flatnonzero(rows.segment == s).tolist()
            assert part.numerator.tolist() == of(t, name).numerator[part.index].tolist()
    assert not (t.segment[t.statement.str.contains(": ")] != "").any()


def test_order_of_rows_and_size_of_batches_change_nothing(monkeypatch):
    key = ["statement", "segment", "sequence"]
    once = measure_all(compare()).sort_values(key, ignore_index=True)

    def same(again):
        again = again.sort_values(key, ignore_index=True)
        left = [*key, "group", "weight"]
        assert (again[left] == once[left]).all(axis=None)
        for c in ("numerator", "denominator", "change", "base"):
            assert np.allclose(again[c], once[c], rtol=1e-4, atol=2e-4), c

    same(measure_all(compare(rows=world().rows.sample(frac=1, random_state=3))))
    monkeypatch.setattr("interpkit.drift.comparison.batch_size", lambda *a: 3)
    same(measure_all(compare()))
    monkeypatch.setattr("interpkit.drift.comparison.batch_size", lambda *a: 1)
    same(measure_all(compare(rows=world().rows.iloc[::-1])))


def test_a_seed_changes_the_draws_and_nothing_else():
    first, second = measure_all(compare()), measure_all(compare(plan_of(seed=1)))
    differ = set()
    for name in first.statement.unique():
        a, b = of(first, name).numerator, of(second, name).numerator
        if not np.allclose(a, b, rtol=1e-6):
            differ.add(name)
    assert differ == {"effect"}


def test_pairs_are_run_once_each(monkeypatch):
    ran = []
    real = Ablation.effects

    def counted(self, sequence, feature):
        ran.append(len(sequence))
        return real(self, sequence, feature)

    monkeypatch.setattr(Ablation, "effects", counted)
    c = compare()
    s = np.array([5, 2, 5, 5, 0, 2])
    f = np.array([3, 30, 3, 30, 1, 30])
    was, now = c.effects(s, f)
    assert sum(ran) == 2 * 4
    assert was.tolist() == pytest.approx(every_effect("old")[s, f].tolist(), abs=5e-4)
    assert now.tolist() == pytest.approx(every_effect("new")[s, f].tolist(), abs=5e-4)


def test_watched_sequences_are_a_random_part_that_does_not_depend_on_order():
    c = small_world(300)
    shuffled = c.rows.sample(frac=1, random_state=1)
    another = Comparison(c.old, c.new, c.dictionary, shuffled, c.plan)
    reseeded = Comparison(c.old, c.new, c.dictionary, c.rows, replace(c.plan, seed=5))

    def ids(comparison, most=50):
        return set(comparison.rows.sequence_id.iloc[firing(comparison, 0, most=most)])

    few = firing(c, 0, most=50)
    assert len(few) == 50
    assert ids(c) == ids(another)
    assert ids(c) < ids(c, most=2000)
    assert few.max() > 150 > few.min()
    assert ids(c) != ids(reseeded)


# names that could be taken for another


def test_features_of_one_label_and_segments_with_odd_names():
    w = small_world(300)
    labels = ("amount: high", "amount: high", "", *[f"u{i}" for i in range(13)])
    twins = replace(w.dictionary, labels=labels)
    rows = w.rows.assign(segment=["", "a: b", "é, \n{}"] * 100)
    plan, _ = plan_check(w.old, twins, rows, watched=[0, 1, 2], watched_share=2.0)
    names = [s.name for s in plan.statements if s.watched]
    assert names[:3] == [
        "activation: amount: high (feature 0)",
        "activation: amount: high (feature 1)",
        "activation: (feature 2)",
    ]
    assert len(names) == 6
    table = measure(w.old, w.new, twins, rows, plan)
    decided = decide(table, plan)
    assert len(decided) == 4 * 4 + 6
    assert {s.segment for s in decided} == {"", ALL, "a: b", "é, \n{}"}
    assert all(s.n == 100 for s in decided if s.segment)
    # the same check with labels that tell features apart
    plain_plan, _ = plan_check(w.old, w.dictionary, rows, watched=[0, 1, 2], watched_share=2.0)
    plain_table = measure(w.old, w.new, w.dictionary, rows, plain_plan)
    plain = decide(plain_table, plain_plan)
    assert [s.ratio for s in plain] == [s.ratio for s in decided]
    changed = [c["feature"] for c in judge(decided, plan, table).changed]
    units = [c["feature"] for c in judge(plain, plain_plan, plain_table).changed]
    assert changed == [twins.names[int(unit.split()[1])] for unit in units]


# releases that are the same, or of another shape, or broken


def test_a_release_against_itself_passes_at_zero():
    w = small_world(300)
    plan, _ = plan_check(w.old, w.dictionary, w.rows)
    table = measure(w.old, w.old, w.dictionary, w.rows, plan)
    about_the_dictionary = table.statement.isin(["splice error", "error share"])
    assert (table.numerator[~about_the_dictionary] == 0).all()
    assert table.numerator.max() < 1e-9
    v = judge(decide(table, plan), plan, table)
    assert (v.outcome, v.action, v.changed) == ("PASS", "REUSE", ())
    assert all(s.upper > 0 for s in v.statements)


def other_width():
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1))


def no_such_site():
    return nn.Sequential(nn.Linear(6, 1))


@pytest.mark.parametrize(
    "made, why", [(other_width, "9 wide in v3"), (no_such_site, "no such site")]
)
def test_a_release_of_another_shape_counts_as_wholly_changed(made, why):
    w = small_world(300)
    torch.manual_seed(0)
    net = made()
    other = Release.from_module(net, sites=["0:out"], name="v3", device="cpu")
    plan, _ = plan_check(w.old, w.dictionary, w.rows, new=dict(name="v3"))
    c = Comparison(w.old, other, w.dictionary, w.rows, plan)
    table = measure_all(c)
    v = judge(decide(table, plan), plan, table)
    assert why in c.incompatible
    assert (v.outcome, v.valid, v.same, v.action) == ("FAIL",) * 3 + ("RETRAIN",)
    assert {s.ratio for s in v.statements} == {1.0}


def test_a_transformer_of_another_width_counts_as_wholly_changed():
    assert (measure_all(compare(new=causal(3, "wide", width=32))).numerator == 1).all()


def test_releases_that_read_other_positions_are_refused():
    w = world()

    def first_four(rows):
        b = w.new.batch(rows)
        kwargs = {k: v[:, :4] for k, v in b.kwargs.items()}
        return replace(b, kwargs=kwargs, mask=b.mask[:, :4], last=b.last.clamp(max=3))

    short = Release.from_module(
        w.new.model,
        inputs=first_four,
        decision=w.new.decision,
        sites=list(SITES),
        name="cut",
        device="cpu",
    )
    refused(lambda: measure_all(compare(new=short)), "4 in cut")


@pytest.mark.parametrize("where", ["model.layers.0.mlp.down_proj.weight", "lm_head.weight"])
def test_a_release_of_nan_is_invalid(where):
    broken = causal(0, "broken")
    with torch.no_grad():
        broken.model.get_parameter(where).view(-1)[3] = float("nan")
    refused(lambda: measure_all(compare(new=broken)))
