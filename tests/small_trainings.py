"Small trainings of four kinds that can be killed: recipes, batches, a trainer's state, and runs."

import json
import os
import signal

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import normalize

from interpkit.model.releases import Release
from interpkit.sparse.products import Active, parted
from interpkit.training.fit import fit
from interpkit.training.gradients import Parameters, errors, gradients, of_all
from interpkit.training.recipe import Recipe
from interpkit.training.train import train_dictionary
from interpkit.training.trainer import Trainer

STEPS, SIZE, D = 120, 280, 12
SITES = "layers.0:in, layers.1:in, layers.2:in"
KINDS = dict(sae={}, clt={}, skip=dict(skip=True), tied=dict(tied=True))


def how(kind="sae", steps=STEPS, **options) -> Recipe:
    return Recipe(40, 4, steps * SIZE, SIZE, 3e-3, window=10, **KINDS[kind], **options)


def batches(kind="sae", steps=STEPS, at=None, change=None):
    """Activations of known directions, of which the first 59 batches set the scale.

    Sources and targets: of an SAE one source, of a transcoder one of each, else of three layers.
    `change` may spoil batch `at`."""
    g = torch.Generator().manual_seed(0)
    n = 1 if kind in ("sae", "skip") else 3
    reads, writes = (
        normalize(torch.randn(n, 30, D, generator=torch.Generator().manual_seed(s)), dim=2)
        for s in (1, 2)
    )
    for step in range(steps):
        present = torch.rand(SIZE, 30, generator=g) < 0.13
        codes = present * (0.5 + torch.rand(SIZE, 30, generator=g))
        x = [codes @ r + 0.1 * torch.randn(SIZE, D, generator=g) + 0.5 for r in reads]
        y = [torch.relu(codes @ w) for w in writes]
        if step == at:
            change(x, y)
        yield x, [] if kind == "sae" else y


def named(kind: str) -> str:
    "The names of the sources."
    return dict(sae="layers.0:out", skip="layers.0:in").get(kind, SITES)


def run(kind: str, recipe: Recipe | None = None, **kwargs) -> Trainer:
    "A whole training of a kind."
    return fit(batches(kind), recipe or how(kind), named(kind), **kwargs)


def gradients_of(
    p: Parameters,
    y: torch.Tensor,
    white: list[torch.Tensor],
    active: list[Active],
    prefixes: tuple = (),
    penalty: list[float] | None = None,
) -> tuple[torch.Tensor, Parameters, list[torch.Tensor]]:
    "The error of all features, all gradients of a batch side by side, and slopes per source."
    grad = p.like(torch.zeros_like(p.flat))
    at = dict(zip((t for _, t in p.named()), (t for _, t in grad.named()), strict=True))
    parts = [parted(a, prefixes) for a in active]
    error = errors(p, y, white, parts, max(len(prefixes), 1))
    slopes = gradients(
        p, error, white, active, parts, lambda of, slope: at[of].copy_(slope), penalty
    )
    return of_all(error), grad, slopes


def state(t: Trainer) -> dict:
    "All that a trainer is, to the last bit."
    tensors = dict(flat=t.p.flat, silent=t.silent, random=t.random.get_state()) | t.adam.moments()
    for i, w in enumerate(t.weights()):
        tensors |= {f"{n} {i}": x for n, x in vars(w).items() if x is not None}
    counts = ("taken", "threshold", "penalty", "l0", "fvu", "loss", "revived")
    return {n: x.numpy().tobytes() for n, x in tensors.items()} | {n: getattr(t, n) for n in counts}


def rows_of(folder) -> list[dict]:
    "The rows of a log."
    return [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]


# of a dictionary


def two_layers() -> Release:
    torch.manual_seed(0)
    return Release.from_module(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)),
        sites=["1:out"],
        name="v1",
        device="cpu",
    )


def table(n=400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        rng.normal(size=(n, 6)).astype("float32"), columns=[f"x{i}" for i in range(6)]
    )
    return rows.assign(sequence_id=[f"s{i}" for i in range(n)])


def train(store, wiring="per_layer", **kwargs):
    "A dictionary of both layers, kept in a store."
    ends = dict(sites=["0:in", "2:in"], targets=["0:out", "2:out"]) if wiring != "sae" else {}
    sizes = dict(n_features=32, k=4, tokens=200 * 128, batch_size=128)
    return train_dictionary(
        two_layers(), table(), **ends, **sizes, wiring=wiring, store=store, **kwargs
    )


def killed_after(tokens, *args) -> bool:
    "SIGKILL from within `train` after so many tokens; whether it came to that."
    if (pid := os.fork()) == 0:
        left = [tokens]

        def count(n):
            left[0] -= n
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            train(*args, progress=count)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
