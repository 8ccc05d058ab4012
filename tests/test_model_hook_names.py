"Hook names of TransformerLens, from and to sites."

import pytest
import torch
from helpers import refused
from small_architectures import tiny
from small_models import gpt2, llama, tokens

from interpkit.core.errors import InterpkitError
from interpkit.model.capture import capture
from interpkit.model.hook_names import hook_name_from_site, site_from_hook_name
from interpkit.model.sites import Site

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
    assert hook_name_from_site(Site("model.layers.1.mlp"), model) is None
    refused(lambda: site_from_hook_name("blocks.1.hook_mlp_out", model), code=64)


GEMMA_NAMES = [  # site, its name without a model, its name with a Gemma-2
    ("post_attention_layernorm:in", "mlp_in", None),
    ("mlp:out", "mlp_out", None),
    ("post_attention_layernorm:out", None, "attn_out"),
    ("pre_feedforward_layernorm:in", "mlp_in", "mlp_in"),
    ("post_feedforward_layernorm:out", "mlp_out", "mlp_out"),
]


@pytest.mark.parametrize("site, alone, with_model", GEMMA_NAMES)
def test_names_that_have_two_meanings_need_the_model_to_be_told_apart(site, alone, with_model):
    "Without a model they mean what they mean in Llama."
    site = Site.parse(f"model.layers.0.{site}")
    full = {None: None} | {n: f"blocks.0.hook_{n}" for n in NAMES}
    assert hook_name_from_site(site) == full[alone]
    assert hook_name_from_site(site, tiny("Gemma2")) == full[with_model]
