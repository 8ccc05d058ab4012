"An activation store of a network with two layers, and what is written to it."

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from interpkit.core.digests import digest_file
from interpkit.data.store import ActivationStore
from interpkit.model.batch import Batch
from interpkit.model.sites import Site

HIDDEN = Site("hidden")
POOLED = Site("pooled")


class Network(nn.Module):
    "Tokens [B, T] -> activations [B, T, 4] at one site and [B, 3] at another."

    def __init__(self, scale=1.0):
        super().__init__()
        self.hidden = nn.Embedding(50, 4)
        self.pooled = nn.Linear(4, 3)
        with torch.no_grad():
            self.hidden.weight.copy_(scale * torch.arange(200.0).reshape(50, 4) / 100)
            self.pooled.weight.copy_(torch.arange(12.0).reshape(3, 4))
            self.pooled.bias.zero_()

    def forward(self, ids):
        return self.pooled(self.hidden(ids).mean(1))


class Release:
    "What a store needs of a release."

    default_sites = (HIDDEN,)

    def __init__(self, name="v1", scale=1.0):
        self.fingerprint = name
        self.model = Network(scale).eval()

    def pin(self, rows):
        return rows

    def batch(self, rows):
        lengths = torch.tensor([len(x) for x in rows["input_ids"]])
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for i, x in enumerate(rows["input_ids"]):
            ids[i, : len(x)] = torch.as_tensor(x)
        real = torch.arange(ids.shape[1])[None] < lengths[:, None]
        return Batch(args=(ids,), mask=real & (ids != 1), n=len(rows))


def make_rows(n=70, seed=0):
    "Sequences of up to eight tokens after a start token."
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        dict(
            sequence_id=[f"s{i}" for i in range(n)],
            input_ids=[[1, *rng.integers(2, 50, rng.integers(1, 9)).tolist()] for _ in range(n)],
        )
    )


def write(folder, rows=None, release=None, **kwargs):
    "A store of five shards, written in batches of eight."
    kwargs = dict(sites=[HIDDEN, POOLED], shard_sequences=16, batch=8) | kwargs
    return ActivationStore.write(
        folder, release or Release(), make_rows() if rows is None else rows, **kwargs
    )


def tree(folder):
    "The digest of each file of a folder."
    return {p.name: digest_file(p) for p in Path(folder).iterdir()}
