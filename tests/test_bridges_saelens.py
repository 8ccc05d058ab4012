"SAELens folders: what is given away and what comes in computes the same; the rest is refused."

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file
from small_language import SITES, D, directions, world
from small_saelens import CROSSING, HOOK, crossing, made

from interpkit.bridges.from_saelens import from_saelens
from interpkit.bridges.saelens import to_saelens
from interpkit.core.digests import digest_file
from interpkit.core.errors import InterpkitError
from interpkit.core.files import read_json
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.replacement import splice
from interpkit.dictionary.validity import verify_canary
from interpkit.dictionary.weights import TENSORS
from interpkit.model.capture import capture
from interpkit.model.releases import Release
from interpkit.model.sites import Site

pytestmark = pytest.mark.skipif(find_spec("sae_lens") is None, reason="SAELens is not installed")


def acts(n=2000, seed=0):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


@lru_cache
def small() -> Dictionary:
    "Two sites, thresholds that differ, labels, and a validity."

    def spread(w):
        return replace(w, threshold=torch.linspace(0, 1.5, w.n_features))

    return replace(
        world().dictionary,
        weights=tuple(map(spread, world().dictionary.weights)),
        training=dict(seed=3, k=[2, 4]),
        validity=dict(
            release="v1", fingerprint="f", measured=dict(fvu=0.25), canary=[dict(x="CANARY")]
        ),
    )


def rows():
    return world(60).rows


def load(folder, **args):
    from sae_lens import SAE

    return SAE.load_from_disk(folder, **args)


def same(sae, dictionary, site, x, lengths=1.0, atol=1e-5):
    "Codes (in units of the length of what they write) and reconstructions agree."
    with torch.no_grad():
        codes = sae.encode(x) * lengths
        out = sae(x)
    return (
        torch.allclose(codes, dictionary.at(site).encode(x), atol=atol)
        and torch.allclose(
            out, dictionary.at(site).decode(dictionary.at(site).encode(x)), atol=atol
        )
        and bool((codes > 0).any())
        and bool((codes == 0).any())
    )


def saved(folder, sae=None, change=(), drop=(), tensors=(), without=()):
    "The folder of an SAE, with keys of its configuration and tensors changed, or taken out."
    (made() if sae is None else sae).save_model(folder)
    cfg = read_json(folder / "cfg.json")
    t = load_file(folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(
        json.dumps({k: v for k, v in (cfg | dict(change)).items() if k not in drop})
    )
    save_file(
        {n: x for n, x in (t | dict(tensors)).items() if n not in without},
        folder / "sae_weights.safetensors",
    )
    return folder


# Given away


@pytest.mark.parametrize("i", [0, 1])
def test_saelens_computes_the_same_from_what_is_written(tmp_path, i):
    site = SITES[i]
    folder = to_saelens(small(), tmp_path / "a", site=str(site))
    sae = load(folder)
    assert same(sae, small(), site, acts())
    assert same(sae, small(), site, acts().view(20, 100, D))
    for n in TENSORS:
        assert torch.equal(
            getattr(sae, n).data, getattr(small().at(site), n).view_as(getattr(sae, n))
        ), n
    assert (
        sae.cfg.architecture(),
        sae.cfg.d_in,
        sae.cfg.d_sae,
        sae.cfg.dtype,
        sae.cfg.apply_b_dec_to_input,
        sae.cfg.normalize_activations,
    ) == ("jumprelu", D, (24, 20)[i], "float32", False, "none")


def test_the_files_are_those_of_the_format(tmp_path):
    folder = to_saelens(small(), tmp_path / "a", SITES[1])
    assert sorted(p.name for p in folder.iterdir()) == [
        "cfg.json",
        "manifest.json",
        "sae_weights.safetensors",
    ]
    assert set(load_file(folder / "sae_weights.safetensors")) == set(TENSORS)
    cfg = read_json(folder / "cfg.json")
    metadata = cfg.pop("metadata")
    assert cfg == dict(
        architecture="jumprelu",
        d_in=D,
        d_sae=20,
        dtype="float32",
        device="cpu",
        apply_b_dec_to_input=False,
        normalize_activations="none",
        reshape_activations="none",
    )
    kept = dict(
        site="model.layers.1:out",
        sites=["model.layers.0:out", "model.layers.1:out"],
        labels=[f"site 1, feature {j}" for j in range(20)],
        figures=[],
        training=dict(seed=3, k=[2, 4]),
        validity=dict(release="v1", fingerprint="f", measured=dict(fvu=0.25)),
    )
    assert metadata == dict(
        sae_lens_version="6.54.0",
        sae_lens_training_version=None,
        model_name="v1",
        hook_name=HOOK,
        interpkit=kept,
    )
    assert load(folder).cfg.metadata.interpkit == kept
    formats = (
        (Path(__file__).parent.parent / "nbs" / "formats.md")
        .read_text()
        .split("## SAELens folder")[1]
        .split("\n## ")[0]
    )
    for key in (*cfg, *metadata, *(f"interpkit.{k}" for k in kept)):
        assert key == "interpkit" or f"`{key}`" in formats, key


def test_a_threshold_is_strictly_above_there_too(tmp_path):
    eye = replace(
        directions(0, D), W_enc=torch.eye(D), b_enc=torch.zeros(D), threshold=torch.full((D,), 0.5)
    )
    sae = load(to_saelens(Dictionary((SITES[0],), (eye,)), tmp_path / "a"))
    just = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0))
    assert sae.encode(torch.stack([torch.full((D,), 0.5), just.expand(D)])).sum(1).tolist() == [
        0.0,
        pytest.approx(D * 0.5),
    ]


def test_the_dictionary_of_the_demo_on_its_own_activations(tmp_path):
    try:
        demo = demo_folder()
    except InterpkitError:
        pytest.skip("demo/ is not here")
    release = Release.load(demo / "releases" / "v1", device="cpu")
    ours = Dictionary.load(demo / "dictionary", release)
    x = capture(release.model, ours.sites, release.batch(demo_rows("v1", 100)))[ours.sites[0]]
    assert same(load(to_saelens(ours, tmp_path / "a")), ours, ours.sites[0], x)


def test_what_does_not_fit_is_not_given_away(tmp_path):
    refused(
        lambda: to_saelens(small(), tmp_path / "a"),
        "model.layers.0:out, model.layers.1:out",
        "site='model.layers.0:out'",
        code=64,
    )
    refused(lambda: to_saelens(small(), tmp_path / "a", "model.layers.2"), "model.layers.2:out")
    refused(lambda: to_saelens(replace(small(), wiring="clt"), tmp_path / "a", SITES[0]), "clt")
    assert list(tmp_path.iterdir()) == []
    to_saelens(small(), tmp_path / "a", SITES[0])
    refused(lambda: to_saelens(small(), tmp_path / "a", SITES[1]), "exists")
    to_saelens(small(), tmp_path / "a", SITES[1], overwrite=True)
    assert load(tmp_path / "a").cfg.d_sae == 20


def test_another_model_has_no_hook_name(tmp_path):
    other = Dictionary((Site("encoder.1"),), (directions(0, 20),))
    metadata = read_json(to_saelens(other, tmp_path / "a") / "cfg.json")["metadata"]
    assert metadata["hook_name"] is None
    assert metadata["model_name"] is None
    assert metadata["interpkit"]["site"] == "encoder.1:out"
    assert same(load(tmp_path / "a"), other, other.sites[0], acts())


# Come in


@pytest.mark.parametrize("kind", ["standard", "jumprelu", "gated"])
@pytest.mark.parametrize("centred", [True, False])
def test_linear_parts_fold_exactly(tmp_path, kind, centred):
    sae = made(
        kind, apply_b_dec_to_input=centred
    )  # half of the thresholds are negative: SAELens' ReLU comes first
    before = {n: x.clone() for n, x in sae.state_dict().items()}
    d = from_saelens(sae, world().old, rows())
    assert same(sae, d, SITES[1], acts(), sae.W_dec.norm(dim=1))
    assert torch.allclose(d.weights[0].W_dec[:, 0].norm(dim=1), torch.ones(24))
    assert all(torch.equal(x, before[n]) for n, x in sae.state_dict().items())
    e = from_saelens(str(saved(tmp_path / "a", sae)), world().old, rows())
    assert e.fingerprint == d.fingerprint
    assert e.training["imported"] | dict(weights="") == dict(
        architecture=kind,
        model_name=None,
        hook_name=HOOK,
        sae_lens_version=sae.cfg.metadata.sae_lens_version,
        weights="",
    )
    assert e.training["imported"]["weights"] == digest_file(
        tmp_path / "a" / "sae_weights.safetensors"
    )


def test_an_import_is_labelled_and_certified_for_this_release():
    many = world(300).rows
    d = from_saelens(made(), world().old, many)
    assert d.validity["fingerprint"] == world().old.fingerprint
    assert d.validity["measured"]["sequences"] == 300
    assert not any(x.startswith("feature ") for x in d.labels)
    verify_canary(world().old, d)
    s = splice(world().old, d, many)
    mean = (s.bare * many.weight).sum() / many.weight.sum()
    assert d.validity["measured"]["splice_error"] == pytest.approx(
        (many.weight * (s.spliced - s.bare) ** 2).sum()
        / (many.weight * (s.bare - mean) ** 2).sum(),
        rel=1e-4,
    )
    refused(lambda: verify_canary(world().new, d), "v2")


def test_a_decision_between_the_two_likeliest_tokens_is_pinned():
    release = Release.from_module(
        world().old.model,
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=dict(kind="top_two"),
        sites=[SITES[1]],
        name="v1",
        device="cpu",
    )
    assert release.pins
    assert (
        0
        < from_saelens(made(), release, rows()).validity["measured"]["splice_error"]
        < float("inf")
    )


def test_what_was_given_away_comes_home_bit_by_bit(tmp_path):
    one = Dictionary(
        SITES[1:], small().weights[1:], tuple("é: b" if i else "a" for i in range(20)), dict(seed=3)
    )
    folder = to_saelens(one, tmp_path / "a")
    load(folder).save_model(tmp_path / "b")  # SAELens carries our metadata along
    for where in (folder, tmp_path / "b", load(folder)):
        d = from_saelens(where, world().old, rows())
        assert d.fingerprint == one.fingerprint
        assert d.labels == one.labels
        assert d.sites == one.sites
        assert d.training["seed"] == 3
    again = from_saelens(to_saelens(d, tmp_path / "c"), world().old, rows())
    assert again.labels == one.labels
    assert again.fingerprint == one.fingerprint
    assert again.training["imported"]["model_name"] == "v1"


@lru_cache
def trained():
    "A BatchTopK SAE that SAELens trained for a moment on the activations of v1, and these."
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    batch = world().old.batch(rows())
    x = capture(world().old.model, [SITES[1]], batch)[SITES[1]][batch.mask]
    g = torch.Generator().manual_seed(0)
    batches = iter(lambda: x[torch.randint(len(x), (128,), generator=g)], None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = BatchTopKTrainingSAE(
            BatchTopKTrainingSAEConfig(
                d_in=D,
                d_sae=48,
                k=6,
                device="cpu",
                normalize_activations="expected_average_only_in",
            )
        )
        config = SAETrainerConfig(
            total_training_samples=128 * 400,
            train_batch_size_samples=128,
            lr=3e-3,
            lr_end=0.0,
            device="cpu",
            lr_warm_up_steps=40,
            lr_decay_steps=130,
            n_batches_for_norm_estimate=20,
            dead_feature_window=20,
            logger=LoggingConfig(log_to_wandb=False),
        )
        return SAETrainer(config, sae, batches).fit(), x


def test_an_sae_that_saelens_trained_is_measured_and_exported_again(tmp_path):
    sae, x = trained()
    sae.save_inference_model(tmp_path / "a")
    deployed = load(tmp_path / "a")
    assert deployed.cfg.architecture() == "jumprelu"
    assert bool((deployed.threshold > 0).all())
    refused(
        lambda: from_saelens(tmp_path / "a", world().old, rows()),
        "site='model.layers.3:out'",
        code=64,
    )  # no hook name was given to the trainer
    d, live = (
        from_saelens(w, world().old, rows(), site="model.layers.1:out")
        for w in (tmp_path / "a", sae)
    )
    assert same(deployed, d, SITES[1], x, deployed.W_dec.norm(dim=1), atol=1e-4)
    assert live.fingerprint == d.fingerprint
    measured = d.validity["measured"]
    assert measured["fvu"] < 0.5
    assert measured["fvu"] == pytest.approx(
        float(((x - d.forward({SITES[1]: x})[SITES[1]]) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()),
        rel=1e-3,
    )
    assert measured["l0"] == pytest.approx(
        float((deployed.encode(x) > 0).float().sum(1).mean()), abs=0.02
    )
    assert (
        measured["splice_error"]
        < from_saelens(made(), world().old, rows()).validity["measured"]["splice_error"]
    )
    assert same(load(to_saelens(d, tmp_path / "b")), d, SITES[1], x)


def test_a_scale_that_was_written_down_is_folded(tmp_path):
    folder = saved(tmp_path / "a", change=dict(normalize_activations="expected_average_only_in"))
    refused(
        lambda: from_saelens(folder, world().old, rows()),
        "fold_activation_norm_scaling_factor",
        "activation_scaler.json",
    )
    for bad in (
        "{}",
        "[]",
        '{"scaling_factor": null}',
        '{"scaling_factor": 0}',
        '{"scaling_factor": NaN}',
    ):
        (folder / "activation_scaler.json").write_text(bad)
        refused(lambda: from_saelens(folder, world().old, rows()), "scaling_factor > 0")
    (folder / "activation_scaler.json").write_text(
        '{"scaling_factor": 0.4, "has_whitening": false}'
    )
    d = from_saelens(folder, world().old, rows())
    sae = made()
    assert not same(sae, d, SITES[1], acts(), sae.W_dec.norm(dim=1), atol=1e-3)
    sae.fold_activation_norm_scaling_factor(0.4)
    assert same(sae, d, SITES[1], acts(), sae.W_dec.norm(dim=1))


@pytest.mark.parametrize(
    "old",
    [
        dict(hook_point=HOOK),
        dict(
            hook_name=HOOK,
            architecture="standard",
            apply_b_dec_to_input=False,
            normalize_activations="none",
        ),
        dict(
            hook_point=HOOK,
            normalize_activations=False,
            activation_fn_str="relu",
            hook_point_head_index=None,
        ),
    ],
)
def test_configurations_before_version_6(tmp_path, old):
    folder = saved(tmp_path / "a", made("standard"), tensors=dict(scaling_factor=torch.ones(24)))
    (folder / "cfg.json").write_text(
        json.dumps(
            dict(d_in=D, d_sae=24, dtype="torch.float32", model_name="tiny", device="cuda") | old
        )
    )
    sae = load(folder)
    d = from_saelens(folder, world().old, rows())
    assert same(sae, d, SITES[1], acts(), sae.W_dec.norm(dim=1))
    assert d.sites == (SITES[1],)
    assert d.training["imported"]["model_name"] == "tiny"


def test_weights_are_rounded_as_saelens_would(tmp_path):
    folder = saved(tmp_path / "a", change=dict(dtype="bfloat16"))
    d = from_saelens(folder, world().old, rows())
    sae = load(folder).float()
    exact = made()
    sae.dtype = torch.float32
    assert same(sae, d, SITES[1], acts(), sae.W_dec.norm(dim=1), atol=1e-4)
    assert not same(exact, d, SITES[1], acts(), exact.W_dec.norm(dim=1), atol=1e-4)


# Sites


def test_the_site_is_what_the_folder_says_or_what_is_asked_for(tmp_path):

    def read(hook, **kwargs):
        return from_saelens(made(hook=hook), world().old, rows(), **kwargs).sites[0]

    assert read("blocks.0.hook_mlp_out") == Site("model.layers.0.mlp")
    assert read("blocks.2.hook_resid_pre") == Site("model.layers.2", "in")
    assert read(HOOK, site="model.layers.2:in") == Site("model.layers.2", "in")
    assert read(None, site=SITES[0]) == SITES[0]
    assert read("blocks.1.attn.hook_z") == Site("model.layers.1.self_attn.o_proj", "in")
    refused(lambda: read("blocks.1.attn.hook_q"), "attn.hook_q", "'model.layers.1:out'", code=64)
    refused(lambda: read(HOOK, site="model.layer.1"), "model.layers.1")
    refused(
        lambda: read(HOOK, site="model.layers.1.mlp.up_proj"),
        f"width {D}",
        "width 32 at model.layers.1.mlp.up_proj:out",
    )


def test_a_site_without_a_hook_name_comes_home(tmp_path):
    site = Site("model.layers.1.input_layernorm")
    folder = to_saelens(Dictionary((site,), (directions(0, 20),)), tmp_path / "a")
    assert read_json(folder / "cfg.json")["metadata"]["hook_name"] is None
    assert from_saelens(folder, world().old, rows()).sites == (site,)


# Transcoders

READS, WRITES = Site("model.layers.1.post_attention_layernorm", "in"), Site("model.layers.1.mlp")


def written(w, x):
    "What one source writes: features, bias and skip."
    skip = 0 if w.W_skip is None else x @ w.W_skip
    return w.decode(w.encode(x)) + skip


@pytest.mark.parametrize("kind", CROSSING)
def test_a_transcoder_comes_in_and_goes_out_with_the_same_function(tmp_path, kind):
    theirs, x = crossing(kind), acts(300)
    theirs.save_model(tmp_path / "theirs")
    for source in (theirs, tmp_path / "theirs"):
        ours = from_saelens(source, world().old, rows())
        assert (ours.wiring, ours.sites, ours.targets) == ("transcoder", (READS,), (WRITES,))
        w = ours.at(READS)
        assert (w.W_skip is None) == ("skip" not in kind)
        with torch.no_grad():
            expected = theirs.decode(theirs.encode(x))
            expected = theirs(x) if w.W_skip is not None else expected
        assert torch.allclose(written(w, x), expected, atol=1e-4)
        assert bool((w.encode(x) == 0).any())
        assert bool((w.encode(x) > 0).any())
    back = load(to_saelens(ours, tmp_path / "back", release=world().old))
    assert back.cfg.architecture().startswith("jumprelu")
    assert back.cfg.metadata.hook_name_out == "blocks.1.hook_mlp_out"
    with torch.no_grad():
        assert torch.allclose(back(x), expected, atol=1e-4)
    again = from_saelens(tmp_path / "back", world().old, rows())
    assert (again.labels, again.targets) == (ours.labels, ours.targets)
    assert torch.allclose(written(again.at(READS), x), expected, atol=1e-4)


def test_one_layer_of_several_transcoders_is_given_away(tmp_path):
    w = directions(0, 20)
    skip = replace(w, W_skip=torch.randn(D, D, generator=torch.Generator().manual_seed(1)))
    places = [(Site(f"model.layers.{i}", "in"), Site(f"model.layers.{i}.mlp")) for i in (0, 1)]
    reads, writes = zip(*places, strict=True)
    both = Dictionary(reads, (w, skip), wiring="per_layer", targets=writes)
    for i, weights in enumerate((w, skip)):
        theirs = load(to_saelens(both, tmp_path / str(i), site=reads[i]))
        with torch.no_grad():
            assert torch.allclose(theirs(acts(50)), written(weights, acts(50)), atol=1e-5)
        assert theirs.cfg.metadata.hook_name == f"blocks.{i}.hook_resid_pre"
        assert theirs.cfg.metadata.hook_name_out == f"blocks.{i}.hook_mlp_out"


def test_a_transcoder_that_does_not_say_where_it_writes_is_asked(tmp_path):
    theirs = crossing()
    theirs.cfg.metadata.hook_name_out = None
    refused(lambda: from_saelens(theirs, world().old, rows()), "target=", code=64)
    ours = from_saelens(theirs, world().old, rows(), target="model.layers.1.mlp")
    assert ours.targets == (WRITES,)
    wide = Site("model.layers.1.mlp.up_proj")
    refused(lambda: from_saelens(theirs, world().old, rows(), target=wide), "width")
    refused(lambda: from_saelens(made(), world().old, rows(), target=WRITES), "an SAE", code=64)
    with_norm = dict(normalize_activations="expected_average_only_in")
    refused(lambda: from_saelens(saved(tmp_path / "n", crossing(), with_norm), world().old, rows()))
    cut = saved(tmp_path / "c", crossing(), without=["W_skip"])
    refused(lambda: from_saelens(cut, world().old, rows()), "W_skip is missing")


# Features that compete


def explained(sae, x) -> tuple[float, float]:
    "FVU and L0 of an SAE of SAELens, by its own forward."
    with torch.no_grad():
        left, codes = x - sae(x), sae.encode(x)
    fvu = left.square().sum() / (x - x.mean(0)).square().sum()
    return float(fvu), float((codes > 0).sum(1).float().mean())


@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_topk_sae_gets_thresholds_and_says_what_they_cost(tmp_path, k, rescaled, as_folder):
    sae = made("topk", k=k, rescale_acts_by_decoder_norm=rescaled, apply_b_dec_to_input=True)
    where = sae
    if as_folder:
        sae.save_model(tmp_path / "a")
        where = tmp_path / "a"
    with pytest.warns(UserWarning, match=f"the {k} strongest features"):
        d = from_saelens(where, world().old, rows())
    cost = d.training["imported"]["thresholds"]
    pinned = world().old.pin(rows())
    batch = world().old.batch(pinned)
    x = capture(world().old.model, [SITES[1]], batch)[SITES[1]][batch.mask]
    fvu, l0 = explained(sae, x)
    assert (cost["k"], cost["tokens"]) == (k, len(x))
    assert cost["fvu_before"] == pytest.approx(fvu, rel=1e-3)
    assert cost["l0_before"] == pytest.approx(l0, rel=1e-3)
    assert cost["l0_after"] == pytest.approx(l0, abs=0.05)
    codes = d.at(SITES[1]).encode(x)
    left = x - d.forward({SITES[1]: x[None]})[SITES[1]][0]
    after = float(left.square().sum() / (x - x.mean(0)).square().sum())
    assert cost["fvu_after"] == pytest.approx(after, rel=1e-3)
    both = (codes > 0) & (sae.encode(x) > 0)  # what is active in both has the same code
    lengths = 1 if rescaled else sae.W_dec.norm(dim=1)
    assert torch.allclose(codes[both], (sae.encode(x) * lengths)[both], rtol=1e-3, atol=1e-4)
    again = from_saelens(to_saelens(d, tmp_path / "b"), world().old, rows())
    assert again.fingerprint == d.fingerprint


def test_a_batchtopk_sae_as_training_keeps_it_has_the_thresholds_that_it_is_deployed_with(tmp_path):
    sae, _ = trained()
    sae.save_inference_model(tmp_path / "deployed")
    sae.save_model(tmp_path / "kept")
    assert read_json(tmp_path / "kept" / "cfg.json")["architecture"] == "batchtopk"
    deployed, kept = (
        from_saelens(tmp_path / name, world().old, rows(), site=SITES[1])
        for name in ("deployed", "kept")
    )
    for name in TENSORS:
        ours, theirs = (getattr(d.weights[0], name) for d in (kept, deployed))
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), name
    assert "thresholds" not in kept.training["imported"]  # they are its own


def test_features_of_another_model_that_are_never_active_are_no_dictionary(tmp_path):
    sae = made("topk", k=4)
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    refused(lambda: from_saelens(sae, world().old, rows()), "none on these rows", code=65)


# Refused


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(architecture="topk"), "k in cfg.json"),
        (dict(architecture="topk", k=25), "from 1 to 24"),
        (dict(architecture="topk", k=2.5), "2.5"),
        (dict(activation_fn="topk", activation_fn_kwargs=dict(k=0)), "k in cfg.json"),
        (dict(architecture="batchtopk", k=True), "k in cfg.json"),
        (dict(architecture="temporal"), "temporal"),
        (dict(architecture="matching_pursuit"), "train_dictionary"),
        (dict(normalize_activations="layer_norm"), "layer_norm"),
        (dict(normalize_activations="constant_norm_rescale"), "constant_norm_rescale"),
        (dict(normalize_activations="covariance_whitening"), "covariance_whitening"),
        (dict(activation_fn_str="tanh-relu"), "tanh-relu"),
        (dict(metadata=dict(hook_head_index=3)), "head 3"),
        (dict(dtype="int8"), "int8"),
        (
            dict(metadata=dict(hook_name=HOOK, hook_name_out="blocks.1.hook_mlp_out")),
            "writes blocks.1.hook_mlp_out",
        ),
        (dict(d_sae=25), "W_enc [16, 24]"),
        (dict(d_in=None), "W_enc"),
        (dict(metadata=dict(interpkit="x")), "'interpkit'"),
        (
            dict(metadata=dict(interpkit=dict(labels=["one"], training={}), hook_name=HOOK)),
            "1 labels for 24 features",
        ),
    ],
)
def test_settings_that_no_dictionary_has_are_refused(tmp_path, change, says):
    refused(lambda: from_saelens(saved(tmp_path / "a", change=change), world().old, rows()), says)


@pytest.mark.parametrize(
    "args, says",
    [
        (dict(without=["threshold"]), "threshold is missing"),
        (dict(tensors=dict(W_skip=torch.zeros(D, D))), "W_skip [16, 16] as well"),
        (dict(tensors=dict(scaling_factor=torch.full((24,), 2.0))), "scaling_factor [24] as well"),
        (dict(tensors=dict(b_enc=torch.zeros(23))), "b_enc [23]"),
        (dict(tensors=dict(W_dec=torch.full((24, D), float("nan")))), "NaN or infinity in W_dec"),
        (dict(tensors=dict(b_enc=torch.full((24,), float("inf")))), "in b_enc"),
        (dict(tensors=dict(threshold=torch.full((24,), float("nan")))), "in threshold"),
    ],
)
def test_tensors_that_are_not_those_of_the_architecture_are_refused(tmp_path, args, says):
    refused(lambda: from_saelens(saved(tmp_path / "a", **args), world().old, rows()), says)


def test_a_threshold_that_is_never_reached_is_kept(tmp_path):
    folder = saved(
        tmp_path / "a", tensors=dict(threshold=torch.tensor([float("inf")] + [0.1] * 23))
    )
    d = from_saelens(folder, world().old, rows())
    sae = load(folder)
    assert same(sae, d, SITES[1], acts(), sae.W_dec.norm(dim=1))
    assert not bool(d.at(SITES[1]).encode(acts())[:, 0].any())


def test_saes_in_memory_that_do_not_fold_are_refused():
    refused(
        lambda: from_saelens(made(normalize_activations="layer_norm"), world().old, rows()),
        "layer_norm",
    )
    refused(lambda: from_saelens(torch.nn.Linear(2, 2), world().old, rows()), "Linear", code=64)


# Files


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was opened')",))


def test_pickles_stay_shut(tmp_path):
    folder = saved(tmp_path / "a")
    (folder / "trainer_state.pt").write_bytes(pickle.dumps(Trap()))  # lies in SAELens' checkpoints
    from_saelens(folder, world().old, rows())
    (folder / "sae_weights.safetensors").rename(folder / "away")
    refused(
        lambda: from_saelens(folder, world().old, rows()),
        "only pickles, which stay shut: trainer_state.pt",
        "sae.save_model(folder)",
    )
    (folder / "sae_weights.safetensors").write_bytes(pickle.dumps(Trap()))
    refused(
        lambda: from_saelens(folder, world().old, rows()),
        "safetensors in",
        "sae_weights.safetensors",
    )
    with pytest.raises(SystemExit):
        pickle.loads(pickle.dumps(Trap()))  # the trap would have sprung


@pytest.mark.parametrize(
    "file, content, says",
    [
        ("cfg.json", None, "cfg.json"),
        ("cfg.json", b"{", "JSON in"),
        ("cfg.json", b"[1]", "list"),
        ("sae_weights.safetensors", None, "no such file"),
        ("sae_weights.safetensors", b"", "safetensors in"),
        ("sae_weights.safetensors", 0.5, "safetensors in"),
    ],
)
def test_missing_and_broken_files_are_named(tmp_path, file, content, says):
    folder = saved(tmp_path / "a")
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(
            path.read_bytes()[: path.stat().st_size // 2] if content == 0.5 else content
        )
    refused(lambda: from_saelens(folder, world().old, rows()), file, says)


def test_folders_that_were_changed_or_are_none_are_named(tmp_path):
    folder = to_saelens(small(), tmp_path / "a", SITES[0])
    for file in ("cfg.json", "sae_weights.safetensors"):
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        refused(lambda: from_saelens(folder, world().old, rows()), f"{file} was changed")
        (folder / file).write_bytes(whole)
    small().save(tmp_path / "d")
    refused(lambda: from_saelens(tmp_path / "d", world().old, rows()), "a dictionary folder")
    refused(
        lambda: from_saelens("gpt2-small-res-jb", world().old, rows()),
        "gpt2-small-res-jb is no folder",
    )


WITHOUT_SAELENS = """
import sys
from pathlib import Path

sys.modules["sae_lens"] = sys.modules["transformer_lens"] = None
from interpkit.bridges.from_saelens import _read
from interpkit.bridges.saelens import to_saelens
from interpkit.dictionary.dictionary import Dictionary
from interpkit.model.sites import Site

folder, other = sys.argv[1:]
cfg, weights = _read(Path(folder))
to_saelens(Dictionary((Site("x"),), (weights,)), other)
"""


def test_folders_are_written_and_read_without_saelens(tmp_path):
    folder = to_saelens(small(), tmp_path / "a", SITES[0])
    done = [sys.executable, "-c", WITHOUT_SAELENS, str(folder), str(tmp_path / "b")]
    subprocess.run(done, check=True, timeout=60)
    assert (tmp_path / "b" / "sae_weights.safetensors").read_bytes() == (
        folder / "sae_weights.safetensors"
    ).read_bytes()
