"Tiny models of transformers with random weights, by family, and rows in several paddings."

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import nn

V, BOS, EOS, PAD = 40, 1, 2, 0
COMMON = dict(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=48,
    initializer_range=0.5,
    num_labels=2,
    bos_token_id=BOS,
    eos_token_id=EOS,
    pad_token_id=PAD,
)
GPT = dict(n_embd=16, n_layer=3, n_head=2, n_positions=48, n_inner=32)
CLASSIFIES, SPEAKS = "ForSequenceClassification", "ForCausalLM"

# family -> what its configuration needs besides COMMON
DECODERS = {
    "Llama": {},
    "Mistral": dict(num_key_value_heads=2, sliding_window=None),
    "Qwen2": dict(num_key_value_heads=2),
    "Qwen3": dict(num_key_value_heads=2, head_dim=8),
    "Gemma": dict(num_key_value_heads=2, head_dim=8),
    "Gemma2": dict(num_key_value_heads=2, head_dim=8),
    "Phi": {},
    "Phi3": dict(num_key_value_heads=2),
    "GPT2": GPT,
    "GPTNeo": dict(
        num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], num_hidden_layers=2
    ),
    "GPTNeoX": {},
    "GPTJ": dict(GPT, rotary_dim=4),
    "GPTBigCode": GPT,
    "OPT": dict(ffn_dim=32, word_embed_proj_dim=16),
    "Bloom": dict(n_layer=3, n_head=2),
    "Falcon": {},
    "Mpt": dict(d_model=16, n_layers=3, n_heads=2, expansion_ratio=2, max_seq_len=48),
    "StableLm": dict(num_key_value_heads=2),
    "Starcoder2": dict(num_key_value_heads=2),
    "Mixtral": dict(num_key_value_heads=2, num_local_experts=2, sliding_window=None),
    "Olmo2": {},
}
ENCODERS = {
    "Bert": {},
    "Roberta": dict(pad_token_id=1, bos_token_id=0, type_vocab_size=1),
    "XLMRoberta": dict(pad_token_id=1, bos_token_id=0, type_vocab_size=1),
    "Camembert": dict(pad_token_id=1, bos_token_id=0, type_vocab_size=1),
    "DistilBert": dict(dim=16, hidden_dim=32, n_layers=3, n_heads=2),
    "Albert": dict(embedding_size=16),
    "Electra": dict(embedding_size=16),
    "Deberta": dict(relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "DebertaV2": dict(relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "MPNet": dict(pad_token_id=1, bos_token_id=0),
    "ModernBert": dict(local_attention=8, cls_token_id=1, sep_token_id=2),
    "RemBert": dict(input_embedding_size=16, output_embedding_size=16),
    "ConvBert": dict(embedding_size=16, head_ratio=1, conv_kernel_size=3),
    "Funnel": dict(
        d_model=16, d_inner=32, n_head=2, d_head=8, block_sizes=[1, 1], num_hidden_layers=None
    ),
    "XLNet": dict(d_model=16, n_layer=3, n_head=2, d_inner=32, max_position_embeddings=None),
    "FNet": {},
    "SqueezeBert": dict(embedding_size=16),
}
BOTH_ENDS = ("T5", "Bart", "MBart", "LED")  # encoders with a decoder


def tiny(family: str, head: str = CLASSIFIES, **changed) -> nn.Module:
    "A random model of a family."
    import transformers

    named = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    kind = next(c for c in named.values() if c.__name__.lower() == f"{family}config".lower())
    special = DECODERS.get(family, ENCODERS.get(family, {}))
    torch.manual_seed(0)
    asked = {k: v for k, v in {**COMMON, **special}.items() if v is not None}
    config = kind(**{**asked, **changed})
    name = "GPT2LMHeadModel" if family + head == "GPT2ForCausalLM" else family + head
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and float(parameter.std()) < 0.2:
                parameter.normal_(0, 0.4)
    return model


def token_rows(start: int = BOS, end: int = EOS) -> pd.DataFrame:
    "Ten sequences of 3 to 14 tokens behind a start token; some hold an end token at their end."
    rng = np.random.default_rng(0)
    lengths = [3, 14, 4, 6, 3, 9, 5, 11, 4, 7]
    ids = [[start, *rng.integers(4, V, n - 1).tolist()] for n in lengths]
    for i in (3, 5):
        ids[i][-1] = end
    return pd.DataFrame(dict(sequence_id=range(len(ids)), input_ids=ids))


def padded(rows: pd.DataFrame, side: str, pad: int) -> pd.DataFrame:
    "The rows padded to 16 tokens on the 'right' or 'left', with a mask; 'none': as they are."
    if side == "none":
        return rows
    ids, masks = [], []
    for x in rows["input_ids"]:
        more = 16 - len(x)
        ones, zeros = [1] * len(x), [0] * more
        ids.append([*x, *[pad] * more] if side == "right" else [*[pad] * more, *x])
        masks.append([*ones, *zeros] if side == "right" else [*zeros, *ones])
    return rows.assign(input_ids=ids, attention_mask=masks)


def alone(model: nn.Module, rows: pd.DataFrame, read: Callable) -> torch.Tensor:  # [B]
    "The decision of each row by transformers itself: one at a time, without padding."
    with torch.no_grad():
        given = [model(input_ids=torch.tensor([x])).logits for x in rows["input_ids"]]
    return torch.stack([read(logits) for logits in given])
