"The tables of the families, worked out one sequence at a time from their definitions."

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from helpers import refused
from small_language import SITES, causal, every_effect, truth, world
from torch import nn

from interpkit.core.digests import hashed
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.drift.comparison import Comparison
from interpkit.drift.families import (
    Activation,
    ActiveFeatures,
    Decisions,
    Effect,
    ErrorShare,
    SpliceError,
    draw,
    firing,
)
from interpkit.drift.inputs import Inputs, units_of
from interpkit.drift.measure import measure, measure_all
from interpkit.drift.plan import plan_check
from interpkit.drift.segments import ALL
from interpkit.drift.simulate import small_world
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.drift.verdict import judge
from interpkit.explain.ablation import Ablation
from interpkit.model.releases import Release

WATCHED = (3, 30)  # one feature of each site


NAMES = (
    "splice error",
    "error share at model.layers.0:out",
    "error share at model.layers.1:out",
    "active features",
    "activation",
    "effect",
    "inputs",
    "decisions",
)
VALID = ("splice error", "active features")


def plan_of(draws=8, seed=0):
    statements = []
    for segment in ("", "north", "south"):
        for name in NAMES:
            question = "valid" if "error" in name or name in VALID else "same"
            statements.append(Statement(name, question, 0.25, segment))
    sizes = dict(sequences=14, groups=7, features=44)
    return Plan(tuple(statements), WATCHED, draws=draws, seed=seed, **sizes)


def compare(plan=None, rows=None, new=None):
    w = world()
    rows = w.rows if rows is None else rows
    return Comparison(w.old, new or w.new, w.dictionary, rows, plan or plan_of(), "salt")


@lru_cache
def whole_table():
    "All rows of all families, once; whoever changes it takes a copy."
    return measure_all(compare())


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


def scale(side):
    "The mean distance of a release's decisions from their mean."
    w = world().rows.weight.to_numpy()
    d = np.array([x.decision for x in truth(side)])
    return (w * np.abs(d - (w * d).sum() / w.sum())).sum() / w.sum()


def effects_by_hand():
    "The effect of every feature in every sequence, in units of each release."
    return every_effect("old") / scale("old"), every_effect("new") / scale("new")


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
    both = was + now
    t = of(Activation().measure(compare()), "activation")
    assert t.numerator.tolist() == pytest.approx((moved @ weight).tolist(), rel=1e-2)
    assert t.denominator.tolist() == pytest.approx((both @ weight).tolist(), rel=1e-2)
    assert (t.numerator < np.abs(now - was) @ weight).sum() == 0
    assert (t.numerator > np.abs(now - was) @ weight + 1e-3).any()  # token by token, not by sums


def test_active_features_are_counted_per_token_that_counts():
    t = ActiveFeatures().measure(compare())
    found = of(t, "active features")
    for column, side in (("numerator", "new"), ("denominator", "old")):
        per_token = [(x[1:] > 0).sum() / (len(x) - 1) for x in codes(side)]
        assert found[column].tolist() == pytest.approx(per_token)


def test_decisions_by_hand():
    t = of(Decisions().measure(compare()), "decisions")
    w = world().rows.weight.to_numpy()
    was, now = (
        (lambda d, m: (d - (w * d).sum() / w.sum()) / m)(
            np.array([x.decision for x in truth(side)]), scale(side)
        )
        for side in ("old", "new")
    )
    assert t.numerator.tolist() == pytest.approx(np.abs(now - was).tolist(), abs=1e-3)
    size = np.abs(now) + np.abs(was)
    assert t.denominator.tolist() == pytest.approx(size.tolist(), abs=1e-3)


def test_inputs_are_columns_replaced_one_at_a_time_in_both_models():
    c = small_world(60)
    t = Inputs().measure(c)
    lends = units_of(c).lends
    lost, size = np.zeros(60), np.zeros(60)
    x = c.rows[[f"x{i}" for i in range(6)]].to_numpy()
    m = []
    for release in (c.old, c.new):
        d = release.model(torch.tensor(x)).detach().numpy()[:, 0].astype(float)
        m.append(np.abs(d - d.mean()).mean())
    for row in range(60):
        for column in range(6):
            changed = x[row].copy()
            changed[column] = x[lends[row, column], column]
            both = torch.tensor(np.stack([x[row], changed]))
            e = [
                float(r.model(both).diff(dim=0).neg().detach()) / scale_of
                for r, scale_of in zip((c.old, c.new), m, strict=True)
            ]
            lost[row] += abs(e[1] - e[0])
            size[row] += abs(e[1]) + abs(e[0])
    assert t.numerator.tolist() == pytest.approx(lost.tolist(), abs=1e-4)
    assert t.denominator.tolist() == pytest.approx(size.tolist(), abs=1e-4)


def test_a_column_of_another_row_lends_its_value_as_often_as_it_stands_in_the_traffic():
    c = small_world(400)
    rows = c.rows.assign(weight=np.where(np.arange(400) < 100, 3.0, 1.0))
    weighted = Comparison(c.old, c.new, c.dictionary, rows, c.plan)
    lends = units_of(weighted).lends
    assert (lends < 100).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(lends.size))
    shuffled = rows.sample(frac=1, random_state=3)
    again = units_of(Comparison(c.old, c.new, c.dictionary, shuffled, c.plan)).lends
    names = rows.sequence_id.to_numpy()[lends]
    other = shuffled.sequence_id.to_numpy()[again][np.argsort(shuffled.index)]
    assert (names == other).all()


def test_alerts_are_the_highest_decisions_of_the_old_release():
    c = small_world(400)
    weight = np.where(np.arange(400) % 5 == 0, 0.2, 1.0)
    rows = c.rows.assign(weight=weight)
    plan, _ = plan_check(c.old, c.dictionary, rows, salt="pepper")
    d = c.old.run(rows).numpy()
    chosen, held = [], 0.0
    for i in sorted(range(400), key=lambda i: -d[i]):
        if held >= 0.10 * weight.sum():
            break
        chosen.append(i)
        held += weight[i]
    assert set(plan.alerts) == set(hashed(rows.sequence_id.iloc[chosen], "pepper"))
    table = measure(c.old, c.new, c.dictionary, rows, plan, "pepper")
    for name in ("effect", "inputs", "decisions", "splice error", "active features"):
        part = table[(table.statement == name) & (table.segment == "alerts")]
        assert set(part.sequence) == set(plan.alerts)
    other_salt = measure(c.old, c.new, c.dictionary, rows, plan, "salt")
    refused(lambda: decide(other_salt, plan), "alerts")


def test_activation_of_watched_features():
    table = Activation().measure(compare())
    was, now, moved = activations()
    for f in WATCHED:
        t = of(table, f"activation: {world().dictionary.labels[f]}")
        fires = np.flatnonzero((was + now)[:, f] > 0)
        assert t.index.tolist() == fires.tolist()
        assert t.numerator.tolist() == pytest.approx(moved[fires, f].tolist(), abs=1e-4)
        both = (was + now)[fires, f]
        assert t.denominator.tolist() == pytest.approx(both.tolist(), abs=1e-4)
        assert t.change.tolist() == pytest.approx((now - was)[fires, f].tolist(), abs=1e-4)
        assert t.base.tolist() == pytest.approx(was[fires, f].tolist(), abs=1e-4)


def test_watched_effect_is_by_ablation_in_both_models():
    table = Effect().measure(compare())
    old, new = effects_by_hand()
    was, now, _ = activations()
    active = was + now > 0
    for f in WATCHED:
        t = of(table, f"effect: {world().dictionary.labels[f]}")
        i = np.flatnonzero(active[:, f])
        assert t.index.tolist() == i.tolist()
        assert t.numerator.tolist() == pytest.approx(np.abs(new - old)[i, f].tolist(), abs=5e-4)
        size = np.abs(old) + np.abs(new)
        assert t.denominator.tolist() == pytest.approx(size[i, f].tolist(), abs=5e-4)
        assert t.change.tolist() == pytest.approx((new - old)[i, f].tolist(), abs=5e-4)


def p_by_hand():
    "The chance of each feature in each sequence."
    size = sizes("old") / scale("old") + sizes("new") / scale("new")
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
    old, new = effects_by_hand()
    p = p_by_hand()
    expected = dict(
        numerator=np.abs(new - old),
        denominator=np.abs(old) + np.abs(new),
        change=new - old,
        base=old,
    )
    for column, e in expected.items():
        square = np.divide(e**2, p, out=np.zeros_like(e), where=p > 0).sum(1)
        variance = square - e.sum(1) ** 2
        off = np.abs(t[column] - e.sum(1))
        assert (off < 4.5 * np.sqrt(variance / 4000) + 2e-3).all(), column
    share = np.abs(new - old).sum() / (np.abs(old) + np.abs(new)).sum()
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
    whole = of(whole_table(), "effect")
    assert whole.weight.tolist() == world().rows.weight.tolist()
    assert [len(set(whole.group[whole.index // 2 == g])) for g in range(7)] == [1] * 7
    assert whole.group.nunique() == 7


def test_ids_are_hashed_with_a_salt():
    t, w = whole_table(), world()
    rows = w.rows
    assert not set(t.sequence) & set(rows.sequence_id)
    assert not set(t.group) & set(rows.group_id)
    assert set(t.sequence.str.len()) == {16}
    other = Comparison(w.old, w.new, w.dictionary, rows, plan_of(), "other")
    assert set(compare().frame.sequence) != set(other.frame.sequence)


def test_segments_hold_the_rows_of_their_sequences():
    t, rows = whole_table(), world().rows
    for name in ("effect", "activation", "inputs", "error share at model.layers.1:out"):
        for s in ("north", "south"):
            part = of(t, name, s)
            assert part.index.tolist() == np.flatnonzero(rows.segment == s).tolist()
            assert part.numerator.tolist() == of(t, name).numerator[part.index].tolist()
    assert not (t.segment[t.statement.str.contains(": ")] != "").any()


def test_order_of_rows_and_size_of_batches_change_nothing(monkeypatch):
    key = ["statement", "segment", "sequence"]
    once = whole_table().sort_values(key, ignore_index=True)

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
    first, second = whole_table(), measure_all(compare(plan_of(seed=1)))
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
    old, new = effects_by_hand()
    assert was.tolist() == pytest.approx(old[s, f].tolist(), abs=5e-4)
    assert now.tolist() == pytest.approx(new[s, f].tolist(), abs=5e-4)


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
    assert {
        "effect: amount: high (feature 0)",
        "effect: amount: high (feature 1)",
        "effect: (feature 2)",
    } <= set(names)
    assert len(names) == len(plan.watched) >= 10
    table = measure(w.old, w.new, twins, rows, plan)
    decided = decide(table, plan)
    assert len([s for s in decided if not s.watched]) == 7 * 5
    assert {s.segment for s in decided} == {"", "alerts", ALL, "a: b", "é, \n{}"}
    assert all(s.n == (30 if s.segment == "alerts" else 100) for s in decided if s.segment)
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
    plan, _ = plan_check(w.old, w.dictionary, w.rows, alerts=0)
    table = measure(w.old, w.old, w.dictionary, w.rows, plan)
    counts = table.statement == "active features"
    about_the_dictionary = counts | table.statement.isin(["splice error", "error share"])
    assert (table.numerator[~about_the_dictionary] == 0).all()
    assert (table.numerator[counts] == table.denominator[counts]).all()
    assert table.numerator[~counts].max() < 1e-9
    v = judge(decide(table, plan), plan, table)
    assert (v.outcome, v.action, v.changed) == ("PASS", "REUSE", ())
    assert all(s.upper > 0 for s in v.statements)


def other_width(old):
    "The same function with four more units that do nothing."
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 1))
    with torch.no_grad():
        for layer, before in zip(net[::2], old[::2], strict=True):
            for p, was in zip(layer.parameters(), before.parameters(), strict=True):
                p.zero_()[tuple(slice(n) for n in was.shape)] = was
    return net


def no_such_site(old):
    "The same function in one module less."
    return nn.Sequential(nn.Sequential(*old))


@pytest.mark.parametrize(
    "made, why", [(other_width, "20 wide in v3"), (no_such_site, "no such site")]
)
def test_what_a_dictionary_cannot_read_is_wholly_changed_to_it_and_yet_the_same_model(made, why):
    w = small_world(300)
    net = made(w.old.model)
    other = Release.from_module(net, sites=["0:out"], name="v3", device="cpu")
    plan, _ = plan_check(w.old, w.dictionary, w.rows, new=dict(name="v3"), alerts=0)
    c = Comparison(w.old, other, w.dictionary, w.rows, plan)
    table = measure_all(c)
    v = judge(decide(table, plan), plan, table)
    assert why in c.incompatible
    assert (v.outcome, v.valid, v.same, v.action) == ("FAIL",) * 3 + ("RETRAIN",)
    model = [s for s in v.statements if s.name in ("inputs", "decisions")]
    assert max(s.ratio for s in model) < 1e-5
    assert all(s.outcome == "PASS" for s in model)
    through = {s.name: s.ratio for s in v.statements if s not in model}
    assert through.pop("active features") > 1.5
    assert set(through.values()) == {1.0}


def test_a_transformer_of_another_width_counts_as_wholly_changed():
    table = measure_all(compare(new=causal(3, "wide", width=32)))
    model = table.statement.isin(["inputs", "decisions"])
    ratio = (table.numerator / table.denominator)[~model]
    assert (ratio[table.statement != "active features"] == 1).all()
    assert (table.numerator[model] != 1).all()
    assert set(table.statement[model]) == {"inputs", "decisions"}


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
