"What the type in which a release is stored does to its decisions: kept, measured, told."

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from interpkit.core.files import read_json, write_json
from interpkit.drift.caveats import own_type_words
from interpkit.drift.own_type import own_decisions, own_type
from interpkit.drift.printed import printed
from interpkit.drift.simulate import small_world
from interpkit.model.releases import Release


def linear(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)).to(dtype)


def build() -> nn.Module:
    return linear()


def test_a_release_knows_the_type_of_its_weights_and_computes_in_float32(tmp_path):
    half = Release.from_module(linear(torch.bfloat16), device="cpu")
    assert half.dtype == torch.bfloat16
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    assert Release.from_module(linear(), device="cpu").dtype == torch.float32
    columns = dict(kind="columns", columns=[f"x{i}" for i in range(6)])
    release = Release.from_module(
        linear(torch.bfloat16), columns, dict(kind="scalar"), device="cpu"
    )
    kept = release.save(tmp_path / "kept", factory=build)
    assert kept.dtype == torch.bfloat16  # though its file holds 32 bits
    plain = Release.from_module(linear(), columns, dict(kind="scalar"), device="cpu")
    folder = plain.save(tmp_path / "plain", factory=build).folder
    assert Release.load(folder, device="cpu").dtype == torch.float32
    file = folder / "model.safetensors"
    weights = {name: t.half() for name, t in load_file(file).items()}
    (folder / "manifest.json").unlink()
    save_file(weights, file, metadata=dict(format="pt"))
    assert Release.load(folder, device="cpu").dtype == torch.float16
    head = read_json(folder / "release.json")
    write_json(folder / "release.json", head | dict(dtype="int8"))
    refused(lambda: Release.load(folder, device="cpu"), "int8", "bfloat16")


def test_decisions_in_the_own_type_are_those_of_the_module_itself():
    world = small_world()
    world.new = replace(world.new, dtype=torch.bfloat16)
    inside = copy.deepcopy(world.new.model).to(torch.bfloat16)
    x = torch.tensor(world.rows[[f"x{i}" for i in range(6)]].to_numpy("float32"))
    with torch.no_grad():
        own = inside(x.bfloat16())[:, 0].double().numpy()
    bare = world.decisions[1]
    u, v = ((d - d.mean()) / np.abs(d - d.mean()).mean() for d in (bare, own))
    told = own_type(world)
    assert list(told) == ["new"]
    assert told["new"]["lost"] == pytest.approx(np.abs(v - u).sum() / (abs(u) + abs(v)).sum())
    assert told["new"]["flipped"] == np.mean((bare > 0) != (own > 0))
    assert not own_type(small_world())


def test_a_language_model_keeps_its_positions_in_32_bits_as_transformers_does(tmp_path):
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=20)
    heads = dict(num_attention_heads=1, num_key_value_heads=1, initializer_range=0.5)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).bfloat16().save_pretrained(tmp_path)
    release = Release.load(tmp_path, device="cpu", decision=lambda out: out.logits[:, -1, 3])
    with torch.no_grad():
        there = type(release.model).from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
        ids = torch.randint(3, 20, (4, 500), generator=torch.Generator().manual_seed(0))
        expected = there(ids).logits[:, -1, 3].double().numpy()
    rows = pd.DataFrame(dict(sequence_id=range(4), input_ids=ids.tolist()))
    assert np.array_equal(own_decisions(release, SimpleNamespace(rows=rows)), expected)


def test_page_one_tells_it_and_only_where_there_is_something_to_tell():
    world = small_world()
    assert "own_type" not in printed(world, most=20)
    world.new = replace(world.new, dtype=torch.bfloat16)
    (sentence,) = own_type_words(printed(world, most=20), ("v1", "v2"))
    assert "In bfloat16, in which v2 is stored" in sentence
    problem = dict(own_type=dict(old=dict(dtype="float16", problem="RuntimeError: no")))
    (sentence,) = own_type_words(problem, ("v1", "v2"))
    assert "v1 is stored, it does not run here" in sentence
