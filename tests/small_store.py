"An activation store of a network with two layers, and what is written to it."

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from interpkit.core.digests import digest_file
from interpkit.data.store import ActivationStore
from interpkit.model.releases import Release
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

    def forward(self, input_ids, attention_mask):
        real = attention_mask[..., None] > 0
        return self.pooled(self.hidden(input_ids).where(real, 0).sum(1) / real.sum(1))


def release_of(name="v1", scale=1.0):
    "A release of the network, under a fingerprint of its own."
    made = Release.from_module(
        Network(scale),
        inputs=dict(kind="tokens", bos=1, pad=None),
        decision=dict(kind="column", column=0),
        sites=[HIDDEN],
        device="cpu",
    )
    return replace(made, fingerprint=name)


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
        folder, release or release_of(), make_rows() if rows is None else rows, **kwargs
    )


def tree(folder):
    "The digest of each file of a folder."
    return {p.name: digest_file(p) for p in Path(folder).iterdir()}
