"Encoders against the dense formula: what is active, what a rounded product misses, bad input."

import math
import warnings

import pytest
import torch
from helpers import refused
from small_codes import LEADS, SEEDS, dense, is_csr, whole
from torch import nn

from interpkit.sparse import encoders
from interpkit.sparse.codes import active, decode, places
from interpkit.sparse.encoders import Encoder, ScreenedEncoder, collect, encode, encoder_for


def ways(*weights) -> list:
    "Every way to read with these weights: activations -> codes."
    return [lambda acts: encode(acts, *weights), Encoder(*weights), ScreenedEncoder(*weights)]


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize(
    "F, kernels",
    [*((F, "torch") for F in (1, 8, 50, 64, 333)), (1, "triton"), (50, "triton")],
    indirect=["kernels"],
)
def test_codes_are_the_dense_formula_bit_for_bit(lead, F, kernels):
    some = 0
    for seed in SEEDS:
        acts, *weights = whole(seed, lead, F=F)
        wanted = dense(acts, *weights)
        n_active = int((wanted != 0).sum())
        for read in ways(*weights):
            codes = is_csr(read(acts))
            assert codes.shape == (*lead, F)
            assert torch.equal(codes.dense(), wanted)
            assert codes.l0 * math.prod(lead) == pytest.approx(n_active)
        some += n_active
    assert some > 0 or not math.prod(lead) or F == 1


@pytest.mark.parametrize("seed", SEEDS)
def test_codes_of_real_numbers_are_those_of_the_same_product(seed, kernels):
    torch.manual_seed(seed)
    acts = torch.randn(37, 24)
    W_enc = torch.randn(24, 301)
    b_enc = torch.randn(301)
    threshold = 4 + torch.rand(301)
    wanted = dense(acts, W_enc, b_enc, threshold)
    assert torch.equal(encode(acts, W_enc, b_enc, threshold).dense(), wanted)
    assert bool((wanted != 0).any())
    encoder = Encoder(W_enc, b_enc, threshold)
    pre = encoder.product(acts)
    assert torch.equal(encoder(acts).dense(), pre * (pre > threshold))
    exact = torch.addmm(b_enc, acts, W_enc).double()
    sure = (exact - threshold).abs() > 1e-4
    assert torch.equal((encoder(acts).dense() != 0)[sure], (exact > threshold)[sure])
    assert float((~sure).float().mean()) < 0.01


@pytest.mark.parametrize("threshold, share", [(1e6, 0.0), (-1e6, 1.0)])
def test_none_and_all_active(threshold, share, kernels):
    for lead in ((5,), (2, 3)):
        acts, W_enc, b_enc, thresholds = whole(3, lead, F=21, threshold=threshold)
        pre = torch.addmm(b_enc, acts.view(-1, 8), W_enc).view(*lead, 21)
        for read in ways(W_enc, b_enc, thresholds):
            codes = is_csr(read(acts))
            assert codes.l0 == 21 * share
            assert torch.equal(codes.dense(), pre * share)
            assert torch.equal(decode(codes, W_enc.T.contiguous()), (pre * share) @ W_enc.T)


def test_the_threshold_belongs_to_each_feature_and_is_not_active_itself(kernels):
    acts = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]])
    codes = encode(acts, torch.eye(3), torch.zeros(3), torch.tensor([1.0, 1.0, 2.5]))
    assert codes.dense().tolist() == [[0.0, 2.0, 3.0], [2.0, 2.0, 0.0]]
    assert codes.tokens.tolist() == [0, 2, 4]


def test_parts_of_a_batch_are_put_together_again(monkeypatch, kernels):
    acts, *weights = whole(0, (3, 23), F=50)
    W_enc, b_enc, threshold = weights
    wanted = dense(acts, *weights)
    monkeypatch.setattr(encoders, "AT_ONCE", 1)  # 32 tokens per part: 3 parts, the last one short
    parts = []

    def read(x):
        parts.append(len(x))
        return active(torch.addmm(b_enc, x, W_enc), threshold)

    assert torch.equal(is_csr(collect(read, acts, 50)).dense(), wanted)
    assert parts == [32, 32, 5]
    for kind in (Encoder, ScreenedEncoder):
        assert torch.equal(kind(*weights)(acts).dense(), wanted)


def test_memory_that_is_not_contiguous(kernels):
    acts, W_enc, b_enc, threshold = whole(1, (6, 8), d=10, F=40)
    wanted = dense(acts, W_enc, b_enc, threshold)
    turned_acts = acts.transpose(0, 1).contiguous().transpose(0, 1)
    turned = (
        W_enc.T.contiguous().T,
        b_enc.repeat_interleave(2)[::2],
        threshold.repeat_interleave(2)[::2],
    )
    assert not any(t.is_contiguous() for t in (turned_acts, *turned))
    packed = Encoder(W_enc, b_enc, threshold).packed
    assert (Encoder(*turned).packed is None) == (packed is None)
    for read in ways(*turned):
        assert torch.equal(read(turned_acts).dense(), wanted)
    codes = encode(turned_acts, *turned)
    assert not W_enc.T.is_contiguous()
    assert torch.equal(decode(codes, W_enc.T), decode(codes, W_enc.T.contiguous()))
    many = encode(acts.expand(2, 6, 8, 10), W_enc, b_enc, threshold)
    assert torch.equal(many.dense(), wanted.expand(2, 6, 8, 40))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype, kernels):
    acts, *weights = whole(2, (4, 3), F=45, dtype=dtype)
    wanted = dense(acts, *weights)
    written = wanted.double() @ weights[0].T.double()
    for codes in (encode(acts, *weights), Encoder(*weights)(acts)):
        assert codes.values.dtype == dtype
        assert torch.equal(is_csr(codes).dense(), wanted)
        made = decode(codes, weights[0].T.contiguous())
        assert made.dtype == dtype
        assert torch.allclose(made.double(), written, rtol=2e-2)


def test_parameters_need_no_gradient_and_get_none():
    acts, *weights = whole(4)
    wanted = dense(acts, *weights)
    parameters = [nn.Parameter(w) for w in weights]
    decoder = nn.Parameter(torch.randn(50, 4)), nn.Parameter(torch.zeros(4))
    acts.requires_grad_()
    for read in ways(*parameters):
        codes = read(acts)
        assert torch.equal(codes.dense(), wanted)
        assert not codes.values.requires_grad
        assert not decode(codes, *decoder).requires_grad
    with torch.inference_mode():
        for read in ways(*parameters):
            assert torch.equal(read(acts).dense(), wanted)


def test_an_encoder_without_onednn_is_plain(monkeypatch):
    acts, *weights = whole(5)
    W_enc = weights[0]

    def wrong_product(x, packed, b_enc):
        return torch.addmm(b_enc, x, W_enc) + 1

    def no_product(*_):
        raise NotImplementedError("another build")

    monkeypatch.setattr(encoders, "packed_product", wrong_product)
    plain = Encoder(*weights)
    assert plain.packed is None
    assert "plain" in repr(plain)
    assert torch.equal(plain(acts).dense(), dense(acts, *weights))
    monkeypatch.setattr(encoders, "packed_product", no_product)
    assert Encoder(*weights).packed is None
    assert torch.equal(ScreenedEncoder(*weights)(acts).dense(), dense(acts, *weights))


# candidates by a rounded product


def is_moved(x):
    return x + 50


def dominated_by_coordinates(x):
    return x * torch.logspace(3, 0, x.shape[1])


def dominated_by_tokens(x):
    return x * torch.logspace(4, 0, len(x))[:, None]


def first_token_zero(x):
    return x * (torch.arange(len(x))[:, None] > 0)


KINDS = {
    "round": lambda x: x,
    "a large mean": is_moved,
    "tiny": lambda x: x * 1e-7,
    "huge": lambda x: x * 1e7,
    "one coordinate dominates": dominated_by_coordinates,
    "one token dominates": dominated_by_tokens,
    "a token of zeros": first_token_zero,
}


def scene(kind, seed):
    "Activations and weights of which about one feature in fifty is active, many of them barely."
    random = torch.Generator().manual_seed(seed)
    x = KINDS[kind](torch.randn(60, 48, generator=random))
    W_enc = torch.randn(48, 501, generator=random) * torch.rand(501, generator=random)
    b_enc = -x.mean(0) @ W_enc
    pre = x.double() @ W_enc.double() + b_enc.double()
    return x, W_enc, b_enc, torch.relu(pre.quantile(0.98, 0)).float()


def screened_or_skip(*weights) -> ScreenedEncoder:
    "An encoder that screens; the test is skipped where the processor can't."
    encoder = ScreenedEncoder(*weights)
    if encoder.packed is None:
        pytest.skip("no bfloat16 product here")
    return encoder


@pytest.mark.parametrize("kind", KINDS)
def test_no_active_feature_is_missed_by_the_rounded_product(kind):
    for seed in SEEDS:
        x, W_enc, b_enc, threshold = scene(kind, seed)
        exact = x.double() @ W_enc.double() + b_enc.double()
        for by in (0.0, 1e-6, 1e-3):  # thresholds at, and just below, a value
            screened = screened_or_skip(W_enc, b_enc, threshold * (1 - by))
            wanted = places(exact > screened.threshold.double())
            candidates = screened.candidates(x)
            assert len(wanted) > 100
            assert set(wanted.tolist()) <= set(candidates.tolist())
            if kind == "round":
                assert len(candidates) < 1.5 * len(wanted)
            lengths = x.norm(dim=1, keepdim=True) * W_enc.norm(dim=0)
            rounding = 1e-5 * lengths + 1e-6 * b_enc.abs()
            sure = (exact - screened.threshold).abs() > rounding
            on = is_csr(screened(x)).dense() != 0
            assert torch.equal(on[sure], (exact > screened.threshold)[sure])
            assert float(sure.double().mean()) > 0.95


def test_a_threshold_of_zero_lets_only_what_is_positive_pass():
    x, W_enc, b_enc, _ = scene("round", 0)
    b_enc = b_enc - 2 * W_enc.norm(dim=0)
    screened = screened_or_skip(W_enc, b_enc, torch.zeros(501))
    exact = x.double() @ W_enc.double() + b_enc.double()
    wanted = places(exact > 0)
    candidates = screened.candidates(x)
    assert set(wanted.tolist()) <= set(candidates.tolist())
    assert 100 < len(wanted) <= len(candidates)
    assert len(candidates) < 1.5 * len(wanted)
    other = (screened(x).dense() != 0) != (exact > 0)
    assert int(other.sum()) <= int((exact.abs() < 1e-5).sum())


def test_without_its_bound_the_rounded_product_would_miss_some(monkeypatch):
    x, W_enc, b_enc, threshold = scene("a large mean", 0)
    monkeypatch.setattr(encoders, "error_bounds", lambda rows: torch.zeros(len(rows)))
    screened = screened_or_skip(W_enc, b_enc, threshold)
    wanted = set(places(x @ W_enc + b_enc > threshold).tolist())
    assert not wanted <= set(screened.candidates(x).tolist())


def test_screening_needs_32_bits_on_the_cpu():
    _, *weights = whole(0, dtype=torch.bfloat16)
    refused(lambda: ScreenedEncoder(*weights), "float32 weights")


# who is chosen


@pytest.fixture
def bfloat16(monkeypatch):
    "Says whether the processor multiplies bfloat16."

    def say(answer):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: answer, raising=False)

    return say


def test_a_dictionary_takes_the_faster_encoder(monkeypatch, bfloat16):
    weights = torch.randn(16, 96), torch.randn(96), torch.rand(96) + 0.5
    assert type(encoder_for(*weights)) is Encoder
    monkeypatch.setattr(encoders, "LARGE", 1)
    bfloat16(False)
    assert type(encoder_for(*weights)) is Encoder
    bfloat16(True)
    assert type(encoder_for(*weights)) is ScreenedEncoder
    assert type(encoder_for(*(w.double() for w in weights))) is Encoder


def test_candidates_without_end_are_decided_at_once(monkeypatch):
    torch.manual_seed(0)
    weights = torch.randn(16, 96), torch.randn(96), torch.rand(96) + 0.5
    x = torch.randn(50, 16)
    encoder = screened_or_skip(*weights)
    wanted = encoder(x)
    asked = []
    monkeypatch.setattr(encoders, "MOST", 0)
    monkeypatch.setattr(encoders, "inner", lambda *_: asked.append(1))
    again = encoder(x)
    assert not asked
    assert torch.equal(again.indices, wanted.indices)
    assert torch.equal(again.tokens, wanted.tokens)
    assert torch.allclose(again.values, wanted.values, atol=1e-5)


# input that is no good


def test_activations_that_do_not_fit_are_refused_with_one_error():
    acts, *weights = whole(0)
    for read in ways(*weights):
        for wrong, given in (
            (acts[:, :7], "[9, 7]"),
            (acts.bfloat16(), "bfloat16"),
            (acts.long(), "int64"),
            (acts.to("meta"), "meta"),
        ):
            error = refused(lambda read=read, wrong=wrong: read(wrong), "activations [..., 8]")
            assert given in error.given
        refused(lambda read=read: read(torch.tensor(1.0)), "activations")


def test_weights_that_do_not_fit_are_refused_with_one_error():
    acts, W_enc, b_enc, threshold = whole(0)
    for weights in (
        (W_enc.bfloat16(), b_enc, threshold),
        (W_enc, b_enc.double(), threshold),
        (W_enc, b_enc, threshold[:-1]),
        (W_enc, b_enc[:, None], threshold),
        (W_enc.T, b_enc, threshold),
        (W_enc[0], b_enc, threshold),
        (W_enc.long(), b_enc.long(), threshold.long()),
    ):
        refused(lambda weights=weights: Encoder(*weights), "W_enc [d, F]")
        refused(lambda weights=weights: ScreenedEncoder(*weights), "W_enc [d, F]")
        refused(lambda weights=weights: encode(acts, *weights), "W_enc [d, F]")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_are_no_silent_zeros(bad):
    acts, *weights = whole(0)
    acts[4, 2] = bad
    for read in ways(*weights):
        refused(lambda read=read: read(acts), "finite activations")


def test_large_but_finite_activations_are_read():
    acts, *weights = whole(0)
    acts[:] = 2.0**122  # their sum overflows, no pre-activation does
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in ways(*weights):
            assert torch.equal(read(acts).dense(), dense(acts, *weights))
