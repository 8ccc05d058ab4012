"Kinds of blocks: where MLPs of known families read and write, and that others are refused."

import pytest
import torch
from helpers import refused
from small_architectures import KNOWN, OTHERS, tiny
from small_models import tokens
from torch import nn

from interpkit.model.block_kinds import mlp_sites
from interpkit.model.hook_names import ADDED, hook_name_from_site, site_from_hook_name
from interpkit.model.sites import Site
from interpkit.model.stacks import stacks_of

NAMES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out")


def seen(model, sites, batch) -> dict:
    "What passes sites in one forward, by PyTorch's own hooks."
    found = {}

    def into(site):
        def hook(module, args, kwargs):
            found[site] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        return hook

    def out_of(site):
        def hook(module, args, out):
            found[site] = out[0] if isinstance(out, tuple) else out

        return hook

    handles = []
    for site in sites:
        module = model.get_submodule(site.module)
        if site.side == "in":
            handles.append(module.register_forward_pre_hook(into(site), with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(out_of(site)))
    with torch.no_grad():
        model(**batch.kwargs, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", KNOWN)
def test_what_the_mlp_reads_and_what_it_adds_make_up_the_stream(family):
    "Values decide: mid = pre + attn_out and post = mid + mlp_out, at the sites that names give."
    model = tiny(family)
    batch = tokens()
    sources, targets = mlp_sites(model)
    assert len(sources) == 2
    assert len(targets) == 2
    for i in range(2):
        sites = {n: site_from_hook_name(f"blocks.{i}.hook_{n}", model) for n in NAMES}
        assert sources[i] == sites["mlp_in"] == sites["resid_mid"]
        assert targets[i] == sites["mlp_out"]

        passing = seen(model, set(sites.values()), batch)
        values = {name: passing[site] for name, site in sites.items()}
        mid = values["resid_pre"] + values["attn_out"]
        assert torch.allclose(mid, values["resid_mid"], atol=1e-4)
        post = values["resid_mid"] + values["mlp_out"]
        assert torch.allclose(post, values["resid_post"], atol=1e-4)
        for name in ("resid_pre", "attn_out", "mlp_out"):
            assert values[name].abs().mean() > 1e-2, f"{name}: no sum holds by zeros"

        inner = [str(sites[n]).split(f".{i}.")[1] for n in ("resid_mid", "attn_out", "mlp_out")]
        assert tuple(inner) == KNOWN[family]
        back = {name: hook_name_from_site(site, model) for name, site in sites.items()}
        expected = {name: f"blocks.{i}.hook_{name}" for name in sites}
        assert back == expected | dict(resid_mid=f"blocks.{i}.hook_mlp_in")


@pytest.mark.parametrize("family", OTHERS)
def test_blocks_that_only_look_alike_have_no_names_in_the_stream(family):
    model = tiny(family, **OTHERS[family])
    added = ADDED.get(type(stacks_of(model)[next(iter(stacks_of(model)))][0]).__name__, {})
    for name in {"resid_mid", "attn_out", "mlp_in", "mlp_out"} - {*added}:
        hook_name = f"blocks.0.hook_{name}"
        refused(lambda hook_name=hook_name: site_from_hook_name(hook_name, model), code=64)


WITHOUT = {"Mamba"}  # families without MLPs


@pytest.mark.parametrize("family", OTHERS)
def test_mlps_of_other_blocks_are_found_by_their_shape(family):
    "Values decide: the sites hold what goes into the MLP's module, and what comes out of it."
    model = tiny(family, **OTHERS[family])
    if family in WITHOUT:
        line = refused(lambda: mlp_sites(model), "no MLP that is known", code=64).mend
        assert "sites=['" in line
        assert ":out']" in line
        return
    reads, writes = mlp_sites(model)
    blocks = {str(s).split(".mlp")[0] for s in (*reads, *writes)}
    assert len(reads) == len(writes) == len(blocks) == 2
    around = {b: (Site(f"{b}.mlp", "in"), Site(f"{b}.mlp")) for b in sorted(blocks)}
    passing = seen(
        model, {*reads, *writes, *(s for pair in around.values() for s in pair)}, tokens()
    )
    for pair, own in zip(zip(reads, writes, strict=True), around.values(), strict=True):
        assert all(torch.equal(passing[a], passing[b]) for a, b in zip(pair, own, strict=True))


class Square(nn.Module):
    "A block of one's own: two layers of one width, and a shortcut."

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


class Experts(nn.Module):
    "A block with two MLPs."

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)
        )


def test_blocks_of_ones_own_are_found_or_listed():
    blocks = nn.Sequential(Square(), Square())
    reads, writes = mlp_sites(nn.Sequential(nn.Linear(3, 8), blocks, nn.Linear(8, 1)))
    assert reads == (Site("1.0.first", "in"), Site("1.1.first", "in"))
    assert writes == (Site("1.0.second"), Site("1.1.second"))

    one = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 32), 1)
    assert mlp_sites(one) == ((Site("layers.0.linear1", "in"),), (Site("layers.0.linear2"),))

    several = nn.ModuleDict(dict(blocks=nn.ModuleList([Experts(), Experts()])))
    listed = refused(lambda: mlp_sites(several), "2 MLPs", code=64).mend
    assert "'blocks.0.experts.1.0:in'" in listed

    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    line = refused(lambda: mlp_sites(plain), "no list of blocks", code=64).mend
    assert line.endswith("sites=['2:in'], targets=['2:out']")


def with_module(block):
    block.adapter = nn.Linear(16, 16)


def with_parameter(block):
    block.gate = nn.Parameter(torch.ones(1))


def with_buffer(block):
    block.register_buffer("layer_scalar", torch.ones(1))


def with_number(block):
    block.residual_scale = 2.0


@pytest.mark.parametrize("change", [with_module, with_parameter, with_buffer, with_number])
def test_a_block_that_holds_more_is_read_at_its_mlp_alone(change):
    model = tiny("Llama")
    change(model.model.layers[1])
    refused(lambda: site_from_hook_name("blocks.1.hook_mlp_in", model), "LlamaDecoder", code=64)
    reads, writes = mlp_sites(model)
    assert reads[1] == Site("model.layers.1.mlp.gate_proj", "in")
    assert writes[1] == Site("model.layers.1.mlp.down_proj")


def test_each_block_is_known_by_what_it_holds():
    model = tiny("Llama")
    model.model.layers[1] = tiny("Gemma2").model.layers[1]
    reads, _ = mlp_sites(model)
    assert reads[1] == Site("model.layers.1.pre_feedforward_layernorm", "in")


@pytest.mark.parametrize(
    "family, module",
    [
        ("Llama", "mlp"),
        ("Gemma2", "post_feedforward_layernorm"),
        ("Olmo2", "post_feedforward_layernorm"),
    ],
)
def test_hooks_of_the_mlp_itself_are_not_those_of_the_stream(family, module):
    from interpkit.bridges.circuit_tracer import _hook
    from interpkit.bridges.from_circuit_tracer import _sites

    model = tiny(family)
    own_reads, own_writes = _sites("mlp.hook_in", "mlp.hook_out", 2, model)
    assert own_reads == tuple(Site(f"model.layers.{i}.mlp", "in") for i in range(2))
    assert own_writes == tuple(Site(f"model.layers.{i}.mlp") for i in range(2))

    sources, targets = _sites("hook_resid_mid", "hook_mlp_out", 2, model)
    assert (sources, targets) == mlp_sites(model)
    assert targets[1] == Site(f"model.layers.1.{module}")
    assert _hook(targets[1], model) == (1, "hook_mlp_out")
    read_by = "mlp.hook_in" if family == "Olmo2" else "hook_resid_mid"
    assert _hook(sources[1], model) == (1, read_by)
