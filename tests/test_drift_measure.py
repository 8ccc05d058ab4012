"The tables of the four families, worked out one sequence at a time from their definitions."

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_language import SITES, causal, every_effect, truth, world
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.dictionary.dictionary import Dictionary, SiteWeights
from interpkit.drift.comparison import Comparison, hashed
from interpkit.drift.families import (
    Activation,
    Effect,
    ErrorShare,
    SpliceError,
    draw,
    firing,
    measure,
    measure_all,
)
from interpkit.drift.simulate import small_world
from interpkit.drift.statements import ALL, Plan, Statement, decide
from interpkit.drift.verdict import judge, plan_check
from interpkit.model.releases import Release

WATCHED = (3, 30)  # one feature of each site


def plan_of(
    names=(
        "splice error",
        "error share at model.layers.0:out",
        "error share at model.layers.1:out",
        "activation",
        "effect",
    ),
    draws=8,
    watched=WATCHED,
    **kw,
):
    statements = [
        Statement(n, "valid" if "error" in n else "same", 0.25, s)
        for s in ("", "north", "south")
        for n in names
    ]
    return Plan(tuple(statements), watched, sequences=14, groups=7, features=44, draws=draws, **kw)


def compare(plan=None, rows=None, new=None, **kw):
    w = world()
    return Comparison(
        w.old,
        new or w.new,
        w.dictionary,
        w.rows if rows is None else rows,
        plan or plan_of(),
        "salt",
        **kw,
    )


def of(table, name, segment=""):
    "Numerators and denominators of a statement by number of the sequence."
    t = table[(table.statement == name) & (table.segment == segment)].set_index("sequence")
    back = {h: i for i, h in enumerate(hashed(world().rows.sequence_id, "salt"))}
    t.index = [back[h] for h in t.index]
    return t.sort_index()


def codes(side):
    return [torch.cat([t.site[k].codes for k in (0, 1)], 1).double().numpy() for t in truth(side)]


def sizes(side):
    return np.stack(
        [np.concatenate([t.site[k].at.abs().sum(0).numpy() for k in (0, 1)]) for t in truth(side)]
    ).astype(float)


# each family


def test_splice_error():
    t, w = compare(), world().rows.weight.to_numpy()
    found = SpliceError().measure(t)
    bare, spliced = (
        np.array([getattr(x, n) for x in truth("new")]) for n in ("decision", "spliced")
    )
    square = (bare - (w * bare).sum() / w.sum()) ** 2
    whole = of(found, "splice error")
    assert whole.numerator.tolist() == pytest.approx(
        ((spliced - bare) ** 2).tolist(), abs=1e-2
    ) and whole.denominator.tolist() == pytest.approx(square.tolist(), abs=1e-3)
    for s in ("north", "south"):
        part, i = of(found, "splice error", s), np.flatnonzero(world().rows.segment == s)
        assert part.index.tolist() == i.tolist() and part.numerator.tolist() == pytest.approx(
            whole.numerator[i].tolist()
        )
        assert part.denominator.tolist() == pytest.approx(
            [(w * square).sum() / w.sum()] * len(i), rel=1e-4
        )


def test_error_share_at_each_site():
    found = ErrorShare().measure(compare())
    for k in (0, 1):
        t = of(found, f"error share at {SITES[k]}")
        E, A = (
            [f(x.site[k]) for x in truth("new")]
            for f in (lambda x: x.error, lambda x: float(x.at.abs().sum()))
        )
        assert t.numerator.tolist() == pytest.approx(
            E, rel=1e-2
        ) and t.denominator.tolist() == pytest.approx(np.add(E, A).tolist(), rel=1e-2)
    one = Dictionary(SITES[:1], world().dictionary.weights[:1])
    assert ErrorShare().names(one) == ["error share"]


def test_activation():
    found, old, new, w = (
        Activation().measure(compare()),
        codes("old"),
        codes("new"),
        world().rows.weight.to_numpy(),
    )
    was, now, moved = (
        np.stack(x)
        for x in (
            [a.sum(0) for a in old],
            [a.sum(0) for a in new],
            [np.abs(b - a).sum(0) for a, b in zip(old, new)],
        )
    )
    weight = (w @ (sizes("old") + sizes("new"))) / np.maximum(
        w @ (was + now), 1e-30
    )  # one number a feature, held constant
    t = of(found, "activation")
    assert t.numerator.tolist() == pytest.approx(
        (moved @ weight).tolist(), rel=1e-2
    ) and t.denominator.tolist() == pytest.approx((was @ weight).tolist(), rel=1e-2)
    assert (t.numerator < np.abs(now - was) @ weight).sum() == 0 and (
        t.numerator > np.abs(now - was) @ weight + 1e-3
    ).any()  # token by token, not by sums
    for f in WATCHED:
        t, fires = (
            of(found, f"activation: {world().dictionary.labels[f]}"),
            np.flatnonzero((was + now)[:, f] > 0),
        )
        assert (
            t.index.tolist() == fires.tolist()
            and t.numerator.tolist() == pytest.approx(moved[fires, f].tolist(), abs=1e-4)
            and t.denominator.tolist() == pytest.approx(was[fires, f].tolist(), abs=1e-4)
        )
        assert t.change.tolist() == pytest.approx(
            (now - was)[fires, f].tolist(), abs=1e-4
        ) and t.base.tolist() == pytest.approx(was[fires, f].tolist(), abs=1e-4)


def test_watched_effect_is_by_ablation_in_both_models():
    found, old, new = Effect().measure(compare()), every_effect("old"), every_effect("new")
    active = np.stack([a.sum(0) + b.sum(0) > 0 for a, b in zip(codes("old"), codes("new"))])
    for f in WATCHED:
        t, i = of(found, f"effect: {world().dictionary.labels[f]}"), np.flatnonzero(active[:, f])
        assert t.index.tolist() == i.tolist() and t.numerator.tolist() == pytest.approx(
            np.abs(new - old)[i, f].tolist(), abs=5e-4
        )
        assert t.denominator.tolist() == pytest.approx(
            np.abs(old)[i, f].tolist(), abs=5e-4
        ) and t.change.tolist() == pytest.approx((new - old)[i, f].tolist(), abs=5e-4)


def p_by_hand():
    A, active = (
        sizes("old") + sizes("new"),
        np.stack([a.sum(0) + b.sum(0) > 0 for a, b in zip(codes("old"), codes("new"))]),
    )
    return 0.9 * A / A.sum(1, keepdims=True) + 0.1 * active / active.sum(1, keepdims=True)


def test_draws_have_the_probabilities_of_the_definition():
    p, (s, f, chance) = p_by_hand(), draw(compare(plan_of(draws=4000)))
    assert p.sum(1).tolist() == pytest.approx([1.0] * 14) and (np.bincount(s) == 4000).all()
    assert chance.tolist() == pytest.approx(p[s, f].tolist(), rel=1e-2)
    count = np.zeros_like(p)
    np.add.at(count, (s, f), 1)
    z = (count - 4000 * p) / np.sqrt(np.maximum(4000 * p * (1 - p), 1e-9))
    assert np.abs(z[p > 1e-3]).max() < 4.5 and not count[p == 0].any()


def test_sampled_effect_has_the_full_ablation_as_its_mean():
    t = of(Effect().measure(compare(plan_of(draws=4000))), "effect")
    old, new, p = every_effect("old"), every_effect("new"), p_by_hand()
    for column, e in (
        ("numerator", np.abs(new - old)),
        ("denominator", np.abs(old)),
        ("change", new - old),
        ("base", old),
    ):
        truth_, variance = (
            e.sum(1),
            np.divide(e**2, p, out=np.zeros_like(e), where=p > 0).sum(1) - e.sum(1) ** 2,
        )
        assert (np.abs(t[column] - truth_) < 4.5 * np.sqrt(variance / 4000) + 2e-3).all()
    assert t.numerator.sum() / t.denominator.sum() == pytest.approx(
        np.abs(new - old).sum() / np.abs(old).sum(), rel=0.02
    )


def test_a_sequence_without_active_features_counts_as_nothing_and_stays():
    w = world()
    deaf = Dictionary(
        SITES,
        tuple(
            SiteWeights(**{**vars(x), "threshold": torch.full_like(x.threshold, 1e6)})
            for x in w.dictionary.weights
        ),
    )
    c = Comparison(w.old, w.new, deaf, w.rows, plan_of(), "salt")
    t = Effect().measure(c)
    whole = t[t.statement == "effect"]
    assert (
        len(whole) == 14
        and (whole.numerator == 0).all()
        and (whole.denominator == 0).all()
        and len(t) == 14
    )
    assert (
        decide(whole, Plan((Statement("effect", "same", 0.25),), sequences=14))[0].outcome
        == "INCONCLUSIVE"
    )


# the left part of every table


def test_ids_are_hashed_and_groups_weights_and_segments_are_the_rows():
    t, rows = measure_all(compare()), world().rows
    whole = of(t, "effect")
    assert (
        whole.weight.tolist() == rows.weight.tolist()
        and [len(set(whole.group[whole.index // 2 == g])) for g in range(7)] == [1] * 7
        and whole.group.nunique() == 7
    )
    assert (
        not set(t.sequence) & set(rows.sequence_id)
        and not set(t.group) & set(rows.group_id)
        and set(t.sequence.str.len()) == {16}
    )
    assert set(compare().frame.sequence) != set(
        Comparison(
            world().old, world().new, world().dictionary, rows, plan_of(), "other"
        ).frame.sequence
    )
    for name in ("effect", "activation", "error share at model.layers.1:out"):
        for s in ("north", "south"):
            part = of(t, name, s)
            assert (
                part.index.tolist() == np.flatnonzero(rows.segment == s).tolist()
                and part.numerator.tolist() == of(t, name).numerator[part.index].tolist()
            )
    assert not (t.segment[t.statement.str.contains(": ")] != "").any()


def test_order_of_rows_and_size_of_batches_change_nothing(monkeypatch):
    once = measure_all(compare()).sort_values(
        ["statement", "segment", "sequence"], ignore_index=True
    )

    def same(again):
        again = again.sort_values(["statement", "segment", "sequence"], ignore_index=True)
        assert (
            again[["statement", "segment", "sequence", "group", "weight"]]
            == once[["statement", "segment", "sequence", "group", "weight"]]
        ).all(axis=None)
        for c in ("numerator", "denominator", "change", "base"):
            assert np.allclose(again[c], once[c], rtol=1e-4, atol=2e-4), c

    same(measure_all(compare(rows=world().rows.sample(frac=1, random_state=3))))
    monkeypatch.setattr("interpkit.drift.comparison.batch_size", lambda *a: 3)
    same(measure_all(compare()))
    monkeypatch.setattr("interpkit.drift.comparison.batch_size", lambda *a: 1)
    same(measure_all(compare(rows=world().rows.iloc[::-1])))


def test_a_seed_changes_the_draws_and_nothing_else():
    a, b = measure_all(compare()), measure_all(compare(plan_of(seed=1)))
    differ = {
        n
        for n in a.statement.unique()
        if not np.allclose(of(a, n).numerator, of(b, n).numerator, rtol=1e-6)
    }
    assert differ == {"effect"}


def test_pairs_are_run_once_each(monkeypatch):
    from interpkit.explain.ablation import Ablation

    ran, real = [], Ablation.effects
    monkeypatch.setattr(
        Ablation, "effects", lambda self, s, f: ran.append(len(s)) or real(self, s, f)
    )
    c = compare()
    s = np.array([5, 2, 5, 5, 0, 2])
    f = np.array([3, 30, 3, 30, 1, 30])
    was, now = c.effects(s, f)
    assert (
        sum(ran) == 2 * 4
        and was.tolist() == pytest.approx(every_effect("old")[s, f].tolist(), abs=5e-4)
        and now.tolist() == pytest.approx(every_effect("new")[s, f].tolist(), abs=5e-4)
    )


def test_watched_sequences_are_a_random_part_that_does_not_depend_on_order():
    c = small_world(300)
    few = firing(c, 0, most=50)
    shuffled = Comparison(c.old, c.new, c.dictionary, c.rows.sample(frac=1, random_state=1), c.plan)
    ids = lambda c, i: set(c.rows.sequence_id.iloc[i])
    assert (
        len(few) == 50
        and ids(c, few) == ids(shuffled, firing(shuffled, 0, most=50)) < ids(c, firing(c, 0))
        and few.max() > 150 > few.min()
    )
    assert ids(c, few) != ids(
        c,
        firing(Comparison(c.old, c.new, c.dictionary, c.rows, replace(c.plan, seed=5)), 0, most=50),
    )


# names that could be taken for another


def test_features_of_one_label_and_segments_with_odd_names():
    w = small_world(300)
    twins = replace(
        w.dictionary,
        labels=tuple(["amount: high", "amount: high", "", *[f"u{i}" for i in range(13)]]),
    )
    rows = w.rows.assign(
        segment=np.where(
            np.arange(300) % 3 == 0, "", np.where(np.arange(300) % 3 == 1, "a: b", "é, \n{}")
        )
    )
    plan, _ = plan_check(w.old, twins, rows, watched=[0, 1, 2], watched_share=2.0)
    names = [s.name for s in plan.statements if s.watched]
    assert (
        names[:3]
        == [
            "activation: amount: high (feature 0)",
            "activation: amount: high (feature 1)",
            "activation: (feature 2)",
        ]
        and len(names) == 6
    )
    table = measure(w.old, w.new, twins, rows, plan)
    found = decide(table, plan)
    assert (
        len(found) == 4 * 4 + 6
        and {s.segment for s in found} == {"", ALL, "a: b", "é, \n{}"}
        and all(s.n == 100 for s in found if s.segment)
    )
    single, _ = plan_check(w.old, w.dictionary, rows, watched=[0, 1, 2], watched_share=2.0)
    plain = decide(measure(w.old, w.new, w.dictionary, rows, single), single)
    assert [s.ratio for s in plain] == [s.ratio for s in found]
    assert [c["feature"] for c in judge(found, plan, table).changed] == [
        twins.names[int(c["feature"].split()[1])]
        for c in judge(plain, single, measure(w.old, w.new, w.dictionary, rows, single)).changed
    ]


# releases that are the same, or of another shape, or broken


def test_a_release_against_itself_passes_at_zero():
    w = small_world(300)
    plan, _ = plan_check(w.old, w.dictionary, w.rows)
    table = measure(w.old, w.old, w.dictionary, w.rows, plan)
    assert (
        table.numerator[~table.statement.isin(["splice error", "error share"])] == 0
    ).all() and table.numerator.max() < 1e-9
    v = judge(decide(table, plan), plan, table)
    assert (v.outcome, v.action, v.changed) == ("PASS", "REUSE", ()) and all(
        s.upper > 0 for s in v.statements
    )


@pytest.mark.parametrize("shape", ["width", "no such site"])
def test_a_release_of_another_shape_counts_as_wholly_changed(shape):
    w = small_world(300)
    torch.manual_seed(0)
    net = (
        nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 1))
        if shape == "width"
        else nn.Sequential(nn.Linear(6, 1))
    )
    other = Release.from_module(net, sites=["0:out"], name="v3", device="cpu")
    plan, _ = plan_check(w.old, w.dictionary, w.rows, new=dict(name="v3"))
    c = Comparison(w.old, other, w.dictionary, w.rows, plan)
    table = measure_all(c)
    v = judge(decide(table, plan), plan, table)
    assert ("9 wide in v3" if shape == "width" else "no such site") in c.incompatible
    assert (v.outcome, v.valid, v.same, v.action) == ("FAIL",) * 3 + ("RETRAIN",) and {
        s.ratio for s in v.statements
    } == {1.0}


def test_a_transformer_of_another_width_counts_as_wholly_changed():
    assert (measure_all(compare(new=causal(3, "wide", width=32))).numerator == 1).all()


def test_releases_that_read_other_positions_are_refused():
    w = world()
    short = Release.from_module(
        w.new.model,
        inputs=lambda rows: (
            (b := w.new.batch(rows))
            and replace(
                b,
                kwargs={k: v[:, :4] for k, v in b.kwargs.items()},
                mask=b.mask[:, :4],
                last=b.last.clamp(max=3),
            )
        ),
        decision=w.new.decision,
        sites=list(SITES),
        name="cut",
        device="cpu",
    )
    with pytest.raises(InterpkitError, match="4 in cut") as e:
        measure_all(compare(new=short))
    assert e.value.code == 65


@pytest.mark.parametrize("where", ["model.layers.0.mlp.down_proj.weight", "lm_head.weight"])
def test_a_release_of_nan_is_invalid(where):
    broken = causal(0, "broken")
    with torch.no_grad():
        broken.model.get_parameter(where).view(-1)[3] = float("nan")
    with pytest.raises(InterpkitError) as e:
        measure_all(compare(new=broken))
    assert e.value.code == 65
