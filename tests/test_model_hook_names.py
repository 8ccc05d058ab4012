"Hook names of TransformerLens, from and to sites."

import pandas as pd
import pytest
import torch
from helpers import refused
from small_architectures import tiny
from small_models import gpt2, llama, tokens
from small_transformers import SPEAKS
from small_transformers import tiny as speaking
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.data.store import ActivationStore
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.batch import Batch
from interpkit.model.capture import capture, run_spliced
from interpkit.model.hook_names import hook_name_from_site, site_from_hook_name, site_named
from interpkit.model.releases import Release
from interpkit.model.sites import Site
from interpkit.training.pairing import wired

NAMES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_in")
BOTH = [(llama, "model.layers"), (gpt2, "transformer.h")]


@pytest.mark.parametrize("build, path", BOTH)
def test_hook_names_of_transformer_lens(build, path):
    "resid_post = resid_mid + mlp_out and resid_mid = resid_pre + attn_out, as it defines them."
    model = build().eval()
    batch = tokens()
    sites = {n: site_from_hook_name(f"blocks.1.hook_{n}", model) for n in NAMES}
    values = {n: capture(model, [site], batch)[site] for n, site in sites.items()}
    assert sites["resid_pre"] == Site(f"{path}.1", "in")
    before = Site(f"{path}.0")
    assert torch.equal(values["resid_pre"], capture(model, [before], batch)[before])

    mid = values["resid_pre"] + values["attn_out"]
    assert torch.allclose(values["resid_mid"], mid, atol=1e-4)
    post = values["resid_mid"] + values["mlp_out"]
    assert torch.allclose(values["resid_post"], post, atol=1e-4)
    assert torch.equal(values["mlp_in"], values["resid_mid"])
    assert values["attn_out"].abs().sum() > 0
    assert values["mlp_out"].abs().sum() > 0


@pytest.mark.parametrize("build, path", BOTH)
def test_hook_names_without_a_model(build, path):
    model = build().eval()
    sites = {n: site_from_hook_name(f"blocks.1.hook_{n}", model) for n in NAMES}
    back = {n: hook_name_from_site(site) for n, site in sites.items()}
    # one tensor; written there, it reaches the MLP alone
    one_tensor = dict(resid_mid="blocks.1.hook_mlp_in")
    assert back == {n: f"blocks.1.hook_{n}" for n in sites} | one_tensor

    assert hook_name_from_site(Site(f"{path}.12")) == "blocks.12.hook_resid_post"
    for other in (f"{path}.1.mlp.act", f"{path}.1x", f"my{path}.1", path, "lm_head"):
        assert hook_name_from_site(Site(other)) is None, other


@pytest.mark.parametrize("build, path", BOTH)
def test_what_is_no_hook_name_is_refused(build, path):
    model = build()
    for name in ("blocks.1.hook_resid_pots", "blocks.9.hook_resid_post"):
        with pytest.raises(InterpkitError):
            site_from_hook_name(name, model)


def test_what_goes_between_blocks_needs_no_kind():
    model = tiny("Cohere")
    after = Site("model.layers.1")
    assert site_from_hook_name("blocks.1.hook_resid_post", model) == after
    assert site_from_hook_name("blocks.1.hook_resid_pre", model) == Site("model.layers.1", "in")
    assert hook_name_from_site(after, model) == "blocks.1.hook_resid_post"
    assert hook_name_from_site(Site("model.layers.1.mlp"), model) == "blocks.1.mlp.hook_out"
    refused(lambda: site_from_hook_name("blocks.1.hook_mlp_out", model), code=64)


GEMMA_NAMES = [  # site, its name without a model, its name with a Gemma-2
    ("post_attention_layernorm:in", "mlp_in", None),
    ("mlp:out", "mlp_out", "mlp.hook_out"),
    ("post_attention_layernorm:out", None, "attn_out"),
    ("pre_feedforward_layernorm:in", "mlp_in", "mlp_in"),
    ("post_feedforward_layernorm:out", "mlp_out", "mlp_out"),
]


@pytest.mark.parametrize("site, alone, with_model", GEMMA_NAMES)
def test_names_that_have_two_meanings_need_the_model_to_be_told_apart(site, alone, with_model):
    "Without a model they mean what they mean in Llama."
    site = Site.parse(f"model.layers.0.{site}")
    full = {None: None} | {n: f"blocks.0.hook_{n}" for n in NAMES}
    full["mlp.hook_out"] = "blocks.0.mlp.hook_out"
    assert hook_name_from_site(site) == full[alone]
    assert hook_name_from_site(site, tiny("Gemma2")) == full[with_model]


ADDING = {  # families whose blocks are known by their class
    "GPTNeoX": ("gpt_neox.layers.1", "attention.dense", "mlp.dense_4h_to_h"),
    "OPT": ("model.decoder.layers.1", "self_attn.out_proj", "fc2"),
}


@pytest.mark.parametrize("family", ADDING)
def test_what_blocks_of_other_classes_add_has_a_name_both_ways(family):
    "resid_post = resid_pre + attn_out + mlp_out."
    model, batch = speaking(family, SPEAKS), tokens()
    at, heads, hidden = ADDING[family]
    names = [f"hook_{n}" for n in ("resid_pre", "resid_post", "attn_out", "mlp_out")]
    sites = {n: site_from_hook_name(f"blocks.1.{n}", model) for n in names}
    before, after, attention, mlp = capture(model, list(sites.values()), batch, stop=False).values()
    assert torch.allclose(after, before + attention + mlp, atol=1e-5)
    assert min(float(part.abs().max()) for part in (attention, mlp)) > 1e-3
    with torch.no_grad():
        bare = batch.run(model).logits
        again = run_spliced(model, {sites["hook_mlp_out"]: mlp}, batch).logits
        without = run_spliced(model, {sites["hook_mlp_out"]: 0 * mlp}, batch).logits
        summed = run_spliced(model, {sites["hook_resid_post"]: before + attention}, batch).logits
    assert torch.allclose(again, bare, atol=1e-4)
    assert torch.allclose(without, summed, atol=1e-4)
    assert not torch.allclose(without, bare, atol=1e-2)
    inner = {"attn.hook_z": heads, "mlp.hook_post": hidden}
    for name, module in inner.items():
        sites[name] = site_from_hook_name(f"blocks.1.{name}", model)
        assert sites[name] == Site(f"{at}.{module}", "in")
    for name, site in sites.items():
        assert hook_name_from_site(site, model) == f"blocks.1.{name}"
        assert hook_name_from_site(site) == (None if name in inner else f"blocks.1.{name}")
    refused(lambda: site_from_hook_name("blocks.1.hook_resid_mid", model), "OPT", code=64)


@pytest.mark.parametrize("build, path", BOTH)
def test_what_heads_give_goes_side_by_side_into_one_layer(build, path):
    model, batch = build().eval(), tokens()
    site = site_from_hook_name("blocks.1.attn.hook_z", model)
    out = Site(site.module)
    given, gives = capture(model, [site, out], batch, stop=False).values()
    with torch.no_grad():
        assert torch.equal(model.get_submodule(site.module)(given), gives)
    assert hook_name_from_site(site, model) == "blocks.1.attn.hook_z"
    hidden = site_from_hook_name("blocks.0.mlp.hook_post", model)
    assert capture(model, [hidden], batch)[hidden].shape[-1] in (32, 64)


def test_a_block_whose_output_was_normed_has_no_name_in_the_stream():
    model = speaking("OPT", SPEAKS, do_layer_norm_before=False)
    refused(lambda: site_named("blocks.1.hook_resid_post", model), code=64)


def test_a_hook_name_is_understood_wherever_a_site_is_named(tmp_path):
    model, hook = speaking("Llama", SPEAKS), "blocks.0.hook_resid_post"
    decision = dict(kind="logit_difference", positive=4, negative=3)
    site, mlp = Site("model.layers.0"), Site("model.layers.0.mlp")
    release = Release.from_module(model, "tokens", decision, hook, device="cpu")
    assert release.default_sites == (site,)
    model.save_pretrained(tmp_path / "hf")
    loaded = Release.load(tmp_path / "hf", "cpu", [hook, "blocks.1.attn.hook_z"], decision)
    assert loaded.default_sites == (site, Site("model.layers.1.self_attn.o_proj", "in"))
    rows = pd.DataFrame(dict(sequence_id=[0, 1], input_ids=[[1, 5, 6], [1, 7]]))
    store = ActivationStore.write(tmp_path / "s", release, rows, sites=[hook])
    assert store.sites == (site,)
    found = wired(release, "transcoder", "blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out")
    assert found == ((Site("model.layers.0.post_attention_layernorm", "in"),), (mlp,))


def test_own_hook_points_of_a_model_come_first_and_a_slip_is_told_with_a_line():
    hooked = nn.ModuleDict(
        {"blocks": nn.ModuleList([nn.ModuleDict({"hook_resid_post": nn.ReLU()})])}
    )
    own = Site("blocks.0.hook_resid_post")
    assert site_named("blocks.0.hook_resid_post", hooked) == own
    model = speaking("Bloom", SPEAKS)
    assert site_named("blocks.1.hook_resid_post", model) == Site("transformer.h.1")
    for name in ("blocks.1.hook_resid_pots", "blocks.1.attn.hook_pattern", "blocks.1.hook_mlp_out"):
        refused(lambda name=name: site_named(name, model), "release.sites()", code=64)
    error = refused(lambda: site_named("blocks.1.hook_pattern", model), code=64)
    assert "'transformer.h.1:out'" in error.mend
    refused(lambda: site_named("blocks.9.hook_resid_post", model), "transformer.h.9")


def test_heads_of_a_hooked_transformer_stand_side_by_side():
    "As SAELens reads hook_z: [B, T, heads, d_head] as [B, T, heads * d_head]."
    lens = pytest.importorskip("transformer_lens")
    config = dict(n_layers=2, d_model=16, n_ctx=16, d_head=4, n_heads=3, d_mlp=32, d_vocab=20)
    model = lens.HookedTransformer(
        lens.HookedTransformerConfig(**config, act_fn="gelu", seed=0), move_to_device=False
    ).eval()
    ids, site = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 4]]), Site("blocks.1.attn.hook_z")
    assert site_named("blocks.1.attn.hook_z", model) == site
    batch = Batch(args=(ids,), n=2)
    acts = capture(model, [site], batch)[site]
    with torch.no_grad():
        bare, cache = model.run_with_cache(ids)
        assert torch.equal(acts, cache["blocks.1.attn.hook_z"].flatten(2))
        assert torch.allclose(run_spliced(model, {site: acts}, batch), bare, atol=1e-6)
        one = acts.clone()
        one[..., 4:8] = 0  # the second head
        edited = model.run_with_hooks(ids, fwd_hooks=[(str(site).split(":")[0], without_second)])
        assert torch.allclose(run_spliced(model, {site: one}, batch), edited, atol=1e-6)
    refused(lambda: capture(model, [Site("blocks.1.attn.hook_pattern")], batch), "[2, 3, 4, 4]")


def without_second(z, hook):
    z[:, :, 1] = 0
    return z


def test_a_dictionary_of_either_name_is_steered_in_a_hooked_transformer():
    lens = pytest.importorskip("transformer_lens")
    config = dict(n_layers=3, d_model=16, n_ctx=16, d_head=4, n_heads=4, d_mlp=32, d_vocab=20)
    model = lens.HookedTransformer(
        lens.HookedTransformerConfig(**config, act_fn="gelu", seed=0), move_to_device=False
    ).eval()
    W = torch.nn.functional.normalize(torch.randn(9, 16), dim=1)
    zero = torch.zeros(9)
    weights = SiteWeights(W.T.contiguous(), zero, zero, W, torch.zeros(16))
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 4]])

    def add(resid, hook):
        return resid + 3 * W[2]

    hook = "blocks.1.hook_resid_post"
    with torch.no_grad():
        due = model.run_with_hooks(ids, fwd_hooks=[(hook, add)])
        for site in (f"{hook}:out", "model.layers.1:out", "transformer.h.1:out"):
            dictionary = Dictionary((site,), (weights,))
            with dictionary.steered(model, {2: 3.0}):
                assert torch.allclose(model(ids), due, atol=1e-5)
            with dictionary.steered(model, {2: 3.0}), dictionary.reading(model) as noted:
                text = model.generate(ids, max_new_tokens=3, verbose=False, stop_at_eos=False)
            codes = noted.codes[dictionary.sites[0]]
            assert codes.shape == (2, text.shape[1] - 1, 9)  # read token by token, with its cache


def test_a_bridge_and_a_hooked_transformer_are_asked_themselves():
    "Their own hook points, by the old names too, and the names of what lies beside them."
    lens = pytest.importorskip("transformer_lens")
    config = dict(n_layers=2, d_model=16, n_ctx=16, d_head=4, n_heads=4, d_mlp=32, d_vocab=20)
    config = lens.HookedTransformerConfig(**config, act_fn="gelu", seed=0)
    model = lens.HookedTransformer(config, move_to_device=False).eval()
    beside = {
        "blocks.1:in": "hook_resid_pre",
        "blocks.1:out": "hook_resid_post",
        "blocks.1.mlp:in": "mlp.hook_in",
        "blocks.1.mlp:out": "hook_mlp_out",
        "blocks.1.hook_resid_mid:out": "hook_resid_mid",
        "blocks.1.attn.hook_z:out": "attn.hook_z",
    }
    for site, name in beside.items():
        assert hook_name_from_site(Site.parse(site), model) == f"blocks.1.{name}", site
    assert hook_name_from_site(Site("blocks.1.attn.hook_pattern"), model) is None
    decision = dict(kind="logit_difference", positive=4, negative=3)
    release = Release.from_module(
        model, "tokens", decision, "blocks.1.hook_resid_mid", device="cpu"
    )
    rows = pd.DataFrame(dict(sequence_id=[0, 1], input_ids=[[1, 5, 6], [1, 7]]))
    assert "blocks.0.hook_resid_post" in release.sites(rows)["hook name"].tolist()


def test_hook_points_that_a_model_answers_for_under_another_name(tmp_path):
    pytest.importorskip("transformer_lens")
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import (
        AutoTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    sizes = dict(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=16)
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).save_pretrained(tmp_path)
    hf = GPT2LMHeadModel.from_pretrained(tmp_path).eval()  # which knows where it lies
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    named = dict(bos_token="w1", eos_token="w2")
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(
        str(tmp_path), hf_model=hf, tokenizer=tokenizer, device="cpu"
    )
    for name in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out"):
        site = site_named(f"blocks.1.{name}", bridge)
        assert hook_name_from_site(site, bridge) == f"blocks.1.{name}"
    hook = "blocks.1.hook_resid_post"
    ask = dict(kind="logit_difference", positive=4, negative=3)
    rows = pd.DataFrame(dict(sequence_id=[0, 1], input_ids=[[1, 5, 6], [1, 7]]))
    live = Release.from_module(bridge, dict(kind="tokens", bos=1), ask, hook, device="cpu")
    plain = Release.from_module(hf, dict(kind="tokens", bos=1), ask, hook, device="cpu")
    assert torch.allclose(live.run(rows), plain.run(rows), atol=1e-4)


def test_a_transformer_of_one_block_is_read_behind_it():
    for family in ("Llama", "GPTNeoX", "OPT"):
        model = speaking(family, SPEAKS, num_hidden_layers=1)
        (site,) = Release.from_module(model, "tokens", dict(kind="top_two")).default_sites
        assert hook_name_from_site(site, model) == "blocks.0.hook_resid_post"
