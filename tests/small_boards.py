"What boards are tried on: a large dictionary, many sequences, a circuit, a training."

import numpy as np
import pandas as pd
import torch

from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.sites import Site

WORDS = (
    "abroad night takeover refund gift travel salary mule grocery online declined new device "
    "password merchant amount crypto transfer chargeback"
).split()


def large_dictionary(features: int = 16_384, d: int = 32) -> Dictionary:
    "Features at two sites, a quarter without a name, each with figures of its label."
    rng, half = np.random.default_rng(0), features // 2
    torch.manual_seed(0)
    labels, figures = [], []
    for i in range(features):
        fires = round(float(rng.beta(0.4, 12)), 4)
        words = rng.choice(WORDS, 3, replace=False)
        named = i % 4 != 3
        label = f"{words[0]} and {words[1]}, after {words[2]} ({i})"
        label = (
            label if named else f"unnamed feature {i}, fires on {100 * fires:.0f} % of sequences"
        )
        worth = dict(precision=round(float(rng.uniform(0.5, 1)), 3), recall=0.5) if named else {}
        kept = dict(label=label, precision=None, recall=None, fires_on=fires, inputs=[]) | worth
        labels.append(label)
        figures.append(kept)
    weights = []
    for _ in range(2):
        decoders = torch.nn.functional.normalize(torch.randn(half, d))
        zeros = torch.zeros(half)
        weights.append(SiteWeights(decoders.T.contiguous(), zeros, zeros, decoders, torch.zeros(d)))
    sites = (Site.parse("model.layers.1:out"), Site.parse("model.layers.2:out"))
    return Dictionary(sites, tuple(weights), tuple(labels), figures=tuple(figures))


def many_sequences(table: pd.DataFrame, times: int) -> pd.DataFrame:
    "The table of a check, as of so many times as many sequences."
    parts = []
    for i in range(times):
        parts.append(table.assign(sequence=table["sequence"].astype(str) + f"-{i:03d}"))
    return pd.concat(parts, ignore_index=True)
