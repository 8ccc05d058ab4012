"A small language model with a dictionary of two sites, and the truth about it, one sequence at a time: no padding, no batches, plain hooks."

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from torch import nn

from interpkit.dictionary.dictionary import Dictionary, SiteWeights
from interpkit.model.releases import Release
from interpkit.model.sites import Site

BOS, PAD, YES, NO, V, D = 1, 0, 5, 6, 20, 16
SITES = (Site("model.layers.0"), Site("model.layers.1"))

# a small world, and the truth about it (other tests import both)


def directions(seed: int, features: int, d: int = D, threshold: float = 0.3) -> SiteWeights:
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
    dictionary = Dictionary(
        SITES,
        (directions(1, 24), directions(2, 20)),
        tuple(f"site {i}, feature {j}" for i, F in enumerate((24, 20)) for j in range(F)),
    )
    return SimpleNamespace(
        old=causal(0, "v1"), new=causal(0, "v2", moved=0.1), rows=rows, dictionary=dictionary
    )


def by_hand(
    w: SiteWeights, h: torch.Tensor
) -> torch.Tensor:  # [T, d] -> [T, F], feature by feature
    out = torch.zeros(len(h), w.W_enc.shape[1])
    for t in range(len(h)):
        for f in range(out.shape[1]):
            z = float((h[t] * w.W_enc[:, f]).sum() + w.b_enc[f])
            out[t, f] = z if z > float(w.threshold[f]) else 0.0
    return out


def alone(model, ids, edits=None, gradient: bool = False):
    "Decision and activations {layer: [T, d]} of one sequence without padding; `edits` {layer: function of [T, d]}."
    acts, handles = {}, []

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
    return logits[YES] - logits[NO] if gradient else float(logits[YES] - logits[NO]), acts


def gradient(model, ids, k: int) -> torch.Tensor:  # [T, d]
    "How the decision changes with the activations of a layer: they are fed in as a leaf."
    leaf = alone(model, ids)[1][k].clone().requires_grad_()
    decision = alone(model, ids, {k: lambda h: leaf}, gradient=True)[0]
    return torch.autograd.grad(decision, leaf)[0]


@lru_cache
def truth(side: str) -> list:
    "For each sequence: decision, spliced decision, and for each site activations, codes, reconstruction and attribution (0 at the start token)."
    w, out = world(), []
    model = getattr(w, side).model
    for ids in w.rows.input_ids:
        decision, acts = alone(model, ids)

        def rebuild(k):
            def fn(h):
                new = (
                    by_hand(w.dictionary.weights[k], h) @ w.dictionary.weights[k].W_dec[:, 0]
                    + w.dictionary.weights[k].b_dec
                )
                return torch.cat([h[:1], new[1:]])  # the start token stays bare

            return fn

        site = {}
        for k in (0, 1):
            x, h, g = w.dictionary.weights[k], acts[k], gradient(model, ids, k)
            a = by_hand(x, h)
            a[0] = 0
            recon = a @ x.W_dec[:, 0] + x.b_dec
            at = (g @ x.W_dec[:, 0].T) * a
            error = (g * (h - recon)).sum(1)[1:].abs().sum()
            site[k] = SimpleNamespace(acts=h, codes=a, recon=recon, at=at, error=float(error))
        out.append(
            SimpleNamespace(
                decision=decision,
                spliced=alone(model, ids, {k: rebuild(k) for k in (0, 1)})[0],
                site=site,
            )
        )
    return out


def without(model, ids, k: int, codes, f: int, W_dec) -> float:
    "The decision of one sequence with one feature's part subtracted at all its tokens."
    return alone(model, ids, {k: lambda h: h - codes[:, [f]] * W_dec[f]})[0]


def every_effect(side: str) -> np.ndarray:  # [sequences, features]
    w, out = world(), np.zeros((len(world().rows), 44))
    for i, (ids, t) in enumerate(zip(w.rows.input_ids, truth(side))):
        for k in (0, 1):
            x = w.dictionary.weights[k]
            for f in (t.site[k].codes > 0).any(0).nonzero().flatten().tolist():
                out[i, 24 * k + f] = t.decision - without(
                    getattr(w, side).model, ids, k, t.site[k].codes, f, x.W_dec[:, 0]
                )
    return out
