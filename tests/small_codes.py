"Weights and activations whose codes are known exactly, and what every sparse code has to be."

import math

import torch

from interpkit.sparse.codes import SparseCodes

LEADS = ((7,), (2, 5), (2, 1, 3), (1,), (0,), (2, 0), ())  # shapes of tokens
SEEDS = range(3)


def dense(acts, W_enc, b_enc, threshold):
    "The formula itself, on the same product."
    rows = acts.reshape(-1, acts.shape[-1])
    pre = torch.addmm(b_enc, rows, W_enc).view(*acts.shape[:-1], len(b_enc))
    return pre * (pre > threshold)


def whole(seed, lead=(9,), d=8, F=50, threshold=4.0, dtype=torch.float32):
    """Activations, W_enc, b_enc and threshold of small whole numbers.

    Every way of adding them up is exact, and many pre-activations lie on the threshold itself.
    """
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randint(-2, 3, shape, generator=random).to(dtype)

    acts = numbers(*lead, d)
    W_enc = numbers(d, F)
    b_enc = numbers(F)
    return acts, W_enc, b_enc, torch.full((F,), threshold, dtype=dtype)


def is_csr(codes: SparseCodes) -> SparseCodes:
    "The codes, if their arrays are of the form that libraries call CSR."
    N, F = math.prod(codes.shape[:-1]), codes.shape[-1]
    assert codes.tokens.dtype == torch.int64
    assert codes.indices.dtype == torch.int64
    assert len(codes.tokens) == N + 1
    assert int(codes.tokens[0]) == 0
    assert int(codes.tokens[-1]) == len(codes.indices)
    assert len(codes.values) == len(codes.indices)
    assert bool((codes.tokens.diff() >= 0).all())
    for begin, end in zip(codes.tokens[:-1].tolist(), codes.tokens[1:].tolist(), strict=True):
        assert bool((codes.indices[begin:end].diff() > 0).all())
    if len(codes.indices):
        assert int(codes.indices.min()) >= 0
        assert int(codes.indices.max()) < F
    return codes
