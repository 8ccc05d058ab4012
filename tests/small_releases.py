"Small releases: a fraud model with code of its own, a tiny Llama in a folder, and rows for both."

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from interpkit.model.releases import Release

V = 20  # token ids
MODULE = """
import torch
from torch import nn


class FraudNet(nn.Module):
    def __init__(self, width=8, act="relu"):
        super().__init__()
        self.numbers = nn.Linear(2, width)
        self.country = nn.Embedding(5, width)
        self.act = getattr(torch, act)
        self.head = nn.Linear(width, 2)

    def forward(self, x, country):
        return SCALE * self.head(self.act(self.numbers(x) + self.country(country)))


def collate(rows):
    return dict(x=rows[["amount", "age"]].to_numpy(), country=rows["country"].to_numpy())


def score(out):
    return out[:, 1] - 0.5 * out[:, 0]


def wrong_size():
    return FraudNet(4)
"""
WRITTEN = ("fraud_model", "bank", "bank.models", "bank.parts", "helper_of_model")


def module_writer(tmp_path: Path, monkeypatch) -> Iterator[Callable]:
    "For a fixture: gives a function that writes a module and imports it anew."
    source = tmp_path / "src"
    monkeypatch.syspath_prepend(str(source))

    def write(text: str, name: str = "fraud_model"):
        file = source.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        top = name.split(".")[0]
        for imported in [m for m in sys.modules if m.split(".")[0] == top]:
            del sys.modules[imported]
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in WRITTEN:
        sys.modules.pop(name, None)


def fraud_release(module, model: nn.Module | None = None, **changed) -> Release:
    "A live release of a module's model, with its inputs and its decision."
    if model is None:
        torch.manual_seed(0)
        model = module.FraudNet()
    asked = dict(
        inputs=module.collate,
        decision=module.score,
        sites=["numbers:out"],
        name="v1",
        device="cpu",
    )
    return Release.from_module(model, **{**asked, **changed})


def fraud(code: Callable, scale=1, **kwargs):
    "The module `fraud_model`, written with `code`, and a live release of its class."
    module = code(f"SCALE = {scale}" + MODULE)
    torch.manual_seed(0)
    return module, fraud_release(module, module.FraudNet(**kwargs))


def fraud_rows() -> pd.DataFrame:
    "Sixty customers."
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        dict(
            sequence_id=np.arange(60),
            amount=rng.normal(size=60),
            age=rng.normal(size=60),
            country=np.arange(60) % 5,
            segment=["a", "b"] * 30,
            label=0,
        )
    )


def scorer(*widths: int) -> nn.Sequential:
    "A plain network with one hidden layer: its input, hidden and output widths."
    read, hidden, given = widths or (2, 8, 1)
    return nn.Sequential(nn.Linear(read, hidden), nn.ReLU(), nn.Linear(hidden, given))


def saved_llama(folder: Path):
    "A tiny Llama, which transformers writes into a folder."
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=5,
        num_attention_heads=2,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.eval()


def sequences(n: int = 6) -> pd.DataFrame:
    "Token ids of several lengths, behind a start token."
    rng = np.random.default_rng(1)
    ids = [[1, *rng.integers(3, V, 2 + i % 4).tolist()] for i in range(n)]
    return pd.DataFrame(dict(sequence_id=range(n), input_ids=ids))


def last_logits(model, rows: pd.DataFrame) -> torch.Tensor:  # [B, V]
    "The logits at each row's last token, one row at a time and without padding."
    return torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in rows["input_ids"]])
