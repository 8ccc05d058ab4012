"Dictionaries: reading and writing by hand, names, folders that are whole or refused."
import json
from dataclasses import replace

import pytest
import torch

from interpkit.core.artefacts import write_json, write_manifest
from interpkit.core.errors import InterpkitError
from interpkit.dictionary.sparse import TENSORS, Dictionary, SiteWeights, unit_rows
from interpkit.model.sites import Site

A, B = Site("a"), Site("b", "in")

def weights(d=3, F=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SiteWeights(torch.randn(d, F, generator=g), torch.randn(F, generator=g), torch.rand(F, generator=g), torch.randn(F, d, generator=g), torch.randn(d, generator=g))

def two_sites(labels=()): return Dictionary((A, B), (weights(3, 5), weights(4, 2, 1)), labels, dict(seed=3), dict(release="v1"), {"decision": torch.arange(3.0)})

def test_encode_and_decode_by_hand():
    w = SiteWeights(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0]), torch.tensor([1.5, 0.0]), torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([10.0, 20.0]))
    codes = w.encode(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    assert codes.tolist() == [[2.5, 3.0], [0.0, 0.0]]  # 1.5 is not above its threshold of 1.5; -1 is not above 0
    assert w.decode(codes)[0].tolist() == pytest.approx([10 + 2.5 + 1.8, 20 + 2.4]) and w.decode(codes)[1].tolist() == [10.0, 20.0]

def test_threshold_is_strictly_above():
    w = SiteWeights(torch.eye(1), torch.zeros(1), torch.tensor([0.5]), torch.eye(1), torch.zeros(1))
    just = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    assert w.encode(torch.tensor([[0.5], [float(just)]])).flatten().tolist() == [0.0, float(just)]

def test_encode_lets_nan_through():
    assert weights().encode(torch.full((1, 3), float("nan"))).isnan().all()

def test_unit_rows_keep_the_function_and_what_is_active():
    w = replace(weights(), W_dec=torch.cat([weights().W_dec[:4, 0] * torch.tensor([[0.1], [7.0], [1.0], [30.0]]), torch.zeros(1, 3)]))
    u, acts = unit_rows(w), torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(u.decode(u.encode(acts)), w.decode(w.encode(acts)), atol=1e-4)
    assert torch.allclose(u.W_dec[:, 0].norm(dim=1), torch.tensor([1.0, 1, 1, 1, 0])) and ((u.encode(acts) > 0) == (w.encode(acts) > 0)).all()

def test_features_are_numbered_over_all_sites():
    d = two_sites()
    assert d.n_features == 7 and d.offsets == {A: 0, B: 5} and [d.locate(f) for f in (0, 4, 5, 6)] == [(A, 0), (A, 4), (B, 0), (B, 1)]
    for f in (-1, 7):
        with pytest.raises(InterpkitError): d.locate(f)
    h = torch.randn(2, 4)
    assert torch.equal(d.forward({A: torch.randn(2, 3), B: h})[B], d.weights[1].decode(d.weights[1].encode(h)))
    with pytest.raises(InterpkitError, match="a:out, b:in"): d.at(Site("c"))

def test_names_are_one_a_feature():
    assert two_sites(tuple("abcdefg")).names == tuple("abcdefg")
    assert two_sites(("a", "b", "a", "", "c: d", " ", "e")).names == ("a (feature 0)", "b", "a (feature 2)", "(feature 3)", "c: d", "(feature 5)", "e")
    sly = two_sites(("a", "a", "a (feature 0)", "b", "c", "d", "e")).names
    assert len(set(sly)) == 7

@pytest.mark.parametrize("broken", [dict(labels=("one",)), dict(sites=(A,)), dict(sites=(A, A)), dict(weights=(weights(), replace(weights(4, 2), threshold=torch.tensor([0.1, -0.1])))), dict(weights=(weights(), replace(weights(4, 2), threshold=torch.tensor([0.1, float("nan")]))))])
def test_what_is_no_dictionary_is_refused(broken):
    with pytest.raises(InterpkitError) as e: Dictionary(**dict(sites=(A, B), weights=(weights(), weights(4, 2))) | broken)
    assert e.value.code == 65

def test_fingerprint_is_of_what_it_computes():
    d = two_sites()
    assert d.fingerprint == replace(two_sites(tuple("abcdefg")), training={}, validity={}).fingerprint
    for n in TENSORS:
        w = replace(d.weights[1], **{n: getattr(d.weights[1], n) + 1e-3})
        assert replace(d, weights=(d.weights[0], w)).fingerprint != d.fingerprint
    assert replace(d, sites=(A, Site("b", "out")), targets=()).fingerprint != d.fingerprint

def test_to_the_same_device_is_the_same_object():
    d = two_sites()
    assert d.to("cpu") is d and d.to(torch.device("cpu")) is d

# folders

def test_save_and_load_round_trip(tmp_path):
    d = two_sites(("a", "é", "x: y", "", "b", "c", "a"))
    d.save(tmp_path / "d")
    e = Dictionary.load(tmp_path / "d")
    for a, b in zip(d.weights, e.weights):
        for n in TENSORS: assert torch.equal(getattr(a, n), getattr(b, n)), n
    assert (e.sites, e.labels, e.training, e.validity, e.fingerprint) == (d.sites, d.labels, d.training, d.validity, d.fingerprint) and torch.equal(e.canary["decision"], d.canary["decision"])
    from safetensors.torch import load_file
    assert load_file(tmp_path / "d" / "weights.safetensors")["W_dec_0"].shape == (5, 1, 3)  # [F, targets, d], as DESIGN says

def test_weights_that_share_memory_are_saved(tmp_path):
    eye, zero = torch.eye(2), torch.zeros(2)
    Dictionary((A,), (SiteWeights(eye, zero, zero, eye, zero),)).save(tmp_path / "d")
    assert torch.equal(Dictionary.load(tmp_path / "d").weights[0].W_dec[:, 0], eye)

@pytest.mark.parametrize("file", ["weights.safetensors", "dictionary.json", "validity.json", "canary.safetensors"])
def test_a_changed_byte_and_a_cut_file_are_refused(tmp_path, file):
    two_sites().save(tmp_path / "d")
    path = tmp_path / "d" / file
    whole = path.read_bytes()
    for bad in (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], whole[:len(whole) // 2], b""):
        path.write_bytes(bad)
        with pytest.raises(InterpkitError, match=file) as e: Dictionary.load(tmp_path / "d")
        assert e.value.code == 65
    path.write_bytes(whole); Dictionary.load(tmp_path / "d")
    path.unlink()
    with pytest.raises(InterpkitError, match="missing"): Dictionary.load(tmp_path / "d")

@pytest.mark.parametrize("change", [dict(format=2), dict(wiring="mesh"), dict(format=None)])
def test_another_format_is_refused_though_its_digests_hold(tmp_path, change):
    two_sites().save(tmp_path / "d")
    file = tmp_path / "d" / "dictionary.json"
    write_json(file, json.loads(file.read_text()) | change)
    write_manifest(tmp_path / "d", "dictionary")
    with pytest.raises(InterpkitError, match="format 1") as e: Dictionary.load(tmp_path / "d")
    assert e.value.code == 65

def test_a_folder_of_another_kind_is_refused_and_none_is_overwritten(tmp_path):
    two_sites().save(tmp_path / "d")
    with pytest.raises(InterpkitError, match="exists"): two_sites().save(tmp_path / "d")
    two_sites(tuple("abcdefg")).save(tmp_path / "d", overwrite=True)
    assert Dictionary.load(tmp_path / "d").labels == tuple("abcdefg")
    write_manifest(tmp_path / "d", "release")
    with pytest.raises(InterpkitError, match="a release folder"): Dictionary.load(tmp_path / "d")
