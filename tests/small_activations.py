"Activations of known directions, the shapes that a trainer meets, and the dense error with autograd."

import torch
from torch.nn.functional import normalize

from interpkit.training.trainer import (
    Shape,
)

D, TRUE, K = 32, 96, 6


def truth():
    return normalize(torch.randn(TRUE, D, generator=torch.Generator().manual_seed(7)), dim=1)


def tokens(n, random, scale=1.0):
    "Activations of known directions, with a mean and noise."
    codes = (torch.rand(n, TRUE, generator=random) < K / TRUE) * (
        0.5 + torch.rand(n, TRUE, generator=random)
    )
    return scale * (codes @ truth() + 0.01 * torch.randn(n, D, generator=random) + 0.5)


def stream(steps, size=256, seed=0, **kwargs):
    random = torch.Generator().manual_seed(seed)
    return (tokens(size, random, **kwargs) for _ in range(steps))


SHAPES = dict(
    sae=Shape(20, (10,), (10,)),
    odd=Shape(21, (10,), (6,), skip=True),
    clt=Shape(20, (10, 4, 7), (3, 5, 2)),
    skipping=Shape(16, (4, 6), (3, 3), skip=True),
    tied=Shape(20, (10, 4, 7), (3, 3, 3), tied=True),
)


def dense_error(q, white, keep, y, upto=None):
    "Reconstruction minus targets, written densely with autograd: features before `upto` alone."
    s, made = q.shape, q.b_dec
    for i, w in enumerate(white):
        codes = ((w @ q.W_enc[i].T + q.b_enc[i]) * keep[i])[:, :upto] @ q.W_dec[i][:upto]
        wide = codes.repeat(1, len(s.targets) - i) if s.tied else codes
        made = made + torch.nn.functional.pad(wide, (sum(s.targets[:i]), 0))
        if s.skip:
            made = made + torch.nn.functional.pad(
                w @ q.W_skip[i], (sum(s.targets[:i]), sum(s.targets[i + 1 :]))
            )
    return made - y
