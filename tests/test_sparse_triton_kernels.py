"The Triton kernels against dense sums in 64 bits; that they compile; and who is chosen when."

import os
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import pytest
import torch
from helpers import refused
from small_activations import stream

from interpkit.core.errors import ExitCode
from interpkit.sparse import codes
from interpkit.training.fit import fit
from interpkit.training.recipe import OBJECTIVES, recipe

COMPILED = torch.cuda.is_available()
pytest.importorskip("triton", minversion=None if COMPILED else "3.7")  # older ones can't interpret
DEVICE = "cuda" if COMPILED else "cpu"  # compiled on a GPU, interpreted without


@pytest.fixture
def kernels():
    from interpkit.sparse import triton_kernels

    return triton_kernels


@pytest.fixture(autouse=True)
def forget():
    "Each test chooses anew."
    codes._kernels.cache_clear()
    yield
    codes._kernels.cache_clear()


def problem(tokens, features, d, share, seed=0, dtype=torch.float32):
    "Rows per token and feature, values, and where they lie: token, feature, begin, mask."
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(dtype).to(DEVICE)

    on = torch.rand(tokens, features, generator=g) < share
    if features > 1 and tokens > 2:
        on[:, 0] = True  # a feature that is always active
        on[1] = False  # a token without features
    at = on.flatten().nonzero().view(-1)
    token, feature = (at // features).to(DEVICE), (at % features).to(DEVICE)
    begin = torch.searchsorted(token, torch.arange(tokens + 1, device=DEVICE))
    x = draw(tokens, d)
    rows = draw(features, d)
    return x, rows, draw(len(at)), token, feature, begin, on.to(DEVICE)


ROUNDING = {  # of one value; the interpreter cuts off
    torch.float64: 1e-15,
    torch.float32: 1e-6,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}


def close(result, wanted, terms, dtype=torch.float32):
    "Summed in 32 bits, or 64, and rounded once: `terms` is the sum of the absolute terms."
    assert result.dtype == dtype
    assert result.shape == wanted.shape
    summed = 1e-14 if dtype == torch.float64 else 1e-5
    allowed = ROUNDING[dtype] * wanted.abs() + summed * terms
    if dtype == torch.float16:
        allowed = allowed + 1e-7
    assert bool(((result.double() - wanted).abs() <= allowed).all())


SIZES = [  # tokens, features, columns, share
    (5, 7, 3, 0.3),
    (40, 30, 300, 0.4),  # 300 columns are two blocks
    (3, 1, 1, 0.5),
    (1, 50, 17, 0.2),
    (64, 5, 130, 0.9),
    (270, 2, 5, 0.9),  # a feature of 269 tokens is seventeen rounds, and three of its totals
    (6, 9, 4, 0.0),
    (0, 4, 3, 0.5),
    (5, 4, 0, 0.5),
]


def every_size_and_type():
    "All sizes in 32 bits; what another type changes is asked of three of them, else in `slow`."
    for size, dtype in product(SIZES, ROUNDING):
        near = dtype == torch.float32 or size in (SIZES[0], SIZES[1], SIZES[6])
        yield pytest.param(
            size, dtype, marks=[] if near else pytest.mark.slow, id=f"{size} {dtype}"
        )


@pytest.mark.parametrize("size, dtype", every_size_and_type())
def test_sums_and_products_are_those_of_the_dense_matrices(kernels, size, dtype):
    x, rows, value, token, feature, begin, on = problem(*size, dtype=dtype)
    dense = torch.zeros(on.shape, dtype=torch.float64, device=DEVICE)
    dense[token, feature] = value.double()
    terms, x64, rows64 = dense.abs(), x.double(), rows.double()
    made = kernels.weighted_rows(rows, feature, begin, value)
    close(made, dense @ rows64, terms @ rows64.abs(), dtype)
    order = torch.sort(feature, stable=True).indices
    features = torch.searchsorted(feature[order], torch.arange(on.shape[1] + 1, device=DEVICE))
    made = kernels.weighted_rows(x, token[order], features, value[order])
    close(made, dense.T @ x64, terms.T @ x64.abs(), dtype)
    products, product_terms = x64 @ rows64.T, x64.abs() @ rows64.abs().T
    made = kernels.inner(x, rows, token, feature)
    close(made, products[token, feature], product_terms[token, feature], dtype)
    close(kernels.totals(value, begin), dense.sum(1), terms.sum(1), dtype)
    close(kernels.totals(value[order], features), dense.sum(0), terms.sum(0), dtype)


def test_tensors_may_lie_in_memory_in_any_way(kernels):
    x, rows, value, token, feature, begin, _ = problem(9, 7, 12, 0.4)

    def turned(t):
        return t.T.contiguous().T if t.ndim == 2 else t.repeat_interleave(3)[::3]

    def on_turned(kernel, *tensors):
        return torch.equal(kernel(*map(turned, tensors)), kernel(*tensors))

    assert not any(turned(t).is_contiguous() for t in (x, rows, value, token))
    assert on_turned(kernels.weighted_rows, rows, feature, begin, value)
    assert on_turned(kernels.inner, x, rows, token, feature)
    assert on_turned(kernels.totals, value, begin)


def test_what_is_compared_keeps_its_bits(kernels):
    pre = torch.tensor([[1.0, 1.0 + 1e-12, 1.0 - 1e-12]], dtype=torch.float64, device=DEVICE)
    one = torch.tensor(1.0, dtype=torch.float64, device=DEVICE)
    assert kernels.active(pre, one)[0].tolist() == [1]
    half = torch.ones(1, 3, dtype=torch.bfloat16, device=DEVICE)
    threshold = torch.tensor([0.999, 1.0, 1.001], device=DEVICE)
    assert kernels.active(half, threshold)[0].tolist() == [0]
    assert codes.places(half > threshold).tolist() == [0]


SHAPES = [(3, 1), (1, 3000), (5, 1024), (4, 1025), (2, 40), (0, 5), (5, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["number", "a token", "a feature", "a place"])
def test_what_is_active_is_what_is_above(kernels, shape, kind):
    g = torch.Generator().manual_seed(0)
    pre = torch.randint(-2, 3, shape, generator=g).float().to(DEVICE)  # many at the threshold
    thresholds = {
        "number": torch.tensor(1.0),
        "a token": torch.randint(-1, 2, (shape[0], 1), generator=g).float(),
        "a feature": torch.randint(-1, 2, (shape[1],), generator=g).float(),
        "a place": torch.randint(-1, 2, shape, generator=g).float(),
    }
    threshold = thresholds[kind].to(DEVICE)
    if pre.numel() > 4:
        pre[0, -1] = float("nan")
    place, value = kernels.active(pre, threshold)
    wanted = (pre > threshold).flatten().nonzero().view(-1)
    assert place.dtype == torch.int64
    assert torch.equal(place, wanted)
    assert torch.equal(value, pre.flatten()[wanted])
    turned, again = kernels.active(pre.T.contiguous().T, threshold)  # other memory, same places
    assert torch.equal(turned, wanted)
    assert torch.equal(again, value)
    if kind == "number" and len(wanted):
        assert torch.equal(kernels.active(pre, threshold.cpu())[0], wanted)


def test_what_no_segment_names_is_never_read(kernels):
    "Not a number outside must not come in by a multiplication with zero."
    rows = torch.full((6, 5), float("nan"), device=DEVICE)
    rows[2] = 1.0
    index = torch.tensor([2, 2, 4], device=DEVICE)
    weight = torch.tensor([1.0, 2.0, float("nan")], device=DEVICE)
    begin = torch.tensor([0, 2, 2], device=DEVICE)
    assert kernels.weighted_rows(rows, index, begin, weight).tolist() == [[3.0] * 5, [0.0] * 5]
    assert kernels.inner(rows, rows, index[:2], index[:2]).tolist() == [5.0, 5.0]
    assert kernels.totals(weight, begin).tolist() == [3.0, 0.0]


# a whole training


@pytest.mark.parametrize(
    "objective",
    [pytest.param(o, marks=[] if o == "topk" else pytest.mark.slow) for o in OBJECTIVES],
)
def test_a_training_by_these_kernels_goes_the_same_way(objective, monkeypatch):
    how = recipe(40, 4, 3 * 24, 24, objective=objective, prefixes=(16, 40))

    def trained(choice):
        monkeypatch.setenv("INTERPKIT_KERNELS", choice)
        return fit(stream(3, 24), how, device=DEVICE).p.flat

    by_torch = trained("torch")
    by_triton = trained("triton")
    assert torch.allclose(by_torch, by_triton, atol=2e-4)
    if objective == "jumprelu":  # which takes every kernel
        assert torch.equal(by_triton, trained("triton"))  # one order of adding up: the same bits


# who is chosen


def test_the_choice(kernels, monkeypatch):
    x = torch.zeros(2, device=DEVICE)
    for asked, wanted in (("", x.is_cuda), ("auto", x.is_cuda), ("torch", False), ("triton", True)):
        monkeypatch.setenv("INTERPKIT_KERNELS", asked)
        assert codes.triton_for(x) is (kernels if wanted else None)
    monkeypatch.setenv("INTERPKIT_KERNELS", "tritn")
    error = refused(lambda: codes.triton_for(x), "'tritn'", code=ExitCode.BAD_PARAMETERS)
    assert "auto, torch, triton" in error.asked


def test_what_is_differentiated_stays_with_torch(kernels, monkeypatch):
    monkeypatch.setenv("INTERPKIT_KERNELS", "triton")
    rows = torch.randn(5, 3, device=DEVICE)
    value = torch.ones(4, device=DEVICE, requires_grad=True)
    index = torch.tensor([0, 4, 1, 1], device=DEVICE)
    begin = torch.tensor([0, 2, 4], device=DEVICE)
    sums = codes.weighted_rows(rows, index, begin, value)
    slope = torch.autograd.grad(sums.sum(), value)[0]
    assert torch.allclose(slope, rows[index].sum(1), atol=1e-6)
    with torch.no_grad():
        assert codes.triton_for(rows, value) is kernels


def test_on_a_cpu_nothing_is_asked_of_kernels_that_are_compiled(monkeypatch):
    "A process that compiles for its GPU has tensors on the CPU as well."
    monkeypatch.setenv("INTERPKIT_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert codes.triton_for(torch.zeros(1)) is None


def test_the_precision_of_products_does_not_condemn_the_kernels(kernels):
    "Neither autocast nor a default type of 16 bits, which change what a product gives."
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.autocast(DEVICE, torch.bfloat16):
            assert kernels.disagreement(DEVICE) < 1e-5
    finally:
        torch.set_default_dtype(before)


# kernels that fail or lie


def other_numbers(rows, index, begin, weight):
    bag = dict(mode="sum", per_sample_weights=weight, include_last_offset=True)
    return 1.001 * codes.embedding_bag(index, rows, begin, **bag)


def other_features(pre, threshold):
    return codes.active(pre, threshold + 0.5)


def not_a_number(value, begin):
    return torch.full((len(begin) - 1,), float("nan"), device=value.device)


def one_round_of_totals(value, begin):
    segments = zip(begin[:-1].tolist(), begin[1:].tolist(), strict=True)
    return torch.stack([value[a : min(b, a + 128)].sum() for a, b in segments])


def no_compiler(*_):
    raise RuntimeError("Failed to find C compiler")


FAILING = {  # what is replaced by what, and what the warning says
    "other numbers": ("weighted_rows", other_numbers, "differ from torch's operators by 0.001"),
    "other features": ("active", other_features, "differ .* by inf"),
    "not a number": ("totals", not_a_number, "differ .* by nan"),
    "one round of totals": ("totals", one_round_of_totals, "differ .* by 0[.]"),
    "no compiler": ("inner", no_compiler, "C compiler"),
    "no triton": (None, None, "ModuleNotFoundError|ImportError"),
}


@pytest.mark.parametrize("how", FAILING)
def test_kernels_that_fail_or_lie_are_not_used_and_said_to_be(kernels, monkeypatch, how):
    name, replacement, warned = FAILING[how]
    if name is None:
        monkeypatch.setitem(sys.modules, "interpkit.sparse.triton_kernels", None)
        monkeypatch.delattr("interpkit.sparse.triton_kernels")
    else:
        monkeypatch.setattr(kernels, name, replacement)
    with pytest.warns(UserWarning, match=f"(?s)({warned}).*torch's operators"):
        assert codes._kernels(DEVICE, "auto") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codes._kernels(DEVICE, "auto") is None  # warned once per process
    monkeypatch.setenv("INTERPKIT_KERNELS", "triton")  # asked for by name: no way round
    x = torch.zeros(1, device=DEVICE)
    refused(lambda: codes.triton_for(x), "INTERPKIT_KERNELS", code=ExitCode.BAD_PARAMETERS)


# that they compile

COMPILE = """
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from interpkit.sparse import triton_kernels as k


def sources(t, AS):
    "Each kernel with the types of its arguments and its fixed sizes, for numbers of type `t`."
    p, i, n = "*" + t, "*i64", "i32"
    steps = dict(threshold_row=n, threshold_column=n)
    find = dict(pre=p, threshold=p, columns=n) | steps
    yield k._count, find | dict(found=i), dict(BLOCK=1024, AS=AS)
    yield k._write, find | dict(begin=i, place=i, value=p), dict(BLOCK=1024, AS=AS)
    rows = dict(rows=p, index=i, begin=i, weight=p, out=p, columns=n)
    yield k._rows, rows, dict(ROWS=16, BLOCK=256, AS=AS)
    inner = dict(x=p, rows=p, token=i, feature=i, out=p, n=n, columns=n)
    yield k._inner, inner, dict(PLACES=16, BLOCK=128, AS=AS)
    yield k._totals, dict(value=p, begin=i, out=p), dict(BLOCK=128, AS=AS)


def variants(signature, fixed):
    "Triton compiles a 1 in: none, all that may be 1, and the step of one column alone."
    ones = [x for x in ("columns", "threshold_row", "threshold_column") if x in signature]
    yield fixed
    yield fixed | {x: 1 for x in ones}
    yield fixed | ({"threshold_column": 1} if "threshold_column" in ones else {})


def compiled(fn, signature, constants, target):
    kinds = {x: "constexpr" if x in constants else signature[x] for x in fn.arg_names}
    values = {(fn.arg_names.index(x),): v for x, v in constants.items()}
    return triton.compile(ASTSource(fn, kinds, values), target=target)


n = 0
ALL = (("fp32", tl.float32), ("bf16", tl.float32), ("fp64", tl.float64))
for generation, types in ((80, ALL), (90, ALL if sys.argv[1:] == ["all"] else ALL[:1])):
    target = GPUTarget("cuda", generation, 32)
    for t, AS in types:
        for fn, signature, fixed in sources(t, AS):
            for constants in variants(signature, fixed):
                made = compiled(fn, signature, constants, target)
                assert len(made.asm["cubin"]) > 1000, fn
                assert ".entry" in made.asm["ptx"], fn
                n += 1
print("compiled", n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its compiler on Linux alone")
@pytest.mark.parametrize(
    "which, n", [("most", 60), pytest.param("all", 90, marks=pytest.mark.slow)]
)
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path, which, n):
    """The interpreter takes what the compiler refuses; the compiler needs no GPU.

    Every type is compiled for one generation, and the next one compiles one type."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, which],
        capture_output=True,
        text=True,
        timeout=300,
        env=env | dict(TRITON_CACHE_DIR=str(tmp_path)),
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"compiled {n}" in done.stdout, done.stdout
