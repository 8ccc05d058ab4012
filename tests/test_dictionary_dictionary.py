"Dictionaries: reading and writing by hand, names, folders that are whole or refused."

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import refused

from interpkit.core.artefacts import write_manifest
from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.core.files import write_json
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import TENSORS, SiteWeights, unit_rows
from interpkit.model.sites import Site
from interpkit.sparse.codes import SparseCodes

A = Site("a")
B = Site("b", "in")


def weights(d=3, F=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return SiteWeights(
        torch.randn(d, F, generator=g),
        torch.randn(F, generator=g),
        torch.rand(F, generator=g),
        torch.randn(F, d, generator=g),
        torch.randn(d, generator=g),
    )


def two_sites(labels=()):
    return Dictionary(
        (A, B),
        (weights(3, 5), weights(4, 2, 1)),
        labels,
        dict(seed=3),
        dict(release="v1"),
        {"decision": torch.arange(3.0)},
    )


def test_encode_and_decode_by_hand():
    w = SiteWeights(
        torch.tensor([[1.0, 2.0], [0.0, -1.0]]),
        torch.tensor([0.5, 0.0]),
        torch.tensor([1.5, 0.0]),
        torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        torch.tensor([10.0, 20.0]),
    )
    codes = w.encode(torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    assert codes.tolist() == [
        [2.5, 3.0],
        [0.0, 0.0],
    ]  # 1.5 is not above its threshold of 1.5; -1 is not above 0
    assert w.decode(codes)[0].tolist() == pytest.approx([10 + 2.5 + 1.8, 20 + 2.4])
    assert w.decode(codes)[1].tolist() == [10.0, 20.0]


def test_threshold_is_strictly_above():
    w = SiteWeights(torch.eye(1), torch.zeros(1), torch.tensor([0.5]), torch.eye(1), torch.zeros(1))
    just = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    assert w.encode(torch.tensor([[0.5], [float(just)]])).flatten().tolist() == [0.0, float(just)]


def test_encode_lets_nan_through():
    assert weights().encode(torch.full((1, 3), float("nan"))).isnan().all()


def test_unit_rows_keep_the_function_and_what_is_active():
    w = replace(
        weights(),
        W_dec=torch.cat(
            [
                weights().W_dec[:4, 0] * torch.tensor([[0.1], [7.0], [1.0], [30.0]]),
                torch.zeros(1, 3),
            ]
        ),
    )
    u = unit_rows(w)
    acts = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(u.decode(u.encode(acts)), w.decode(w.encode(acts)), atol=1e-4)
    assert torch.allclose(u.W_dec[:, 0].norm(dim=1), torch.tensor([1.0, 1, 1, 1, 0]))
    assert ((u.encode(acts) > 0) == (w.encode(acts) > 0)).all()


def test_features_are_numbered_over_all_sites():
    d = two_sites()
    assert d.n_features == 7
    assert d.offsets == {A: 0, B: 5}
    assert [d.locate(f) for f in (0, 4, 5, 6)] == [(A, 0), (A, 4), (B, 0), (B, 1)]
    for f in (-1, 7):
        with pytest.raises(InterpkitError):
            d.locate(f)
    h = torch.randn(2, 4)
    assert torch.equal(
        d.forward({A: torch.randn(2, 3), B: h})[B], d.weights[1].decode(d.weights[1].encode(h))
    )
    with pytest.raises(InterpkitError, match="a:out, b:in"):
        d.at(Site("c"))


def test_names_are_one_a_feature():
    assert two_sites(tuple("abcdefg")).names == tuple("abcdefg")
    assert two_sites(("a", "b", "a", "", "c: d", " ", "e")).names == (
        "a (feature 0)",
        "b",
        "a (feature 2)",
        "(feature 3)",
        "c: d",
        "(feature 5)",
        "e",
    )
    sly = two_sites(("a", "a", "a (feature 0)", "b", "c", "d", "e")).names
    assert len(set(sly)) == 7


@pytest.mark.parametrize(
    "broken",
    [
        dict(labels=("one",)),
        dict(sites=(A,)),
        dict(sites=(A, A)),
        dict(weights=(weights(), replace(weights(4, 2), threshold=torch.tensor([0.1, -0.1])))),
        dict(
            weights=(weights(), replace(weights(4, 2), threshold=torch.tensor([0.1, float("nan")])))
        ),
    ],
)
def test_what_is_no_dictionary_is_refused(broken):
    with pytest.raises(InterpkitError) as e:
        Dictionary(**dict(sites=(A, B), weights=(weights(), weights(4, 2))) | broken)
    assert e.value.code == 65


def test_fingerprint_is_of_what_it_computes():
    d = two_sites()
    assert (
        d.fingerprint == replace(two_sites(tuple("abcdefg")), training={}, validity={}).fingerprint
    )
    for n in TENSORS:
        w = replace(d.weights[1], **{n: getattr(d.weights[1], n) + 1e-3})
        assert replace(d, weights=(d.weights[0], w)).fingerprint != d.fingerprint
    assert replace(d, sites=(A, Site("b", "out")), targets=()).fingerprint != d.fingerprint


def test_to_the_same_device_is_the_same_object():
    d = two_sites()
    assert d.to("cpu") is d
    assert d.to(torch.device("cpu")) is d


# what is passed in


def acts_of(d, *lead):
    return {
        s: torch.randn(*lead, w.d, generator=torch.Generator().manual_seed(i))
        for i, (s, w) in enumerate(zip(d.sites, d.weights, strict=True))
    }


def clt(skip=False):
    made = [
        replace(
            weights(3, F, F), W_dec=torch.randn(F, T, 3), W_skip=torch.randn(3, 3) if skip else None
        )
        for F, T in ((5, 2), (2, 1))
    ]
    return Dictionary(("a:in", "b:in"), tuple(made), wiring="clt", targets=("a", "b"))


MASK = [True, False, True, False, False, False, True]


@pytest.mark.parametrize(
    "mask", [MASK, np.array(MASK), torch.tensor(MASK)], ids=["list", "array", "tensor"]
)
def test_a_mask_is_not_read_as_features_0_and_1(mask):
    said = str(refused(partial(two_sites().subset, mask)))
    assert "a mask of 7" in said
    assert "mask.nonzero()" in said
    for numbers in (
        torch.as_tensor(mask).nonzero(),
        torch.as_tensor(mask).numpy().nonzero(),
        {6, 0, 2},
        (n for n in (2, 0, 6, 2)),
    ):
        assert two_sites(tuple("abcdefg")).subset(numbers).labels == ("a", "c", "g")


@pytest.mark.parametrize(
    "features", [[1.7], [2.0], "12", ["1"], torch.tensor([1.0]), np.array([1.5]), None], ids=str
)
def test_a_subset_is_of_whole_numbers(features):
    refused(partial(two_sites().subset, features), "whole numbers of features")


@pytest.mark.parametrize(
    "where",
    [
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
        "float16",
        None,
        "nowhere",
        "meta",
        *([] if torch.cuda.is_available() else ["cuda"]),
    ],
    ids=str,
)
def test_weights_are_floating_on_a_device_that_exists(where):
    said = str(refused(partial(two_sites().to, where), repr(where), code=ExitCode.BAD_PARAMETERS))
    assert "torch.float16" in said


def test_to_a_floating_dtype():
    d = two_sites()
    for t in (torch.float64, torch.bfloat16, torch.float16):
        assert {getattr(w, n).dtype for w in d.to(t).weights for n in TENSORS} == {t}
    assert d.to(torch.float64).to(torch.float32).fingerprint == d.fingerprint


def test_sites_may_be_text():
    d = two_sites()
    t = Dictionary(["a:out", "b:in"], two_sites().weights)
    assert t.sites == t.targets == (A, B)
    assert t.fingerprint == d.fingerprint
    assert clt().targets == (A, Site("b"))
    h = acts_of(d, 4)
    assert d.at("a") is d.at(A)
    assert list(d.writes("b:in")) == [B]
    assert torch.equal(d.encode("b:in", h[B]).dense(), d.encode(B, h[B]).dense())
    by_text = d.decode({str(s): d.encode(s, x) for s, x in h.items()})
    for s, x in d.decode({s: d.encode(s, x) for s, x in h.items()}).items():
        assert torch.equal(by_text[s], x)
    for s, x in d.forward(h).items():
        assert torch.equal(d.forward({str(k): v for k, v in h.items()})[s], x)
    assert torch.equal(d.written("a", {"a": d.at(A).encode(h[A])}), d.forward(h)[A])


@pytest.mark.parametrize("site", [3, None, b"a:out", ("a", "out")], ids=str)
def test_what_is_no_site_is_refused_where_it_comes_in(site):
    for function in (
        lambda: Dictionary((site,), (weights(),)),
        lambda: Dictionary(("a:in",), (weights(),), wiring="transcoder", targets=(site,)),
        lambda: two_sites().at(site),
        lambda: two_sites().encode(site, torch.ones(1, 3)),
    ):
        refused(function, "a site, or its text", code=ExitCode.BAD_PARAMETERS)
    refused(partial(Dictionary, ("a:sideways",), (weights(),)), code=ExitCode.BAD_PARAMETERS)


def test_an_unknown_site_gives_one_error_everywhere():
    d = two_sites()
    x = torch.ones(1, 3)
    for site in (Site("c"), "c:out"):
        for call in (partial(d.at, site), partial(d.writes, site), partial(d.encode, site, x)):
            assert str(refused(call)).startswith(
                "asked: a site of this dictionary: a:out, b:in\ngiven: c:out"
            )
        refused(partial(d.written, site, {}), "a target of this dictionary: a:out, b:in")


def test_activations_are_a_tensor():
    d = two_sites()
    for x in (np.ones((2, 3), dtype="float32"), [[1.0, 2.0, 3.0]], None):
        refused(partial(d.encode, A, x), "a tensor [..., 3]")
        refused(partial(d.at(A).encode, x), "a tensor [..., 3]")


def test_codes_and_activations_are_of_all_sources():
    d = two_sites()
    h = acts_of(d, 4)
    sparse = {s: d.encode(s, x) for s, x in h.items()}
    dense = {s: d.at(s).encode(x) for s, x in h.items()}
    for codes in (sparse, dense):
        said = str(refused(partial(d.decode, {A: codes[A]}), "entries for a:out"))
        assert "each of a:out, b:in" in said
        refused(partial(d.decode, {}))
        refused(partial(d.decode, {A: codes[A], Site("c"): codes[B]}))
    refused(partial(d.decode, dense[A]), "Tensor")
    refused(partial(d.decode, sparse[A]), "SparseCodes")
    refused(partial(d.forward, h[A]), "Tensor")
    refused(partial(d.forward, {B: h[B]}), "entries for b:in")


def test_codes_fit_the_dictionary_and_each_other():
    d = two_sites()
    h = acts_of(d, 4)
    sparse = {s: d.encode(s, x) for s, x in h.items()}
    dense = {s: d.at(s).encode(x) for s, x in h.items()}
    refused(
        partial(d.decode, {A: sparse[A], B: dense[B]}),
        "a:out SparseCodes [4, 5], b:in dense [4, 2]",
    )
    refused(partial(d.decode, {A: dense[A].numpy(), B: dense[B]}), "ndarray [4, 5]")
    for codes in (sparse, dense):
        said = str(refused(partial(d.decode, {A: codes[B], B: codes[B]}), "[4, 2]"))
        assert "a:out [..., 5]" in said
    for codes in (sparse, dense):
        wanted = d.at(A).decode(d.at(A).encode(h[A]))
        assert torch.allclose(d.written(A, codes), wanted, atol=1e-6)
    one = clt()  # both sources write to its last target
    read = {s: torch.ones(4, 3) for s in one.sites}
    last, (first, second) = one.targets[-1], one.sites
    mixed = {first: one.encode(first, read[first]), second: one.at(second).encode(read[second])}
    refused(partial(one.written, last, mixed), "all SparseCodes")


@pytest.mark.parametrize("sparse", [True, False])
def test_sources_of_one_target_have_the_same_tokens(sparse):
    d = clt()

    def codes(*leads):
        acts = {s: torch.ones(*lead, 3) for s, lead in zip(d.sites, leads, strict=True)}
        if sparse:
            return {s: d.encode(s, h) for s, h in acts.items()}
        return {s: d.at(s).encode(h) for s, h in acts.items()}

    assert d.decode(codes((2, 4), (2, 4)))[A].shape == (2, 4, 3)
    for leads in (((4,), (2,)), ((4,), (1,)), ((2, 4), (4,))):
        refused(partial(d.decode, codes(*leads)), f"{[*leads[1], 2]}")
    apart = two_sites()  # here each writes to a target of its own
    made = apart.decode(
        {
            s: SparseCodes.from_dense(c) if sparse else c
            for s, c in {A: torch.ones(4, 5), B: torch.ones(2, 6, 2)}.items()
        }
    )
    assert made[A].shape == (4, 3)
    assert made[B].shape == (2, 6, 4)


@pytest.mark.parametrize("sparse", [True, False])
def test_a_skip_needs_activations_of_the_same_tokens(sparse):
    d = clt(skip=True)
    h = acts_of(d, 4)
    codes = {s: d.encode(s, x) if sparse else d.at(s).encode(x) for s, x in h.items()}
    for t, x in d.decode(codes, h).items():
        assert torch.allclose(x, d.forward(h)[t], atol=1e-5)
    refused(partial(d.decode, codes), "which a skip reads")
    refused(partial(d.decode, codes, h[d.sites[0]]), "which a skip reads")
    for bad in (h[d.sites[0]][:1], h[d.sites[0]][:, :2], h[d.sites[0]].numpy()):
        refused(partial(d.decode, codes, h | {d.sites[0]: bad}), "activations a:in")


def test_decode_takes_what_encode_returns():
    d = two_sites()
    h = acts_of(d, 4)
    codes = d.encode(h)
    assert list(codes) == [A, B]
    for s, x in h.items():
        assert torch.equal(codes[s].dense(), d.encode(s, x).dense())
    for t, made in d.decode(codes).items():
        assert torch.allclose(made, d.forward(h)[t], atol=1e-6)
    by_text = d.encode({str(s): x for s, x in h.items()})
    assert torch.equal(by_text[B].dense(), codes[B].dense())
    refused(partial(d.encode, {A: h[A]}), "entries for a:out")
    refused(partial(d.encode, h, h[A]), "a site, or its text", code=ExitCode.BAD_PARAMETERS)


def test_codes_of_one_source_need_no_dict():
    d = Dictionary((A,), (weights(),))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(d.decode(d.encode(A, x))[A], d.forward({A: x})[A], atol=1e-6)
    assert torch.equal(d.decode(d.at(A).encode(x))[A], d.forward({A: x})[A])


# folders


def test_save_and_load_round_trip(tmp_path):
    d = two_sites(("a", "é", "x: y", "", "b", "c", "a"))
    d.save(tmp_path / "d")
    e = Dictionary.load(tmp_path / "d")
    for a, b in zip(d.weights, e.weights, strict=True):
        for n in TENSORS:
            assert torch.equal(getattr(a, n), getattr(b, n)), n
    assert (e.sites, e.labels, e.training, e.validity, e.fingerprint) == (
        d.sites,
        d.labels,
        d.training,
        d.validity,
        d.fingerprint,
    )
    assert torch.equal(e.canary["decision"], d.canary["decision"])
    from safetensors.torch import load_file

    assert load_file(tmp_path / "d" / "weights.safetensors")["W_dec_0"].shape == (
        5,
        1,
        3,
    )  # [F, targets, d], as DESIGN says


def test_weights_that_share_memory_are_saved(tmp_path):
    eye = torch.eye(2)
    zero = torch.zeros(2)
    Dictionary((A,), (SiteWeights(eye, zero, zero, eye, zero),)).save(tmp_path / "d")
    assert torch.equal(Dictionary.load(tmp_path / "d").weights[0].W_dec[:, 0], eye)


@pytest.mark.parametrize(
    "file", ["weights.safetensors", "dictionary.json", "validity.json", "canary.safetensors"]
)
def test_a_changed_byte_and_a_cut_file_are_refused(tmp_path, file):
    two_sites().save(tmp_path / "d")
    path = tmp_path / "d" / file
    whole = path.read_bytes()
    for bad in (whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], whole[: len(whole) // 2], b""):
        path.write_bytes(bad)
        with pytest.raises(InterpkitError, match=file) as e:
            Dictionary.load(tmp_path / "d")
        assert e.value.code == 65
    path.write_bytes(whole)
    Dictionary.load(tmp_path / "d")
    path.unlink()
    with pytest.raises(InterpkitError, match="missing"):
        Dictionary.load(tmp_path / "d")


@pytest.mark.parametrize("change", [dict(format=2), dict(wiring="mesh"), dict(format=None)])
def test_another_format_is_refused_though_its_digests_hold(tmp_path, change):
    two_sites().save(tmp_path / "d")
    file = tmp_path / "d" / "dictionary.json"
    write_json(file, json.loads(file.read_text()) | change)
    write_manifest(tmp_path / "d", "dictionary")
    with pytest.raises(InterpkitError, match="format 1") as e:
        Dictionary.load(tmp_path / "d")
    assert e.value.code == 65


def test_a_folder_of_another_kind_is_refused_and_none_is_overwritten(tmp_path):
    two_sites().save(tmp_path / "d")
    with pytest.raises(InterpkitError, match="exists"):
        two_sites().save(tmp_path / "d")
    two_sites(tuple("abcdefg")).save(tmp_path / "d", overwrite=True)
    assert Dictionary.load(tmp_path / "d").labels == tuple("abcdefg")
    write_manifest(tmp_path / "d", "release")
    with pytest.raises(InterpkitError, match="a release folder"):
        Dictionary.load(tmp_path / "d")


def redigested(folder, file, change):
    "A folder whose manifest is right, though a file was changed."
    path = folder / file
    if file.endswith(".json"):
        write_json(path, change(json.loads(path.read_text())))
    else:
        path.write_bytes(change(path.read_bytes()))
    write_manifest(folder, "dictionary")
    return str(refused(partial(Dictionary.load, folder)))


def without(*names):
    return lambda head: {n: v for n, v in head.items() if n not in names}


@pytest.mark.parametrize("key", ["sites", "training", "labels"])
def test_a_head_that_lacks_something_is_refused_though_its_digests_hold(tmp_path, key):
    two_sites().save(tmp_path / "d")
    said = redigested(tmp_path / "d", "dictionary.json", without(key))
    assert "dictionary.json" in said
    assert f"given: no {key}\n" in said


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda head: head | dict(sites=3), "sites is of type int"),
        (lambda head: head | dict(training=None), "training is of type NoneType"),
        (lambda head: [head], "a list"),
    ],
)
def test_a_head_of_other_types_is_refused(tmp_path, change, what):
    two_sites().save(tmp_path / "d")
    assert "dictionary.json" in (said := redigested(tmp_path / "d", "dictionary.json", change))
    assert what in said


def test_only_an_autoencoder_is_read_without_targets(tmp_path):
    clt().save(tmp_path / "c")
    two_sites().save(tmp_path / "d")
    assert "given: no targets" in redigested(tmp_path / "c", "dictionary.json", without("targets"))
    file = tmp_path / "d" / "dictionary.json"
    write_json(file, without("targets")(json.loads(file.read_text())))
    write_manifest(tmp_path / "d", "dictionary")
    assert Dictionary.load(tmp_path / "d").targets == (A, B)  # as older folders are


@pytest.mark.parametrize("file", ["weights.safetensors", "canary.safetensors"])
@pytest.mark.parametrize("left", [0, 5, 40, -8])
def test_cut_tensors_are_refused_though_their_digests_hold(tmp_path, file, left):
    two_sites().save(tmp_path / "d")
    assert file in redigested(tmp_path / "d", file, lambda data: data[:left])


def test_a_tensor_that_is_missing_is_named_though_the_digests_hold(tmp_path):
    from safetensors.torch import load, save

    def lacking(name, data):
        return save({n: t for n, t in load(data).items() if n != name})

    d = replace(two_sites(), canary={"codes a:out": torch.eye(5)})
    for file, name in [("weights.safetensors", f"{n}_1") for n in TENSORS] + [
        ("canary.safetensors", "codes a:out indices")
    ]:
        d.save(tmp_path / "d", overwrite=True)
        said = redigested(
            tmp_path / "d",
            file,
            partial(lacking, name),
        )
        assert file in said
        assert f"given: no {name}\n" in said
    d.save(tmp_path / "d", overwrite=True)
    (tmp_path / "d" / "weights.safetensors").unlink()
    write_manifest(tmp_path / "d", "dictionary")
    refused(partial(Dictionary.load, tmp_path / "d"), "weights.safetensors")


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("shape", [(-1,), (1, 1, 1, -1), (0, 3), ()])
def test_weights_of_any_other_shape_are_refused(name, shape):
    "Three dimensions too many, one, none: nothing unpacks what it did not look at."
    w = two_sites().weights[0]
    t = getattr(w, name)
    other = t.new_zeros(0, 3) if shape == (0, 3) else t.reshape(shape) if shape else t.sum()
    if other.shape != t.shape:
        refused(lambda: replace(w, **{name: other}), name)
    refused(lambda: SiteWeights(*[getattr(w, n).to(torch.int64) for n in TENSORS]), "floating")


ASTRAY = {  # what native code would follow to where nothing is
    "tokens that go on beyond": dict(tokens=[0, 1, 2, 9]),
    "tokens that go back": dict(tokens=[0, 3, 1, 3]),
    "tokens below zero": dict(tokens=[-4, 1, 2, 3]),
    "tokens that begin late": dict(tokens=[1, 1, 2, 3]),
    "too few tokens": dict(tokens=[0, 3]),
    "no tokens": dict(tokens=[]),
    "huge tokens": dict(tokens=[0, 1, 2, 2**62]),
    "tokens of fractions": dict(tokens=[0.0, 1.0, 2.0, 3.0]),
    "tokens in a square": dict(tokens=[[0, 1], [2, 3]]),
    "features beyond": dict(indices=[0, 1, 3]),
    "features below zero": dict(indices=[0, -1, 2]),
    "too few features": dict(indices=[0, 1]),
    "too many values": dict(values=[1.0] * 9),
    "values of whole numbers": dict(values=[1, 1, 1]),
    "a huge shape": dict(shape=[3, 2**40]),
    "a shape below zero": dict(shape=[-3, -3]),
    "a shape of other tokens": dict(shape=[2**40, 3]),
    "no shape": dict(shape=[]),
}


@pytest.mark.parametrize("damage", ASTRAY)
def test_sparse_codes_that_lead_astray_are_refused_though_their_digests_hold(tmp_path, damage):
    from safetensors.torch import load, save

    changed = {f"codes a:out {part}": torch.tensor(x) for part, x in ASTRAY[damage].items()}
    d = replace(two_sites(), canary={"codes a:out": torch.eye(3)})
    d.save(tmp_path / "d")
    assert torch.equal(Dictionary.load(tmp_path / "d").canary["codes a:out"], torch.eye(3))
    said = redigested(tmp_path / "d", "canary.safetensors", lambda data: save(load(data) | changed))
    assert "sparse codes as 'codes a:out'" in said


def test_codes_of_anybody_do_not_lead_out_of_memory():
    codes = SparseCodes.from_dense(torch.eye(3))
    for tokens in ([0, 1, 2, 9], [0, 3, 1, 3], [0, 0, 0, 2**20]):
        odd = replace(codes, tokens=torch.tensor(tokens))
        assert odd.wrong()
        with pytest.raises((RuntimeError, IndexError)):
            odd.dense()


def test_a_place_that_cannot_be_written_gives_the_error_of_storage(tmp_path):
    from pathlib import Path

    if Path("/proc/self").exists():
        refused(
            partial(two_sites().save, "/proc/foo"),
            "a place that can be written to",
            code=ExitCode.BAD_PARAMETERS,
        )
    refused(
        partial(two_sites().save, tmp_path / ("x" * 300)),
        "a place that can be written to",
        code=ExitCode.BAD_PARAMETERS,
    )
