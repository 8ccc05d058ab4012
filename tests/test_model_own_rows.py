"A row's decision is its own: padding, masks, start tokens, and models that look across rows."

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_transformers import (
    BOTH_ENDS,
    CLASSIFIES,
    DECODERS,
    EOS,
    PAD,
    SPEAKS,
    V,
    alone,
    padded,
    tiny,
    token_rows,
)
from torch import nn

from interpkit.data.store import ActivationStore
from interpkit.data.stream import ActivationStream
from interpkit.model.capture import capture
from interpkit.model.own_rows import require_own_rows
from interpkit.model.releases import Release
from interpkit.model.sites import Site

GUIDE = Path(__file__).parent.parent / "nbs" / "guide.md"
CLASSES = dict(kind="difference")
TOKENS = dict(kind="logit_difference", positive=4, negative=3)


def second_minus_first(logits):
    return logits[0, 1] - logits[0, 0]


def release_of(model, inputs="tokens", decision=CLASSES, **kwargs):
    return Release.from_module(model, inputs=inputs, decision=decision, device="cpu", **kwargs)


def start_of(model):
    return model.config.bos_token_id if isinstance(model.config.bos_token_id, int) else 1


def differs(release, rows, true):
    "The largest difference from what transformers gives for each row alone, in spreads."
    return float((release.run(rows) - true).abs().max() / true.std())


# Thirty families and more, in three paddings

USUAL = ("none", "right", "left")
# families whose own forward lets padding reach tokens, or has no block that can be read
REFUSED = {
    "FNet": "differs by",
    "ConvBert": "differs by",
    "Albert": "used more than once",
    "Funnel": "does not use this module",
    "SqueezeBert": "does not use this module",
    "XLNet": "a site with one row for each",
}
ROUNDING = (
    1e-4  # of the decisions' spread: under 1e-5 with AVX2, 2.4e-5 without vector instructions
)
FIRST = {  # tried at each run; the others in `make slow`
    CLASSIFIES: ("Llama", "GPT2", "OPT", "Bloom", "Bert", "Roberta", "DistilBert", "DebertaV2"),
    SPEAKS: ("Llama", "GPTNeoX"),
}
SUPPORTED = {
    "decoder classifiers": (
        CLASSIFIES,
        "Bloom Falcon GPT2 GPTBigCode GPTJ GPTNeo GPTNeoX Gemma Gemma2 Llama Mistral Mixtral Mpt "
        "OPT Olmo2 Phi Phi3 Qwen2 Qwen3 StableLm Starcoder2",
    ),
    "encoder classifiers": (
        CLASSIFIES,
        "Bert Camembert Deberta DebertaV2 DistilBert Electra MPNet ModernBert RemBert Roberta "
        "XLMRoberta",
    ),
    "causal language models": (
        SPEAKS,
        "Bloom Falcon GPT2 GPTBigCode GPTJ GPTNeo GPTNeoX Gemma Gemma2 Llama Mistral Mixtral Mpt "
        "OPT Olmo2 Phi Phi3 Qwen2 Qwen3 StableLm Starcoder2",
    ),
}
FAMILIES = [
    pytest.param(
        family, head, marks=() if family in FIRST[head] else pytest.mark.slow, id=family + head
    )
    for head, families in SUPPORTED.values()
    for family in families.split()
]


@pytest.mark.parametrize("family, head", FAMILIES)
def test_a_row_decides_alone_as_in_any_batch_and_any_padding(family, head):
    model = tiny(family, head)
    rows = token_rows(start_of(model))
    decision, read = CLASSES, second_minus_first
    if head == SPEAKS:
        decision, read = TOKENS, lambda logits: logits[0, -1, 4] - logits[0, -1, 3]
    true = alone(model, rows, read)
    release = release_of(model, decision=decision)
    for side in USUAL:
        given = padded(rows, side, release.inputs.fill)
        require_own_rows(release, given, release.default_sites)
        assert differs(release, given, true) < ROUNDING, side
        unsaid = given.drop(columns="attention_mask", errors="ignore")
        assert differs(release, unsaid, true) < ROUNDING, side
    counts = release.batch(rows).mask[:, 0]
    assert counts.all() if family not in DECODERS else not counts.any()


@pytest.mark.slow
def test_thirty_families_in_three_paddings_in_numbers(capfd):
    "Batched against alone, in spreads of the decisions; the largest difference is printed."
    worst, families = 0.0, {}
    for head, names in SUPPORTED.values():
        for family in names.split():
            model = tiny(family, head)
            rows = token_rows(start_of(model))
            decision = CLASSES if head == CLASSIFIES else TOKENS
            release = release_of(model, decision=decision)
            true = torch.cat([release.run(rows.iloc[[i]]) for i in range(len(rows))])
            for side in USUAL:
                off = differs(release, padded(rows, side, release.inputs.fill), true)
                families[family] = max(families.get(family, 0.0), off)
                worst = max(worst, off)
    refusals = {**REFUSED, **dict.fromkeys(BOTH_ENDS, "")}
    with capfd.disabled():
        print(f"\n{len(families)} families, {len(USUAL)} paddings: at most {worst:.2g} spreads")
        print(f"refused by name or in words: {', '.join(refusals)}")
    assert len(families) >= 30
    assert len(refusals) == 10
    assert worst < ROUNDING


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=() if f == "FNet" else pytest.mark.slow) for f in REFUSED],
)
def test_a_family_that_can_not_be_read_is_refused_in_words(family):
    release = release_of(tiny(family))
    rows = token_rows(start_of(release.model))
    refused(lambda: require_own_rows(release, rows, release.default_sites), REFUSED[family])


@pytest.mark.parametrize("family", BOTH_ENDS)
def test_an_encoder_with_a_decoder_is_refused_by_its_name(family):
    head = "ForConditionalGeneration"
    refused(lambda: release_of(tiny(family, head)), f"{family}{head}", "an encoder with a decoder")


def test_a_folder_of_an_encoder_with_a_decoder_is_refused_by_its_name(tmp_path):
    tiny("T5").save_pretrained(tmp_path)
    refused(lambda: Release.load(tmp_path, device="cpu"), "T5ForSequenceClassification")


# The padding token


def test_a_classifier_is_filled_with_its_own_padding_token(tmp_path):
    model = tiny("Llama", pad_token_id=EOS)
    model.save_pretrained(tmp_path / "old")
    old = Release.load(tmp_path / "old", device="cpu")
    rows = token_rows()
    assert (old.inputs.pad, old.inputs.fill) == (None, EOS)
    assert differs(old, rows, alone(model, rows, second_minus_first)) < 1e-5
    with torch.no_grad():
        model.model.embed_tokens.weight[0] += 3.0  # an id that no row holds
    model.save_pretrained(tmp_path / "new")
    new = Release.load(tmp_path / "new", device="cpu")
    assert torch.equal(old.run(rows), new.run(rows))
    site, batch = old.default_sites[0], old.batch(rows)
    before, after = (capture(r.model, [site], batch)[site][batch.mask] for r in (old, new))
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "said, bos, pad, fill",
    [
        (dict(bos=1), 1, 5, 5),
        (dict(pad=0), 1, 0, 5),
        (dict(bos=None, pad=None), None, None, 5),
        ({}, 1, 5, 5),
    ],
    ids=["start said", "padding said", "none of both", "nothing said"],
)
def test_what_inputs_do_not_say_is_asked_of_the_live_model(said, bos, pad, fill):
    model = tiny("Llama", pad_token_id=5)
    release = release_of(model, inputs=dict(kind="tokens", **said))
    assert (release.inputs.bos, release.inputs.pad, release.inputs.fill) == (bos, pad, fill)
    rows = token_rows()
    rows["input_ids"] = [[x if x != 5 else 6 for x in ids] for ids in rows["input_ids"]]
    assert differs(release, rows, alone(model, rows, second_minus_first)) < 1e-5


def test_what_was_said_holds_after_saving(tmp_path):
    model = tiny("Llama", pad_token_id=EOS)
    live = release_of(model, inputs=dict(kind="tokens", bos=1))
    saved = live.save(tmp_path / "r")
    assert saved.inputs == live.inputs


@pytest.mark.parametrize("end", [EOS, [EOS, 3], [3, EOS]], ids=["number", "list", "list behind"])
def test_a_padding_token_among_the_end_tokens_ends_a_row(end):
    model = tiny("Llama", SPEAKS, pad_token_id=EOS, eos_token_id=end)
    release = release_of(model, decision=TOKENS)
    rows = pd.DataFrame(dict(sequence_id=[0, 1], input_ids=[[1, 5, 6, EOS], [1, 7, EOS]]))
    assert release.batch(rows).last.tolist() == [3, 2]
    assert release.batch(rows).mask.sum(1).tolist() == [3, 2]


def test_end_tokens_of_the_generation_config_count_too():
    model = tiny("Llama", SPEAKS, pad_token_id=7)
    model.generation_config.eos_token_id = [2, 7]
    assert release_of(model, decision=TOKENS).inputs.pad is None


def test_two_ends_that_may_be_padding_are_refused_until_a_mask_tells(tmp_path):
    release = release_of(tiny("Llama", pad_token_id=EOS))
    rows = token_rows()
    whole = padded(rows, "right", EOS)
    unsaid = whole.drop(columns="attention_mask")
    for call in (
        lambda: require_own_rows(release, unsaid),
        lambda: ActivationStore.write(tmp_path / "s", release, unsaid),
        lambda: ActivationStream(release, unsaid),
    ):
        refused(call, "token 2 twice at an end", "attention_mask")
    assert not (tmp_path / "s").exists()
    require_own_rows(release, whole)
    assert torch.allclose(release.run(whole), release.run(rows), atol=1e-5)


@pytest.mark.parametrize("pad", [None, -1], ids=["none", "minus one"])
def test_a_classifier_without_padding_token_is_refused_with_what_mends_it(pad):
    model = tiny("Llama", pad_token_id=0)
    model.config.pad_token_id = pad
    release = release_of(model, inputs=dict(kind="tokens"))
    refused(lambda: require_own_rows(release, token_rows()), "pad_token_id")


def test_a_language_model_needs_no_padding_token():
    model = tiny("Llama", SPEAKS, pad_token_id=None)
    rows = token_rows()
    true = alone(model, rows, lambda logits: logits[0, -1, 4] - logits[0, -1, 3])
    release = release_of(model, decision=TOKENS)
    require_own_rows(release, rows, release.default_sites)
    assert differs(release, rows, true) < 1e-5


def test_ids_that_a_model_does_not_have_are_no_special_tokens():
    model = tiny("Llama", bos_token_id=50256, pad_token_id=0)
    model.config.pad_token_id = 50257
    inputs = release_of(model).inputs
    assert (inputs.bos, inputs.pad, inputs.fill) == (None, None, None)


# The mask


def test_a_mask_says_what_is_padding_also_where_it_is_a_token():
    release = release_of(tiny("Bert"))
    rows = pd.DataFrame(
        dict(
            sequence_id=[0, 1],
            input_ids=[[1, 5, PAD, PAD], [1, 5, 6, 7]],
            attention_mask=[[1, 1, 1, 0], [1, 1, 1, 1]],
        )
    )
    batch = release.batch(rows)
    assert batch.kwargs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.last.tolist() == [2, 3]


def test_annotations_are_cut_with_the_padding():
    rows = padded(token_rows(), "left", PAD)
    rows["factor:night"] = [np.arange(16.0).tolist() for _ in range(len(rows))]
    release = release_of(tiny("Llama", SPEAKS), decision=TOKENS)
    kept = release.pin(rows)
    assert "attention_mask" not in kept
    assert kept["factor:night"].map(len).tolist() == kept["input_ids"].map(len).tolist()
    assert kept["factor:night"].iloc[0] == [13.0, 14.0, 15.0]
    assert release.pin(kept) is kept


@pytest.mark.parametrize(
    "mask",
    [[1, 0, 1], [0, 0, 0], [1, 1], [1, 2, 1], "101", None, [0.5, 1, 1]],
    ids=["hole", "nothing", "short", "two", "text", "none", "fraction"],
)
def test_a_mask_that_is_none_is_named_by_its_row(mask):
    release = release_of(tiny("Bert"))
    rows = pd.DataFrame(dict(input_ids=[[1, 5, 6]] * 2, attention_mask=[[1, 1, 1], mask]))
    refused(lambda: release.run(rows), "attention_mask", "row 1")


def test_token_types_are_passed_on_where_the_forward_takes_them():
    model = tiny("Bert", type_vocab_size=2)
    rows = token_rows().assign(sequence_id=0)
    types = [[0] * (len(x) // 2) + [1] * (len(x) - len(x) // 2) for x in rows["input_ids"]]
    release = release_of(model)
    with torch.no_grad():
        pairs = zip(rows["input_ids"], types, strict=True)
        logits = [
            model(torch.tensor([x]), token_type_ids=torch.tensor([t])).logits for x, t in pairs
        ]
    true = torch.stack([second_minus_first(x) for x in logits])
    assert differs(release, rows.assign(token_type_ids=types), true) < 1e-5
    assert differs(release, rows, true) > 0.01


@pytest.mark.parametrize("column", ["token_type_ids", "position_ids"])
def test_what_the_release_does_not_hear_is_refused_where_it_says_something(column):
    release = release_of(tiny("Llama"))
    usual = dict(token_type_ids=[0, 0, 0], position_ids=[0, 1, 2])[column]
    rows = pd.DataFrame({"input_ids": [[1, 5, 6]], column: [usual]})
    assert release.run(rows).shape == (1,)
    refused(lambda: release.run(rows.assign(**{column: [[1, 1, 2]]})), column, "row 0")


# The start token


def test_a_start_token_that_the_decision_reads_counts_also_where_it_was_said():
    model = tiny("Roberta")
    for inputs in ("tokens", dict(kind="tokens", bos=0, pad=1)):
        release = release_of(model, inputs=inputs)
        assert release.inputs.bos is None
        assert release.batch(token_rows(0)).mask[:, 0].all()


def test_a_start_token_at_the_end_is_where_the_decision_is_read():
    model = tiny("GPT2", SPEAKS, bos_token_id=1, eos_token_id=1, pad_token_id=None)
    release = release_of(model, decision=TOKENS)
    rows = pd.DataFrame(dict(input_ids=[[1, 5, 6, 1], [1]]))
    batch = release.batch(rows)
    assert batch.mask.tolist() == [[False, True, True, True], [True, False, False, False]]


# Models and inputs that look across rows


class Hidden(nn.Module):
    "A score of columns; what happens between the layers is up to a function."

    def __init__(self, between):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)
        self.between = between

    def forward(self, x):
        return self.b(self.act(self.between(self.a(x))))


def table(n=40):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(n, 3)), columns=list("abc"))
    return rows.assign(sequence_id=range(n))


def mixed_up(h):
    return h + 0.5 * h.roll(1, 0)


ACROSS = {
    "mean of the batch": lambda h: h - h.mean(0),
    "largest of the batch": lambda h: h / h.abs().max(),
    "the row before": mixed_up,
    "place in the batch": lambda h: h * (1 + torch.arange(len(h))[:, None]),
    "softmax over rows": lambda h: h.softmax(0),
}


@pytest.mark.parametrize("between", ACROSS.values(), ids=ACROSS)
def test_a_module_that_looks_across_rows_is_refused(between, tmp_path):
    torch.manual_seed(0)
    release = Release.from_module(Hidden(between), sites=["act"], device="cpu")
    for call in (
        lambda: require_own_rows(release, table()),
        lambda: ActivationStore.write(tmp_path / "s", release, table()),
        lambda: ActivationStream(release, table()),
    ):
        refused(call, "do not depend on the other rows", "spreads", "mean over the batch")


def test_a_site_that_looks_across_rows_is_refused_where_the_decision_does_not():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.aside, self.b = nn.Linear(3, 8), nn.Identity(), nn.Linear(8, 1)

        def forward(self, x):
            h = self.a(x)
            return self.b(h) + 0 * self.aside(h - h.mean(0)).sum()

    release = Release.from_module(Aside(), sites=["aside"], device="cpu")
    require_own_rows(release, table())
    refused(lambda: require_own_rows(release, table(), [Site("aside")]), "what passes aside:out")


def test_inputs_that_look_across_rows_are_refused():
    def standardized(rows):
        x = torch.tensor(rows[list("abc")].to_numpy("float32"))
        return (x - x.mean(0)) / x.std(0, correction=0)

    model = Hidden(lambda h: h)
    release = Release.from_module(model, inputs=standardized, sites=["act"], device="cpu")
    refused(lambda: require_own_rows(release, table()), "alone", "look")


def test_codes_that_a_batch_gives_are_refused_however_rare_what_moves_them():
    rows = table(400).assign(place=np.where(np.arange(400) % 25 == 7, "abroad", "inland"))

    def coded(rows):
        codes = rows.place.astype("category").cat.codes
        return torch.tensor(np.c_[rows.a, rows.b, codes].astype("float32"))

    release = Release.from_module(Hidden(lambda h: h), inputs=coded, sites=["act"], device="cpu")
    refused(lambda: require_own_rows(release, rows), "a batch of 4 rows and one of 128")
    same = rows.assign(place="inland")
    require_own_rows(release, same)


def test_a_module_that_looks_across_large_batches_alone_is_refused():
    beyond = Hidden(lambda h: h - h.mean(0) if len(h) > 8 else h)
    release = Release.from_module(beyond, sites=["act"], device="cpu")
    refused(lambda: require_own_rows(release, table(400)), "do not depend on the other rows")


def test_inputs_that_pad_without_a_mask_are_refused():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(V, 8), nn.Linear(8, 1)

        def forward(self, ids):
            return self.head(self.embed(ids).mean(1))

    def collate(rows):
        lists = [torch.tensor(x) for x in rows["input_ids"]]
        return nn.utils.rnn.pad_sequence(lists, batch_first=True)

    release = Release.from_module(Bag(), inputs=collate, sites=["embed"], device="cpu")
    refused(lambda: require_own_rows(release, token_rows()), "attention_mask")


def test_a_forward_that_takes_no_mask_is_refused_unless_nothing_looks_back():
    class Bare(nn.Module):
        def __init__(self, causal):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.act, self.head = nn.Embedding(V, 8), nn.Tanh(), nn.Linear(8, V)
            self.causal = causal

        def forward(self, input_ids):
            h = self.embed(input_ids)
            h = h.cumsum(1) if self.causal else h + h.sum(1, keepdim=True)
            return self.head(self.act(h))

    rows, spec = token_rows(), dict(kind="tokens", bos=1, pad=0)
    require_own_rows(release_of(Bare(True), spec, TOKENS, sites=["act"]), rows, [Site("act")])
    wrong = release_of(Bare(False), spec, TOKENS, sites=["act"])
    refused(lambda: require_own_rows(wrong, rows), "let the forward take an attention_mask")


def test_chance_is_called_chance():
    def noisy(h):
        return h + torch.rand_like(h)

    release = Release.from_module(Hidden(noisy), sites=["act"], device="cpu")
    refused(lambda: require_own_rows(release, table()), "same numbers each time", "dropout")


def test_messages_call_a_row_what_the_caller_calls_it():
    torch.manual_seed(0)
    release = Release.from_module(Hidden(mixed_up), sites=["act"], device="cpu")
    numbers = np.arange(40) + 700
    error = refused(lambda: require_own_rows(release, table(), numbers=numbers))
    assert re.search(r"row 7\d\d\b.*row 7\d\d\b", error.given)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_rows_are_enough_or_nothing_is_asked(n):
    torch.manual_seed(0)
    release = Release.from_module(Hidden(mixed_up), sites=["act"], device="cpu")
    if n < 2:
        require_own_rows(release, table(n), [Site("act")])
    else:
        refused(lambda: require_own_rows(release, table(n), [Site("act")]))


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e6])
def test_rounding_is_no_difference(shift):
    torch.manual_seed(0)
    model = Hidden(lambda h: h)
    with torch.no_grad():
        model.b.bias += shift
    release = Release.from_module(model, sites=["act"], device="cpu")
    require_own_rows(release, table(), [Site("act")])
    alike = table().assign(a=1.0, b=2.0, c=3.0)
    require_own_rows(release, alike, [Site("act")])


# The first of several is not the answer


class Several(nn.Module):
    "Two heads, whose outputs a function puts together."

    def __init__(self, joined, width=2):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act = nn.Linear(3, 8), nn.ReLU()
        self.first, self.second = nn.Linear(8, width), nn.Linear(8, 2)
        self.joined = joined

    def forward(self, x):
        h = self.act(self.a(x))
        return self.joined(self.first(h), self.second(h))


NAMED = {
    "logits behind": lambda a, b: dict(embedding=a, logits=b),
    "logits before": lambda a, b: dict(logits=b, embedding=a),
    "a loss beside": lambda a, b: (torch.zeros(()), b),
    "nested": lambda a, b: dict(hidden=(a[:, None],), score=b),
}


@pytest.mark.parametrize("joined", NAMED.values(), ids=NAMED)
def test_the_one_that_fits_is_the_answer(joined):
    release = Release.from_module(Several(joined), device="cpu", sites=["act"])
    out = release.model.second(release.model.act(release.model.a(release.batch(table()).args[0])))
    assert torch.allclose(release.run(table()), out[:, 1] - out[:, 0])


UNNAMED = {
    "dict": lambda a, b: dict(embedding=a, score=b),
    "tuple": lambda a, b: (a, b),
    "nested": lambda a, b: dict(heads=[a, b]),
}


@pytest.mark.parametrize("decision", [None, CLASSES, dict(kind="column", column=1)])
@pytest.mark.parametrize("joined", UNNAMED.values(), ids=UNNAMED)
def test_of_several_that_fit_none_is_taken(joined, decision):
    release = Release.from_module(Several(joined), decision=decision, device="cpu", sites=["act"])
    refused(lambda: release.run(table()), "[40, 2]", "decision=lambda out")


def test_a_language_model_of_two_tensors_does_not_answer_with_the_first():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(V, V), nn.Linear(V, V)

        def forward(self, input_ids, attention_mask):
            h = self.embed(input_ids)
            return h, self.head(h)

    release = release_of(Two(), dict(kind="tokens", bos=1, pad=0), TOKENS, sites=["embed"])
    refused(lambda: release.run(token_rows()), "tuple", "decision=")


def test_a_module_that_returns_several_is_no_site():
    class Inner(nn.Module):
        def forward(self, h):
            return dict(gate=h.sigmoid(), hidden=h)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.inner, self.b = nn.Linear(3, 8), Inner(), nn.Linear(8, 1)

        def forward(self, x):
            return self.b(self.inner(self.a(x))["hidden"])

    release = Release.from_module(Outer(), sites=["inner"], device="cpu")
    refused(lambda: require_own_rows(release, table(), [Site("inner")]), "gate, hidden")
    assert release.run(table()).shape == (40,)


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4), nn.ReLU()
        self.turned, self.pool = nn.Identity(), nn.AdaptiveAvgPool1d(1)
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = self.act(self.norm(self.conv(x[:, None])))
        h = self.turned(h.transpose(1, 2)).transpose(1, 2)
        return self.head(self.mix(self.pool(h)[..., 0]))


@pytest.mark.parametrize("site", [None, "conv", "norm", "act"])
def test_channels_are_no_tokens(site, tmp_path):
    release = Release.from_module(Convolved(), sites=site, device="cpu")
    for call in (
        lambda: require_own_rows(release, table(), release.default_sites),
        lambda: ActivationStore.write(tmp_path / "s", release, table()),
        lambda: ActivationStream(release, table()),
    ):
        refused(call, "channels for tokens", "transpose")


def test_a_convolution_turned_round_is_a_site(tmp_path):
    release = Release.from_module(Convolved(), sites="turned", device="cpu")
    store = ActivationStore.write(tmp_path / "s", release, table())
    assert store.read("turned").shape == (80, 4)


def test_channels_are_no_tokens_also_without_a_module_for_the_convolution():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.act, self.head = nn.Embedding(V, 8), nn.Tanh(), nn.Linear(8, 1)

        def forward(self, input_ids, attention_mask):
            h = self.embed(input_ids) * attention_mask[..., None]
            return self.head(self.act(h.transpose(1, 2)).sum(2))

    release = release_of(Functional(), dict(kind="tokens", pad=0), dict(kind="scalar"), sites="act")
    refused(lambda: require_own_rows(release, token_rows(), [Site("act")]), "channels for tokens")


def test_logits_of_other_positions_are_not_read_at_the_last_token():
    class Prefixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(V, 8), nn.Linear(8, V)

        def forward(self, input_ids, attention_mask):
            return self.head(nn.functional.pad(self.embed(input_ids), (0, 0, 3, 0)))

    release = release_of(Prefixed(), dict(kind="tokens", pad=0), TOKENS, sites="embed")
    refused(lambda: release.run(token_rows()), "positions", "last token stands elsewhere")


def test_inputs_that_pad_to_one_length_without_a_mask_are_refused():
    def collate(rows):
        return torch.tensor([[*x, *[PAD] * (16 - len(x))] for x in rows["input_ids"]])

    model = tiny("Bert")
    release = Release.from_module(model, inputs=collate, decision=CLASSES, device="cpu")
    refused(lambda: require_own_rows(release, token_rows()), "padding token 0", "no mask")


# The table of the guide: each line has its test


LINES = {
    "of several lengths": "test_a_row_decides_alone_as_in_any_batch_and_any_padding",
    "padded on the right or left, with `attention_mask`": (
        "test_a_row_decides_alone_as_in_any_batch_and_any_padding"
    ),
    "padded on the right or left, without a mask": (
        "test_a_row_decides_alone_as_in_any_batch_and_any_padding"
    ),
    "with a mask that has holes": "test_a_mask_that_is_none_is_named_by_its_row",
    "with `token_type_ids` or `position_ids`": (
        "test_what_the_release_does_not_hear_is_refused_where_it_says_something"
    ),
    "padding token also starts or ends sequences": (
        "test_two_ends_that_may_be_padding_are_refused_until_a_mask_tells"
    ),
    "no padding token, or one outside of the vocabulary": (
        "test_a_classifier_without_padding_token_is_refused_with_what_mends_it"
    ),
    "start token": "test_a_start_token_that_the_decision_reads_counts_also_where_it_was_said",
    "decoder classifiers": "test_a_row_decides_alone_as_in_any_batch_and_any_padding",
    "encoder classifiers": "test_a_row_decides_alone_as_in_any_batch_and_any_padding",
    "causal language models": "test_a_row_decides_alone_as_in_any_batch_and_any_padding",
    "families that can't be read": "test_a_family_that_can_not_be_read_is_refused_in_words",
    "encoders with a decoder": "test_an_encoder_with_a_decoder_is_refused_by_its_name",
    "forward without `attention_mask`": (
        "test_a_forward_that_takes_no_mask_is_refused_unless_nothing_looks_back"
    ),
    "forward or `inputs` that look across rows": (
        "test_a_module_that_looks_across_rows_is_refused"
    ),
    "`inputs` that pad without a mask": "test_inputs_that_pad_without_a_mask_are_refused",
    "convolutions [B, C, T]": "test_channels_are_no_tokens",
    "output of several tensors": "test_of_several_that_fit_none_is_taken",
}


def guide_lines():
    "The lines of the guide's table, by their first column."
    text = GUIDE.read_text(encoding="utf-8").partition("## Padding, masks and families")[2]
    lines = text.partition("\n## ")[0].splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    return {first: " ".join(rest) for first, *rest in cells[2:]}


def test_each_line_of_the_guide_has_its_test():
    assert set(guide_lines()) == set(LINES)
    assert all(callable(globals()[name]) for name in LINES.values())


def test_the_guide_names_the_families_that_are_tried():
    told = guide_lines()
    for line, (_, families) in SUPPORTED.items():
        named = set(re.findall(r"[A-Z]\w+", told[line].partition(":")[2]))
        assert named == set(families.split()), line
    named = set(re.findall(r"[A-Z]\w+", told["families that can't be read"].partition(":")[2]))
    assert named == set(REFUSED)
