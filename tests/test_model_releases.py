"Live releases: what they decide, what they refuse, which sites they have, how they look."

import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_releases import fraud_rows, saved_llama, scorer, sequences
from small_transformers import SPEAKS, token_rows
from small_transformers import tiny as speaking
from torch import nn

from interpkit.dictionary.labels import token_names
from interpkit.model.block_kinds import mlp_sites
from interpkit.model.canaries import canary, compare_canary
from interpkit.model.hook_names import site_from_hook_name
from interpkit.model.releases import Release


@pytest.fixture(scope="module")
def rows():
    return fraud_rows()


@pytest.fixture(scope="module")
def two(rows):
    "Two columns of numbers."
    return rows[["amount", "age"]]


# What it decides


def test_a_live_module_is_asked_in_32_bits_and_left_alone(rows):
    net = scorer().double()
    release = Release.from_module(net, device="cpu")
    before = release.run(rows.drop(columns="country"))
    expected = net(torch.tensor(rows[["amount", "age"]].to_numpy()))[:, 0].float()
    assert torch.allclose(before, expected, atol=1e-5)
    assert before.dtype == torch.float32
    assert all(p.requires_grad and p.dtype == torch.float64 for p in net.parameters())
    assert net.training


def test_a_live_module_is_copied(two):
    net = scorer()
    release = Release.from_module(net, device="cpu")
    before = release.run(two)
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(release.run(two), before)
    assert not release.for_sign_off
    assert "not for sign-off" in repr(release)


def test_the_order_of_columns_is_that_of_the_first_rows(rows):
    release = Release.from_module(scorer(), device="cpu")
    before = release.run(rows.drop(columns="country"))
    assert release.inputs_columns == ["amount", "age"]
    assert torch.equal(release.run(rows[["age", "label", "amount"]]), before)


def test_two_columns_of_output_give_their_difference(two):
    net = scorer(2, 8, 2)
    out = net(torch.tensor(two.to_numpy("float32")))
    decisions = Release.from_module(net, device="cpu").run(two)
    assert torch.allclose(decisions, out[:, 1] - out[:, 0], atol=1e-6)


# What it refuses


def test_what_can_not_be_guessed_holds_the_call_to_paste(rows, two):
    three = Release.from_module(scorer(2, 8, 3), device="cpu")
    refused(
        lambda: three.run(two),
        "Release.from_module(model, inputs=..., decision=lambda out: out[:, 1])",
    )
    refused(
        lambda: three.run(rows.assign(name="x")),
        "name",
        "def collate(rows)",
        "decision=lambda out: out[:, 1]",
        "rows.drop(columns=['name'])",
    )
    refused(lambda: three.run(sequences()), "'kind': 'tokens'")


def test_a_function_for_words_runs_once_its_values_are_filled_in(two):
    rows = two.assign(country=np.where(two.index % 2, "DE", "FR"))
    error = refused(lambda: Release.from_module(scorer(), device="cpu").run(rows), "country")
    code = error.mend.split("paste and correct:\n")[1].rpartition("\n")[0]
    known = dict(np=np, torch=torch)
    exec(textwrap.dedent(code).replace("[...]", "['DE', 'FR']"), known)
    made = known["collate"](rows)
    assert made.shape == (len(rows), 4)
    assert torch.equal(made[:, 2], torch.tensor((rows["country"] == "DE").to_numpy("float32")))


def test_rows_of_another_width_are_named(rows, two):
    release = Release.from_module(scorer(), device="cpu")
    three = rows.drop(columns=["segment"])
    name_them = "inputs={'kind': 'columns', 'columns': [...]}"
    refused(lambda: release.run(three), "forward of Sequential", "[60, 3]", name_them)
    release.run(two)
    as_text = two.assign(age=two["age"].astype(str))
    refused(lambda: release.run(as_text), "rows['age'] = pd.to_numeric(rows['age'])")
    in_words = two.assign(age="old")
    error = refused(lambda: release.run(in_words), "VALUES = {'age': [...]}", "def collate(rows)")
    assert "to_numeric" not in error.mend
    renamed = two.rename(columns=dict(age="agee"))
    refused(lambda: release.run(renamed), "age", "did you mean 'agee'")
    refused(lambda: release.run(two.head(0)), "0 rows")


def test_a_row_that_is_not_finite_is_named_without_its_values(two):
    release = Release.from_module(scorer(), device="cpu")
    others = two.index != 7
    planted = two.assign(
        age=two["age"].where(others, np.nan),
        amount=two["amount"].where(others, 424242.0),
    )
    error = refused(lambda: release.run(planted), "'age'", "row 7")
    assert "424242" not in str(error)


def test_decisions_that_are_not_one_finite_number_per_row_are_refused(two):
    def broken(out):
        return torch.where(torch.arange(len(out)) == 3, torch.nan, out[:, 0])

    release = Release.from_module(scorer(), decision=broken, device="cpu")
    refused(lambda: release.run(two), "finite decisions", "row 3")
    one_row = Release.from_module(scorer(), decision=lambda out: out[0], device="cpu")
    refused(lambda: one_row.run(two), "one decision per sequence")


def test_bad_devices():
    refused(lambda: Release.from_module(nn.Linear(1, 1), device="tpu"), "tpu", code=64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_device_that_is_not_there():
    refused(
        lambda: Release.from_module(nn.Linear(1, 1), device="cuda"),
        "device='cpu'",
        code=64,
    )


# Pinned to the old release


def test_a_release_without_a_decision_about_tokens_pins_nothing(two):
    release = Release.from_module(scorer(), device="cpu")
    assert not release.pins
    assert release.pin(two) is two


# Its sites


def test_the_table_of_sites(two):
    release = Release.from_module(scorer(), device="cpu")
    assert release.sites()["shape"].tolist() == ["", "", ""]  # no rows seen yet
    table = release.sites(two).set_index("site")
    shapes = {"0:out": "[B, 8]", "1:out": "[B, 8]", "2:out": "[B, 1]"}
    assert table["shape"].to_dict() == shapes
    assert table.loc["1:out", "suggestion"]
    assert not table.loc["0:out", "suggestion"]


def test_a_site_that_is_read_inside_is_in_the_table(two):
    release = Release.from_module(scorer(), sites=["2:in"], device="cpu")
    table = release.sites(two).set_index("site")
    assert table.loc["2:in", "suggestion"]
    assert not table.loc["2:out", "suggestion"]
    assert table.loc["2:in", "shape"].endswith("8]")


def test_the_sites_of_a_language_model_need_no_rows(tmp_path):
    saved_llama(tmp_path / "llama")
    release = Release.load(tmp_path / "llama", device="cpu")
    shapes = release.sites().set_index("site")["shape"]
    assert shapes["model.layers.2:out"] == "[B, T, 16]"
    assert shapes["model.layers.0.mlp.gate_proj:out"] == "[B, T, 32]"
    assert "model.layers.2.self_attn:out" in shapes.index


def test_what_mlps_read_and_write_is_marked_with_its_hook_name(tmp_path):
    saved_llama(tmp_path / "llama")
    release = Release.load(tmp_path / "llama", device="cpu")
    table = release.sites().set_index("site")
    reads, writes = mlp_sites(release.model)
    words = table["suggestion"]
    assert [s for s in words.index if words[s] == "what an MLP reads"] == [*map(str, reads)]
    assert [s for s in words.index if words[s] == "what an MLP writes"] == [*map(str, writes)]
    assert set(table.loc[[*map(str, reads)], "shape"]) == {"[B, T, 16]"}
    assert table.loc[str(writes[1]), "hook name"] == "blocks.1.hook_mlp_out"
    assert table.loc[str(reads[1]), "hook name"] == "blocks.1.hook_mlp_in"
    for name in table["hook name"][table["hook name"] != ""]:
        assert str(site_from_hook_name(name, release.model)) in table.index


# How it looks


def test_reprs_carry_no_script():
    release = Release.from_module(scorer(), name="<script>alert(1)</script>", device="cpu")
    html = release._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert release.fingerprint[:12] in html
    assert "not for sign-off" in html
    assert "\n" not in repr(release)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_release_on_cuda(tmp_path):
    folder = tmp_path / "llama"
    saved_llama(folder)
    on_cpu = Release.load(folder, device="cpu")
    on_gpu = Release.load(folder, device="cuda")
    rows: pd.DataFrame = on_cpu.pin(sequences())
    assert on_gpu.device.type == "cuda"
    assert on_gpu.fingerprint == on_cpu.fingerprint
    assert torch.allclose(on_gpu.run(rows).cpu(), on_cpu.run(rows), atol=1e-3)
    expected = canary(on_cpu, rows, on_cpu.default_sites)
    same, _ = compare_canary(expected, canary(on_gpu, rows, on_cpu.default_sites))
    assert same
    assert Release.load(folder).device.type == "cuda"


# What has no decision of its own


@pytest.fixture(scope="module")
def embedding():
    return speaking("Bert", "Model"), token_rows()


def test_an_embedding_is_told_with_the_numbers_that_it_allows(embedding):
    model, rows = embedding
    silent = Release.from_module(model, "tokens", device="cpu")
    error = refused(lambda: silent.run(rows), "'cosine'", "'probe'", "'coordinate'", "pooler")
    line = error.mend.split("decision=")[1].split(" for how")[0].rstrip(")")
    decision = eval(line, dict(reference=torch.linspace(-1, 1, 16)))
    assert decision["kind"] == "cosine" and decision["pool"] == "mean"
    near = Release.from_module(model, "tokens", decision, device="cpu")
    with torch.no_grad():
        hidden = [
            model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in rows["input_ids"]
        ]
    means = torch.stack([h.mean(0) for h in hidden])  # all tokens, the first one too
    to = torch.linspace(-1, 1, 16)[None]
    assert torch.allclose(near.run(rows), torch.cosine_similarity(means, to), atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "first", "last", "pooler"])
def test_decisions_about_an_embedding_are_saved_with_their_numbers(embedding, pool, tmp_path):
    model, rows = embedding
    weights = torch.linspace(-1, 1, 16).tolist()
    asked = dict(kind="probe", weights=weights, bias=0.5, pool=pool)
    live = Release.from_module(model, "tokens", asked, device="cpu")
    saved = live.save(tmp_path / "r")
    with torch.no_grad():
        outs = [model(input_ids=torch.tensor([ids])) for ids in rows["input_ids"]]
    read = dict(
        mean=lambda o: o.last_hidden_state[0].mean(0),
        first=lambda o: o.last_hidden_state[0, 0],
        last=lambda o: o.last_hidden_state[0, -1],
        pooler=lambda o: o.pooler_output[0],
    )[pool]
    expected = torch.stack([read(o) for o in outs]) @ torch.tensor(weights) + 0.5
    assert torch.allclose(live.run(rows), expected, atol=1e-5)  # alone and in a batch
    assert torch.allclose(saved.run(rows), expected, atol=1e-5)
    one = Release.from_module(model, "tokens", dict(kind="coordinate", at=3, pool=pool))
    apart = torch.stack([read(o)[3] for o in outs])
    assert torch.allclose(one.run(rows).cpu(), apart, atol=1e-5)


def test_slips_in_decisions_about_an_embedding_are_told(embedding, tmp_path):
    model, rows = embedding

    def made(**decision):
        return Release.from_module(model, "tokens", decision, device="cpu")

    refused(lambda: made(kind="cosine", to=torch.ones(16)), "tolist()")
    refused(lambda: made(kind="cosine", to=[0.0] * 16), "not all zero")
    refused(lambda: made(kind="probe", weights=[1.0], pool="meen"), "'pool'")
    refused(lambda: made(kind="cosine"), "to")
    refused(lambda: made(kind="cosine", to=[1.0] * 5).run(rows), "as wide as the embedding")
    refused(lambda: made(kind="coordinate", at=99).run(rows), "0 to 15")
    refused(lambda: made(kind="coordinate", at=0, pool="output").run(rows), "'pool'")
    model.save_pretrained(tmp_path)
    refused(lambda: Release.load(tmp_path), "gives embeddings", "'cosine'")


def test_text_is_read_by_the_tokenizer_in_the_folder(tmp_path, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    speaking("Llama", SPEAKS).save_pretrained(tmp_path)
    rows = pd.DataFrame(dict(sequence_id=[0, 1], text=["w5 w6 w7", "w8"]))
    decision = dict(kind="logit_difference", positive=4, negative=3)
    bare = Release.load(tmp_path, device="cpu", decision=decision)
    refused(lambda: bare.run(rows), "tokenizer")  # none in its folder
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    release = Release.load(tmp_path, device="cpu", decision=decision)
    ids = rows.assign(input_ids=[[5, 6, 7], [8]])
    assert torch.equal(release.run(rows), release.run(ids))
    assert release.pin(rows)["input_ids"].tolist() == [[5, 6, 7], [8]]
    assert "own tokenizer" in capsys.readouterr().out
    refused(lambda: release.run(rows.assign(text=["w5", None])), "tokenizer")


def test_a_language_model_without_a_decision_is_told_the_usual_ones():
    model, rows = speaking("Llama", SPEAKS), token_rows()
    silent = Release.from_module(model, "tokens", device="cpu")
    error = refused(lambda: silent.run(rows), "'logit_difference'", "'top_two'")
    line = error.mend.split("decision=")[1].split(") for")[0]
    named = Release.from_module(model, "tokens", eval(line), device="cpu")
    assert named.run(rows).shape == (10,)
    two = Release.from_module(model, "tokens", dict(kind="top_two"), device="cpu")
    assert bool((two.run(two.pin(rows)) >= 0).all())


def test_a_tokenizers_words_are_those_of_labels_live_and_saved(tmp_path):
    from tokenizers import Tokenizer, models

    words = {f"Ġword{i}" if i % 2 else f"part{i}": i for i in range(40)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="part0"))
    decision = dict(kind="logit_difference", positive=4, negative=3)
    how = dict(inputs="tokens", decision=decision, device="cpu")
    live = Release.from_module(speaking("Llama", SPEAKS), **how, tokenizer=tokenizer)
    assert live.fingerprint == Release.from_module(live.model, **how).fingerprint
    saved = live.save(tmp_path / "r")
    names = token_names(live)
    assert names == token_names(saved)
    assert names[4] == "part4"
    assert "word5" in names[5]
    assert token_names(Release.from_module(live.model, **how)) == {}
    by_dict = Release.from_module(live.model, **how, tokenizer=words)
    assert token_names(by_dict) == names
    for wrong in ("gpt2", {}, {"a": "b"}, 7):
        refused(
            lambda w=wrong: Release.from_module(live.model, **how, tokenizer=w),
            "AutoTokenizer",
            code=64,
        )
