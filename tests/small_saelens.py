"SAEs of SAELens with random weights."

import torch
from small_language import D

HOOK = "blocks.1.hook_resid_post"
CLASSES = dict(jumprelu="JumpReLU", standard="Standard", gated="Gated", topk="TopK")


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
