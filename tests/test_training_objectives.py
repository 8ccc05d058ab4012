"Every objective and wiring on worlds whose features are known: found, as many active as asked for, and better where it says so."

import math
from functools import lru_cache

import pytest
import torch
from small_activations import K, dense_error, stream, tokens, truth
from torch.nn.functional import normalize

from interpkit.core.errors import InterpkitError
from interpkit.sparse.products import Active
from interpkit.training.finish import calibrate
from interpkit.training.fit import _outside, fit
from interpkit.training.trainer import (
    BANDWIDTH,
    OBJECTIVES,
    Recipe,
    Trainer,
    gradients,
    recipe,
)

SEEDS = range(3)


def random(seed):
    return torch.Generator().manual_seed(seed)


def share(made, y):
    return float((made - y).square().sum() / (y - y.mean(0)).square().sum())


def l0(w, x):
    return float((w.encode(x) > 0).sum(1).float().mean())


@lru_cache
def trained(objective, seed=0, steps=1200):
    return fit(
        stream(steps, seed=seed), recipe(128, K, steps * 256, 256, seed=seed, objective=objective)
    )


@lru_cache
def deployed(objective, seed=0):
    return calibrate(trained(objective, seed).weights()[0], tokens(8000, random(11)), K)


# one site


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_known_features_are_found_with_the_l0_that_was_asked_for(objective, seed):
    t, w, x = trained(objective, seed), deployed(objective, seed), tokens(8000, random(12))
    found = (truth() @ w.W_dec[:, 0].T).max(1).values
    assert found.mean() > 0.87 and (found > 0.9).float().mean() > 0.55
    assert abs(l0(w, x) / K - 1) < 0.05 and abs(t.record()["l0"] / K - 1) < 0.03
    assert t.record()["dead_share"] < 0.08
    assert share(w.decode(w.encode(x)), x) < (
        0.65 if objective == "relu" else 0.25
    )  # a penalty on the sum takes from all values


def test_thresholds_are_one_a_site_or_one_a_feature():
    for objective in OBJECTIVES:
        before, after = trained(objective).weights()[0].threshold, deployed(objective).threshold
        assert (
            (float(before.max() / before.min()) > 1.25)
            if objective == "jumprelu"
            else len(before.unique()) == 1
        )
        if objective == "jumprelu":
            assert (
                torch.allclose(after / before, (after / before)[0].expand(128), rtol=1e-5)
                and abs(float((after / before)[0]) - 1) < 0.1
            )
        if objective == "relu":
            assert before.unique().item() == 0


def test_topk_keeps_k_of_each_token():
    t = Trainer(Recipe(128, K, 256 * 300, 256, 3e-3, objective="topk"), tokens(256, random(0)))
    white = t.scales[0].centred(tokens(256, random(1))) @ t.whitening[0]
    pre = white @ t.p.W_enc[0].T + t.p.b_enc[0]
    kept = Active.read(white, t.p.W_enc[0], t.p.b_enc[0], lambda pre: t._bar(0, pre))
    assert kept.tokens.diff().tolist() == [K] * 256
    assert torch.allclose(
        kept.value.view(256, K).sort(1).values, pre.topk(K, 1).values.sort(1).values, atol=1e-5
    )


@pytest.mark.parametrize("off", [0.03, 30.0])
def test_relus_penalty_reaches_k_from_far_away(off):
    r = recipe(128, K, 1500 * 256, 256, objective="relu")
    t = Trainer(r, torch.cat(list(stream(20))))
    t.penalty[0] *= off
    for x in stream(1500):
        t.step(x)
    assert abs(t.l0[0] / K - 1) < 0.05 and 0.2 < t.penalty[0] / trained("relu").penalty[0] < 5


WIRINGS = dict(sae={}, clt={}, skip=dict(skip=True), tied=dict(tied=True))


@pytest.mark.parametrize("prefixes", [(), (16,)])
@pytest.mark.parametrize("kind", WIRINGS)
def test_the_gradient_of_a_threshold_is_what_the_loss_gains(kind, prefixes):
    "Against the dense loss with the threshold of one feature raised past the values above it, a feature at a time."
    g, n, F, B = random(3), 1 if kind in ("sae", "skip") else 3, 40, 500
    xs, y = [torch.randn(B, 8, generator=g) for _ in range(n)], None
    y = None if kind == "sae" else [torch.randn(B, 8, generator=g) for _ in range(n)]
    t = Trainer(
        Recipe(F, 6, 10**5, B, 1e-3, objective="jumprelu", prefixes=prefixes, **WIRINGS[kind]),
        xs if n > 1 else xs[0],
        y,
    )
    for cut in t.p.log_threshold:
        cut.add_(0.2 * torch.randn(F, generator=g))
    cx, cy = t._centred(xs, y or [])
    white = [x @ w for x, w in zip(cx, t.whitening)]
    pres = [w @ W.T + b for w, W, b in zip(white, t.p.W_enc, t.p.b_enc)]
    active = [Active.above(pre, cut.exp()) for pre, cut in zip(pres, t.p.log_threshold)]
    _, slopes = gradients(t.p, t.grad, cy, white, active, t.recipe.prefixes)
    t._move_thresholds(active, slopes, B)

    def loss(keep):
        return sum(
            float(dense_error(t.p, white, keep, cy, m).double().square().sum(1).mean())
            for m in t.recipe.prefixes or (None,)
        ) / max(len(t.recipe.prefixes), 1)

    whole = [pre > cut.exp() for pre, cut in zip(pres, t.p.log_threshold)]
    base, seen = loss(whole), 0
    for i in range(n):
        for f in range(0, F, 7):
            keep = [k.clone() for k in whole]
            keep[i][:, f] &= pres[i][:, f] >= t.p.log_threshold[i][f].exp() * (1 + BANDWIDTH)
            gone = int((whole[i] != keep[i]).sum())
            counts = (3 - i if kind == "tied" else 1) * (0.5 if prefixes and f >= 16 else 1)
            expected = (loss(keep) - base - counts * t.penalty[i] * gone / B) / BANDWIDTH
            assert float(t.grad.log_threshold[i][f]) == pytest.approx(
                expected, abs=2e-4 + 1e-3 * abs(expected)
            ), (i, f)
            seen += gone
    assert seen > 20


# Matryoshka


def uneven(n, g):
    "Directions of which the first are a hundred times as frequent as the last."
    rate = 0.3 * torch.logspace(0, -2, 96)
    return (
        (torch.rand(n, 96, generator=g) < rate) * (0.5 + torch.rand(n, 96, generator=g))
    ) @ truth() + 0.01 * torch.randn(n, 32, generator=g)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_first_features_of_a_matryoshka_do_more_alone(objective):
    def made(prefixes):
        g = random(0)
        return fit(
            (uneven(256, g) for _ in range(800)),
            recipe(128, K, 256 * 800, 256, objective=objective, prefixes=prefixes),
        ).weights()[0]

    plain, nested, x = made(()), made((16, 48)), uneven(8000, random(5))

    def alone(w, n):
        codes = w.encode(x)
        codes[:, n:] = 0
        return share(w.decode(codes), x)

    assert (
        alone(nested, 16) < alone(plain, 16) - 0.15 and alone(nested, 48) < alone(plain, 48) - 0.1
    ), [(alone(w, n)) for w in (plain, nested) for n in (16, 48, 128)]
    assert (
        alone(nested, 16) > alone(nested, 48) > alone(nested, 128)
        and alone(nested, 128) < alone(plain, 128) + 0.1
    )


# several layers

FACTS = 48


def several(steps, seed, same=False, size=256):
    "Facts that three layers read alike, clean at first and in more and more noise; each writes to all three targets."
    g, at = random(seed), random(77)
    reads, writes = (
        normalize(torch.randn(3, FACTS, 24, generator=at), dim=2),
        normalize(torch.randn(3, FACTS, 16, generator=at), dim=2),
    )
    if same:
        writes = writes[:1].expand(3, -1, -1)
    for _ in range(steps):
        facts = (torch.rand(size, FACTS, generator=g) < 4 / FACTS) * (
            0.5 + torch.rand(size, FACTS, generator=g)
        )
        yield (
            [
                facts @ r + s * torch.randn(size, 24, generator=g)
                for r, s in zip(reads, (0.02, 0.15, 0.3))
            ],
            [facts @ w for w in writes],
        )


def planted(same=False):
    at = random(77)
    torch.randn(3, FACTS, 24, generator=at)
    writes = normalize(torch.randn(3, FACTS, 16, generator=at), dim=2)
    return normalize(
        (writes[:1].expand(3, -1, -1) if same else writes).permute(1, 0, 2).flatten(1), dim=1
    )  # [facts, targets * d]


def explained(ts, x, y):
    "FVU over all targets and L0 over all sources, in the deployed form."
    weights = [w for t in ts for w in t.weights()]
    made = (
        _outside(tuple(weights), x)
        if len(ts) == 1
        else [_outside((w,), [a])[0] for w, a in zip(weights, x)]
    )
    return sum(share(m, b) for m, b in zip(made, y)) / len(y), sum(
        l0(w, a) for w, a in zip(weights, x)
    )


@pytest.mark.parametrize("k", [2, 4])
def test_a_clt_leaves_less_than_transcoders_of_each_layer_with_as_many_active(k):
    steps, (x, y) = 700, next(several(1, 9, size=6000))
    clt = fit(several(steps, 0), recipe(64, k, 256 * steps, 256), "a, b, c")
    per_layer = [
        fit((([x[i]], [y[i]]) for x, y in several(steps, 0)), recipe(64, k, 256 * steps, 256))
        for i in range(3)
    ]
    (ours, ours_l0), (theirs, theirs_l0) = explained([clt], x, y), explained(per_layer, x, y)
    assert (
        ours_l0 < 1.05 * theirs_l0 and abs(ours_l0 / (3 * k) - 1) < 0.05 and ours < 0.8 * theirs
    ), (ours, theirs, ours_l0, theirs_l0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_feature_that_writes_to_three_layers_is_found_as_one(objective):
    steps = 1200
    clt = fit(several(steps, 0), recipe(64, 4, 256 * steps, 256, objective=objective), "a, b, c")
    w = clt.weights()[0]
    found = (planted() @ w.W_dec.flatten(1).T).max(1).values
    assert found.mean() > 0.85, found.mean()
    assert all(abs(x / 4 - 1) < 0.05 for x in clt.l0)


def test_tied_features_write_the_same_to_all():
    steps, (x, y) = 1200, next(several(1, 9, same=True, size=6000))
    tied, free = (
        fit(several(steps, 0, same=True), recipe(64, 4, 256 * steps, 256, tied=t), "a, b, c")
        for t in (True, False)
    )
    w = tied.weights()[0]
    assert w.W_dec.shape == (64, 1, 16) and len(tied.p.flat) < 0.8 * len(free.p.flat)
    found = (planted(same=True)[:, :16] * math.sqrt(3) @ w.W_dec[:, 0].T).max(1).values
    assert found.mean() > 0.85 and explained([tied], x, y)[0] < 1.25 * explained([free], x, y)[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_skip_takes_what_is_linear(objective):
    at, steps = random(3), 800
    A, writes = 0.4 * torch.randn(48, 24, generator=at), 0.7 * torch.randn(96, 24, generator=at)

    def pairs(n, g, size=256):
        for _ in range(n):
            facts = (torch.rand(size, 96, generator=g) < 3 / 96) * (
                0.5 + torch.rand(size, 96, generator=g)
            )
            x = torch.cat(
                [
                    2 * facts @ truth() + 0.3 * torch.randn(size, 32, generator=g),
                    2 * torch.randn(size, 16, generator=g),
                ],
                1,
            )  # sixteen directions that no feature is about
            yield [x], [x @ A + torch.relu(facts - 0.5) @ writes]

    with_, without = (
        fit(pairs(steps, random(0)), recipe(128, 3, 256 * steps, 256, skip=s, objective=objective))
        for s in (True, False)
    )
    x, y = next(pairs(1, random(8), 6000))
    (a, n), (b, m) = explained([with_], x, y), explained([without], x, y)
    assert a < 0.1 * b and a < 0.04 and n < 1.1 * m, (a, b, n, m)
    assert with_.weights()[0].W_skip.shape == (48, 24) and without.weights()[0].W_skip is None


# a recipe that makes no sense


def refused(**options) -> InterpkitError:
    with pytest.raises(InterpkitError) as e:
        Recipe(64, 6, 6000, 128, 3e-3, **options)
    assert e.value.code == 64
    return e.value


def test_an_objective_that_does_not_exist_shows_the_nearest():
    assert (
        "did you mean 'batchtopk'?" == refused(objective="batch_topk").mend
        and "did you mean 'jumprelu'?" == refused(objective="JumpRelu".lower() + "s").mend
    )
    assert all(o in refused(objective="lasso").asked for o in OBJECTIVES)


@pytest.mark.parametrize("prefixes", [(0, 64), (32, 16), (16, 16), (65,), (16, 128), (-1,)])
def test_prefixes_that_do_not_ascend_are_refused(prefixes):
    e = refused(prefixes=prefixes)
    assert "prefixes from 1 to 64" in e.asked and str(prefixes[0]) in e.given


def test_prefixes_end_with_all_features():
    assert (
        Recipe(64, 6, 6000, 128, 3e-3, prefixes=(16,)).prefixes
        == Recipe(64, 6, 6000, 128, 3e-3, prefixes=[16, 64]).prefixes
        == (16, 64)
    )


def test_tied_targets_of_two_widths_and_an_sae_of_two_sites_are_refused():
    a, b = torch.randn(200, 8), torch.randn(200, 6)
    for sources, targets, options, said in (
        ([a, a], [a, b], dict(tied=True), "8, 6"),
        ([a, a], None, {}, "2 sources, 0 targets"),
        ([a, a], [a], {}, "2 sources, 1 targets"),
    ):
        with pytest.raises(InterpkitError) as e:
            Trainer(Recipe(16, 2, 2000, 100, 3e-3, **options), sources, targets)
        assert e.value.code == 64 and said in e.value.given
