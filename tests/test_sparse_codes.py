"Sparse codes against the dense formula: what is active, what is read and written, subsets, and input that is no good."

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.sparse import codes as module
from interpkit.sparse.codes import (
    Encoder,
    ScreenedEncoder,
    SparseCodes,
    above,
    decode,
    encode,
    places,
)

LEADS = ((7,), (2, 5), (2, 1, 3), (1,), (0,), (2, 0), ())
SEEDS = range(6)


def dense(acts, W_enc, b_enc, threshold):
    "The formula itself, on the same product."
    pre = torch.addmm(b_enc, acts.reshape(-1, acts.shape[-1]), W_enc).view(
        *acts.shape[:-1], len(b_enc)
    )
    return pre * (pre > threshold)


def whole(seed, lead=(9,), d=8, F=50, threshold=4.0, dtype=torch.float32):
    "Weights and activations that are small whole numbers: every way of adding them up is exact, and many pre-activations lie on the threshold itself."
    random = torch.Generator().manual_seed(seed)
    number = lambda *shape: torch.randint(-2, 3, shape, generator=random).to(dtype)
    return number(*lead, d), number(d, F), number(F), torch.full((F,), threshold, dtype=dtype)


def is_csr(codes):
    N, F = math.prod(codes.shape[:-1]), codes.shape[-1]
    assert codes.tokens.dtype == codes.indices.dtype == torch.int64 and len(codes.tokens) == N + 1
    assert (
        int(codes.tokens[0]) == 0
        and int(codes.tokens[-1]) == len(codes.indices) == len(codes.values)
        and bool((codes.tokens.diff() >= 0).all())
    )
    for a, b in zip(codes.tokens[:-1].tolist(), codes.tokens[1:].tolist()):
        assert bool((codes.indices[a:b].diff() > 0).all())
    assert not len(codes.indices) or 0 <= int(codes.indices.min()) <= int(codes.indices.max()) < F
    return codes


# places


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 64), (5, 1001), (0, 8), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_places_are_those_of_the_mask(shape, share):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    assert (
        places(mask).tolist() == [i for i, x in enumerate(mask.flatten().tolist()) if x]
        and places(mask).dtype == torch.int64
    )
    turned = mask.transpose(0, 1)
    assert places(turned).tolist() == places(turned.contiguous()).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_above_is_strict_and_by_feature(dtype):
    pre = torch.tensor([[1.0, 2.0, 3.0], [1.5, 1.5, float("nan")]], dtype=dtype)
    assert above(pre, torch.tensor([1.0, 2.0, 0.0], dtype=dtype)).tolist() == [2, 3]


# encode


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("F", [1, 8, 50, 64, 333])
def test_codes_are_the_dense_formula_bit_for_bit(lead, F, kernels):
    some = 0
    for seed in SEEDS:
        acts, *weights = whole(seed, lead, F=F)
        wanted = dense(acts, *weights)
        for found in (
            encode(acts, *weights),
            Encoder(*weights)(acts),
            ScreenedEncoder(*weights)(acts),
        ):
            assert found.shape == (*lead, F) and torch.equal(is_csr(found).dense(), wanted)
            assert found.l0 * math.prod(lead) == pytest.approx(int((wanted != 0).sum()))
        some += int((wanted != 0).sum())
    assert some > 0 or not math.prod(lead) or F == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_codes_of_real_numbers_are_those_of_the_same_product(seed, kernels):
    torch.manual_seed(seed)
    acts, W_enc, b_enc, threshold = (
        torch.randn(37, 24),
        torch.randn(24, 301),
        torch.randn(301),
        4 + torch.rand(301),
    )
    wanted = dense(acts, W_enc, b_enc, threshold)
    assert torch.equal(encode(acts, W_enc, b_enc, threshold).dense(), wanted) and bool(
        (wanted != 0).any()
    )
    encoder = Encoder(W_enc, b_enc, threshold)
    pre = encoder.product(acts)
    assert torch.equal(encoder(acts).dense(), pre * (pre > threshold))
    pre = torch.addmm(b_enc, acts, W_enc).double()
    sure = (pre - threshold).abs() > 1e-4
    assert torch.equal((encoder(acts).dense() != 0)[sure], (pre > threshold)[sure]) and bool(
        (~sure).float().mean() < 0.01
    )


@pytest.mark.parametrize("threshold, share", [(1e6, 0.0), (-1e6, 1.0)])
def test_none_and_all_active(threshold, share, kernels):
    for lead in ((5,), (2, 3)):
        acts, W_enc, b_enc, t = whole(3, lead, F=21, threshold=threshold)
        pre = torch.addmm(b_enc, acts.view(-1, 8), W_enc).view(*lead, 21)
        for found in (
            encode(acts, W_enc, b_enc, t),
            Encoder(W_enc, b_enc, t)(acts),
            ScreenedEncoder(W_enc, b_enc, t)(acts),
        ):
            assert found.l0 == 21 * share and torch.equal(is_csr(found).dense(), pre * share)
            assert torch.equal(decode(found, W_enc.T.contiguous()), (pre * share) @ W_enc.T)


def test_the_threshold_belongs_to_each_feature_and_is_not_active_itself(kernels):
    eye, b = torch.eye(3), torch.zeros(3)
    found = encode(
        torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]]), eye, b, torch.tensor([1.0, 1.0, 2.5])
    )
    assert found.dense().tolist() == [
        [0.0, 2.0, 3.0],
        [2.0, 2.0, 0.0],
    ] and found.tokens.tolist() == [0, 2, 4]


@pytest.mark.parametrize("seed", SEEDS)
def test_parts_of_a_batch_are_put_together_again(seed, monkeypatch, kernels):
    acts, *weights = whole(seed, (3, 67), F=50)
    wanted = dense(acts, *weights)
    monkeypatch.setattr(module, "AT_ONCE", 1)  # 32 tokens a part: 7 parts, the last one short
    parts = []
    read = lambda x: (
        parts.append(len(x)),
        module.active(torch.addmm(weights[1], x, weights[0]), weights[2]),
    )[1]
    assert torch.equal(is_csr(module.collect(read, acts, 50)).dense(), wanted) and parts == [
        32
    ] * 6 + [9]
    for kind in (Encoder, ScreenedEncoder):
        assert torch.equal(kind(*weights)(acts).dense(), wanted)


def test_memory_that_is_not_contiguous(kernels):
    acts, W_enc, b_enc, threshold = whole(1, (6, 8), d=10, F=40)
    wanted = dense(acts, W_enc, b_enc, threshold)
    turned = (
        acts.transpose(0, 1).contiguous().transpose(0, 1),
        W_enc.T.contiguous().T,
        b_enc.repeat_interleave(2)[::2],
        threshold.repeat_interleave(2)[::2],
    )
    assert not any(t.is_contiguous() for t in turned)
    assert (Encoder(*turned[1:]).packed is None) == (
        Encoder(W_enc, b_enc, threshold).packed is None
    )
    for found in (
        encode(*turned),
        Encoder(*turned[1:])(turned[0]),
        ScreenedEncoder(*turned[1:])(turned[0]),
    ):
        assert torch.equal(found.dense(), wanted)
    W_dec = W_enc.T.contiguous()
    assert (
        torch.equal(decode(encode(*turned), W_enc.T), decode(encode(*turned), W_dec))
        and not W_enc.T.is_contiguous()
    )
    assert torch.equal(
        encode(acts.expand(2, 6, 8, 10), W_enc, b_enc, threshold).dense(),
        wanted.expand(2, 6, 8, 40),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype, kernels):
    acts, *weights = whole(2, (4, 3), F=45, dtype=dtype)
    wanted = dense(acts, *weights)
    for found in (encode(acts, *weights), Encoder(*weights)(acts)):
        assert found.values.dtype == dtype and torch.equal(is_csr(found).dense(), wanted)
        made = decode(found, weights[0].T.contiguous())
        assert made.dtype == dtype and torch.allclose(
            made.double(), wanted.double() @ weights[0].T.double(), rtol=2e-2
        )


def test_parameters_need_no_gradient_and_get_none():
    acts, *weights = whole(4)
    wanted, weights = dense(acts, *weights), [nn.Parameter(w) for w in weights]
    for found in (
        encode(acts.requires_grad_(), *weights),
        Encoder(*weights)(acts),
        ScreenedEncoder(*weights)(acts),
    ):
        assert torch.equal(found.dense(), wanted) and not found.values.requires_grad
        assert not decode(
            found, nn.Parameter(torch.randn(50, 4)), nn.Parameter(torch.zeros(4))
        ).requires_grad
    with torch.inference_mode():
        for read in (lambda a: encode(a, *weights), Encoder(*weights), ScreenedEncoder(*weights)):
            assert torch.equal(read(acts).dense(), wanted)


def test_an_encoder_without_onednn_is_plain(monkeypatch):
    acts, *weights = whole(5)
    monkeypatch.setattr(
        module, "packed_product", lambda x, packed, b_enc: torch.addmm(b_enc, x, weights[0]) + 1
    )  # a product that is wrong
    plain = Encoder(*weights)
    assert (
        plain.packed is None
        and "plain" in repr(plain)
        and torch.equal(plain(acts).dense(), dense(acts, *weights))
    )
    monkeypatch.setattr(
        module,
        "packed_product",
        lambda *_: (_ for _ in ()).throw(NotImplementedError("another build")),
    )
    assert Encoder(*weights).packed is None and torch.equal(
        ScreenedEncoder(*weights)(acts).dense(), dense(acts, *weights)
    )


# candidates by a rounded product

KINDS = {
    "round": lambda x: x,
    "a large mean": lambda x: x + 50,
    "tiny": lambda x: x * 1e-7,
    "huge": lambda x: x * 1e7,
    "one coordinate dominates": lambda x: x * torch.logspace(3, 0, x.shape[1]),
    "one token dominates": lambda x: x * torch.logspace(4, 0, len(x))[:, None],
    "a token of zeros": lambda x: x * (torch.arange(len(x))[:, None] > 0),
}


def scene(kind, seed):
    "Activations and weights of which about one feature in fifty is active, many of them barely."
    random = torch.Generator().manual_seed(seed)
    x, W_enc = (
        KINDS[kind](torch.randn(60, 48, generator=random)),
        torch.randn(48, 501, generator=random) * torch.rand(501, generator=random),
    )
    b_enc = -x.mean(0) @ W_enc
    return (
        x,
        W_enc,
        b_enc,
        torch.relu((x.double() @ W_enc.double() + b_enc.double()).quantile(0.98, 0)).float(),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_active_feature_is_missed_by_the_rounded_product(kind):
    for seed in SEEDS:
        x, W_enc, b_enc, threshold = scene(kind, seed)
        screened = ScreenedEncoder(W_enc, b_enc, threshold)
        if screened.packed is None:
            pytest.skip("no bfloat16 product here")
        for by in (0.0, 1e-6, 1e-3):  # thresholds at, and just below, a value
            screened = ScreenedEncoder(W_enc, b_enc, threshold * (1 - by))
            exact = x.double() @ W_enc.double() + b_enc.double()
            wanted, found = places(exact > screened.threshold.double()), screened.candidates(x)
            assert len(wanted) > 100 and set(wanted.tolist()) <= set(found.tolist())
            if kind == "round":
                assert len(found) < 1.5 * len(wanted)
            sure = (exact - screened.threshold).abs() > 1e-5 * x.norm(
                dim=1, keepdim=True
            ) * W_enc.norm(dim=0) + 1e-6 * b_enc.abs()
            assert torch.equal(
                (is_csr(screened(x)).dense() != 0)[sure], (exact > screened.threshold)[sure]
            ) and bool(sure.double().mean() > 0.95)


def test_a_threshold_of_zero_lets_only_what_is_positive_pass():
    x, W_enc, b_enc, _ = scene("round", 0)
    zero, b_enc = torch.zeros(501), b_enc - 2 * W_enc.norm(dim=0)
    screened, exact = (
        ScreenedEncoder(W_enc, b_enc, zero),
        x.double() @ W_enc.double() + b_enc.double(),
    )
    if screened.packed is None:
        pytest.skip("no bfloat16 product here")
    wanted, found = places(exact > 0), screened.candidates(x)
    assert set(wanted.tolist()) <= set(found.tolist()) and 100 < len(wanted) <= len(
        found
    ) < 1.5 * len(wanted)
    assert int(((screened(x).dense() != 0) != (exact > 0)).sum()) <= int((exact.abs() < 1e-5).sum())


def test_without_its_margin_the_rounded_product_would_miss_some(monkeypatch):
    x, W_enc, b_enc, threshold = scene("a large mean", 0)
    monkeypatch.setattr(module, "margins", lambda rows: torch.zeros(len(rows)))
    screened = ScreenedEncoder(W_enc, b_enc, threshold)
    if screened.packed is None:
        pytest.skip("no bfloat16 product here")
    assert not set(places(x @ W_enc + b_enc > threshold).tolist()) <= set(
        screened.candidates(x).tolist()
    )


def test_screening_needs_32_bits_on_the_cpu():
    _, *weights = whole(0, dtype=torch.bfloat16)
    refused("float32 weights", ScreenedEncoder, *weights)


# decode


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("targets", [(), (1,), (3,)])
def test_decode_is_the_dense_product_for_all_targets_at_once(lead, targets, kernels):
    for seed in SEEDS:
        acts, *weights = whole(seed, lead, F=41)
        random = torch.Generator().manual_seed(seed)
        W_dec, b_dec = (
            torch.randint(-3, 4, s, generator=random).float()
            for s in ((41, *targets, 6), (*targets, 6))
        )
        codes = encode(acts, *weights)
        wanted = (codes.dense() @ W_dec.flatten(1)).view(*lead, *targets, 6)
        assert torch.equal(decode(codes, W_dec), wanted) and torch.equal(
            decode(codes, W_dec, b_dec), wanted + b_dec
        )
        assert torch.equal(
            decode(codes, W_dec, b_dec[0] if targets else b_dec),
            wanted + (b_dec[0] if targets else b_dec),
        )


# the codes themselves


@pytest.mark.parametrize("lead", LEADS)
def test_to_dense_and_back(lead):
    for seed in SEEDS:
        x = torch.randn(*lead, 13, generator=torch.Generator().manual_seed(seed))
        x = x * (x > 0.8)
        codes = is_csr(SparseCodes.from_dense(x))
        assert (
            torch.equal(codes.dense(), x)
            and torch.equal(codes.to("cpu").dense(), x)
            and codes.n_features == 13
        )
        assert codes.token.tolist() == [
            t for t, row in enumerate(x.reshape(-1, 13).tolist()) for v in row if v
        ]
        assert "13" in repr(codes) and "\n" not in repr(codes)


@pytest.mark.parametrize("features", [[4], [7, 2, 30], [], list(range(49, -1, -1))])
def test_a_subset_is_exact_and_in_the_order_given(features):
    for seed in SEEDS:
        acts, W_enc, b_enc, threshold = whole(seed, (3, 4))
        codes = encode(acts, W_enc, b_enc, threshold)
        part = is_csr(codes.subset(features))
        assert torch.equal(part.dense(), codes.dense()[..., features])
        if features:
            assert torch.equal(
                part.dense(),
                encode(acts, W_enc[:, features], b_enc[features], threshold[features]).dense(),
            )
    assert torch.equal(
        codes.subset(torch.tensor(features, dtype=torch.int32)).dense(), part.dense()
    )


@pytest.mark.parametrize("features", [[50], [-1], [3, 3], [2**70]])
def test_a_subset_of_unknown_or_doubled_features_is_refused(features):
    acts, *weights = whole(0)
    with pytest.raises(InterpkitError, match="each once"):
        encode(acts, *weights).subset(features)


MASK = [True, False, True] + [False] * 47


@pytest.mark.parametrize(
    "mask",
    [MASK, np.array(MASK), torch.tensor(MASK), [torch.tensor(True), 3], [np.True_, 3]],
    ids=["list", "array", "tensor", "list of tensors", "mixed"],
)
def test_a_mask_is_not_read_as_features_0_and_1(mask):
    acts, *weights = whole(0)
    assert (
        "mask of" in (said := refused("whole numbers", encode(acts, *weights).subset, mask))
        and "mask.nonzero()" in said
    )


def test_what_mends_a_mask_mends_it():
    acts, *weights = whole(0)
    codes = encode(acts, *weights)
    for numbers in (
        torch.tensor(MASK).nonzero(),
        np.array(MASK).nonzero(),
        (n for n in (0, 2)),
        np.array([0, 2], dtype="uint8"),
    ):
        assert torch.equal(codes.subset(numbers).dense(), codes.dense()[..., [0, 2]])


@pytest.mark.parametrize(
    "features",
    [[1.7], [2.0], "12", ["1"], torch.tensor([1.0]), np.array([1.5]), None, [None]],
    ids=str,
)
def test_a_subset_is_of_whole_numbers(features):
    acts, *weights = whole(0)
    refused("whole numbers of features", encode(acts, *weights).subset, features)


# input that is no good


def refused(asked, function, *args):
    with pytest.raises(InterpkitError, match=asked) as e:
        function(*args)
    assert e.value.code == ExitCode.INVALID
    return str(e.value)


def test_what_does_not_fit_is_refused_with_one_error():
    acts, W_enc, b_enc, threshold = whole(0)
    for read in (
        Encoder(W_enc, b_enc, threshold),
        ScreenedEncoder(W_enc, b_enc, threshold),
        lambda a: encode(a, W_enc, b_enc, threshold),
    ):
        assert "[9, 7]" in refused(r"activations \[..., 8\]", read, acts[:, :7])
        assert "bfloat16" in refused(r"activations \[..., 8\]", read, acts.bfloat16())
        assert "int64" in refused(r"activations \[..., 8\]", read, acts.long())
        assert "meta" in refused(r"activations \[..., 8\]", read, acts.to("meta"))
        refused("activations", read, torch.tensor(1.0))
    for bad in (
        (W_enc.bfloat16(), b_enc, threshold),
        (W_enc, b_enc.double(), threshold),
        (W_enc, b_enc, threshold[:-1]),
        (W_enc, b_enc[:, None], threshold),
        (W_enc.T, b_enc, threshold),
        (W_enc[0], b_enc, threshold),
        (W_enc.long(), b_enc.long(), threshold.long()),
    ):
        for kind in (Encoder, ScreenedEncoder):
            refused(r"W_enc \[d, F\]", kind, *bad)
        refused(r"W_enc \[d, F\]", encode, acts, *bad)
    codes = encode(acts, W_enc, b_enc, threshold)
    for bad in (
        (torch.ones(49, 3),),
        (torch.ones(50),),
        (torch.ones(50, 3).double(),),
        (torch.ones(50, 3), torch.ones(4)),
        (torch.ones(50, 2, 3), torch.ones(2)),
        (torch.ones(50, 3), torch.ones(3).double()),
    ):
        refused("a decoder", decode, codes, *bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_are_no_silent_zeros(bad):
    acts, *weights = whole(0)
    acts[4, 2] = bad
    refused("finite activations", encode, acts, *weights)
    for kind in (Encoder, ScreenedEncoder):
        refused("finite activations", kind(*weights), acts)


def test_large_but_finite_activations_are_read():
    acts, *weights = whole(0)
    acts[:] = 2.0**122  # their sum overflows, no pre-activation does
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (lambda a: encode(a, *weights), Encoder(*weights), ScreenedEncoder(*weights)):
            assert torch.equal(read(acts).dense(), dense(acts, *weights))


def test_a_dictionary_takes_the_faster_encoder_and_candidates_without_end_are_decided_at_once(
    monkeypatch,
):
    from interpkit.sparse import codes

    W, b, t, x = torch.randn(16, 96), torch.randn(96), torch.rand(96) + 0.5, torch.randn(50, 16)
    assert type(codes.encoder_for(W, b, t)) is Encoder
    monkeypatch.setattr(codes, "LARGE", 1)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert type(codes.encoder_for(W, b, t)) is Encoder
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    found = codes.encoder_for(W, b, t)
    assert (
        type(found) is ScreenedEncoder
        and type(codes.encoder_for(W.double(), b.double(), t.double())) is Encoder
    )
    wanted, asked = found(x), []
    if found.packed is None:
        return  # without oneDNN nothing is screened
    monkeypatch.setattr(codes, "MOST", 0)
    monkeypatch.setattr(codes, "inner", lambda *a: asked.append(1))
    again = found(x)
    assert (
        not asked
        and torch.equal(again.indices, wanted.indices)
        and torch.equal(again.tokens, wanted.tokens)
        and torch.allclose(again.values, wanted.values, atol=1e-5)
    )
