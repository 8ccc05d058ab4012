"Activations of known directions, trainings on them, shapes that a trainer meets, dense errors."

from functools import lru_cache

import torch
from torch.nn.functional import normalize, pad

from interpkit.training.fit import fit
from interpkit.training.gradients import Shape
from interpkit.training.recipe import recipe
from interpkit.training.trainer import Trainer

D, TRUE, K = 32, 96, 6  # width, known directions, directions per token


def truth():
    "The known directions, [TRUE, D]."
    return normalize(torch.randn(TRUE, D, generator=torch.Generator().manual_seed(7)), dim=1)


def tokens(n, random, scale=1.0):
    "Activations of known directions, [n, D], with a mean and noise."
    on = torch.rand(n, TRUE, generator=random) < K / TRUE
    codes = on * (0.5 + torch.rand(n, TRUE, generator=random))
    noise = 0.01 * torch.randn(n, D, generator=random)
    return scale * (codes @ truth() + noise + 0.5)


def stream(steps, size=256, seed=0, **kwargs):
    "As many batches of activations as there are steps."
    random = torch.Generator().manual_seed(seed)
    return (tokens(size, random, **kwargs) for _ in range(steps))


@lru_cache  # both are always given: a call with a default would be another entry
def trained(objective, seed) -> Trainer:
    "An SAE of 128 features, after 1,200 steps."
    how = recipe(128, K, 1200 * 256, 256, seed=seed, objective=objective)
    return fit(stream(1200, seed=seed), how)


SHAPES = dict(
    sae=Shape(20, (10,), (10,)),
    odd=Shape(21, (10,), (6,), skip=True),
    clt=Shape(20, (10, 4, 7), (3, 5, 2)),
    skipping=Shape(16, (4, 6), (3, 3), skip=True),
    tied=Shape(20, (10, 4, 7), (3, 3, 3), tied=True),
)


def dense_error(q, white, keep, y, upto=None):
    "Reconstruction minus targets, written densely with autograd: features before `upto` alone."
    shape, made = q.shape, q.b_dec
    for i, w in enumerate(white):
        before, after = sum(shape.targets[:i]), sum(shape.targets[i + 1 :])
        codes = ((w @ q.W_enc[i].T + q.b_enc[i]) * keep[i])[:, :upto] @ q.W_dec[i][:upto]
        wide = codes.repeat(1, len(shape.targets) - i) if shape.tied else codes
        made = made + pad(wide, (before, 0))
        if shape.skip:
            made = made + pad(w @ q.W_skip[i], (before, after))
    return made - y
