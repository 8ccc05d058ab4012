"Fingerprints: what changes them, and what does not."

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_releases import fraud, module_writer, saved_llama
from torch import nn

from interpkit.model.fingerprints import fingerprint
from interpkit.model.releases import Release


@pytest.fixture
def code(tmp_path, monkeypatch):
    yield from module_writer(tmp_path, monkeypatch)


@pytest.fixture
def llama_folder(tmp_path):
    saved_llama(tmp_path / "llama")
    return tmp_path / "llama"


def mark(folder) -> str:
    return Release.load(folder, device="cpu").fingerprint


def save_weights(weights, folder):
    save_file(weights, folder / "model.safetensors", metadata=dict(format="pt"))


def test_the_fingerprint_is_stable_across_processes(code, tmp_path):
    _, live = fraud(code)
    saved = live.save(tmp_path / "v1")
    folder = str(tmp_path / "v1")
    script = (
        "from interpkit.model.releases import Release\n"
        f"print(Release.load({folder!r}, device='cpu').fingerprint)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=tmp_path,
    )
    assert process.stdout.strip() == saved.fingerprint, process.stderr


def test_the_order_of_weights_in_a_file_does_not_matter(llama_folder):
    before = mark(llama_folder)
    weights = load_file(llama_folder / "model.safetensors")
    save_weights(dict(reversed(weights.items())), llama_folder)
    assert mark(llama_folder) == before


def test_the_fingerprint_changes_with_one_ulp_of_any_tensor(llama_folder):
    marks = [mark(llama_folder)]
    whole = load_file(llama_folder / "model.safetensors")
    for name in (
        "model.norm.weight",
        "model.layers.3.mlp.up_proj.weight",
        "model.embed_tokens.weight",
    ):
        changed = {k: v.clone() for k, v in whole.items()}
        flat = changed[name].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        save_weights(changed, llama_folder)
        marks.append(mark(llama_folder))
    save_weights(whole, llama_folder)
    assert len(set(marks)) == 4
    assert mark(llama_folder) == marks[0]


def test_the_fingerprint_changes_with_configuration_and_vocabulary(llama_folder):
    before = mark(llama_folder)
    file = llama_folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | dict(rms_norm_eps=1e-3)))
    other_config = mark(llama_folder)
    file.write_text(json.dumps(config))
    (llama_folder / "vocab.json").write_text(json.dumps(dict(a=1)))
    other_vocabulary = mark(llama_folder)
    (llama_folder / "vocab.json").unlink()
    assert len({before, other_config, other_vocabulary}) == 3
    assert mark(llama_folder) == before


def test_the_fingerprint_sees_buffers():
    norm = nn.BatchNorm1d(3)
    changed = copy.deepcopy(norm)
    changed.running_mean[0] = 1e-30
    assert fingerprint(norm) != fingerprint(changed)


def test_the_fingerprint_sees_code():
    net = nn.Linear(2, 3)
    marks = {
        fingerprint(net),
        fingerprint(net, code=dict(m="1")),
        fingerprint(net, code=dict(m="2")),
    }
    assert len(marks) == 3


def test_the_fingerprint_sees_shapes():
    flat = nn.Module()
    flat.w = nn.Parameter(torch.ones(2, 3))
    tall = nn.Module()
    tall.w = nn.Parameter(torch.ones(3, 2))
    assert fingerprint(flat) != fingerprint(tall)


def test_the_fingerprint_of_a_live_module_sees_its_structure_and_not_its_name():
    relu = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    gelu = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1))
    gelu.load_state_dict(relu.state_dict())
    with_relu = Release.from_module(relu, device="cpu")
    with_gelu = Release.from_module(gelu, device="cpu")
    renamed = Release.from_module(copy.deepcopy(gelu), name="x", device="cpu")
    assert with_relu.fingerprint != with_gelu.fingerprint
    assert with_gelu.fingerprint == renamed.fingerprint
