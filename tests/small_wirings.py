"Three models, and sixteen dictionaries of four wirings with the truth written out by hand."

from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small_language import BOS, NO, PAD, YES, V, by_hand, causal, world
from torch import nn

from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.releases import Release
from interpkit.model.sites import Site

# three models, each with the module names of its sources and targets


class Net(nn.Module):
    "A residual network on columns: three blocks that read what all earlier ones wrote."

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 10), nn.Linear(10, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(10, 14), nn.Tanh(), nn.Linear(14, 10)) for _ in range(3)
        )

    def forward(self, x):
        h = self.first(x)
        for b in self.blocks:
            h = h + b(h)
        return self.head(h)


def changed(model, by: float):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + by * torch.randn_like(p))
    return model


def release(kind: str, moved: float = 0.0) -> Release:
    if kind == "llama":
        return causal(0, f"llama {moved}", moved=moved)
    torch.manual_seed(0)
    if kind == "net":
        return Release.from_module(
            changed(Net(), moved),
            inputs=dict(kind="columns", columns=list("abcde")),
            sites=["blocks.0:out"],
            name=f"net {moved}",
            device="cpu",
        )
    from transformers import GPT2Config, GPT2LMHeadModel

    model = changed(
        GPT2LMHeadModel(
            GPT2Config(
                vocab_size=V,
                n_embd=16,
                n_layer=3,
                n_head=2,
                n_positions=16,
                initializer_range=0.4,
                use_cache=False,
            )
        ),
        moved,
    )
    return Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=dict(kind="logit_difference", positive=YES, negative=NO),
        sites=["transformer.h.0:out"],
        name=f"gpt2 {moved}",
        device="cpu",
    )


def rows(kind: str) -> pd.DataFrame:
    if kind != "net":
        return world(10).rows
    return pd.DataFrame(
        np.random.default_rng(0).normal(size=(30, 5)).astype("float32"), columns=list("abcde")
    ).assign(sequence_id=[f"s{i}" for i in range(30)])


MLPS = dict(llama="model.layers.{}.mlp", gpt2="transformer.h.{}.mlp", net="blocks.{}")


def mlp(kind, i, side):
    return f"{MLPS[kind].format(i)}:{side}"


def mlps(kind, layers):
    return [mlp(kind, i, "in") for i in layers], [mlp(kind, i, "out") for i in layers]


# what is under test: plain tensors first, of which the object is made


def tensors(seed, d, F, targets, d_out, skip=False) -> dict:
    g = torch.Generator().manual_seed(seed)

    def r(*shape, by=1.0):
        return by * torch.randn(*shape, generator=g)

    W_dec = r(F, targets, d_out)
    return dict(
        W_enc=r(d, F, by=0.5),
        b_enc=r(F, by=0.1),
        threshold=torch.rand(F, generator=g),
        W_dec=W_dec / W_dec.flatten(1).norm(dim=1)[:, None, None],
        b_dec=r(d_out, by=0.1),
    ) | (dict(W_skip=r(d, d_out, by=0.2)) if skip else {})


def spec(
    wiring, sources, targets, d, tied=False, d_out=None, skip=(), F=(9, 7, 8)
) -> SimpleNamespace:
    n = len(sources)
    w = [
        tensors(
            10 + i, d, F[i], n - i if wiring == "clt" and not tied else 1, d_out or d, i in skip
        )
        for i in range(n)
    ]
    return SimpleNamespace(
        wiring=wiring, sources=sources, targets=targets, w=w, clt=wiring == "clt"
    )


def made(s) -> Dictionary:
    def parse(names):
        return tuple(map(Site.parse, names))

    return Dictionary(
        parse(s.sources),
        tuple(SiteWeights(**w) for w in s.w),
        wiring=s.wiring,
        targets=parse(s.targets),
    )


SPECS = {
    "llama sae": (
        "llama",
        lambda: spec("sae", *[["model.layers.0:out", "model.layers.1.mlp:out"]] * 2, 16),
    ),
    "llama transcoder": ("llama", lambda: spec("transcoder", *mlps("llama", [1]), 16)),
    "llama transcoder, skip, other widths": (
        "llama",
        lambda: spec(
            "transcoder",
            ["model.layers.1.mlp:in"],
            ["model.layers.1.mlp.down_proj:in"],
            16,
            d_out=32,
            skip=[0],
        ),
    ),
    "llama per_layer": (
        "llama",
        lambda: spec("per_layer", *mlps("llama", [0, 1, 3]), 16, skip=[1]),
    ),
    "llama clt": ("llama", lambda: spec("clt", *mlps("llama", [0, 1, 2]), 16)),
    "llama clt, skip, from the residual stream": (
        "llama",
        lambda: spec(
            "clt",
            [f"model.layers.{i}.post_attention_layernorm:in" for i in (0, 2, 3)],
            mlps("llama", [0, 2, 3])[1],
            16,
            skip=[0, 2],
        ),
    ),
    "llama tied clt": ("llama", lambda: spec("clt", *mlps("llama", [1, 2, 3]), 16, tied=True)),
    "gpt2 transcoder, skip": ("gpt2", lambda: spec("transcoder", *mlps("gpt2", [1]), 16, skip=[0])),
    "gpt2 per_layer": ("gpt2", lambda: spec("per_layer", *mlps("gpt2", [0, 1, 2]), 16)),
    "gpt2 clt": ("gpt2", lambda: spec("clt", *mlps("gpt2", [0, 1, 2]), 16)),
    "gpt2 tied clt": (
        "gpt2",
        lambda: spec("clt", *mlps("gpt2", [0, 1, 2]), 16, tied=True, skip=[1]),
    ),
    "net sae": ("net", lambda: spec("sae", *[["blocks.0:out", "blocks.1:in"]] * 2, 10)),
    "net transcoder, other widths": (
        "net",
        lambda: spec("transcoder", ["blocks.1:in"], ["blocks.1.1:out"], 10, d_out=14),
    ),
    "net per_layer": ("net", lambda: spec("per_layer", *mlps("net", [0, 1, 2]), 10)),
    "net clt": ("net", lambda: spec("clt", *mlps("net", [0, 1, 2]), 10, skip=[1])),
    "net tied clt": ("net", lambda: spec("clt", *mlps("net", [0, 1, 2]), 10, tied=True)),
}
FROZEN = [n for n in SPECS if " sae" not in n]

# the definitions


def W(s, i: int, j: int):  # [F, d_out] or None
    "What features of source i write to target j."
    if not s.clt:
        return s.w[i]["W_dec"][:, 0] if i == j else None
    if j < i:
        return None
    return s.w[i]["W_dec"][:, j - i if s.w[i]["W_dec"].shape[1] > 1 else 0]


def reads(s, i, h, start: bool):  # [T, d] -> [T, F]
    "Codes feature by feature, none at the start token."
    a = by_hand(SimpleNamespace(**s.w[i]), h)
    if start:
        a[0] = 0
    return a


def rebuilt(s, j, codes, acts):  # -> [T, d_out]
    out = s.w[j]["b_dec"].expand(len(codes[j]), -1).clone()
    for i in range(len(s.w)):
        if i in codes and W(s, i, j) is not None:
            for f in range(codes[i].shape[1]):
                out += codes[i][:, [f]] * W(s, i, j)[f]
    return out + acts[j] @ s.w[j]["W_skip"] if "W_skip" in s.w[j] else out


def alone(model, x, edits=None, reads=(), gradient=False):
    """The decision of one sequence, and what arrived at the sites `reads`.

    `edits` {site: function of [T, d]} change what goes on.
    """
    arrived, handles, edits = {}, [], edits or {}

    def seen(site, value):
        t = value[0] if isinstance(value, tuple) else value
        arrived[site] = t[0] if t.ndim == 3 else t
        new = edits[site](arrived[site]) if site in edits else None
        if new is None:
            return None
        new = new[None] if t.ndim == 3 else new
        return (new, *value[1:]) if isinstance(value, tuple) else new

    for site in dict.fromkeys([*reads, *edits]):
        name, side = site.split(":")
        m = model.get_submodule(name)
        handles.append(
            m.register_forward_pre_hook(lambda m, a, site=site: seen(site, a))
            if side == "in"
            else m.register_forward_hook(lambda m, a, out, site=site: seen(site, out))
        )
    try:
        with torch.set_grad_enabled(gradient):
            if isinstance(x, torch.Tensor):
                out = model(x[None])[0, 0]
            else:
                logits = model(input_ids=torch.tensor([list(x)])).logits[0, -1]
                out = logits[YES] - logits[NO]
    finally:
        for h in handles:
            h.remove()
    return (out if gradient else float(out)), arrived


def spliced(s, model, x, start) -> float:
    "All targets replaced by what is made of what this forward brought to the sources."
    codes, acts = {}, {}

    def at(site):
        def fn(h):
            if site in s.sources:
                i = s.sources.index(site)
                codes[i], acts[i] = reads(s, i, h, False), h
            if site not in s.targets:
                return None
            new = rebuilt(s, s.targets.index(site), codes, acts)
            return torch.cat([h[:1], new[1:]]) if start else new

        return fn

    return alone(model, x, {site: at(site) for site in [*s.sources, *s.targets]})[0]


def slopes(s, model, x, acts) -> list:  # [T, d_out] a target
    """The decision's gradient at each target.

    All targets are leaves that hold the bare values; of an SAE one site at a time.
    """
    if s.wiring == "sae":
        out = []
        for site in s.targets:
            leaf = acts[site].clone().requires_grad_()
            out.append(
                torch.autograd.grad(
                    alone(model, x, {site: lambda h, leaf=leaf: leaf}, gradient=True)[0], leaf
                )[0]
            )
        return out
    leaves = {site: acts[site].clone().requires_grad_() for site in s.targets}
    decision = alone(
        model, x, {site: (lambda h, site=site: leaves[site]) for site in s.targets}, gradient=True
    )[0]
    return list(torch.autograd.grad(decision, list(leaves.values())))


def without(s, model, x, acts, codes, gone) -> float:
    """The decision without the features `gone`, pairs (source, feature).

    Their writes are subtracted, and every target from the first source on is held where it was.
    """
    first = min(i for i, _ in gone)

    def edit(j):
        less = sum(codes[i][:, [f]] * W(s, i, j)[f] for i, f in gone if W(s, i, j) is not None)
        return lambda h: (h if s.wiring == "sae" else acts[s.targets[j]]) - less

    js = [
        j
        for j in range(first, len(s.w))
        if s.wiring != "sae" or any(W(s, i, j) is not None for i, _ in gone)
    ]
    return alone(model, x, {s.targets[j]: edit(j) for j in js})[0]


@lru_cache
def truth(name: str, moved: float = 0.0, effects: bool = True) -> SimpleNamespace:
    kind, make = SPECS[name]
    s = make()
    r = release(kind, moved)
    data = rows(kind)
    start = kind != "net"
    out = []
    for x in torch.tensor(data[list("abcde")].to_numpy()) if kind == "net" else data.input_ids:
        decision, acts = alone(r.model, x, reads=[*s.sources, *s.targets])
        codes = {i: reads(s, i, acts[site], start) for i, site in enumerate(s.sources)}
        recon = [
            rebuilt(s, j, codes, {i: acts[site] for i, site in enumerate(s.sources)})
            for j in range(len(s.w))
        ]
        g = slopes(s, r.model, x, acts)
        at = [
            sum(g[j] @ W(s, i, j).T for j in range(len(s.w)) if W(s, i, j) is not None) * codes[i]
            for i in range(len(s.w))
        ]
        error = [
            float((g[j] * (acts[t] - recon[j])).sum(1)[int(start) :].abs().sum())
            for j, t in enumerate(s.targets)
        ]
        out.append(
            SimpleNamespace(
                x=x,
                decision=decision,
                acts=acts,
                codes=codes,
                recon=recon,
                at=at,
                error=error,
                spliced=spliced(s, r.model, x, start),
                effect=np.concatenate(
                    [
                        [
                            decision - without(s, r.model, x, acts, codes, [(i, f)])
                            if (codes[i][:, f] > 0).any()
                            else 0.0
                            for f in range(codes[i].shape[1])
                        ]
                        for i in codes
                    ]
                )
                if effects
                else None,
            )
        )
    return SimpleNamespace(s=s, release=r, rows=data, d=made(s), start=int(start), seen=out)


def nodes(t, x):
    "Error and mass of one sequence, per node: a site of an SAE, or all targets of another."
    mass = [float(a.abs().sum()) for a in x.at]
    return (x.error, mass) if t.s.wiring == "sae" else ([sum(x.error)], [sum(mass)])


def of(t, what):
    return torch.stack([torch.cat([what(a) for a in x.at]) for x in t.seen])


every = pytest.mark.parametrize("name", SPECS)
