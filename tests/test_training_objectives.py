"""Every objective and wiring on worlds whose features are known.

They are found, as many are active as were asked for, and it is better where it says so."""

import math
from functools import lru_cache
from itertools import product

import pytest
import torch
from helpers import refused
from small_activations import K, dense_error, stream, tokens, trained, truth
from small_trainings import gradients_of
from torch.nn.functional import normalize

from interpkit.core.errors import InterpkitError
from interpkit.sparse.products import Active
from interpkit.training.complaints import rebuilt_by_weights
from interpkit.training.finish import calibrate
from interpkit.training.fit import fit
from interpkit.training.objectives import BANDWIDTH
from interpkit.training.recipe import OBJECTIVES, Recipe, recipe
from interpkit.training.start import centred_batch
from interpkit.training.trainer import Trainer


def random(seed):
    return torch.Generator().manual_seed(seed)


def share(made, y):
    return float((made - y).square().sum() / (y - y.mean(0)).square().sum())


def l0(w, x):
    return float((w.encode(x) > 0).sum(1).float().mean())


SLOW = pytest.mark.slow


def one_of_many(*fast, among=OBJECTIVES):
    """These parameters always, and the others in `make slow`.

    For what doesn't ask which objective it is: how each chooses what is active is asked of all
    four on one site, and what they share (prefixes, skips, several layers) is compared with the
    dense loss in `test_the_gradient_of_a_threshold_is_what_the_loss_gains` here and in
    `test_gradients_are_those_of_autograd`."""
    return [pytest.param(x, marks=[] if x in fast else SLOW) for x in among]


@lru_cache
def deployed(objective, seed):
    return calibrate(trained(objective, seed).weights()[0], tokens(8000, random(11)), K)


# one site


@pytest.mark.parametrize("seed", one_of_many(0, among=range(3)))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_known_features_are_found_with_the_l0_that_was_asked_for(objective, seed):
    """Margins are set from three processors times three seeds.

    Cosines 0.907 to 0.985 with 69 to 98 % over 0.9; L0 off by up to 1.2 %, in training 0.3 %;
    0 to 6.3 % dead; 20 to 22 % unexplained, of relu 58 to 60 %."""
    t, w = trained(objective, seed), deployed(objective, seed)
    x = tokens(8000, random(12))
    cosine = (truth() @ w.W_dec[:, 0].T).max(1).values
    assert cosine.mean() > 0.87
    assert (cosine > 0.9).float().mean() > 0.55
    assert abs(l0(w, x) / K - 1) < 0.05
    assert abs(t.record()["l0"] / K - 1) < 0.03
    assert t.record()["dead_share"] < 0.12
    most = 0.65 if objective == "relu" else 0.25  # a penalty on the sum takes from all values
    assert share(w.decode(w.encode(x)), x) < most


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_thresholds_are_one_a_site_or_one_a_feature(objective):
    before = trained(objective, 0).weights()[0].threshold
    after = deployed(objective, 0).threshold
    if objective != "jumprelu":
        assert len(before.unique()) == 1
        assert objective != "relu" or before.unique().item() == 0
        return
    moved = after / before
    assert float(before.max() / before.min()) > 1.2  # 1.40 to 1.44
    assert torch.allclose(moved, moved[0].expand(128), rtol=1e-5)
    assert abs(float(moved[0]) - 1) < 0.1


def test_topk_keeps_k_of_each_token():
    recipe = Recipe(128, K, 256 * 300, 256, 3e-3, objective="topk")
    t = Trainer(recipe, [tokens(256, random(0))])
    white = t.scales[0].centred(tokens(256, random(1))) @ t.whitening[0]
    pre = white @ t.p.W_enc[0].T + t.p.b_enc[0]
    for t.taken, k in ((0, 1.5 * K), (100, K)):  # denser at the start
        kept = t.active(0, white)
        assert kept.tokens.diff().tolist() == [k] * 256
        values = kept.value.view(256, int(k)).sort(1).values
        assert torch.allclose(values, pre.topk(int(k), 1).values.sort(1).values, atol=1e-5)


@pytest.mark.parametrize("off", one_of_many(0.03, among=(0.03, 30.0)))
def test_relus_penalty_reaches_k_from_far_away(off):
    r = recipe(128, K, 1500 * 256, 256, objective="relu")
    t = Trainer(r, [torch.cat(list(stream(20)))])
    t.penalty[0] *= off
    for x in stream(1500):
        t.step([x])
    assert abs(t.l0[0] / K - 1) < 0.05
    assert 0.2 < t.penalty[0] / trained("relu", 0).penalty[0] < 5


WIRINGS = dict(sae={}, clt={}, skip=dict(skip=True), tied=dict(tied=True))


@pytest.mark.parametrize("prefixes", [(), (16,)])
@pytest.mark.parametrize("kind", WIRINGS)
def test_the_gradient_of_a_threshold_is_what_the_loss_gains(kind, prefixes):
    """Against the dense loss, a feature at a time.

    The threshold of one feature is raised past the values above it."""
    g, F, B = random(3), 40, 500
    n = 1 if kind in ("sae", "skip") else 3
    xs = [torch.randn(B, 8, generator=g) for _ in range(n)]
    ys = [] if kind == "sae" else [torch.randn(B, 8, generator=g) for _ in range(n)]
    options = dict(objective="jumprelu", prefixes=prefixes, **WIRINGS[kind])
    t = Trainer(Recipe(F, 6, 10**5, B, 1e-3, **options), xs, ys)
    for log_threshold in t.p.log_threshold:
        log_threshold.add_(0.2 * torch.randn(F, generator=g))
    centred, y = centred_batch(xs, ys, t.scales, t.outs)
    white = [x @ w for x, w in zip(centred, t.whitening, strict=True)]
    pres = [w @ W.T + b for w, W, b in zip(white, t.p.W_enc, t.p.b_enc, strict=True)]
    thresholds = [log_threshold.exp() for log_threshold in t.p.log_threshold]
    active = [Active.above(pre, limit) for pre, limit in zip(pres, thresholds, strict=True)]
    _, _, slopes = gradients_of(t.p, y, white, active, t.recipe.prefixes)
    found = {}
    t.move = found.__setitem__
    t.learn_thresholds(active, slopes, B)

    def loss(keep):
        errors = [dense_error(t.p, white, keep, y, n) for n in t.recipe.prefixes or (None,)]
        return sum(float(e.double().square().sum(1).mean()) for e in errors) / len(errors)

    whole = [pre > limit for pre, limit in zip(pres, thresholds, strict=True)]
    base, seen = loss(whole), 0
    for i, f in product(range(n), range(0, F, 7)):
        keep = [k.clone() for k in whole]
        keep[i][:, f] &= pres[i][:, f] >= thresholds[i][f] * (1 + BANDWIDTH)
        gone = int((whole[i] != keep[i]).sum())
        counts = (3 - i if kind == "tied" else 1) * (0.5 if prefixes and f >= 16 else 1)
        expected = (loss(keep) - base - counts * t.penalty[i] * gone / B) / BANDWIDTH
        near = pytest.approx(expected, abs=2e-4 + 1e-3 * abs(expected))
        assert float(found[t.p.log_threshold[i]][f]) == near, (i, f)
        seen += gone
    assert seen > 20


# Matryoshka


def uneven(n, g):
    "Directions of which the first are a hundred times as frequent as the last."
    rate = 0.3 * torch.logspace(0, -2, 96)
    present = torch.rand(n, 96, generator=g) < rate
    codes = present * (0.5 + torch.rand(n, 96, generator=g))
    return codes @ truth() + 0.01 * torch.randn(n, 32, generator=g)


@pytest.mark.parametrize("objective", one_of_many("batchtopk"))
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

    of_plain, of_nested = ({n: alone(w, n) for n in (16, 48, 128)} for w in (plain, nested))
    assert of_nested[16] < of_plain[16] - 0.15
    assert of_nested[48] < of_plain[48] - 0.1
    assert of_nested[16] > of_nested[48] > of_nested[128] - 1e-3  # relu leaves the last nothing
    assert of_nested[128] < of_plain[128] + 0.1


# several layers

FACTS = 48


def several(steps, seed, same=False, size=256):
    """Facts that three layers read alike, clean at first and in more and more noise.

    Each layer writes to all three targets."""
    g, at = random(seed), random(77)
    reads = normalize(torch.randn(3, FACTS, 24, generator=at), dim=2)
    writes = normalize(torch.randn(3, FACTS, 16, generator=at), dim=2)
    if same:
        writes = writes[:1].expand(3, -1, -1)
    noise = (0.02, 0.15, 0.3)
    for _ in range(steps):
        present = torch.rand(size, FACTS, generator=g) < 4 / FACTS
        facts = present * (0.5 + torch.rand(size, FACTS, generator=g))
        sources = [
            facts @ r + s * torch.randn(size, 24, generator=g)
            for r, s in zip(reads, noise, strict=True)
        ]
        yield sources, [facts @ w for w in writes]


def planted(same=False):
    "What each fact writes to all targets [facts, targets * d], of length 1."
    at = random(77)
    torch.randn(3, FACTS, 24, generator=at)
    writes = normalize(torch.randn(3, FACTS, 16, generator=at), dim=2)
    if same:
        writes = writes[:1].expand(3, -1, -1)
    return normalize(writes.permute(1, 0, 2).flatten(1), dim=1)


def explained(trainers, x, y):
    "FVU over all targets and L0 over all sources, in the deployed form."
    weights = [w for t in trainers for w in t.weights()]
    if len(trainers) == 1:
        made = rebuilt_by_weights(tuple(weights), x)
    else:
        made = [rebuilt_by_weights((w,), [a])[0] for w, a in zip(weights, x, strict=True)]
    fvu = sum(share(m, b) for m, b in zip(made, y, strict=True)) / len(y)
    return fvu, sum(l0(w, a) for w, a in zip(weights, x, strict=True))


@lru_cache
def clt(objective, k):
    how = recipe(64, k, 256 * 700, 256, objective=objective)
    return fit(several(700, 0), how, "a, b, c")


@pytest.mark.parametrize("k", one_of_many(4, among=(2, 4)))
def test_a_clt_leaves_less_than_transcoders_of_each_layer_with_as_many_active(k):
    batches, (x, y) = list(several(700, 0)), next(several(1, 9, size=6000))
    per_layer = [
        fit((([x[i]], [y[i]]) for x, y in batches), recipe(64, k, 256 * 700, 256)) for i in range(3)
    ]
    ours, ours_l0 = explained([clt("batchtopk", k)], x, y)
    theirs, theirs_l0 = explained(per_layer, x, y)
    assert ours_l0 < 1.05 * theirs_l0
    assert abs(ours_l0 / (3 * k) - 1) < 0.05
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("objective", one_of_many("batchtopk", "jumprelu"))
def test_a_feature_that_writes_to_three_layers_is_found_as_one(objective):
    w = clt(objective, 4).weights()[0]
    cosine = (planted() @ w.W_dec.flatten(1).T).max(1).values
    # two instruction sets times three seeds: 0.931 to 0.947, L0 off by up to 0.2 %,
    # 8.1 to 9.0 in the first layer and 0.2 to 0.4 in the last
    assert cosine.mean() > 0.85
    t = clt(objective, 4)
    assert abs(sum(t.l0) / 3 / 4 - 1) < 0.05
    if t.recipe.shares:
        assert t.l0[0] > 2 * t.l0[2]
    else:
        assert all(abs(x / 4 - 1) < 0.05 for x in t.l0)


@SLOW
def test_tied_features_write_the_same_to_all():
    steps, (x, y) = 700, next(several(1, 9, same=True, size=6000))
    tied, free = (
        fit(several(steps, 0, same=True), recipe(64, 4, 256 * steps, 256, tied=t), "a, b, c")
        for t in (True, False)
    )
    w = tied.weights()[0]
    assert w.W_dec.shape == (64, 1, 16)
    assert len(tied.p.flat) < 0.8 * len(free.p.flat)
    cosine = (planted(same=True)[:, :16] * math.sqrt(3) @ w.W_dec[:, 0].T).max(1).values
    assert cosine.mean() > 0.85
    # two instruction sets times three seeds: 1.05 to 1.06 times
    assert explained([tied], x, y)[0] < 1.25 * explained([free], x, y)[0]


@pytest.mark.parametrize("objective", one_of_many("batchtopk"))
def test_a_skip_takes_what_is_linear(objective):
    at, steps = random(3), 800
    A = 0.4 * torch.randn(48, 24, generator=at)
    writes = 0.7 * torch.randn(96, 24, generator=at)

    def pairs(n, g, size=256):
        for _ in range(n):
            present = torch.rand(size, 96, generator=g) < 3 / 96
            facts = present * (0.5 + torch.rand(size, 96, generator=g))
            about_facts = 2 * facts @ truth() + 0.3 * torch.randn(size, 32, generator=g)
            other = 2 * torch.randn(size, 16, generator=g)  # directions that no feature is about
            x = torch.cat([about_facts, other], 1)
            yield [x], [x @ A + torch.relu(facts - 0.5) @ writes]

    def trained_with(skip):
        how = recipe(128, 3, 256 * steps, 256, skip=skip, objective=objective)
        return fit(pairs(steps, random(0)), how)

    with_skip, without = trained_with(True), trained_with(False)
    x, y = next(pairs(1, random(8), 6000))
    fvu, n_active = explained([with_skip], x, y)
    fvu_without, n_active_without = explained([without], x, y)
    assert fvu < 0.1 * fvu_without
    assert fvu < 0.04
    assert n_active < 1.1 * n_active_without
    assert with_skip.weights()[0].W_skip.shape == (48, 24)
    assert without.weights()[0].W_skip is None


# a recipe that makes no sense


def refused_recipe(**options) -> InterpkitError:
    return refused(lambda: Recipe(64, 6, 6000, 128, 3e-3, **options), code=64)


def test_an_objective_that_does_not_exist_shows_the_nearest():
    assert refused_recipe(objective="batch_topk").mend == "did you mean 'batchtopk'?"
    assert refused_recipe(objective="jumprelus").mend == "did you mean 'jumprelu'?"
    assert all(o in refused_recipe(objective="lasso").asked for o in OBJECTIVES)


@pytest.mark.parametrize("prefixes", [(0, 64), (32, 16), (16, 16), (65,), (16, 128), (-1,)])
def test_prefixes_that_do_not_ascend_are_refused(prefixes):
    e = refused_recipe(prefixes=prefixes)
    assert "prefixes from 1 to 64" in e.asked
    assert str(prefixes[0]) in e.given


@pytest.mark.parametrize("prefixes", [(16,), [16, 64]])
def test_prefixes_end_with_all_features(prefixes):
    assert Recipe(64, 6, 6000, 128, 3e-3, prefixes=prefixes).prefixes == (16, 64)


@pytest.mark.parametrize(
    "sources,targets,options,said",
    [
        ([8, 8], [8, 6], dict(tied=True), "8, 6"),
        ([8, 8], [], {}, "2 sources, 0 targets"),
        ([8, 8], [8], {}, "2 sources, 1 targets"),
    ],
)
def test_targets_that_do_not_fit_their_sources_are_refused(sources, targets, options, said):
    "Tied targets of two widths, and an SAE of two sites."
    xs = [torch.randn(200, d) for d in sources]
    ys = [torch.randn(200, d) for d in targets]
    recipe = Recipe(16, 2, 2000, 100, 3e-3, **options)
    e = refused(lambda: Trainer(recipe, xs, ys), code=64)
    assert said in e.given
