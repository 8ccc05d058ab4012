"A small network whose site can be turned, stretched and permuted without changing what it decides."

from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from torch import nn

from interpkit.dictionary.dictionary import Dictionary
from interpkit.model.releases import Release
from interpkit.training.train import train_dictionary

SITE, COLUMNS = "2:out", list("abcdefgh")


def network(width: int = 12) -> nn.Sequential:
    "Eight columns, a site of `width` numbers that no function follows directly, one decision."
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 24),
        nn.ReLU(),
        nn.Linear(24, width),
        nn.Linear(width, 16),
        nn.ReLU(),
        nn.Linear(16, 1),
    )


def release(name: str, change=None, shift: float = 0.0, model: nn.Module | None = None) -> Release:
    "The network with its site times the matrix `change`, and undone after it."
    net = model or network()
    if change is not None:
        with torch.no_grad():
            inverse = torch.linalg.inv(change)
            net[2].weight.copy_(change.T @ net[2].weight)
            net[2].bias.copy_(net[2].bias @ change + shift)
            net[3].bias.sub_(net[3].weight @ (inverse.T @ torch.full((12,), shift)))
            net[3].weight.copy_(net[3].weight @ inverse.T)
    inputs = dict(kind="columns", columns=COLUMNS)
    return Release.from_module(net, inputs=inputs, sites=[SITE], name=name, device="cpu")


def fine_tuned(by: float, seed: int = 1) -> Release:
    "The network with every weight changed by about the share `by`."
    net = network()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1 + by * torch.randn(p.shape, generator=g))
    return release(f"fine-tuned {by:g}", model=net)


def rows(n: int, seed: int = 0) -> pd.DataFrame:
    "Rows whose columns are sparse, so that a dictionary has something to find."
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 8)) * (rng.random((n, 8)) < 0.4)
    frame = pd.DataFrame(values.astype("float32"), columns=COLUMNS)
    return frame.assign(sequence_id=[f"{seed}-{i}" for i in range(n)])


@lru_cache
def old() -> Release:
    return release("old")


@lru_cache
def trained() -> Dictionary:
    "A dictionary of the old release."
    return train_dictionary(old(), rows(2500, 9), n_features=64, k=6, tokens=120_000)


@lru_cache
def transcoder() -> Dictionary:
    "What the old release computes between its first layer and its site."
    how = dict(n_features=96, k=12, tokens=40_000, wiring="transcoder", targets=[SITE])
    return train_dictionary(old(), rows(2500, 9), ["0:out"], **how)


def turn(seed: int = 0) -> torch.Tensor:  # [12, 12]
    "A rotation."
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(12, 12, generator=g)).Q


CHANGES = {
    "rotated": turn(),
    "permuted": torch.eye(12)[torch.randperm(12, generator=torch.Generator().manual_seed(0))],
    "x 1.2": 1.2 * torch.eye(12),
    "x 2": 2.0 * torch.eye(12),
    "stretched": torch.diag(torch.linspace(0.5, 2, 12)) @ turn(3),
}
