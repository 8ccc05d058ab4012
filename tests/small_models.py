"Small models of many kinds, each with a batch, a decision and a site: what tests of sites share."

import torch
from torch import nn

from interpkit.model.batch import Batch
from interpkit.model.capture import run_spliced
from interpkit.model.sites import Site

V = 20  # token ids
B = 7  # sequences
T = 6  # positions


class Asked:
    "What sites need of a release: a model and its decision."

    name = "v1"

    def __init__(self, model, decision):
        self.model = model.eval().requires_grad_(False)
        self.decision = decision

    def decide(self, out, batch):
        return self.decision(out, batch).float()


def seeded(build) -> nn.Module:
    "The model that `build` makes, with the same weights each time."
    torch.manual_seed(0)
    return build()


def spliced(release, site: Site, batch: Batch, replacement) -> torch.Tensor:
    "The decisions with a replacement at one site, from the whole model."
    out = run_spliced(release.model, {site: replacement}, batch)
    return release.decide(out, batch)


def has_hooks(model: nn.Module, without: tuple[str, ...] = ()) -> bool:
    "Whether any module, but those named, has a hook."
    return any(
        module._forward_hooks or module._forward_pre_hooks
        for name, module in model.named_modules()
        if name not in without
    )


# Transformers


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        initializer_range=0.5,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=V,
        n_embd=16,
        n_layer=4,
        n_head=2,
        n_positions=16,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=16,
        num_labels=2,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config)


class Encoder(nn.Module):
    "An encoder of PyTorch's own, which has a shortcut past its layers."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.head = nn.Linear(8, 1)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4)

    def forward(self, ids, attention_mask):
        padding = attention_mask == 0
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=padding)[:, 0])


# Other networks


def mlp():
    "Two hidden layers, whose activations work in place."
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(4, 8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 1),
        )
    )


class Skip(nn.Module):
    "Numbers and a category; the category goes around the site."

    def __init__(self, n_categories=5):
        super().__init__()
        self.numbers = nn.Linear(3, 8)
        self.category = nn.Embedding(n_categories, 8)
        self.hidden = nn.Linear(8, 8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(16, 1)

    def forward(self, x, category, mask=None):
        around = self.category(category)
        h = self.act(self.hidden(self.numbers(x)))
        if mask is not None:
            h = h * mask[:, None]
        return self.head(torch.cat([h, around], 1))


class Tuples(nn.Module):
    "A recurrent network, whose layers return tuples."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.a = nn.GRU(8, 8, batch_first=True)
        self.b = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, ids):
        first, _ = self.a(self.embed(ids))
        second, _ = self.b(first)
        return self.head(second[:, -1])


class Table(nn.Module):
    "Its positions come from a module that returns [T, d], one table for all sequences."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.place = nn.Embedding(T, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, ids):
        place = self.place(torch.arange(ids.shape[1]))
        hidden = torch.relu(self.hidden(self.embed(ids) + place))
        return self.head(hidden.mean(1))


class Averaged(nn.Module):
    "Adds a table's mean behind the site: rows picked out of the table fit in shape, and are wrong."

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, 8)
        self.place = nn.Embedding(T, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, ids):
        embedded = self.embed(ids)
        place = self.place(torch.arange(ids.shape[1]))
        return self.head(torch.tanh(self.hidden(embedded)) + place.mean(0)).mean(1)


class Changes(nn.Module):
    "Changes in place what came before the site: one row per sequence, and a table for all of them."

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.table = nn.Embedding(1, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        before = self.first(x)
        table = self.table(torch.zeros(1, dtype=torch.long))
        h = self.hidden(before)
        return self.head(torch.tanh(h) + before.mul_(2) + table.mul_(3))


class Block(nn.Module):
    "Is called with keyword arguments, and returns a dict."

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, scale, hidden_states):
        return dict(hidden=torch.tanh(self.inner(hidden_states)) * scale, other=None)


class Wrapped(nn.Module):
    "Its block is called with keyword arguments alone, the stream behind another."

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.block = Block()
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        block = self.block(scale=torch.ones(1), hidden_states=self.first(x))
        return self.head(block["hidden"])


class Keywords(nn.Module):
    "Its block is called with keyword arguments alone, and is allowed to fail."

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.block = Block()
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        try:
            h = self.block(scale=torch.ones(1), hidden_states=h)
        except Exception:
            h = h * 0
        return self.head(h)


class Twice(nn.Module):
    "Its activation runs twice, and one of its layers never."

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 1)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.b(self.act(self.a(self.act(x))))


# Batches


def tokens(n=B) -> Batch:
    "Sequences of several lengths, padded on the right."
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([T, 3, 5, T, 1, 4, T][:n])
    real = torch.arange(T)[None] < lengths[:, None]
    ids = torch.where(real, torch.randint(3, V, (n, T), generator=generator), 0)
    arguments = dict(input_ids=ids, attention_mask=real.long())
    return Batch(kwargs=arguments, mask=real, last=lengths - 1, n=n)


def ids(n=B, t=T) -> Batch:
    "Token ids alone."
    generator = torch.Generator().manual_seed(2)
    return Batch(args=(torch.randint(0, V, (n, t), generator=generator),), n=n)


def numbers(d=4) -> Batch:
    "A table of numbers."
    return Batch(args=(torch.randn(B, d, generator=torch.Generator().manual_seed(3)),), n=B)


def two_inputs() -> Batch:
    "Numbers, a category and a mask."
    category = torch.arange(B) % 5
    mask = (torch.arange(B) % 3 > 0).float()
    return Batch(args=numbers(3).args, kwargs=dict(category=category, mask=mask), n=B)


def encoder_batch() -> Batch:
    "Token ids and attention mask, by their place."
    batch = tokens()
    both = (batch.kwargs["input_ids"], batch.kwargs["attention_mask"])
    return Batch(args=both, mask=batch.mask, n=B)


# Decisions


def at_last(out, batch):
    "A difference of logits at the last real token."
    logits = out.logits[torch.arange(batch.n), batch.last]
    return logits[:, 5] - logits[:, 6]


def two_logits(out, batch):
    return out.logits[:, 1] - out.logits[:, 0]


def first(out, batch):
    return out[:, 0]


# All of them


def seeding(build):
    "A function without arguments that builds the model with the same weights each time."
    return lambda: seeded(build)


FROM_SITE, FULL = "from site", "full"
CASES = {  # name -> model, batch, decision, site, mode
    "llama out": (llama, tokens, at_last, "model.layers.1:out", FROM_SITE),
    "llama in": (llama, tokens, at_last, "model.layers.2:in", FROM_SITE),
    "llama mlp": (llama, tokens, at_last, "model.layers.1.mlp:out", FROM_SITE),
    "llama norm in": (
        llama,
        tokens,
        at_last,
        "model.layers.1.post_attention_layernorm:in",
        FROM_SITE,
    ),
    "llama attention": (llama, tokens, at_last, "model.layers.1.self_attn:out", FROM_SITE),
    "gpt2": (gpt2, tokens, at_last, "transformer.h.1:out", FROM_SITE),
    "gpt2 in": (gpt2, tokens, at_last, "transformer.h.2:in", FROM_SITE),
    "bert": (bert, tokens, two_logits, "bert.encoder.layer.1:out", FROM_SITE),
    "in-place": (mlp, numbers, first, "0:out", FROM_SITE),
    "in-place in": (mlp, numbers, first, "1:in", FROM_SITE),
    "hidden": (mlp, numbers, first, "1:out", FROM_SITE),
    "skip": (seeding(Skip), two_inputs, first, "hidden:out", FROM_SITE),
    "skip in": (seeding(Skip), two_inputs, first, "act:in", FROM_SITE),
    "tuples": (seeding(Tuples), ids, first, "a:out", FROM_SITE),
    "table": (seeding(Table), lambda: ids(T + 2), first, "hidden:in", FROM_SITE),
    "table of as many positions as sequences": (
        seeding(Table),
        lambda: ids(T),
        first,
        "hidden:in",
        FULL,
    ),
    "mean of a table": (seeding(Averaged), lambda: ids(T), first, "hidden:out", FULL),
    "changes in place": (seeding(Changes), numbers, first, "hidden:out", FROM_SITE),
    "dict, keywords": (seeding(Wrapped), numbers, first, "block:out", FROM_SITE),
    "keywords in": (seeding(Wrapped), numbers, first, "block:in", FROM_SITE),
    "torch encoder": (
        seeding(Encoder),
        encoder_batch,
        first,
        "encoder.layers.1:out",
        FROM_SITE,
    ),
}
