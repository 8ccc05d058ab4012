"Dictionaries in JAX: codes, gradients and the way back agree with torch in every wiring."

import os
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from helpers import printed_by, refused
from small_trainings import gradients_of

from interpkit.dictionary.checks import check_dictionary
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights, unit_rows
from interpkit.model.sites import Site
from interpkit.sparse.products import Active
from interpkit.training.gradients import Parameters, Shape

pytestmark = pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed")
if find_spec("jax"):
    # What LLVM would make faster runs once; HLO is optimised as ever.
    quickly = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ.setdefault("XLA_FLAGS", quickly)
    import jax

    jax.config.update("jax_platforms", "cpu")
    import jax.numpy as jnp

    from interpkit.bridges import jax as in_jax
    from interpkit.bridges.jax import (
        JaxDictionary,
        decode,
        encode,
        forward,
        from_jax,
        loss,
        to_jax,
    )

    # Compiled as a whole: one by one takes XLA five times as long.
    compiled = jax.jit(forward)
    measured = jax.jit(loss)
    slopes = jax.jit(jax.grad(loss))

TOKENS = 64
# wiring, widths of the sources, of the targets, features, tied, which sources have a skip
CASES = {
    "sae": ("sae", (5,), (5,), (7,), False, ()),
    "saes": ("sae", (5, 3), (5, 3), (7, 4), False, ()),
    "transcoder": ("transcoder", (5,), (3,), (7,), False, ()),
    "transcoder with skip": ("transcoder", (5,), (3,), (7,), False, (0,)),
    "per layer": ("per_layer", (5, 3, 4), (2, 6, 4), (7, 9, 3), False, ()),
    "per layer, one skip": ("per_layer", (5, 3, 4), (2, 6, 4), (7, 9, 3), False, (1,)),
    "clt": ("clt", (5, 3, 4), (6, 6, 6), (7, 9, 3), False, ()),
    "clt with skip": ("clt", (5, 3, 4), (6, 6, 6), (7, 9, 3), False, (0, 1, 2)),
    "tied clt": ("clt", (5, 3, 4), (6, 6, 6), (7, 9, 3), True, ()),
    "tied clt, one skip": ("clt", (5, 3, 4), (6, 6, 6), (7, 9, 3), True, (2,)),
    "clt of one": ("clt", (5,), (6,), (7,), False, ()),
}
each_case = pytest.mark.parametrize("case", CASES)
SINGLE, DOUBLE = (torch.float32, 1e-5), (torch.float64, 1e-12)
each_type = pytest.mark.parametrize("dtype, atol", [SINGLE, DOUBLE], ids=["float32", "float64"])
each_case_in_one_type = pytest.mark.parametrize(
    "case, dtype, atol",
    [(c, *DOUBLE) for c in CASES] + [(c, *SINGLE) for c in ("clt with skip", "tied clt, one skip")],
)  # in 64 bits, where agreement says most; what 32 bits change is the same for every wiring


def precision(dtype):
    return jax.enable_x64(True) if dtype == torch.float64 else nullcontext()


def array(t):
    return in_jax._array(t)


def tensor(a):
    return in_jax._tensor(a)


def arrays(ts):
    return tuple(map(array, ts))


def draws(seed, dtype):
    g = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)


def made(case="tied clt, one skip", dtype=torch.float32, seed=0) -> Dictionary:
    "A random dictionary with rows of length 1, thresholds that differ, and a validity to lose."
    wiring, ds, outs, Fs, tied, skips = CASES[case]
    draw = draws(seed, dtype)
    n = len(ds)
    weights = [
        SiteWeights(
            draw(d, F),
            draw(F),
            draw(F).abs(),
            draw(F, n - i if wiring == "clt" and not tied else 1, out),
            draw(out),
            draw(d, out) if i in skips else None,
        )
        for i, (d, out, F) in enumerate(zip(ds, outs, Fs, strict=True))
    ]
    targets = () if wiring == "sae" else tuple(Site(f"m.{i}") for i in range(n))
    return Dictionary(
        tuple(Site(f"m.{i}", "in") for i in range(n)),
        tuple(map(unit_rows, weights)),
        training=dict(seed=3),
        validity=dict(release="v1"),
        canary=dict(x=torch.ones(1)),
        wiring=wiring,
        targets=targets,
    )


def inputs(d: Dictionary, seed=1, shape=(TOKENS,)):
    "Activations, one tensor per source, and random targets."
    draw = draws(seed, d.weights[0].W_enc.dtype)
    return [draw(*shape, w.d) for w in d.weights], [draw(*shape, w.d_out) for w in d.weights]


def by_site(d, h):
    return dict(zip(d.sites, h, strict=True))


def close(ours, theirs, atol):
    return len(ours) == len(theirs) and all(
        a.dtype == (b := tensor(t)).dtype
        and a.shape == b.shape
        and torch.allclose(a, b, rtol=atol, atol=atol)
        for a, t in zip(ours, theirs, strict=True)
    )


def parameters(d: Dictionary, leaf=lambda t: t) -> Dictionary:
    return replace(d, weights=tuple(w.map(leaf) for w in d.weights))


# The same numbers


@each_case_in_one_type
def test_codes_and_what_is_written_are_those_of_torch(case, dtype, atol):
    d = made(case, dtype)
    h, _ = inputs(d)
    codes = [d.at(s).encode(x) for s, x in zip(d.sites, h, strict=True)]
    with precision(dtype):
        params = to_jax(d)
        acts = arrays(h)
        assert close(codes, encode(params, acts), atol)
        assert close(
            d.decode(by_site(d, codes), by_site(d, h)).values(),
            decode(params, arrays(codes), acts),
            atol,
        )
        assert close(d.forward(by_site(d, h)).values(), compiled(params, acts), atol)
    assert all(0 < int((c > 0).sum()) < c.numel() for c in codes)


@pytest.mark.parametrize("shape", [(3, 4), ()])
def test_tokens_come_in_any_shape(shape):
    d = made()
    h, y = inputs(d, shape=shape)
    assert close(d.forward(by_site(d, h)).values(), forward(to_jax(d), arrays(h)), 1e-5)
    assert float(loss(to_jax(d), arrays(h), arrays(y))) == pytest.approx(
        float(torch_loss(d, h, y, 0)), rel=1e-5
    )


def test_a_clt_by_hand():
    def row(*numbers):
        return jnp.array(numbers, float)

    W_dec = (row(1, 10, 100).reshape(1, 3, 1), row(2, 20).reshape(1, 2, 1), row(5).reshape(1, 1, 1))
    clt = JaxDictionary(
        (row(1)[:, None],) * 3,
        (row(0), row(1), row(0)),
        (row(0),) * 3,
        W_dec,
        (row(1000), row(2000), row(3000)),
        (None, None, row(3)[:, None]),
        "clt",
    )
    acts = (row(3), row(6), row(-2))
    assert [float(a[0]) for a in encode(clt, acts)] == [3, 7, 0]
    assert [float(y[0]) for y in forward(clt, acts)] == [1003, 2000 + 30 + 14, 3000 + 300 + 140 - 6]
    tied = replace(clt, W_dec=(W_dec[0][:, :1], W_dec[1][:, :1], W_dec[2]))
    assert [float(y[0]) for y in forward(tied, acts)] == [1003, 2000 + 3 + 14, 3000 + 3 + 14 - 6]
    assert [float(y[0]) for y in forward(replace(tied, wiring="per_layer"), acts)] == [
        1003,
        2000 + 14,
        3000 - 6,
    ]


@each_type
def test_a_feature_at_its_threshold_is_not_active(dtype, atol):
    threshold = torch.tensor([0.5, 0.0, 2.0], dtype=dtype)
    d = Dictionary(
        (Site("a"),),
        (
            SiteWeights(
                torch.eye(3, dtype=dtype),
                torch.zeros(3, dtype=dtype),
                threshold,
                torch.eye(3, dtype=dtype),
                torch.zeros(3, dtype=dtype),
            ),
        ),
    )
    above, below = (torch.nextafter(threshold, torch.full_like(threshold, x)) for x in (9, -9))
    h = torch.stack([threshold, above, below])
    above = torch.where(
        above < 1e-30, 0, above
    )  # the number after 0 is subnormal, which XLA may flush
    with precision(dtype):
        codes = tensor(encode(to_jax(d), (array(h),))[0])
    assert torch.equal(codes[0], torch.zeros_like(threshold))
    assert torch.equal(codes[2].abs(), torch.zeros_like(threshold))
    assert torch.allclose(codes[1], above, atol=1e-30, rtol=0)


def test_ties_of_whole_numbers_are_decided_alike():
    "Sums of small whole numbers are exact, so every code is equal to the bit; many are ties."
    g = torch.Generator().manual_seed(0)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=g).float()

    d = Dictionary(
        (Site("a"),),
        (SiteWeights(whole(4, 50), whole(50), whole(50).abs(), whole(50, 4), whole(4)),),
    )
    h = whole(300, 4)
    w = d.weights[0]
    assert int((h @ w.W_enc + w.b_enc == w.threshold).sum()) > 500
    assert torch.equal(tensor(encode(to_jax(d), (array(h),))[0]), w.encode(h))
    assert torch.equal(
        tensor(forward(to_jax(d), (array(h),))[0]), d.forward({Site("a"): h})[Site("a")]
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_goes_through_as_in_torch(broken):
    "Compiled or not: XLA may make 0 of NaN times 0."
    d = made("transcoder")
    h = torch.full((2, 5), broken)
    codes = d.weights[0].encode(h)
    out = d.forward({d.sites[0]: h})[d.targets[0]]
    for run in (lambda f: f, jax.jit):
        assert torch.equal(
            tensor(run(encode)(to_jax(d), (array(h),))[0]).isfinite(), codes.isfinite()
        )
        assert torch.equal(tensor(run(forward)(to_jax(d), (array(h),))[0]).isnan(), out.isnan())
        assert bool(out.isnan().all())


@each_case
def test_every_product_asks_for_the_highest_precision(case):
    d = made(case)
    text = str(jax.make_jaxpr(jax.grad(loss))(to_jax(d), *map(arrays, inputs(d))))
    assert text.count("dot_general") > 2
    assert text.count("dot_general") == text.count("(Precision.HIGHEST, Precision.HIGHEST)")


# The loss and its gradient


def torch_loss(d: Dictionary, h, y, l1):
    "The same loss from the dense formulas in torch."
    made = d.forward(by_site(d, h))
    codes = [d.at(s).encode(x) for s, x in zip(d.sites, h, strict=True)]
    left = sum((made[t] - x).square().sum(-1) for t, x in zip(d.targets, y, strict=True)).mean()
    lengths = sum(
        c @ w.W_dec.flatten(1).norm(dim=1) for c, w in zip(codes, d.weights, strict=True)
    ).mean()
    return left / sum(x.square().sum(-1) for x in y).mean() + l1 * lengths


def test_the_loss_is_0_of_what_is_written_and_1_of_nothing():
    d = made()
    h, y = map(arrays, inputs(d))
    params = to_jax(d)
    written = forward(to_jax(d), h)
    assert float(loss(params, h, written)) == 0
    silent = replace(
        params,
        b_enc=tuple(b - 1e6 for b in params.b_enc),
        b_dec=tuple(map(jnp.zeros_like, params.b_dec)),
        W_skip=(None,) * 3,
    )
    assert float(loss(silent, h, y)) == 1
    half = [x / 2 for x in written]  # written minus half of it is as large as the target
    assert float(loss(params, h, half)) == pytest.approx(1)
    assert float(loss(params, h, half, l1=0.5)) > 1.1


@each_case_in_one_type
def test_gradients_are_those_of_autograd(case, dtype, atol, l1=0.3):
    d = parameters(
        made(case, dtype), lambda t: (t.double() * 1.3).to(dtype).requires_grad_()
    )  # rows are not of length 1
    h, y = inputs(d)
    expected = torch_loss(d, h, y, l1)
    expected.backward()
    with precision(dtype):
        value, found = jax.jit(jax.value_and_grad(loss))(to_jax(d), arrays(h), arrays(y), l1)
        assert float(value) == pytest.approx(expected.item(), rel=10 * atol)
        for n in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
            for w, g in zip(d.weights, getattr(found, n), strict=True):
                assert (getattr(w, n) is None) == (g is None), n
                if g is not None:
                    assert torch.allclose(
                        tensor(g), getattr(w, n).grad, rtol=10 * atol, atol=atol
                    ), n
                    assert bool(getattr(w, n).grad.any()), n
        assert not any(t.any() for t in found.threshold)


def test_features_that_write_nothing_have_finite_gradients():
    d = made("sae")
    d = replace(
        d,
        weights=(
            replace(d.weights[0], W_dec=d.weights[0].W_dec * (torch.arange(7) > 0)[:, None, None]),
        ),
    )
    h, _ = map(arrays, inputs(d))
    slope = slopes(to_jax(d), h, h, 0.1)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(slope))
    assert float(slope.W_dec[0].std()) > 0


def trainer_gradients(d: Dictionary, h, y, threshold: float) -> dict:
    """Of the trainer's own function, for one source and one target: name -> as in `SiteWeights`.

    The loss is the mean over tokens of the squared error.
    """
    (w,), (x,), (target,) = d.weights, h, y
    p = Parameters(Shape(w.n_features, (w.d,), (w.d_out,)))
    for place, t in (
        (p.W_enc[0], w.W_enc.T),
        (p.W_dec[0], w.W_dec[:, 0]),
        (p.b_enc[0], w.b_enc),
        (p.b_dec, w.b_dec),
    ):
        place.copy_(t)
    active = [Active.above(torch.addmm(p.b_enc[0], x, p.W_enc[0].T), threshold)]
    _, grad, _ = gradients_of(p, target, [x], active)
    return dict(
        W_enc=grad.W_enc[0].T, b_enc=grad.b_enc[0], W_dec=grad.W_dec[0][:, None], b_dec=grad.b_dec
    )


@pytest.mark.parametrize("threshold", [0.01, 0.7, 1e9])
def test_gradients_are_those_of_the_trainer(threshold):
    "It reads whitened activations and writes centred ones: two sites of one width."
    d = made("sae")
    d = replace(d, weights=(replace(d.weights[0], threshold=torch.full((7,), threshold)),))
    h, y = inputs(d)
    found = slopes(to_jax(d), arrays(h), arrays(y))
    expected = trainer_gradients(d, h, y, threshold)
    size = float(y[0].square().sum(1).mean())
    for n, t in expected.items():
        assert torch.allclose(tensor(getattr(found, n)[0]) * size, t, atol=1e-5, rtol=1e-4), n
    assert bool(expected["W_enc"].any()) == (threshold < 1e9)
    assert bool(expected["b_dec"].any())


# jit, vmap, descent


def test_jit_gives_the_same():
    "One case: what is compiled is compared with torch for all of them, and one by one is slow."
    d = made("transcoder with skip")
    params, h, y = to_jax(d), *map(arrays, inputs(d))

    def both(f, *args):
        return jax.tree.leaves(f(*args)), jax.tree.leaves(jax.jit(f)(*args))

    for plain, whole in (
        both(encode, params, h),
        both(forward, params, h),
        both(decode, params, encode(params, h), h),
        both(jax.grad(loss), params, h, y),
    ):
        assert len(plain) == len(whole) > 0
        assert all(jnp.allclose(a, b, atol=1e-6) for a, b in zip(plain, whole, strict=True))


def test_vmap_over_tokens_and_over_dictionaries():
    ds = [made(seed=s) for s in range(3)]
    h, y = map(arrays, inputs(ds[0]))
    params = [to_jax(d) for d in ds]
    one_by_one = jax.jit(jax.vmap(forward, in_axes=(None, 0)))(params[0], h)
    assert all(
        jnp.allclose(a, b, atol=1e-5)
        for a, b in zip(one_by_one, compiled(params[0], h), strict=True)
    )
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *params)
    losses = jax.jit(jax.vmap(loss, in_axes=(0, None, None)))(stacked, h, y)
    assert jnp.allclose(losses, jnp.array([measured(p, h, y) for p in params]), rtol=1e-5)
    assert len(set(losses.tolist())) == 3


@pytest.mark.parametrize("case", ["saes", "per layer, one skip", "clt with skip", "tied clt"])
def test_descent_lowers_the_loss_and_torch_measures_the_same(case):
    d = made(case)
    h, y = inputs(d)
    params = to_jax(d)
    acts = arrays(h)
    targets = arrays(y)
    losses = []

    @jax.jit
    def step(p):
        value, slope = jax.value_and_grad(loss)(p, acts, targets)
        return value, jax.tree.map(lambda a, s: a - 0.03 * s, p, slope)

    for _ in range(20):
        value, params = step(params)
        losses.append(float(value))
    new = from_jax(params, d)
    assert losses[-1] < 0.95 * losses[0]
    assert sorted(losses, reverse=True) == losses
    assert float(torch_loss(d, h, y, 0)) == pytest.approx(losses[0], rel=1e-5)
    assert float(torch_loss(new, h, y, 0)) == pytest.approx(
        float(measured(params, acts, targets)), rel=1e-5
    )
    assert all(
        torch.allclose(w.W_dec.flatten(1).norm(dim=1), torch.ones(w.n_features))
        for w in new.weights
    )


# There and back


@pytest.mark.parametrize(
    "case, dtype",
    [(c, torch.float32) for c in CASES]
    + [("clt with skip", t) for t in (torch.float64, torch.bfloat16, torch.float16)],
)
def test_the_way_back_loses_no_bit(case, dtype):
    d = made(case, dtype)
    with precision(dtype):
        params = to_jax(d)
        for i, w in enumerate(d.weights):
            for n, t in vars(w).items():
                a = getattr(params, n)[i]
                assert (a is None and t is None) or (
                    torch.equal(tensor(a), t) and tensor(a).dtype == dtype
                ), n
        assert from_jax(params, d) is d


def test_other_parameters_are_another_dictionary_without_validity():
    d = made()
    params = to_jax(d)
    new = from_jax(replace(params, b_dec=(params.b_dec[0] + 1, *params.b_dec[1:])), d)
    assert new.validity == {}
    assert new.canary == {}
    assert new.training == dict(seed=3, changed="in JAX")
    assert d.validity == dict(release="v1")
    assert (new.sites, new.targets, new.labels, new.wiring) == (
        d.sites,
        d.targets,
        d.labels,
        d.wiring,
    )
    assert new.fingerprint != d.fingerprint
    longer = from_jax(replace(params, W_dec=tuple(W * 2 for W in params.W_dec)), d)
    check_dictionary(longer)  # lengths are folded on the way back
    assert torch.allclose(longer.weights[0].W_enc, d.weights[0].W_enc * 2)
    assert torch.allclose(longer.weights[0].W_dec, d.weights[0].W_dec)
    same = from_jax(replace(params, b_enc=tuple(jnp.array(b) for b in params.b_enc)), d)
    assert same is d
    turned = from_jax(
        replace(
            params,
            b_enc=(
                params.b_enc[0].at[0].set(jnp.nextafter(params.b_enc[0][0], jnp.inf)),
                *params.b_enc[1:],
            ),
        ),
        d,
    )
    assert turned is not d
    assert turned.validity == {}  # one bit


def test_neither_side_sees_what_the_other_changes():
    d = made("sae")
    params = to_jax(d)
    before = tensor(params.W_enc[0])
    d.weights[0].W_enc.zero_()
    assert torch.equal(tensor(params.W_enc[0]), before)
    assert bool(before.any())
    new = from_jax(params, d)
    bias = tensor(params.b_dec[0])
    new.weights[0].b_dec.zero_()
    assert torch.equal(tensor(params.b_dec[0]), bias)
    assert bool(bias.any())


def test_parameters_that_require_gradients_and_views_are_copied():
    d = made("clt")
    leaves = replace(
        d,
        weights=tuple(
            replace(w, W_enc=w.W_enc.T.contiguous().T.requires_grad_()) for w in d.weights
        ),
    )
    assert all(
        torch.equal(tensor(a), w.W_enc)
        for a, w in zip(to_jax(leaves).W_enc, d.weights, strict=True)
    )


def test_a_source_without_features_writes_its_bias():
    d = made("clt").subset([0, 1, 17])
    assert [w.n_features for w in d.weights] == [2, 0, 1]
    h, y = inputs(d)
    assert close(d.forward(by_site(d, h)).values(), forward(to_jax(d), arrays(h)), 1e-5)
    assert from_jax(to_jax(d), d) is d


def test_what_does_not_fit_is_refused():
    d = made("clt")
    params = to_jax(made("clt"))
    h, _ = map(arrays, inputs(d))
    refused(lambda: encode(params, h[0]), "a tuple of 3", "dictionary.sites")
    refused(lambda: encode(params, h[:2]), "a tuple of 3", "tuple of 2")
    refused(lambda: loss(params, h, h[:1]), "targets as a tuple of 3")
    refused(lambda: decode(params, encode(params, h)[:2]), "codes as a tuple of 3")
    skipping = to_jax(made("tied clt, one skip"))
    refused(lambda: decode(skipping, encode(skipping, h)), "which the skip reads", "NoneType")
    refused(lambda: from_jax(params, made("sae")), "Dictionary(sae", "JaxDictionary(clt")
    refused(
        lambda: from_jax(replace(params, W_enc=(params.W_enc[0] * jnp.nan, *params.W_enc[1:])), d),
        "finite weights",
        "W_enc",
    )
    refused(
        lambda: from_jax(replace(params, threshold=tuple(t - 9 for t in params.threshold)), d),
        "thresholds >= 0",
    )
    refused(lambda: from_jax(replace(params, b_enc=params.b_enc[::-1]), d), "b_enc")


def test_float64_is_refused_where_jax_would_make_float32_of_it():
    refused(lambda: to_jax(made(dtype=torch.float64)), "float64", "jax_enable_x64")


def test_repr_is_one_line_also_of_gradients_and_of_what_is_traced():
    params = to_jax(made("clt"))
    assert repr(params) == "JaxDictionary(clt: 5 -> 7, 3 -> 9, 4 -> 3; float32)"
    assert "clt" in repr(jax.tree.map(lambda x: None, params))
    assert "\n" not in repr(jax.tree.map(lambda x: "x", params))


# What is imported when


SMALL = """
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
import torch
"""
DICTIONARY = """
import interpkit
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.sites import Site

eye, zeros = torch.eye(2), torch.zeros(2)
d = Dictionary((Site("a"),), (SiteWeights(eye, zeros, zeros, eye, zeros),))
"""
NO_JAX = 'sys.modules["jax"] = None\n'
ASKED = """
before = "jax" in sys.modules
from interpkit.bridges.jax import to_jax

print(before, to_jax(d))
"""
ASKED_IN_VAIN = """
try:
    from interpkit.bridges.jax import to_jax
except Exception as e:
    print(type(e).__name__, int(e.code), e)
"""


def test_jax_is_imported_when_it_is_asked_for_and_where_it_is_missing_one_error_says_what_to_do():
    without, asked, in_vain = printed_by(
        [
            NO_JAX + DICTIONARY + 'print("jax.numpy" in sys.modules)',
            DICTIONARY + ASKED,
            NO_JAX + DICTIONARY + ASKED_IN_VAIN,
        ],
        first=SMALL,
    )
    assert without == "False"
    assert asked == "False JaxDictionary(sae: 2 -> 2; float32)"
    assert in_vain.startswith("InterpkitError 1 ")
    assert "pip install 'interpkit-notebooks[jax]'" in in_vain
