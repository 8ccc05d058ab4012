"Tiny models of many families of language models: those whose blocks are known, and others."

import torch
from small_models import V

LLAMA_LIKE = ("post_attention_layernorm:in", "self_attn:out", "mlp:out")
GPT2_LIKE = ("ln_2:in", "attn:out", "mlp:out")
NORMS = ("post_attention_layernorm:out", "post_feedforward_layernorm:out")
KNOWN = dict(  # family -> resid_mid, attn_out, mlp_out
    Llama=LLAMA_LIKE,
    Mistral=LLAMA_LIKE,
    Qwen2=LLAMA_LIKE,
    Qwen3=LLAMA_LIKE,
    Phi3=LLAMA_LIKE,
    Gemma=LLAMA_LIKE,
    StarcoderTwo=LLAMA_LIKE,
    GPT2=GPT2_LIKE,
    GPTNeo=GPT2_LIKE,
    GPTBigCode=GPT2_LIKE,
    Gemma2=("pre_feedforward_layernorm:in", *NORMS),
    Gemma3=("pre_feedforward_layernorm:in", *NORMS),
    Olmo2=("mlp:in", *NORMS),
    Olmo3=("mlp:in", *NORMS),
)
OTHERS = dict(  # family -> what its configuration says
    GPTNeoX={},
    Cohere={},
    Phi={},
    GPTJ=dict(rotary_dim=4),
    OpenAIGPT={},
    Granite=dict(residual_multiplier=0.5),
    Glm4={},
    StableLm=dict(use_parallel_residual=True),
    StableLmSerial=dict(use_parallel_residual=False),
    Falcon={},
    Chameleon=dict(swin_norm=True),
    MiniMax=dict(num_local_experts=2),
    Mamba={},
)
PICTURES = dict(
    vq_config=dict(
        embed_dim=8,
        num_embeddings=4,
        base_channels=32,
        channel_multiplier=[1],
        num_res_blocks=1,
        latent_channels=8,
        resolution=8,
        in_channels=3,
    ),
    vocabulary_map={"<image>": 3},
)


def _sizes(family: str) -> dict:
    "What a family calls its sizes."
    if family == "GPTNeo":
        return dict(
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=16,
        )
    if family in ("GPT2", "GPTBigCode", "OpenAIGPT", "GPTJ"):
        return dict(n_embd=16, n_layer=2, n_head=2, n_positions=16)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    if family not in ("Falcon", "Mamba"):
        sizes |= dict(intermediate_size=32, num_key_value_heads=2, head_dim=8)
    if family == "Chameleon":
        sizes |= PICTURES
    return sizes


def tiny(family: str, **more):
    "A model of a family with two blocks; norms have random weights: leaving one out is seen."
    import transformers

    family = dict(StarcoderTwo="Starcoder2", StableLmSerial="StableLm").get(family, family)
    config = dict(Gemma3="Gemma3TextConfig").get(family, f"{family}Config")
    heads = [
        f"{family}{head}" for head in ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    ]
    head = next(head for head in heads if hasattr(transformers, head))
    torch.manual_seed(0)
    configured = getattr(transformers, config)(
        vocab_size=V,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **_sizes(family),
        **more,
    )
    model = getattr(transformers, head)(configured).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    return model
