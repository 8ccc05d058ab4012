"What was fitted lies beside the code of a release; a dictionary of a live module stays good."

import io
import json
import pickle
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from safetensors.torch import save

from interpkit.core.digests import digest_file
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.evaluate import evaluate
from interpkit.dictionary.validity import certify, verify_canary
from interpkit.dictionary.weights import SiteWeights
from interpkit.gate.results import digest_of
from interpkit.model.beside import is_pickle, refuse_pickle
from interpkit.model.releases import Release
from interpkit.model.sites import Site

SOURCE = """
import json
from pathlib import Path

import torch
from torch import nn

FITTED = json.loads(Path(__file__).with_name("scaler.json").read_text())


class Scorer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


def inputs(rows):
    x = torch.tensor(rows[["a", "b"]].to_numpy("float32"))
    return ((x - torch.tensor(FITTED["mean"])) / torch.tensor(FITTED["scale"])).nan_to_num(0)


def decision(out):
    return out[:, 0]


def doubled(out):
    return 2 * out[:, 0]
"""


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(dict(sequence_id=range(300), a=rng.normal(size=300)))
    return table.assign(b=np.where(rng.random(300) < 0.2, np.nan, rng.normal(size=300)))


@pytest.fixture
def source(tmp_path, monkeypatch):
    "A folder with the code of a model and what was fitted; the module itself."
    folder = tmp_path / "src"
    folder.mkdir()
    name = f"scorer_{tmp_path.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(SOURCE)
    (folder / "scaler.json").write_text(json.dumps(dict(mean=[0.5, 1.0], scale=[1.0, 2.0])))
    monkeypatch.syspath_prepend(folder)
    yield __import__(name)
    del sys.modules[name]


@pytest.fixture
def live(source):
    torch.manual_seed(0)
    made = source.Scorer()
    return Release.from_module(made, source.inputs, source.decision, columns=["a", "b"], name="v1")


def scaler(source):
    return [f"{source.__file__.rpartition('/')[0]}/scaler.json"]


def of_units(release, rows) -> Dictionary:
    "A dictionary of the hidden units as they are, certified."
    eye, zeros = torch.eye(8), torch.zeros(8)
    made = Dictionary((Site("layers.1"),), (SiteWeights(eye, zeros, zeros, eye, zeros),))
    return certify(release, made, rows)


# What lies beside the code


def test_what_was_fitted_is_saved_listed_and_read(live, source, rows, tmp_path):
    saved = live.save(tmp_path / "v1", files=scaler(source), rows=rows)
    head = json.loads((tmp_path / "v1" / "release.json").read_text())
    assert list(head["files"]) == ["scaler.json"]
    assert head["columns"] == ["a", "b"]
    assert torch.equal(saved.run(rows), live.run(rows))
    assert saved.for_sign_off
    assert saved.inputs_columns == ["a", "b"]


def test_two_releases_of_one_code_read_each_its_own_file(live, source, rows, tmp_path):
    first = live.save(tmp_path / "v1", files=scaler(source))
    other = tmp_path / "fitted anew" / "scaler.json"
    other.parent.mkdir()
    other.write_text(json.dumps(dict(mean=[0.0, 0.0], scale=[1.0, 1.0])))
    second = live.save(tmp_path / "v2", files=[other])
    assert first.fingerprint != second.fingerprint
    assert float((first.run(rows) - second.run(rows)).abs().max()) > 0.01
    again = Release.load(tmp_path / "v1", device="cpu")
    assert torch.equal(again.run(rows), first.run(rows))
    error = refused(lambda: live.save(tmp_path / "v3", files=[other], rows=rows), code=64)
    assert "files=[...]" in error.mend


def test_what_would_stay_behind_is_named(live, source, tmp_path):
    error = refused(lambda: live.save(tmp_path / "v1"), "scaler.json would stay behind")
    assert f"files={scaler(source)}" in error.mend
    assert not (tmp_path / "v1").exists()


def archive(**members) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name, content in members.items():
            z.writestr(name.replace("__", "."), content)
    return out.getvalue()


def arrays(x) -> bytes:
    out = io.BytesIO()
    np.save(out, x, allow_pickle=True)
    return out.getvalue()


def torch_file(x) -> bytes:
    out = io.BytesIO()
    torch.save(x, out)
    return out.getvalue()


REFUSED = {
    "scaler.joblib": b"x",
    "scaler.dat": pickle.dumps(1),
    "old protocol.pkl": pickle.dumps(1, 0),
    "objects.npy": arrays(np.array([{}], object)),
    "objects.npz": archive(a__npy=arrays(np.array([{}], object))),
    "weights.dat": torch_file(dict(a=torch.ones(2))),
    "inside.zip": archive(a__zip=archive(b__pkl=b"x")),
    "cut.npy": b"\x93NUMPY\x01",
}
TAKEN = {
    "scaler.json": b"{}",
    "scaler.csv": b"a,b\n1,2\n",
    "scaler.npy": arrays(np.ones(3)),
    "scaler.npz": archive(a__npy=arrays(np.ones(3))),
    "pipeline.skops": archive(schema__json=b"{}", a__npy=arrays(np.ones(2))),
    "names.txt": b"a",
    "scaler.safetensors": save(dict(mean=torch.ones(3)), dict(note="x" * 540)),
    "empty": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_pickles_are_refused_by_name_and_by_content(name, tmp_path):
    (tmp_path / name).write_bytes(REFUSED[name])
    assert "skops" in refused(lambda: refuse_pickle(tmp_path / name)).mend


@pytest.mark.parametrize("name", TAKEN)
def test_parameters_are_taken(name):
    assert not is_pickle(name, TAKEN[name])


def test_no_length_of_a_header_of_safetensors_is_taken_for_a_pickle():
    for n in range(0, 1500, 8):
        assert not is_pickle("a.safetensors", save(dict(a=torch.ones(1)), dict(note="x" * n)))


def changed(folder):
    (folder / "code" / "scaler.json").write_text("{}")


def removed(folder):
    (folder / "code" / "scaler.json").unlink()


def more(folder):
    (folder / "code" / "more.csv").write_text("1")


def hidden_in_a_folder(folder):
    (folder / "code" / "sub").mkdir()
    (folder / "code" / "sub" / "scaler.json").write_text("{}")


def linked(folder):
    (folder / "code" / "scaler.json").rename(folder / "elsewhere.json")
    (folder / "code" / "scaler.json").symlink_to(folder / "elsewhere.json")


def listed_outside(folder):
    head = json.loads((folder / "release.json").read_text())
    head["files"] = {"../scaler.json": "ab"}
    (folder / "release.json").write_text(json.dumps(head))


def no_table(folder):
    head = json.loads((folder / "release.json").read_text())
    head["files"] = ["scaler.json"]
    (folder / "release.json").write_text(json.dumps(head))


def with_a_dot(folder):
    (folder / "code" / ".scaler.json").write_text("{}")


def in_a_cache(folder):
    (folder / "code" / "__pycache__").mkdir(exist_ok=True)
    (folder / "code" / "__pycache__" / "scaler.json").write_text("{}")


CHANGES = (
    changed,
    removed,
    more,
    hidden_in_a_folder,
    with_a_dot,
    in_a_cache,
    linked,
    listed_outside,
    no_table,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_whose_files_are_others_is_refused(change, live, source, tmp_path):
    live.save(tmp_path / "v1", files=scaler(source))
    (tmp_path / "v1" / "manifest.json").unlink()  # which would find each of them before
    before = digest_of(str(tmp_path / "v1"))
    change(tmp_path / "v1")
    refused(lambda: Release.load(tmp_path / "v1", device="cpu"), "files")
    assert change is linked or digest_of(str(tmp_path / "v1")) != before


def test_files_that_nobody_reads_may_lie_beside_the_code(live, source, tmp_path):
    live.save(tmp_path / "v1", files=scaler(source))
    (tmp_path / "v1" / "manifest.json").unlink()
    (tmp_path / "v1" / "code" / ".DS_Store").write_bytes(b"1")
    assert Release.load(tmp_path / "v1").fingerprint


def above(live, source, folder, place: str, mean: float):
    "A release that somebody wrote by hand: its code reads a scaler from above its own folder."
    live.save(folder, files=scaler(source))
    (folder / "manifest.json").unlink()
    (folder / "code" / "scaler.json").unlink()
    (folder / "scaler.json").write_text(json.dumps(dict(mean=[mean, 0.0], scale=[1.0, 2.0])))
    code = folder / "code" / f"{source.__name__}.py"
    code.write_text(SOURCE.replace('Path(__file__).with_name("scaler.json")', place))
    head = json.loads((folder / "release.json").read_text())
    head["code"], head["files"] = {source.__name__: digest_file(code)}, {}
    (folder / "release.json").write_text(json.dumps(head))
    return folder


def test_no_release_is_decided_with_the_scaler_of_another_one(live, source, rows, tmp_path):
    place = '(Path(__file__).parent.parent / "scaler.json")'
    named = above(live, source, tmp_path / "named", place, 0.5)
    error = refused(lambda: Release.load(named), "nothing counts", code=65)
    assert "with_name" in error.mend

    hidden = '(Path(__file__).parent.parent / ("sca" + "ler.json"))'  # which no list can find
    old, new = (above(live, source, tmp_path / f"v{x:g}", hidden, x) for x in (0, 1))
    decided = [Release.load(folder).run(rows) for folder in (old, new, old)]
    assert not torch.allclose(decided[0], decided[1]) and torch.equal(decided[0], decided[2])


def test_a_file_counts_in_the_fingerprint(live, source, tmp_path):
    first = live.save(tmp_path / "v1", files=scaler(source))
    text = (tmp_path / "src" / "scaler.json").read_text()
    (tmp_path / "src" / "scaler.json").write_text(text + " ")  # the same numbers
    second = live.save(tmp_path / "v2", files=scaler(source))
    assert first.fingerprint != second.fingerprint


# The same model, live and saved


def test_a_dictionary_of_a_live_module_is_that_of_the_saved_one(
    live, source, rows, tmp_path, recwarn
):
    dictionary = of_units(live, rows)
    saved = live.save(tmp_path / "v1", files=scaler(source))
    verify_canary(saved, dictionary)
    dictionary.save(tmp_path / "dictionary")
    Dictionary.load(tmp_path / "dictionary", release=saved)
    assert evaluate(saved, dictionary, rows) == evaluate(live, dictionary, rows)
    assert not [w for w in recwarn if "another release" in str(w.message)]

    back = of_units(saved, rows)  # and the other way
    verify_canary(live, back)
    assert saved.is_that_of(back.validity)


def test_what_weights_do_not_tell_is_found_by_measuring(live, source, rows, tmp_path):
    dictionary = of_units(live, rows)
    doubled = replace(live, decision=type(live.decision)(source.doubled))
    with_other_decision = doubled.save(tmp_path / "v2", files=scaler(source))
    error = refused(lambda: verify_canary(with_other_decision, dictionary), "decision differs")
    assert "save the live release with" in error.mend

    other = tmp_path / "other" / "scaler.json"
    other.parent.mkdir()
    other.write_text(json.dumps(dict(mean=[3.0, 0.0], scale=[1.0, 1.0])))
    with_other_inputs = live.save(tmp_path / "v3", files=[other])
    refused(lambda: verify_canary(with_other_inputs, dictionary), "layers.1:out differs")


def test_two_folders_are_the_same_by_their_whole_fingerprint_alone(live, source, rows, tmp_path):
    one = live.save(tmp_path / "v1", files=scaler(source))
    doubled = replace(live, decision=type(live.decision)(source.doubled))
    two = doubled.save(tmp_path / "v2", files=scaler(source))
    refused(lambda: verify_canary(two, of_units(one, rows)), "a dictionary made for 'v1'")


def test_other_weights_are_another_model(live, source, rows, tmp_path):
    dictionary = of_units(live, rows)
    with torch.no_grad():
        live.model.layers[2].bias.add_(1e-6)
    moved = Release.from_module(live.model, source.inputs, source.decision, name="v1")
    saved = moved.save(tmp_path / "v1", files=scaler(source))
    refused(lambda: verify_canary(saved, dictionary), "made for 'v1'")
    refused(lambda: verify_canary(moved, dictionary), "made for 'v1'")


def test_a_model_of_transformers_is_the_same_one_saved(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = dict(vocab_size=20, hidden_size=16, intermediate_size=32, num_attention_heads=2)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**small, num_hidden_layers=2, tie_word_embeddings=True))
    decision = dict(kind="logit_difference", positive=4, negative=3)
    live = Release.from_module(model, dict(kind="tokens", bos=1), decision, name="v1")
    assert live.save(tmp_path / "v1").is_that_of(dict(fingerprint=live.fingerprint))
