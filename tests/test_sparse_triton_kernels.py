"The Triton kernels against dense sums in 64 bits, interpreted; that they compile for GPUs that are not here; and who is chosen when."

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from small_activations import stream

from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.sparse import codes
from interpkit.training.fit import fit
from interpkit.training.trainer import OBJECTIVES, recipe

pytest.importorskip(
    "triton", minversion=None if torch.cuda.is_available() else "3.7"
)  # older ones interpret nothing with numpy 2.4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # compiled on a GPU, interpreted without


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
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g).to(dtype)
    on = torch.rand(tokens, features, generator=g) < share
    if features > 1 and tokens > 2:
        on[:, 0], on[1] = True, False  # a feature that is always active, a token without features
    at = on.flatten().nonzero().view(-1)
    token, feature = (at // features).to(DEVICE), (at % features).to(DEVICE)
    begin = torch.searchsorted(token, torch.arange(tokens + 1, device=DEVICE))
    return (
        draw(tokens, d).to(DEVICE),
        draw(features, d).to(DEVICE),
        draw(len(at)).to(DEVICE),
        token,
        feature,
        begin,
        on.to(DEVICE),
    )


def close(found, wanted, terms, dtype=torch.float32):
    "Summed in 32 bits, or in 64 of those, and rounded once (the interpreter cuts off): `terms` is the sum of the absolute terms."
    summed, once = (
        (1e-14, 1e-15)
        if dtype == torch.float64
        else (1e-5, {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype])
    )
    assert (
        found.dtype == dtype
        and found.shape == wanted.shape
        and bool(
            (
                (found.double() - wanted).abs()
                <= once * wanted.abs() + summed * terms + 1e-7 * (dtype == torch.float16)
            ).all()
        )
    )


SIZES = [
    (5, 7, 3, 0.3),
    (40, 30, 300, 0.4),
    (3, 1, 1, 0.5),
    (1, 50, 17, 0.2),
    (64, 5, 130, 0.9),
    (300, 3, 5, 0.9),
    (6, 9, 4, 0.0),
    (0, 4, 3, 0.5),
    (5, 4, 0, 0.5),
]  # 300 columns are two blocks; a feature of 300 tokens is nineteen rounds, and three of its totals


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_and_products_are_those_of_the_dense_matrices(kernels, size, dtype):
    x, rows, value, token, feature, begin, on = problem(*size, dtype=dtype)
    dense = torch.zeros(on.shape, dtype=torch.float64, device=DEVICE)
    dense[token, feature] = value.double()
    size, x64, r64 = dense.abs(), x.double(), rows.double()
    close(kernels.weighted_rows(rows, feature, begin, value), dense @ r64, size @ r64.abs(), dtype)
    order = torch.sort(feature, stable=True).indices
    features = torch.searchsorted(feature[order], torch.arange(on.shape[1] + 1, device=DEVICE))
    close(
        kernels.weighted_rows(x, token[order], features, value[order]),
        dense.T @ x64,
        size.T @ x64.abs(),
        dtype,
    )
    close(
        kernels.inner(x, rows, token, feature),
        (x64 @ r64.T)[token, feature],
        (x64.abs() @ r64.abs().T)[token, feature],
        dtype,
    )
    close(kernels.totals(value, begin), dense.sum(1), size.sum(1), dtype)
    close(kernels.totals(value[order], features), dense.sum(0), size.sum(0), dtype)


def test_tensors_may_lie_in_memory_in_any_way(kernels):
    x, rows, value, token, feature, begin, _ = problem(9, 7, 12, 0.4)

    def turned(t):
        return t.T.contiguous().T if t.ndim == 2 else t.repeat_interleave(3)[::3]

    assert not any(turned(t).is_contiguous() for t in (x, rows, value, token))
    assert torch.equal(
        kernels.weighted_rows(turned(rows), turned(feature), turned(begin), turned(value)),
        kernels.weighted_rows(rows, feature, begin, value),
    )
    assert torch.equal(
        kernels.inner(turned(x), turned(rows), turned(token), turned(feature)),
        kernels.inner(x, rows, token, feature),
    )
    assert torch.equal(kernels.totals(turned(value), turned(begin)), kernels.totals(value, begin))


def test_what_is_compared_keeps_its_bits(kernels):
    pre = torch.tensor([[1.0, 1.0 + 1e-12, 1.0 - 1e-12]], dtype=torch.float64, device=DEVICE)
    assert kernels.active(pre, torch.tensor(1.0, dtype=torch.float64, device=DEVICE))[
        0
    ].tolist() == [1]
    half = torch.ones(1, 3, dtype=torch.bfloat16, device=DEVICE)
    assert (
        kernels.active(half, torch.tensor([0.999, 1.0, 1.001], device=DEVICE))[0].tolist()
        == [0]
        == codes.places(half > torch.tensor([0.999, 1.0, 1.001], device=DEVICE)).tolist()
    )


@pytest.mark.parametrize(
    "shape", [(3, 1), (1, 3000), (5, 1024), (4, 1025), (2, 40), (0, 5), (5, 0)]
)
@pytest.mark.parametrize("kind", ["number", "a token", "a feature", "a place"])
def test_what_is_active_is_what_is_above(kernels, shape, kind):
    g = torch.Generator().manual_seed(0)
    pre = torch.randint(-2, 3, shape, generator=g).float().to(DEVICE)  # many lie on the bar itself
    bar = {
        "number": torch.tensor(1.0),
        "a token": torch.randint(-1, 2, (shape[0], 1), generator=g).float(),
        "a feature": torch.randint(-1, 2, (shape[1],), generator=g).float(),
        "a place": torch.randint(-1, 2, shape, generator=g).float(),
    }[kind].to(DEVICE)
    if pre.numel() > 4:
        pre[0, -1] = float("nan")
    place, value = kernels.active(pre, bar)
    wanted = (pre > bar).flatten().nonzero().view(-1)
    assert (
        place.dtype == torch.int64
        and torch.equal(place, wanted)
        and torch.equal(value, pre.flatten()[wanted])
    )
    turned, again = kernels.active(pre.T.contiguous().T, bar)  # other memory, same places
    assert torch.equal(turned, wanted) and torch.equal(again, value)
    if kind == "number" and len(wanted):
        assert torch.equal(kernels.active(pre, bar.cpu())[0], wanted)


def test_what_no_segment_names_is_never_read(kernels):
    "Not a number outside must not come in by a multiplication with zero."
    rows = torch.full((6, 5), float("nan"), device=DEVICE)
    rows[2] = 1.0
    index, weight = (
        torch.tensor([2, 2, 4], device=DEVICE),
        torch.tensor([1.0, 2.0, float("nan")], device=DEVICE),
    )
    begin = torch.tensor([0, 2, 2], device=DEVICE)
    assert kernels.weighted_rows(rows, index, begin, weight).tolist() == [[3.0] * 5, [0.0] * 5]
    assert kernels.inner(rows, rows, index[:2], index[:2]).tolist() == [
        5.0,
        5.0,
    ] and kernels.totals(weight, begin).tolist() == [3.0, 0.0]


# a whole training


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_training_by_these_kernels_goes_the_same_way(objective, monkeypatch):
    found = {}
    for choice in ("torch", "triton"):
        monkeypatch.setenv("INTERPKIT_KERNELS", choice)
        for name in (choice, "again"):
            found[name] = fit(
                stream(3, 64),
                recipe(48, 4, 3 * 64, 64, objective=objective, prefixes=(16, 48)),
                device=DEVICE,
            ).p.flat
    assert torch.equal(
        found["triton"], found["again"]
    )  # one order of adding up: the same to the last bit
    assert torch.allclose(found["torch"], found["triton"], atol=2e-4)


# who is chosen


def test_the_choice(kernels, monkeypatch):
    x = torch.zeros(2, device=DEVICE)
    for asked, wanted in (("", x.is_cuda), ("auto", x.is_cuda), ("torch", False), ("triton", True)):
        monkeypatch.setenv("INTERPKIT_KERNELS", asked)
        assert codes.triton_for(x) is (kernels if wanted else None)
    monkeypatch.setenv("INTERPKIT_KERNELS", "tritn")
    with pytest.raises(InterpkitError, match="(?s)auto, torch, triton.*'tritn'") as e:
        codes.triton_for(x)
    assert e.value.code == ExitCode.BAD_PARAMETERS


def test_what_is_differentiated_stays_with_torch(kernels, monkeypatch):
    monkeypatch.setenv("INTERPKIT_KERNELS", "triton")
    rows, value = torch.randn(5, 3, device=DEVICE), torch.ones(4, device=DEVICE, requires_grad=True)
    index, begin = torch.tensor([0, 4, 1, 1], device=DEVICE), torch.tensor([0, 2, 4], device=DEVICE)
    found = codes.weighted_rows(rows, index, begin, value)
    assert torch.allclose(torch.autograd.grad(found.sum(), value)[0], rows[index].sum(1), atol=1e-6)
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


def fails(kernels, monkeypatch, how):
    if how == "other numbers":
        monkeypatch.setattr(
            kernels,
            "weighted_rows",
            lambda rows, index, begin, weight: (
                1.001
                * codes.embedding_bag(
                    index,
                    rows,
                    begin,
                    mode="sum",
                    per_sample_weights=weight,
                    include_last_offset=True,
                )
            ),
        )
    if how == "other features":
        monkeypatch.setattr(kernels, "active", lambda pre, bar: codes.active(pre, bar + 0.5))
    if how == "not a number":
        monkeypatch.setattr(
            kernels,
            "totals",
            lambda value, begin: torch.full((len(begin) - 1,), float("nan"), device=value.device),
        )
    if how == "one round of totals":
        monkeypatch.setattr(
            kernels,
            "totals",
            lambda value, begin: torch.stack(
                [
                    value[a : min(b, a + 128)].sum()
                    for a, b in zip(begin[:-1].tolist(), begin[1:].tolist())
                ]
            ),
        )
    if how == "no compiler":
        monkeypatch.setattr(
            kernels,
            "inner",
            lambda *a: (_ for _ in ()).throw(RuntimeError("Failed to find C compiler")),
        )
    if how == "no triton":
        (
            monkeypatch.setitem(sys.modules, "interpkit.sparse.triton_kernels", None),
            monkeypatch.delattr("interpkit.sparse.triton_kernels"),
        )


@pytest.mark.parametrize(
    "how, said",
    [
        ("other numbers", "differ from torch's operators by 0.001"),
        ("other features", "differ .* by inf"),
        ("not a number", "differ .* by nan"),
        ("one round of totals", "differ .* by 0[.]"),
        ("no compiler", "C compiler"),
        ("no triton", "ModuleNotFoundError|ImportError"),
    ],
)
def test_kernels_that_fail_or_lie_are_not_used_and_said_to_be(kernels, monkeypatch, how, said):
    fails(kernels, monkeypatch, how)
    with pytest.warns(UserWarning, match=f"(?s){said}.*torch's operators"):
        assert codes._kernels(DEVICE, "auto") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codes._kernels(DEVICE, "auto") is None  # once a process
    monkeypatch.setenv("INTERPKIT_KERNELS", "triton")  # asked for by name: no way round
    with pytest.raises(InterpkitError, match="INTERPKIT_KERNELS") as e:
        codes.triton_for(torch.zeros(1, device=DEVICE))
    assert e.value.code == ExitCode.BAD_PARAMETERS


# that they compile

COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from interpkit.sparse import triton_kernels as k

def sources(t, AS):
    p, i, bars = "*" + t, "*i64", dict(bar_row="i32", bar_column="i32")
    yield k._count, dict(pre=p, bar=p, found=i, columns="i32") | bars, dict(BLOCK=1024, AS=AS)
    yield k._write, dict(pre=p, bar=p, begin=i, place=i, value=p, columns="i32") | bars, dict(BLOCK=1024, AS=AS)
    yield k._rows, dict(rows=p, index=i, begin=i, weight=p, out=p, columns="i32"), dict(ROWS=16, BLOCK=256, AS=AS)
    yield k._inner, dict(x=p, rows=p, token=i, feature=i, out=p, n="i32", columns="i32"), dict(PLACES=16, BLOCK=128, AS=AS)
    yield k._totals, dict(value=p, begin=i, out=p), dict(BLOCK=128, AS=AS)

n = 0
for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)):
    for t, AS in (("fp32", tl.float32), ("bf16", tl.float32), ("fp64", tl.float64)):
        for fn, signature, fixed in sources(t, AS):
            ones = [x for x in ("columns", "bar_row", "bar_column") if x in signature]  # Triton compiles a 1 in
            for constants in (fixed, fixed | {x: 1 for x in ones}, fixed | ({"bar_column": 1} if "bar_column" in ones else {})):
                kinds = {x: "constexpr" if x in constants else signature[x] for x in fn.arg_names}
                made = triton.compile(ASTSource(fn, kinds, {(fn.arg_names.index(x),): v for x, v in constants.items()}), target=target)
                assert len(made.asm["cubin"]) > 1000 and ".entry" in made.asm["ptx"], fn
                n += 1
print("compiled", n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its compiler on Linux alone")
def test_all_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    "The interpreter takes what the compiler refuses; the compiler needs no GPU."
    env = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | dict(
        TRITON_CACHE_DIR=str(tmp_path)
    )
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0 and "compiled 90" in done.stdout, done.stderr[-3000:]
