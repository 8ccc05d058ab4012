"""A small language model with a dictionary of two sites, and the truth about it.

The truth is found one sequence at a time: no padding, no batches, plain hooks.
"""

from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn

from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.batch import Batch
from interpkit.model.inputs import FunctionInputs
from interpkit.model.releases import Release
from interpkit.model.sites import Site

BOS, PAD, YES, NO, V, D = 1, 0, 5, 6, 20, 16
SITES = (Site("model.layers.0"), Site("model.layers.1"))


def directions(seed: int, features: int, d: int = D, threshold: float = 0.3) -> SiteWeights:
    "Weights of one site with random unit directions."
    g = torch.Generator().manual_seed(seed)
    W = nn.functional.normalize(torch.randn(features, d, generator=g), dim=1)
    b_dec = 0.1 * torch.randn(d, generator=g)
    return SiteWeights(
        W.T.contiguous() * 0.6,
        0.1 * torch.randn(features, generator=g),
        torch.full((features,), threshold),
        W,
        b_dec,
    )


def causal(seed: int, name: str, width: int = D, moved: float = 0.0, sites=SITES) -> Release:
    "A Llama of four layers with large weights, each changed by about the share `moved`."
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            initializer_range=0.4,
            use_cache=False,
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + moved * torch.randn_like(p))
    return Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=dict(kind="logit_difference", positive=YES, negative=NO),
        sites=list(sites),
        name=name,
        device="cpu",
    )


@lru_cache
def world(n: int = 14) -> SimpleNamespace:
    "Two releases `old` and `new`, n rows, and a dictionary of 24 and 20 features."
    rng = np.random.default_rng(0)
    ids = [[BOS, *rng.integers(3, V, k).tolist()] for k in rng.integers(2, 9, n)]
    rows = pd.DataFrame(
        dict(
            sequence_id=[f"s{i}" for i in range(n)],
            input_ids=ids,
            segment=rng.choice(["north", "south"], n),
            weight=rng.choice([1.0, 3.0], n),
            group_id=[f"c{i // 2}" for i in range(n)],
        )
    )
    labels = [f"site 0, feature {j}" for j in range(24)]
    labels += [f"site 1, feature {j}" for j in range(20)]
    dictionary = Dictionary(SITES, (directions(1, 24), directions(2, 20)), tuple(labels))
    return SimpleNamespace(
        old=causal(0, "v1"), new=causal(0, "v2", moved=0.1), rows=rows, dictionary=dictionary
    )


def without_starts(release: Release) -> Release:
    "The release with inputs that count no start token, wherever it stands."

    def inputs(rows: pd.DataFrame) -> Batch:
        batch = release.inputs(rows)
        return replace(batch, mask=batch.mask & (batch.kwargs["input_ids"] != BOS))

    return replace(release, inputs=FunctionInputs(inputs))


def by_hand(w: SiteWeights, h: torch.Tensor) -> torch.Tensor:  # [T, d] -> [T, F]
    "Codes, one token and one feature at a time."
    out = torch.zeros(len(h), w.W_enc.shape[1])
    for t in range(len(h)):
        for f in range(out.shape[1]):
            z = float((h[t] * w.W_enc[:, f]).sum() + w.b_enc[f])
            out[t, f] = z if z > float(w.threshold[f]) else 0.0
    return out


def alone(model, ids, edits=None, gradient: bool = False):
    """Decision and activations {layer: [T, d]} of one sequence without padding.

    `edits` is {layer: function of [T, d]}, and `gradient` keeps the decision as a tensor.
    """
    acts = {}
    handles = []

    def hook(k):
        def run(_, __, out):
            h = out[0] if isinstance(out, tuple) else out
            acts[k] = h[0]
            new = edits[k](h[0])[None] if edits and k in edits else h
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return run

    for k in (0, 1):
        handles.append(model.model.layers[k].register_forward_hook(hook(k)))
    try:
        with torch.set_grad_enabled(gradient):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    finally:
        for x in handles:
            x.remove()
    decision = logits[YES] - logits[NO]
    return decision if gradient else float(decision), acts


def gradient(model, ids, k: int) -> torch.Tensor:  # [T, d]
    "How the decision changes with the activations of a layer: they are fed in as a leaf."
    leaf = alone(model, ids)[1][k].clone().requires_grad_()
    decision = alone(model, ids, {k: lambda h: leaf}, gradient=True)[0]
    return torch.autograd.grad(decision, leaf)[0]


def rebuild(x: SiteWeights):
    "A function that puts the reconstruction in the place of activations [T, d]."

    def edit(h):
        new = by_hand(x, h) @ x.W_dec[:, 0] + x.b_dec
        return torch.cat([h[:1], new[1:]])  # the start token stays bare

    return edit


def truth_at(x: SiteWeights, h: torch.Tensor, g: torch.Tensor) -> SimpleNamespace:
    "What is true at a site with activations h and gradients g [T, d]; 0 at the start token."
    codes = by_hand(x, h)
    codes[0] = 0
    recon = codes @ x.W_dec[:, 0] + x.b_dec
    at = (g @ x.W_dec[:, 0].T) * codes
    error = (g * (h - recon)).sum(1)[1:].abs().sum()
    return SimpleNamespace(acts=h, codes=codes, recon=recon, at=at, error=float(error))


@lru_cache
def truth(side: str) -> list:
    """For each sequence: decision, spliced decision, and what is true at each site.

    That is activations, codes, reconstruction, attribution and its error.
    """
    w = world()
    model = getattr(w, side).model
    weights = w.dictionary.weights
    out = []
    for ids in w.rows.input_ids:
        decision, acts = alone(model, ids)
        spliced, _ = alone(model, ids, {k: rebuild(weights[k]) for k in (0, 1)})
        site = {k: truth_at(weights[k], acts[k], gradient(model, ids, k)) for k in (0, 1)}
        out.append(SimpleNamespace(decision=decision, spliced=spliced, site=site))
    return out


def without(model, ids, k: int, codes, f: int, W_dec) -> float:
    "The decision of one sequence with one feature's part subtracted at all its tokens."
    return alone(model, ids, {k: lambda h: h - codes[:, [f]] * W_dec[f]})[0]


@lru_cache
def every_effect(side: str) -> np.ndarray:  # [sequences, features]
    "What the decision loses without each feature, ablated one at a time."
    w = world()
    model = getattr(w, side).model
    effects = np.zeros((len(w.rows), 44))
    for i, (ids, t) in enumerate(zip(w.rows.input_ids, truth(side), strict=True)):
        for k in (0, 1):
            W_dec = w.dictionary.weights[k].W_dec[:, 0]
            codes = t.site[k].codes
            for f in (codes > 0).any(0).nonzero().flatten().tolist():
                effects[i, 24 * k + f] = t.decision - without(model, ids, k, codes, f, W_dec)
    return effects
