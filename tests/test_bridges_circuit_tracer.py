"circuit-tracer's folders: a loader written from the format alone computes the same."

import pickle
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers import refused
from safetensors.torch import load_file, save_file
from small_language import BOS, NO, PAD, YES, D, V, world

from interpkit.bridges.circuit_tracer import to_circuit_tracer
from interpkit.bridges.from_circuit_tracer import from_circuit_tracer
from interpkit.core.digests import digest_file
from interpkit.core.files import read_json
from interpkit.dictionary.checks import check_dictionary
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.evaluate import evaluate
from interpkit.dictionary.validity import verify_canary
from interpkit.dictionary.weights import SiteWeights, unit_rows
from interpkit.model.capture import capture
from interpkit.model.releases import Release
from interpkit.model.sites import Site, find_module

L, F = 4, 12  # layers of the small model, features of each
MID = "model.layers.{}.post_attention_layernorm:in"
IN = "model.layers.{}.mlp:in"
PRE = "model.layers.{}:in"
OUT = "model.layers.{}.mlp:out"


def at(name, n=L):
    return tuple(Site.parse(name.format(i)) for i in range(n))


def rows():
    return world(60).rows


def read(folder, rows_=None):
    return from_circuit_tracer(folder, world().old, rows() if rows_ is None else rows_)


def acts(n=L, seed=0):
    return torch.randn(n, 300, D, generator=torch.Generator().manual_seed(seed))


def random(g, F, targets, d=D, skip=False, spread=1.0):
    "Weights whose every bias, threshold and length matters."

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    return SiteWeights(
        draw(d, F) * 0.4,
        draw(F) * 0.3,
        torch.rand(F, generator=g) * 0.5,
        draw(F, targets, d) * spread,
        draw(d),
        draw(d, d) * 0.2 if skip else None,
    )


@lru_cache
def made(wiring="clt", tied=False, skips=(), source=MID, n=L, unit=True, seed=0) -> Dictionary:
    "A dictionary over all layers with weights at random."
    g = torch.Generator().manual_seed(seed)
    weights = []
    for i in range(n):
        targets = n - i if wiring == "clt" and not tied else 1
        drawn = random(g, F, targets, skip=i in skips)
        weights.append(unit_rows(drawn) if unit else drawn)
    return Dictionary(
        at(source, n),
        tuple(weights),
        wiring=wiring,
        targets=at(OUT, n),
        validity=dict(release="v1"),
    )


# A loader from the format alone: torch, safetensors, yaml

NEEDED = {"W_enc", "W_dec", "b_enc", "b_dec"}
KNOWN = NEEDED | {"activation_function.threshold", "W_skip"}


class Theirs:
    """What circuit-tracer's own loaders read, and what its models compute from it.

    Anything that they would stop at stops here.
    """

    def __init__(self, folder):
        folder = Path(folder)
        self.config = yaml.safe_load((folder / "config.yaml").read_text())
        self.read = self.config["feature_input_hook"]
        self.write = self.config["feature_output_hook"]
        self.kind = self.config["model_kind"]
        loaders = dict(cross_layer_transcoder=self.clt, transcoder_set=self.set)
        self.layers = loaders[self.kind](folder)

    def clt(self, folder):
        layers = []
        n = len(list(folder.glob("W_enc_*.safetensors")))
        first = load_file(folder / "W_enc_0.safetensors")
        jump = "threshold_0" in first
        F, d = first["W_enc_0"].shape
        for i in range(n):
            t = load_file(folder / f"W_enc_{i}.safetensors")
            dec = load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"]
            layer = SimpleNamespace(
                W=t[f"W_enc_{i}"],
                b=t[f"b_enc_{i}"],
                threshold=t[f"threshold_{i}"] if jump else None,
                out=t[f"b_dec_{i}"],
                dec=dec,
                skip=None,
            )
            assert layer.W.shape == (F, d)
            assert dec.shape == (F, n - i, d)
            assert layer.b.shape == (F,)
            assert layer.out.shape == (d,)
            assert not jump or layer.threshold.shape == (F,)
            layers.append(layer)
        return layers

    def set(self, folder):
        layers = []
        for i in range(len(list(folder.glob("layer_*.safetensors")))):
            t = load_file(folder / f"layer_{i}.safetensors")
            F = len(t["b_enc"])
            d = len(t["b_dec"])
            assert NEEDED <= set(t) <= KNOWN
            assert t["W_enc"].shape == t["W_dec"].shape == (F, d)
            assert t.get("W_skip", torch.zeros(d, d)).shape == (d, d)
            layer = SimpleNamespace(
                W=t["W_enc"],
                b=t["b_enc"],
                threshold=t.get("activation_function.threshold"),
                out=t["b_dec"],
                dec=t["W_dec"][:, None],
                skip=t.get("W_skip"),
            )
            layers.append(layer)
        assert len({len(layer.b) for layer in layers}) == 1
        assert len({layer.skip is None for layer in layers}) == 1
        return layers

    def encode(self, x):  # [layers, tok, d] -> [layers, tok, F]
        codes = []
        for h, layer in zip(x, self.layers, strict=True):
            z = torch.einsum("td,fd->tf", h, layer.W.float()) + layer.b.float()
            if layer.threshold is None:
                codes.append(torch.relu(z))
            else:
                codes.append(torch.where(z > layer.threshold.float(), z, 0.0))
        return torch.stack(codes)

    def forward(self, x):  # [layers, tok, d] -> [layers, tok, d]
        codes = self.encode(x)
        y = torch.stack([layer.out.float().expand(x.shape[1:]) for layer in self.layers]).clone()
        for i, layer in enumerate(self.layers):
            for k in range(layer.dec.shape[1]):
                y[i + k] += torch.einsum("tf,fd->td", codes[i], layer.dec[:, k].float())
            if layer.skip is not None:
                y[i] += torch.einsum("td,ed->te", x[i], layer.skip.float())
        return y


def same(theirs, dictionary, lengths=1.0, atol=1e-4, seed=0):
    "Codes (in units of the length of what they write) and what is written agree in every layer."
    x = acts(len(dictionary.sites), seed)
    by_site = dict(zip(dictionary.sites, x, strict=True))
    ours = dictionary.forward(by_site)
    codes = torch.stack([dictionary.at(s).encode(h) for s, h in by_site.items()])
    written = torch.stack([ours[t] for t in dictionary.targets])
    same_codes = torch.allclose(theirs.encode(x) * lengths, codes, atol=atol)
    same_output = torch.allclose(theirs.forward(x), written, atol=atol)
    some_on = bool((codes > 0).flatten(1).any(1).all())
    some_off = bool((codes == 0).flatten(1).any(1).all())
    return same_codes and same_output and some_on and some_off


def lengths(theirs):
    "Length of what each feature writes, [layers, 1, F]."
    rows = [layer.dec.float().flatten(1).norm(dim=1) for layer in theirs.layers]
    return torch.stack(rows)[:, None]


# Given away


def test_the_files_of_a_clt_are_those_of_the_format(tmp_path):
    folder = to_circuit_tracer(
        made(), tmp_path / "a", world().old, model_name="org/name", scan="org/scan"
    )
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [f"W_{x}_{i}.safetensors" for i in range(L) for x in ("enc", "dec")]
        + ["config.yaml", "manifest.json"]
    )
    for i, w in enumerate(made().weights):
        enc = load_file(folder / f"W_enc_{i}.safetensors")
        dec = load_file(folder / f"W_dec_{i}.safetensors")
        assert {n: (tuple(t.shape), t.dtype) for n, t in (enc | dec).items()} == {
            n: (s, torch.float32)
            for n, s in {
                f"W_enc_{i}": (F, D),
                f"b_enc_{i}": (F,),
                f"b_dec_{i}": (D,),
                f"threshold_{i}": (F,),
                f"W_dec_{i}": (F, L - i, D),
            }.items()
        }
        assert set(dec) == {f"W_dec_{i}"}
        assert torch.equal(dec[f"W_dec_{i}"], w.W_dec)
        assert torch.equal(enc[f"W_enc_{i}"].T, w.W_enc)
        assert torch.equal(enc[f"threshold_{i}"], w.threshold)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == dict(
        model_kind="cross_layer_transcoder",
        feature_input_hook="hook_resid_mid",
        feature_output_hook="hook_mlp_out",
        model_name="org/name",
        scan="org/scan",
    )
    assert read_json(folder / "manifest.json")["kind"] == "circuit-tracer"


@pytest.mark.parametrize("skips", [(), (0, 1, 2, 3), (2,)])
def test_the_files_of_a_set_are_those_of_the_format(tmp_path, skips):
    folder = to_circuit_tracer(made("per_layer", skips=skips), tmp_path / "name of the folder")
    assert sorted(p.name for p in folder.iterdir()) == ["config.yaml"] + [
        f"layer_{i}.safetensors" for i in range(L)
    ] + ["manifest.json"]
    wanted = (
        dict(W_enc=(F, D), b_enc=(F,), W_dec=(F, D), b_dec=(D,))
        | {"activation_function.threshold": (F,)}
        | (dict(W_skip=(D, D)) if skips else {})
    )
    for i, w in enumerate(made("per_layer", skips=skips).weights):
        t = load_file(folder / f"layer_{i}.safetensors")
        assert {n: (tuple(x.shape), x.dtype) for n, x in t.items()} == {
            n: (s, torch.float32) for n, s in wanted.items()
        }
        assert not skips or torch.equal(
            t["W_skip"].T, torch.zeros(D, D) if w.W_skip is None else w.W_skip
        )
    assert yaml.safe_load((folder / "config.yaml").read_text()) == dict(
        model_kind="transcoder_set",
        feature_input_hook="hook_resid_mid",
        feature_output_hook="hook_mlp_out",
        model_name="v1",
        scan="name of the folder",
    )


@pytest.mark.parametrize(
    "args",
    [
        dict(),
        dict(tied=True),
        dict(unit=False),
        dict(source=IN),
        dict(source=PRE, seed=3),
        dict(wiring="per_layer"),
        dict(wiring="per_layer", skips=(0, 1, 2, 3)),
        dict(wiring="per_layer", skips=(1,)),
        dict(wiring="transcoder", n=1),
        dict(wiring="transcoder", n=1, skips=(0,)),
        dict(n=1),
        dict(wiring="per_layer", tied=False, source=IN, unit=False),
    ],
    ids=str,
)
def test_a_loader_of_the_format_computes_the_same(tmp_path, args):
    theirs = Theirs(to_circuit_tracer(made(**args), tmp_path / "a"))
    assert same(theirs, made(**args))
    assert same(theirs, made(**args), seed=1)
    assert (theirs.read, theirs.write) == (
        {MID: "hook_resid_mid", IN: "mlp.hook_in", PRE: "hook_resid_pre"}[args.get("source", MID)],
        "hook_mlp_out",
    )


def test_that_loader_would_find_what_is_wrong(tmp_path):
    "A bias that moved, a decoder turned round, other thresholds: none of these goes by unseen."
    folder = to_circuit_tracer(made(), tmp_path / "a")
    for file, name, wrong in [
        ("W_enc_1", "b_enc_1", lambda t: t + 0.01),
        ("W_dec_1", "W_dec_1", lambda t: t.flip(1)),
        ("W_enc_3", "threshold_3", lambda t: t + 0.1),
        ("W_enc_2", "b_dec_2", lambda t: -t),
    ]:
        whole = (folder / f"{file}.safetensors").read_bytes()
        t = load_file(folder / f"{file}.safetensors")
        save_file(t | {name: wrong(t[name]).contiguous()}, folder / f"{file}.safetensors")
        assert not same(Theirs(folder), made()), name
        (folder / f"{file}.safetensors").write_bytes(whole)
    assert same(Theirs(folder), made())


@pytest.mark.parametrize("wiring", ["clt", "transcoder"])
def test_a_threshold_is_strictly_above_there_too(tmp_path, wiring):
    eye = SiteWeights(
        torch.eye(D), torch.zeros(D), torch.full((D,), 0.5), torch.eye(D), torch.zeros(D)
    )
    theirs = Theirs(
        to_circuit_tracer(
            Dictionary(at(MID, 1), (eye,), wiring=wiring, targets=at(OUT, 1)), tmp_path / "a"
        )
    )
    just = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    assert theirs.encode(torch.stack([torch.full((D,), 0.5), just.expand(D)])[None]).sum(
        -1
    ).tolist() == [[0.0, pytest.approx(D * 0.5)]]


def test_gpt2_has_hook_names_too(tmp_path):
    sites = [
        tuple(Site.parse(n.format(i)) for i in range(L))
        for n in ("transformer.h.{}.ln_2:in", "transformer.h.{}.mlp:in", "transformer.h.{}.mlp:out")
    ]
    for source, hook in ((sites[0], "hook_resid_mid"), (sites[1], "mlp.hook_in")):
        theirs = Theirs(
            to_circuit_tracer(replace(made(), sites=source, targets=sites[2]), tmp_path / hook)
        )
        assert (theirs.read, theirs.write) == (hook, "hook_mlp_out")


def test_the_types_of_weights_are_kept(tmp_path):
    folder = to_circuit_tracer(made().to(torch.bfloat16), tmp_path / "a")
    assert {t.dtype for p in folder.glob("*.safetensors") for t in load_file(p).values()} == {
        torch.bfloat16
    }
    assert same(Theirs(folder), made().to(torch.bfloat16).to(torch.float32))


@pytest.mark.parametrize("name", ["yes", "12", "a: b", "é\"'", "null", "- x\n#"])
def test_names_survive_yaml(tmp_path, name):
    config = Theirs(to_circuit_tracer(made(), tmp_path / "a", model_name=name, scan=name)).config
    assert (config["model_name"], config["scan"]) == (name, name)


def wide(i, d=D + 4):
    g = torch.Generator().manual_seed(0)
    return replace(
        made("per_layer"), weights=tuple(random(g, F, 1, d if j == i else D) for j in range(L))
    )


def few(i):
    g = torch.Generator().manual_seed(0)
    return replace(
        made("per_layer"),
        weights=tuple(random(g, F - 2 if j == i else F, 1) for j in range(L)),
        labels=(),
    )


REFUSED = {
    "sae": (lambda: world().dictionary, ("wiring 'sae'", "to_saelens")),
    "skip in a CLT": (
        lambda: made(skips=(1, 2)),
        ("model.layers.1.post_attention_layernorm:in, model.layers.2", "without skip"),
    ),
    "widths": (
        lambda: wide(2),
        ("of one width", "model.layers.2.post_attention_layernorm:in 20 -> 20"),
    ),
    "width of a target": (
        lambda: replace(
            made("transcoder", n=1),
            weights=(
                replace(
                    made("transcoder", n=1).weights[0],
                    W_dec=torch.ones(F, 1, D + 1),
                    b_dec=torch.zeros(D + 1),
                ),
            ),
        ),
        ("16 -> 17",),
    ),
    "numbers of features": (
        lambda: few(1),
        ("the same number of features", "model.layers.1.post_attention_layernorm:in 10"),
    ),
    "layer 0 left out": (
        lambda: replace(made("per_layer", n=3), sites=at(MID)[1:], targets=at(OUT)[1:]),
        ("from 0 on without a gap", "every layer"),
    ),
    "a gap": (
        lambda: replace(
            made("per_layer", n=3),
            sites=at(MID)[:2] + at(MID)[3:],
            targets=at(OUT)[:2] + at(OUT)[3:],
        ),
        ("without a gap",),
    ),
    "a single later layer": (
        lambda: replace(made("transcoder", n=1), sites=at(MID)[2:3], targets=at(OUT)[2:3]),
        ("without a gap", "model.layers.2.mlp:out"),
    ),
    "turned round": (
        lambda: replace(made("per_layer"), sites=at(MID)[::-1], targets=at(OUT)[::-1]),
        ("without a gap",),
    ),
    "crossed targets": (
        lambda: replace(made("per_layer"), targets=at(OUT)[::-1]),
        ("without a gap",),
    ),
    "two places": (
        lambda: replace(made("per_layer"), sites=at(MID)[:2] + at(IN)[2:]),
        ("read at one of hook_resid_mid, mlp.hook_in",),
    ),
    "sources without a hook": (
        lambda: replace(made("per_layer"), sites=at("model.layers.{}.mlp.act_fn:in")),
        ("model.layers.0.mlp.act_fn:in", "Llama's or GPT-2's"),
    ),
    "sources that come too late": (
        lambda: replace(made("per_layer"), sites=at("model.layers.{}:out")),
        ("model.layers.0:out",),
    ),
    "targets that are no MLP": (
        lambda: replace(made("per_layer"), targets=at("model.layers.{}.self_attn:out")),
        ("written at hook_mlp_out", "self_attn"),
    ),
    "targets within the MLP": (
        lambda: replace(made("per_layer", source=PRE), targets=at(MID)),
        ("written at hook_mlp_out",),
    ),
    "another model's names": (
        lambda: replace(
            made("per_layer"), sites=at("encoder.{}:in"), targets=at("encoder.{}.ff:out")
        ),
        ("encoder.0:in",),
    ),
    "NaN": (
        lambda: replace(
            made(),
            weights=(
                *made().weights[:3],
                replace(made().weights[3], b_enc=torch.full((F,), float("nan"))),
            ),
        ),
        ("NaN or infinity in b_enc_3",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_field_there_is_refused_and_nothing_is_left(tmp_path, case):
    build, says = REFUSED[case]
    refused(lambda: to_circuit_tracer(build(), tmp_path / "a"), *says)
    assert list(tmp_path.iterdir()) == []


def test_a_release_says_how_many_layers_there_have_to_be(tmp_path):
    short = made("per_layer", n=3)
    refused(
        lambda: to_circuit_tracer(short, tmp_path / "a", world().old),
        "3 for the 4 layers of v1",
    )
    assert not (tmp_path / "a").exists()
    assert to_circuit_tracer(short, tmp_path / "a").exists()
    refused(lambda: to_circuit_tracer(made(), tmp_path / "a"), "exists")
    to_circuit_tracer(made(), tmp_path / "a", overwrite=True)
    assert Theirs(tmp_path / "a").kind == "cross_layer_transcoder"
    assert not list((tmp_path / "a").glob("layer_*"))


# Come home


@pytest.mark.parametrize(
    "args",
    [
        dict(),
        dict(source=IN),
        dict(source=PRE),
        dict(wiring="per_layer"),
        dict(wiring="per_layer", skips=(0, 1, 2, 3)),
    ],
    ids=str,
)
def test_what_was_given_away_comes_home_bit_by_bit(tmp_path, args):
    ours = made(**args)
    home = read(to_circuit_tracer(ours, tmp_path / "a", world().old))
    assert home.fingerprint == ours.fingerprint
    assert (home.sites, home.targets, home.wiring) == (
        ours.sites,
        ours.targets,
        ours.wiring,
    )
    for a, b in zip(home.weights, ours.weights, strict=True):
        for n in ("W_enc", "b_enc", "threshold", "W_dec", "b_dec", "W_skip"):
            assert (getattr(a, n) is None and getattr(b, n) is None) or torch.equal(
                getattr(a, n), getattr(b, n)
            ), n
    again = to_circuit_tracer(home, tmp_path / "b")
    for p in (tmp_path / "a").glob("*.safetensors"):
        assert (again / p.name).read_bytes() == p.read_bytes(), p.name


def test_one_transcoder_of_a_model_of_one_layer_comes_home(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=D,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.4,
            use_cache=False,
        )
    )
    one = Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=dict(kind="logit_difference", positive=YES, negative=NO),
        sites=["model.layers.0:out"],
        name="one",
        device="cpu",
    )
    for ours in (made("transcoder", n=1), made("transcoder", n=1, skips=(0,)), made(n=1)):
        home = from_circuit_tracer(
            to_circuit_tracer(ours, tmp_path / "a", one, overwrite=True), one, rows()
        )
        assert home.fingerprint == ours.fingerprint
        assert home.wiring == ours.wiring


def test_a_tied_clt_comes_home_as_the_same_function(tmp_path):
    ours = made(tied=True)
    theirs = Theirs(to_circuit_tracer(ours, tmp_path / "a"))
    home = read(tmp_path / "a")
    check_dictionary(home)
    assert home.wiring == "clt"
    assert not home.tied
    assert [w.W_dec.shape[1] for w in home.weights] == [4, 3, 2, 1]
    x = dict(zip(ours.sites, acts(), strict=True))
    for a, b in zip(home.forward(x).values(), ours.forward(x).values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    assert torch.allclose(
        lengths(theirs).flatten(1), torch.tensor([4, 3, 2, 1]).sqrt()[:, None].expand(L, F)
    )
    assert same(theirs, home, lengths(theirs))


def test_an_import_is_labelled_measured_and_certified_for_this_release(tmp_path):
    folder = to_circuit_tracer(made(), tmp_path / "a", scan="s")
    home = read(folder, world(300).rows)
    few = read(folder)
    assert (
        check_dictionary(home, release=world().old, rows=world(300).rows).outcome == "holds"
    ).all()
    assert home.validity["fingerprint"] == world().old.fingerprint
    assert home.validity["dictionary"] == made().fingerprint
    assert home.validity["measured"] == evaluate(world().old, made(), world(300).rows)
    assert len(home.labels) == L * F
    assert len(home.figures) == L * F
    assert not any(x.startswith("feature ") for x in home.labels)
    verify_canary(world().old, home)
    refused(lambda: verify_canary(world().new, home), "v2")
    verify_canary(world().old, few)  # sixty rows are enough for a canary without customers
    weights = {p.name: digest_file(p) for p in folder.glob("*.safetensors")}
    assert home.training["imported"] == dict(
        model_kind="cross_layer_transcoder",
        model_name="v1",
        scan="s",
        feature_input_hook="hook_resid_mid",
        feature_output_hook="hook_mlp_out",
        weights=weights,
    )
    assert len(weights) == 2 * L
    home.save(tmp_path / "kept")
    assert Dictionary.load(tmp_path / "kept", world().old).fingerprint == home.fingerprint


def test_a_decision_between_the_two_likeliest_tokens_is_pinned(tmp_path):
    release = Release.from_module(
        world().old.model,
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=dict(kind="top_two"),
        sites=["model.layers.1:out"],
        name="v1",
        device="cpu",
    )
    assert release.pins
    assert (
        0
        < from_circuit_tracer(to_circuit_tracer(made(), tmp_path / "a"), release, rows()).validity[
            "measured"
        ]["splice_error"]
        < float("inf")
    )


# Somebody else's


def foreign(
    folder,
    kind="clt",
    thresholds=True,
    skip=False,
    dtype=torch.float32,
    change=(),
    drop=(),
    config=(),
    n=L,
    d=D,
    hooks=("hook_resid_mid", "hook_mlp_out"),
    **rest,
):
    """A folder that interpkit did not write, with rows of any length.

    `change` {file: {name: tensor or None}} changes, adds or takes out.
    """
    g = torch.Generator().manual_seed(5)
    files = {}

    def r(*shape):
        return (torch.randn(*shape, generator=g) * 0.6).to(dtype)

    folder.mkdir()
    for i in range(n):
        t = dict(W_enc=r(F, d), b_enc=r(F), b_dec=r(d), threshold=r(F).abs())
        if not thresholds:
            del t["threshold"]
        if kind == "clt":
            files |= {
                f"W_enc_{i}": {f"{k}_{i}": v for k, v in t.items()},
                f"W_dec_{i}": {f"W_dec_{i}": r(F, n - i, d)},
            }
        else:
            files[f"layer_{i}"] = (
                {
                    "activation_function.threshold" if k == "threshold" else k: v
                    for k, v in t.items()
                }
                | dict(W_dec=r(F, d))
                | (dict(W_skip=r(d, d)) if skip else {})
            )
    for file, new in dict(change).items():
        files[file] = {k: v for k, v in (files.get(file, {}) | new).items() if v is not None}
    for file, t in files.items():
        if file not in drop:
            save_file(t, folder / f"{file}.safetensors")
    settings = dict(
        model_kind="cross_layer_transcoder" if kind == "clt" else "transcoder_set",
        feature_input_hook=hooks[0],
        feature_output_hook=hooks[1],
        model_name="somebody/model",
        note="x",
    ) | dict(config)
    (folder / "config.yaml").write_text(
        yaml.safe_dump({k: v for k, v in settings.items() if v != "DROP"})
    )
    return folder


@pytest.mark.parametrize(
    "args",
    [
        dict(),
        dict(thresholds=False),
        dict(dtype=torch.bfloat16),
        dict(dtype=torch.float64),
        dict(hooks=("mlp.hook_in", "mlp.hook_out")),
        dict(kind="set"),
        dict(kind="set", thresholds=False),
        dict(kind="set", skip=True),
        dict(
            kind="set",
            skip=True,
            thresholds=False,
            dtype=torch.float16,
            hooks=("hook_resid_pre", "hook_mlp_out"),
        ),
        dict(kind="set", thresholds=False, config=dict(activation="relu")),
    ],
    ids=str,
)
def test_what_somebody_else_made_is_the_same_function(tmp_path, args):
    folder = foreign(tmp_path / "a", **args)
    theirs = Theirs(folder)
    imported = read(folder)
    assert imported.wiring == ("per_layer" if args.get("kind") == "set" else "clt")
    assert imported.targets == at(OUT)
    assert imported.sites == at(
        {"hook_resid_mid": MID, "mlp.hook_in": IN, "hook_resid_pre": PRE}[theirs.read]
    )
    assert float((lengths(theirs) - 1).abs().max()) > 0.2
    assert all(
        torch.allclose(w.W_dec.flatten(1).norm(dim=1), torch.ones(F))
        and w.W_enc.dtype == torch.float32
        for w in imported.weights
    )
    assert same(theirs, imported, lengths(theirs))
    assert imported.validity["fingerprint"] == world().old.fingerprint
    assert imported.training["imported"]["model_name"] == "somebody/model"
    assert same(Theirs(to_circuit_tracer(imported, tmp_path / "b")), imported)  # and goes back


def test_layers_of_a_set_may_differ_in_thresholds(tmp_path):
    folder = foreign(
        tmp_path / "a", "set", change=dict(layer_2={"activation_function.threshold": None})
    )
    assert same(Theirs(folder), read(folder), lengths(Theirs(folder)))


def test_a_row_that_writes_nothing_and_a_threshold_that_is_never_reached_are_kept(tmp_path):
    folder = foreign(
        tmp_path / "a",
        change=dict(
            W_dec_1=dict(W_dec_1=torch.cat([torch.zeros(1, 3, D), torch.ones(F - 1, 3, D)])),
            W_enc_0=dict(threshold_0=torch.tensor([float("inf")] + [0.1] * (F - 1))),
        ),
    )
    theirs = Theirs(folder)
    imported = read(folder)
    known = torch.where(lengths(theirs) > 0, lengths(theirs), 1.0)
    assert same(theirs, imported, known)
    assert not bool(imported.at(imported.sites[0]).encode(acts()[0])[:, 0].any())


@pytest.mark.parametrize(
    "hooks, module",
    [
        (("hook_resid_mid", "hook_mlp_out"), lambda b: b.post_attention_layernorm),
        (("mlp.hook_in", "mlp.hook_out"), lambda b: b.mlp),
    ],
)
def test_hooks_are_the_tensors_that_an_mlp_takes_and_gives(tmp_path, hooks, module):
    "Seen with plain PyTorch hooks, layer by layer."
    imported = read(foreign(tmp_path / "a", hooks=hooks))
    model = world().old.model
    batch = world().old.batch(rows())
    seen, handles = {}, []

    def keep_input(key):
        return lambda _, args: seen.__setitem__(key, args[0])

    def keep_output(key):
        return lambda _, __, out: seen.__setitem__(key, out)

    for i, block in enumerate(model.model.layers):
        handles.append(module(block).register_forward_pre_hook(keep_input(("in", i))))
        handles.append(block.mlp.register_forward_hook(keep_output(("out", i))))
    with torch.no_grad():
        batch.run(model)
    for handle in handles:
        handle.remove()
    x = capture(model, imported.sites + imported.targets, batch)
    for i in range(L):
        assert torch.equal(x[imported.sites[i]], seen["in", i])
        assert torch.equal(x[imported.targets[i]], seen["out", i])


def test_addresses_that_name_the_files_of_the_folder_are_no_obstacle(tmp_path):
    folder = foreign(
        tmp_path / "a",
        "set",
        config=dict(
            transcoders=[
                f"hf://somebody/model/layer_{i}.safetensors?revision=main" for i in range(L)
            ]
        ),
    )
    assert same(Theirs(folder), read(folder), lengths(Theirs(folder)))


# Refused

SETTINGS = [
    (dict(model_kind="sae"), "'sae'"),
    (dict(model_kind="DROP"), "None"),
    (dict(model_kind=["transcoder_set"]), "['transcoder_set']"),
    (dict(activation="topk", k=32), "'topk'"),
    (dict(activation="gelu"), "'gelu'"),
    (dict(feature_input_hook="ln2.hook_normalized"), "ln2.hook_normalized"),
    (dict(feature_input_hook="hook_mlp_in"), "two meanings"),
    (dict(feature_input_hook="DROP"), "feature_input_hook"),
    (dict(feature_input_hook=["hook_resid_mid"]), "feature_input_hook"),
    (dict(feature_input_hook="blocks.0.hook_resid_mid"), "blocks.0.hook_resid_mid"),
    (dict(feature_output_hook="hook_resid_post"), "feature_output_hook hook_mlp_out"),
    (dict(feature_output_hook="DROP"), "None"),
    (
        dict(transcoders=["hf://a/b/layer_1.safetensors", "hf://a/b/layer_0.safetensors"]),
        "layer_1.safetensors, layer_0.safetensors",
    ),
    (dict(transcoders=["hf://a/b/layer_10/width_16k/params.npz"]), "save_transcoders_to_cache"),
    (dict(transcoders="elsewhere"), "elsewhere"),
]


@pytest.mark.parametrize("kind", ["clt", "set"])
@pytest.mark.parametrize("config, says", SETTINGS)
def test_settings_that_no_dictionary_has_are_refused(tmp_path, kind, config, says):
    refused(lambda: read(foreign(tmp_path / "a", kind, config=config)), says)


Z = torch.zeros
TENSORS = [
    ("clt", dict(W_enc_1=dict(threshold_1=None)), "threshold_1 is missing"),
    ("clt", dict(W_enc_0=dict(threshold_0=None)), "threshold_1 [12] as well"),
    ("clt", dict(W_enc_0=dict(W_enc_0=None)), "no such tensor"),
    ("clt", dict(W_enc_2=dict(b_dec_2=None)), "b_dec_2 is missing"),
    ("clt", dict(W_enc_0=dict(W_enc_0=Z(F * D))), "[192]"),
    ("clt", dict(W_enc_1=dict(W_enc_1=Z(D, F))), "W_enc_1 [16, 12]"),
    (
        "clt",
        dict(W_enc_3=dict(W_enc_3=Z(F + 1, D), b_enc_3=Z(F + 1), threshold_3=Z(F + 1))),
        "W_enc_3 [13, 16]",
    ),
    ("clt", dict(W_dec_1=dict(W_dec_1=Z(F, 4, D))), "W_dec_1 [12, 4, 16]"),
    ("clt", dict(W_dec_3=dict(W_dec_3=Z(F, D))), "W_dec_3 [12, 16]"),
    ("clt", dict(W_dec_0=dict(W_dec_0=None, W_dec_1=Z(F, 4, D))), "W_dec_1 [12, 4, 16] as well"),
    ("clt", dict(W_enc_0=dict(W_skip_0=Z(D, D))), "W_skip_0 [16, 16] as well"),
    ("clt", dict(W_enc_0=dict(threshold_0=Z(1, F))), "threshold_0 [1, 12]"),
    (
        "clt",
        dict(W_enc_1=dict(b_enc_1=torch.full((F,), float("nan")))),
        "NaN or infinity in b_enc_1",
    ),
    ("clt", dict(W_dec_2=dict(W_dec_2=torch.full((F, 2, D), float("inf")))), "in W_dec_2"),
    ("clt", dict(W_enc_1=dict(threshold_1=torch.full((F,), float("nan")))), "in threshold_1"),
    ("clt", dict(W_enc_1=dict(threshold_1=torch.full((F,), -float("inf")))), "in threshold_1"),
    (
        "clt",
        dict(W_enc_1=dict(threshold_1=torch.tensor([-0.1] * 3 + [0.1] * (F - 3)))),
        "3 below 0 in W_enc_1.safetensors",
    ),
    (
        "clt",
        dict(W_enc_1=dict(W_enc_1=torch.zeros(F, D, dtype=torch.int8))),
        "W_enc_1 of type torch.int8",
    ),
    ("clt", dict(W_enc_1=dict(b_enc_1=torch.full((F,), 1e300, dtype=torch.float64))), "in b_enc_1"),
    ("set", dict(layer_0=dict(W_dec=None)), "W_dec is missing"),
    ("set", dict(layer_0=dict(W_enc=None)), "no such tensor"),
    ("set", dict(layer_1=dict(k=torch.tensor(32))), "k [] as well"),
    ("set", dict(layer_1=dict(log_threshold=Z(F))), "log_threshold [12] as well"),
    ("set", dict(layer_2=dict(W_skip=Z(D, D + 1))), "W_skip [16, 17]"),
    ("set", dict(layer_3=dict(W_dec=Z(D, F))), "W_dec [16, 12]"),
    ("set", dict(layer_3=dict(W_dec=Z(F, 1, D))), "W_dec [12, 1, 16]"),
    (
        "set",
        dict(layer_0={"activation_function.threshold": torch.full((F,), -1.0)}),
        "12 below 0 in layer_0.safetensors",
    ),
    ("set", dict(layer_2=dict(W_skip=torch.full((D, D), float("nan")))), "in W_skip"),
    (
        "set",
        dict(layer_1=dict(b_enc=torch.zeros(F, dtype=torch.int64))),
        "b_enc of type torch.int64",
    ),
]


@pytest.mark.parametrize("kind, change, says", TENSORS)
def test_tensors_that_are_not_those_of_the_format_are_refused(tmp_path, kind, change, says):
    refused(lambda: read(foreign(tmp_path / "a", kind, change=change)), says)


def test_thresholds_beside_relu_are_refused(tmp_path):
    refused(
        lambda: read(foreign(tmp_path / "a", "set", config=dict(activation="relu"))),
        "activation_function.threshold [12] as well",
    )
    refused(
        lambda: read(foreign(tmp_path / "b", "clt", config=dict(activation="relu"))),
        "threshold_0 [12] as well",
    )


@pytest.mark.parametrize(
    "kind, drop, extra, says",
    [
        ("clt", ["W_enc_0"], [], "W_enc_0.safetensors is missing"),
        ("clt", ["W_enc_2"], [], "W_enc_2.safetensors is missing"),
        ("clt", ["W_dec_3"], [], "W_dec_3.safetensors is missing"),
        ("clt", [], ["W_dec_4"], "W_dec_4.safetensors as well"),
        ("clt", ["W_enc_3"], [], "W_dec_3.safetensors as well"),
        ("set", ["layer_0"], [], "layer_0.safetensors is missing"),
        ("set", ["layer_1"], [], "layer_3.safetensors as well"),
        ("set", [], ["layer_x"], "layer_x.safetensors as well"),
        ("set", [f"layer_{i}" for i in range(L)], [], "layer_0.safetensors is missing"),
        (
            "clt",
            [f"W_{x}_{i}" for i in range(L) for x in ("enc", "dec")],
            [],
            "W_dec_0.safetensors is missing",
        ),
    ],
)
def test_layers_without_a_gap_and_no_more(tmp_path, kind, drop, extra, says):
    folder = foreign(tmp_path / "a", kind, drop=drop)
    for name in extra:
        save_file(dict(x=Z(1)), folder / f"{name}.safetensors")
    refused(lambda: read(folder), says, "Nothing is fetched")


def test_transcoders_of_another_model_are_refused(tmp_path):
    refused(lambda: read(foreign(tmp_path / "a", n=3)), "3 for the 4 layers of v1")
    refused(
        lambda: read(foreign(tmp_path / "b", d=D + 4)),
        "width 20",
        "16 at model.layers.0.post_attention_layernorm:in",
    )
    net = Release.from_module(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)),
        inputs=dict(kind="columns", columns=["a", "b", "c"]),
        decision=dict(kind="scalar"),
        sites=["1:out"],
        name="net",
        device="cpu",
    )
    refused(
        lambda: from_circuit_tracer(foreign(tmp_path / "c"), net, rows()),
        "4 for the 0 layers of net",
        "Llama's or GPT-2's",
    )


# Files


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was opened')",))


def test_pickles_stay_shut_and_yaml_builds_nothing(tmp_path):
    folder = foreign(tmp_path / "a", "set")
    (folder / "layer_0.pt").write_bytes(pickle.dumps(Trap()))
    read(folder)
    (folder / "layer_1.safetensors").write_bytes(pickle.dumps(Trap()))
    refused(lambda: read(folder), "safetensors in", "layer_1.safetensors")
    (folder / "config.yaml").write_text("model_kind: !!python/object/apply:os._exit [3]\n")
    refused(lambda: read(folder), "YAML in")
    with pytest.raises(SystemExit):
        pickle.loads(pickle.dumps(Trap()))  # the trap would have sprung


@pytest.mark.parametrize(
    "kind, file, content",
    [
        ("set", "config.yaml", None),
        ("set", "config.yaml", b"{a: ["),
        ("set", "config.yaml", b"[1]"),
        ("set", "config.yaml", b""),
        ("set", "config.yaml", b"\xff\xfe\x00"),
        ("set", "config.yaml", b"[" * 5000),
        ("set", "config.yaml", 0.3),
        ("set", "layer_2.safetensors", b""),
        ("set", "layer_2.safetensors", 0.5),
        ("clt", "W_enc_0.safetensors", 0.9),
        ("clt", "W_dec_3.safetensors", 0.1),
        ("clt", "W_dec_0.safetensors", b"\xff" * 64),
    ],
)
def test_missing_and_broken_files_are_named(tmp_path, kind, file, content):
    folder = foreign(tmp_path / "a", kind)
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(
            path.read_bytes()[: int(path.stat().st_size * content)]
            if isinstance(content, float)
            else content
        )
    refused(lambda: read(folder), file)


def test_folders_that_were_changed_or_are_none_are_named(tmp_path):
    folder = to_circuit_tracer(made(), tmp_path / "a")
    for file in ("config.yaml", "W_enc_1.safetensors", "W_dec_2.safetensors"):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        refused(lambda: read(folder), f"{file} was changed")
        (folder / file).write_bytes(whole)
    made().save(tmp_path / "d")
    refused(lambda: read(tmp_path / "d"), "a dictionary folder")
    refused(
        lambda: read("mntss/transcoder-Llama-3.2-1B"),
        "mntss/transcoder-Llama-3.2-1B is no folder",
    )


def test_formats_page_names_every_file_tensor_and_key(tmp_path):
    page = (
        (Path(__file__).parent.parent / "nbs" / "formats.md")
        .read_text()
        .split("## circuit-tracer folder")[1]
        .split("\n## ")[0]
    )
    for i, wiring in enumerate(("clt", "per_layer")):
        folder = to_circuit_tracer(made(wiring, skips=(0,) if i else ()), tmp_path / wiring)
        assert all(f"`{k}`" in page for k in yaml.safe_load((folder / "config.yaml").read_text()))
        for p in folder.iterdir():
            later = "_0" not in p.name and any(x in p.name for x in "123")
            names = (f"`{p.name.replace('_0.', '_i.')}`", f"`{p.name}`")
            assert later or any(name in page for name in names), p.name
            if p.name.endswith("_0.safetensors"):
                for n in load_file(p):
                    name = n[:-2] + "_i" if n.endswith("_0") else n
                    assert f"`{name}`" in page, (p.name, name)


# Against TransformerLens, whose hooks circuit-tracer reads


def test_transformer_lens_passes_these_hooks_and_not_hook_mlp_in():
    lens = pytest.importorskip("transformer_lens")
    from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights

    model = world().old.model
    batch = world().old.batch(rows().iloc[:1])
    c = model.config
    cfg = lens.HookedTransformerConfig(
        n_layers=L,
        d_model=D,
        n_ctx=32,
        d_head=D // 2,
        n_heads=2,
        n_key_value_heads=c.num_key_value_heads,
        d_mlp=32,
        d_vocab=V,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=D // 2,
        rotary_base=10000,
        rotary_adjacent_pairs=False,
        gated_mlp=True,
        final_rms=True,
        eps=c.rms_norm_eps,
        device="cpu",
        original_architecture="LlamaForCausalLM",
    )
    hooked = lens.HookedTransformer(cfg)
    hooked.load_state_dict(convert_llama_weights(model, cfg), strict=False)
    ids = torch.tensor([rows().iloc[0]["input_ids"]])
    _, cache = hooked.run_with_cache(ids)
    x = capture(model, at(MID) + at(IN) + at(OUT) + at(PRE), batch)
    for i in range(L):
        assert f"blocks.{i}.hook_mlp_in" not in cache
        for name, hook in ((MID, "hook_resid_mid"), (OUT, "hook_mlp_out"), (PRE, "hook_resid_pre")):
            assert torch.allclose(
                x[at(name)[i]][:, : ids.shape[1]], cache[f"blocks.{i}.{hook}"], atol=1e-4
            ), (i, hook)
        after_norm = (
            cache[f"blocks.{i}.ln2.hook_normalized"] * find_module(model, at(MID)[i]).weight
        )
        assert torch.allclose(x[at(IN)[i]][:, : ids.shape[1]], after_norm, atol=1e-4)
        assert not torch.allclose(x[at(IN)[i]], x[at(MID)[i]], atol=1e-2)
