"""From a Hugging Face model to a certified dictionary of every wiring.

And what is refused before anything is stored."""

from functools import lru_cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from torch import nn

from interpkit.dictionary.checks import check_dictionary
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import verify_canary
from interpkit.dictionary.wirings import WIRINGS
from interpkit.model.block_kinds import mlp_sites
from interpkit.model.capture import capture
from interpkit.model.releases import Release
from interpkit.model.sites import Site
from interpkit.training.pairing import wired
from interpkit.training.train import train_dictionary

V, WIDTH, LAYERS = 40, 16, 3


@lru_cache
def release(family) -> Release:
    torch.manual_seed(0)
    if family == "llama":
        from transformers import LlamaConfig, LlamaForCausalLM

        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=V,
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=LAYERS,
                num_attention_heads=2,
                initializer_range=0.4,
                use_cache=False,
            )
        )
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=V,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=2,
                n_positions=16,
                initializer_range=0.3,
                bos_token_id=1,
                eos_token_id=2,
                use_cache=False,
            )
        )
    return Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=dict(kind="logit_difference", positive=3, negative=4),
        sites=[dict(llama="model.layers.1", gpt2="transformer.h.1")[family]],
        name=family,
        device="cpu",
    )


@lru_cache
def rows(n=300):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        dict(
            sequence_id=[f"s{i}" for i in range(n)],
            input_ids=[[1, *rng.integers(3, V, k).tolist()] for k in rng.integers(4, 12, n)],
        )
    )


def train(family="llama", **kwargs) -> Dictionary:
    return train_dictionary(
        release(family),
        rows(),
        **(dict(n_features=48, k=4, tokens=40_000, batch_size=128) | kwargs),
    )


def every_wiring():
    "Of one family all; of another one the CLT, which reads all its sites, and the rest in `slow`."
    for family, wiring in product(("llama", "gpt2"), WIRINGS):
        near = family == "llama" or wiring == "clt"
        yield pytest.param(family, wiring, marks=[] if near else pytest.mark.slow)


@pytest.mark.parametrize("family, wiring", every_wiring())
def test_every_wiring_with_its_default_sites(family, wiring, tmp_path):
    d, r = train(family, wiring=wiring), release(family)
    reads, writes = mlp_sites(r.model)
    expected = dict(
        sae=(r.default_sites, r.default_sites), transcoder=(reads[1:2], writes[1:2])
    ).get(wiring, (reads, writes))
    assert d.wiring == wiring
    assert (d.sites, d.targets) == expected
    assert [list(w.W_dec.shape) for w in d.weights] == [
        [48, LAYERS - i if wiring == "clt" else 1, WIDTH] for i in range(len(d.sites))
    ]
    m = d.validity["measured"]
    assert abs(m["l0"] / 4 - 1) < 0.15  # per site
    assert all(np.isfinite(v) for v in m.values())
    assert len(set(d.labels)) == d.n_features
    # three processors times three seeds: splice error 0.16 to 1.15, FVU 0.15 to 0.32
    assert 0 < m["splice_error"] < 1.6
    verify_canary(r, d)
    assert (check_dictionary(d, release=r, rows=rows()).outcome == "holds").all()
    d.save(tmp_path / "d")
    assert Dictionary.load(tmp_path / "d", r).fingerprint == d.fingerprint
    batch = r.batch(r.pin(rows().iloc[:64]))
    acts = capture(r.model, tuple(dict.fromkeys((*d.sites, *d.targets))), batch)
    rebuilt = d.forward({s: acts[s] for s in d.sites})
    for t in d.targets:
        y, made = acts[t][batch.mask], rebuilt[t][batch.mask]
        fvu = float((made - y).square().sum() / (y - y.mean(0)).square().sum())
        assert fvu < 0.7, t


def test_layers_of_a_clt_share_k_where_it_is_deployed():
    d, r = train("gpt2", wiring="clt"), release("gpt2")
    batch = r.batch(r.pin(rows().iloc[:200]))
    acts = capture(r.model, d.sites, batch)
    l0 = [float((d.at(s).encode(acts[s][batch.mask]) > 0).sum(1).float().mean()) for s in d.sites]
    assert abs(sum(l0) / len(l0) / 4 - 1) < 0.15
    assert l0[0] > 1.5 * l0[-1]  # 6.1 and 1.2


@pytest.mark.parametrize(
    "options",
    [
        dict(objective="jumprelu"),
        dict(objective="topk", prefixes=(16,)),
        dict(objective="relu"),
        dict(tied=True),
        dict(skip=True),
        dict(tied=True, skip=True, objective="jumprelu", prefixes=(16,)),
    ],
)
def test_options_of_a_recipe_reach_a_clt(options):
    "In under a hundred steps, after which nobody asks how well it was trained."
    d = train(wiring="clt", **options, tokens=12_000)
    expected = {n: x for n, x in options.items() if n in ("prefixes", "tied", "skip")}
    if "prefixes" in expected:
        expected["prefixes"] = (16, 48)
    for name, x in expected.items():
        recorded = d.training[name]
        assert (tuple(recorded) if name == "prefixes" else recorded) == x
    objective = options.get("objective", "batchtopk")
    assert d.training["trainer"].split()[-1].lower().startswith(objective)
    assert d.tied == bool(options.get("tied"))
    for w in d.weights:
        assert (w.W_skip is not None) == bool(options.get("skip"))
    has_own_thresholds = all(len(w.threshold.unique()) > 1 for w in d.weights)
    assert has_own_thresholds == (objective == "jumprelu")
    verify_canary(release("llama"), d)
    check_dictionary(d)


# what is refused, and before anything is stored

IN = ["model.layers.0:in", "model.layers.1:in"]
OUT = ["model.layers.0.mlp:out", "model.layers.1.mlp:out"]


@pytest.mark.parametrize(
    "kwargs,said",
    [
        (dict(wiring="clt", sites=IN), ["sites and targets, or neither", "only sites"]),
        (dict(wiring="clt", targets=OUT), ["only targets"]),
        (
            dict(wiring="clt", sites=IN, targets=OUT[:1]),
            ["one target per source", "2 sites", "1 targets"],
        ),
        (dict(wiring="per_layer", sites=IN[:1], targets=OUT), ["1 sites", "2 targets"]),
        (dict(wiring="transcoder", sites=IN, targets=OUT), ["wiring='per_layer'"]),
        (
            dict(wiring="transcoder", sites=IN[:1], targets=IN[:1]),
            ["model.layers.0:in more than once", "is an SAE"],
        ),
        (
            dict(wiring="clt", sites=[IN[0], IN[0]], targets=OUT),
            ["model.layers.0:in more than once"],
        ),
        (dict(wiring="sae", sites=IN, targets=OUT), ["no targets", "wiring='transcoder'"]),
        (dict(wiring="ctl"), ["did you mean 'clt'?"]),
        (dict(wiring="sae", skip=True), ["skip=True"]),
        (dict(wiring="per_layer", tied=True), ["wiring='clt'"]),
        (dict(objective="jumprellu"), ["did you mean 'jumprelu'?"]),
        (dict(objectives="topk"), ["did you mean 'objective'?"]),
        (dict(prefixes=(100,)), ["prefixes from 1 to 48"]),
        (dict(k=49), ["k=49, n_features=48"]),
        (
            dict(sites=["model.layers.0:middle"]),
            ["a site as 'module.path:out'", "model.layers.0:middle"],
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_stored(tmp_path, kwargs, said):
    refused(lambda: train(store=tmp_path / "store", **kwargs), *said, code=64)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(sites=["model.layers.1.mpl:out"]),
        dict(wiring="transcoder", sites=IN[:1], targets=["model.layers.1.mpl:out"]),
        dict(wiring="clt", sites=["model.layers.0:in", "model.layers.1.mpl:out"], targets=OUT),
    ],
)
def test_a_site_that_does_not_exist_shows_the_nearest_and_leaves_the_store_free(tmp_path, kwargs):
    refused(
        lambda: train(store=tmp_path / "store", **kwargs),
        "no module 'model.layers.1.mpl'",
        "model.layers.1.mlp",
        "release.sites()",
    )
    assert not (tmp_path / "store").exists()


class Pools(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.mix = nn.Linear(8, 8)
        self.wide = nn.Linear(8, 12)
        self.pooled = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, input_ids, attention_mask):
        h, here = self.embed(input_ids), attention_mask[..., None].float()
        share = here / here.sum(1, keepdim=True)  # padding counts nowhere
        pooled = torch.tanh(self.pooled((torch.relu(self.mix(h)) * share).sum(1)))
        return self.head(pooled) + (self.wide(h) * share).sum(1).mean(1, keepdim=True)


@pytest.mark.parametrize(
    "wiring,sites,targets,said",
    [
        (
            "transcoder",
            ["mix:in"],
            ["pooled:out"],
            ["same positions", "mix:in", "pooled:out", "one row per token"],
        ),
        (
            "per_layer",
            ["embed:out", "mix:out"],
            ["mix:in", "pooled:out"],
            ["same positions", "mix:out", "pooled:out"],
        ),
        (
            "clt",
            ["embed:out", "pooled:in"],
            ["mix:out", "pooled:out"],
            ["same positions", "pooled:in"],
        ),
        (
            "clt",
            ["embed:out", "mix:in"],
            ["mix:out", "wide:out"],
            ["targets of one width in a CLT", "8 at mix:out", "12 at wide:out"],
        ),
    ],
)
def test_sites_that_do_not_go_together_are_named_before_anything_is_stored(
    tmp_path, wiring, sites, targets, said
):
    torch.manual_seed(0)
    pools = Release.from_module(
        Pools(),
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=lambda out: out[:, 0],
        sites=["mix:out"],
        device="cpu",
    )
    refused(
        lambda: train_dictionary(
            pools,
            rows(),
            sites,
            n_features=16,
            k=2,
            tokens=4000,
            wiring=wiring,
            targets=targets,
            store=tmp_path / "store",
        ),
        *said,
    )
    assert not (tmp_path / "store").exists()


def test_a_transcoder_of_pooled_sites_and_one_to_another_width_work():
    torch.manual_seed(0)
    pools = Release.from_module(
        Pools(),
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=lambda out: out[:, 0],
        sites=["mix:out"],
        device="cpu",
    )
    for site, target, width in (("pooled:in", "pooled:out", 8), ("wide:in", "wide:out", 12)):
        d = train_dictionary(
            pools,
            rows(),
            [site],
            n_features=32,
            k=4,
            tokens=20_000,
            wiring="transcoder",
            targets=[target],
        )
        assert d.weights[0].d_out == width
        assert np.isfinite(d.validity["measured"]["fvu"])


class Blocks(nn.Module):
    "A network for tables whose blocks are of nobody's kind."

    def __init__(self):
        super().__init__()
        one = lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))  # noqa: E731
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)
        self.stack = nn.ModuleList(nn.ModuleDict(dict(body=one())) for _ in range(2))

    def forward(self, x):
        x = self.first(x)
        for block in self.stack:
            x = x + 0.5 * block["body"](x)
        return self.last(x)


def test_a_clt_of_blocks_of_nobodys_kind_carries_the_decision():
    torch.manual_seed(0)
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(600, 3)), columns=list("abc"))
    release = Release.from_module(Blocks(), name="blocks", device="cpu")
    rows = rows.assign(sequence_id=range(600))
    dictionary = train_dictionary(release, rows, wiring="clt", n_features=64, k=6, tokens=30_000)
    assert list(map(str, dictionary.sites)) == ["stack.0.body.0:in", "stack.1.body.0:in"]
    assert list(map(str, dictionary.targets)) == ["stack.0.body.2:out", "stack.1.body.2:out"]
    assert dictionary.validity["measured"]["splice_error"] < 0.5


def test_a_model_whose_mlps_are_not_known_asks_for_sites():
    pools = Release.from_module(
        Pools(),
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=lambda out: out[:, 0],
        sites=["mix:out"],
        device="cpu",
    )
    refused(lambda: wired(pools, "clt"), "sites=['wide:in'], targets=['wide:out']", code=64)
    assert wired(pools, "transcoder", "mix:in", Site("mix")) == (
        (Site("mix", "in"),),
        (Site("mix"),),
    )
