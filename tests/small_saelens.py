"SAEs of SAELens with random weights."

import torch
from small_language import D

HOOK = "blocks.1.hook_resid_post"
CLASSES = dict(jumprelu="JumpReLU", standard="Standard", gated="Gated", topk="TopK")
CROSSING = dict(
    transcoder="Transcoder",
    skip_transcoder="SkipTranscoder",
    jumprelu_transcoder="JumpReLUTranscoder",
    jumprelu_skip_transcoder="JumpReLUSkipTranscoder",
)


def made(kind="jumprelu", seed=0, F=24, hook=HOOK, **config):
    "An SAE of SAELens with random weights: every bias, length and threshold matters."
    import sae_lens

    configured = getattr(sae_lens, f"{CLASSES[kind]}SAEConfig")(d_in=D, d_sae=F, **config)
    sae = getattr(sae_lens, f"{CLASSES[kind]}SAE")(configured)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    sae.cfg.metadata.hook_name = hook
    return sae


def crossing(kind="jumprelu_skip_transcoder", F=24, reads="mlp_in", **config):
    "A transcoder of SAELens with random weights, from what goes into an MLP to what comes out."
    import sae_lens.saes.transcoder as lens

    configured = getattr(lens, f"{CROSSING[kind]}Config")(
        d_in=D, d_out=D, d_sae=F, apply_b_dec_to_input=False, **config
    )
    made = getattr(lens, CROSSING[kind])(configured)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.5)
    made.cfg.metadata.hook_name = f"blocks.1.hook_{reads}"
    made.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    return made
