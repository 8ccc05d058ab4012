"Sparse codes: where a mask is true, the dense form and back, subsets, and what is written."

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import refused
from small_codes import LEADS, SEEDS, is_csr, whole

from interpkit.sparse.codes import SparseCodes, above, decode, places
from interpkit.sparse.encoders import encode
from interpkit.sparse.sums import as_csr, per_sequence, values_at

# places


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 64), (5, 1001), (0, 8), (3, 0), (2, 3, 4)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_places_are_those_of_the_mask(shape, share):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share
    assert places(mask).tolist() == [i for i, x in enumerate(mask.flatten().tolist()) if x]
    assert places(mask).dtype == torch.int64
    turned = mask.transpose(0, 1)
    assert places(turned).tolist() == places(turned.contiguous()).tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_above_is_strict_and_by_feature(dtype):
    pre = torch.tensor([[1.0, 2.0, 3.0], [1.5, 1.5, float("nan")]], dtype=dtype)
    assert above(pre, torch.tensor([1.0, 2.0, 0.0], dtype=dtype)).tolist() == [2, 3]


# decode


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("targets", [(), (1,), (3,)])
def test_decode_is_the_dense_product_for_all_targets_at_once(lead, targets, kernels):
    for seed in SEEDS:
        acts, *weights = whole(seed, lead, F=41)
        random = torch.Generator().manual_seed(seed)
        W_dec = torch.randint(-3, 4, (41, *targets, 6), generator=random).float()
        b_dec = torch.randint(-3, 4, (*targets, 6), generator=random).float()
        codes = encode(acts, *weights)
        wanted = (codes.dense() @ W_dec.flatten(1)).view(*lead, *targets, 6)
        assert torch.equal(decode(codes, W_dec), wanted)
        assert torch.equal(decode(codes, W_dec, b_dec), wanted + b_dec)
        one_bias = b_dec[0] if targets else b_dec
        assert torch.equal(decode(codes, W_dec, one_bias), wanted + one_bias)


@pytest.mark.parametrize(
    "decoder",
    [
        (torch.ones(49, 3),),
        (torch.ones(50),),
        (torch.ones(50, 3).double(),),
        (torch.ones(50, 3), torch.ones(4)),
        (torch.ones(50, 2, 3), torch.ones(2)),
        (torch.ones(50, 3), torch.ones(3).double()),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(decoder):
    codes = encode(*whole(0))
    refused(lambda: decode(codes, *decoder), "a decoder [50, d_out]")


# the codes themselves


@pytest.mark.parametrize("lead", LEADS)
def test_to_dense_and_back(lead):
    for seed in SEEDS:
        x = torch.randn(*lead, 13, generator=torch.Generator().manual_seed(seed))
        x = x * (x > 0.8)
        codes = is_csr(SparseCodes.from_dense(x))
        assert torch.equal(codes.dense(), x)
        assert torch.equal(codes.to("cpu").dense(), x)
        assert codes.n_features == 13
        tokens = (x.reshape(-1, 13) != 0).nonzero()[:, 0]
        assert codes.token.tolist() == tokens.tolist()
        assert "13" in repr(codes)
        assert "\n" not in repr(codes)


@pytest.mark.parametrize("features", [[4], [7, 2, 30], [], list(range(49, -1, -1))])
def test_a_subset_is_exact_and_in_the_order_given(features):
    for seed in SEEDS:
        acts, W_enc, b_enc, threshold = whole(seed, (3, 4))
        codes = encode(acts, W_enc, b_enc, threshold)
        part = is_csr(codes.subset(features))
        assert torch.equal(part.dense(), codes.dense()[..., features])
        if features:
            alone = encode(acts, W_enc[:, features], b_enc[features], threshold[features])
            assert torch.equal(part.dense(), alone.dense())
    numbers = torch.tensor(features, dtype=torch.int32)
    assert torch.equal(codes.subset(numbers).dense(), part.dense())


@pytest.mark.parametrize("features", [[50], [-1], [3, 3], [2**70]])
def test_a_subset_of_unknown_or_doubled_features_is_refused(features):
    codes = encode(*whole(0))
    refused(lambda: codes.subset(features), "each once")


MASK = [True, False, True] + [False] * 47


@pytest.mark.parametrize(
    "mask",
    [MASK, np.array(MASK), torch.tensor(MASK), [torch.tensor(True), 3], [np.True_, 3]],
    ids=["list", "array", "tensor", "list of tensors", "mixed"],
)
def test_a_mask_is_not_read_as_features_0_and_1(mask):
    codes = encode(*whole(0))
    refused(lambda: codes.subset(mask), "whole numbers", "mask of", "mask.nonzero()")


def test_what_mends_a_mask_mends_it():
    codes = encode(*whole(0))
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
    codes = encode(*whole(0))
    refused(lambda: codes.subset(features), "whole numbers of features")


@pytest.mark.parametrize("shape", [(3, 4, 7), (1, 1, 5), (2, 0, 3), (0, 4, 3)], ids=str)
def test_codes_as_matrices_and_by_place_are_their_dense_form(shape):
    torch.manual_seed(0)
    dense = torch.randn(shape).relu()
    codes = SparseCodes.from_dense(dense)
    assert np.allclose(as_csr(codes).toarray(), dense.flatten(0, 1))
    assert np.allclose(per_sequence(codes).toarray(), dense.double().sum(1))
    signs = torch.ones(len(codes.values))
    signs[::2] = -1
    wanted = SparseCodes.from_dense(dense)
    signed = replace(wanted, values=signs * codes.values).dense()
    assert np.allclose(per_sequence(codes, signs * codes.values).toarray(), signed.double().sum(1))
    token = torch.arange(shape[0] * shape[1])[:, None]
    assert torch.equal(values_at(codes, token, torch.arange(shape[2])), dense.flatten(0, 1))
    assert values_at(codes, token[:0], torch.arange(shape[2])).shape == (0, shape[2])
