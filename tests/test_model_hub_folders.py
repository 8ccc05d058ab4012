"Folders of Hugging Face: what is assumed, what they decide, and how broken ones are named."

import copy
import json

import pandas as pd
import pytest
import torch
from helpers import refused
from safetensors.torch import load_file, save_file
from small_releases import V, last_logits, saved_llama, sequences

from interpkit.model.hub_folders import SAID
from interpkit.model.releases import Release
from interpkit.model.sites import Site


@pytest.fixture
def llama(tmp_path):
    "A folder, and the model that was saved there."
    folder = tmp_path / "llama"
    return folder, saved_llama(folder)


# What is assumed


def test_what_was_assumed_is_said_once(llama, capsys):
    folder, _ = llama
    SAID.clear()
    Release.load(folder, device="cpu")
    said = capsys.readouterr().out
    assert "top_two" in said
    assert "start token 1" in said
    assert "padding 0" in said
    assert "model.layers.2:out" in said
    Release.load(folder, device="cpu")
    assert capsys.readouterr().out == ""


def test_a_language_model_decides_between_its_two_likeliest_tokens(llama):
    folder, model = llama
    release = Release.load(folder, device="cpu")
    rows = sequences()
    refused(lambda: release.run(rows), ".pin(rows)")
    pinned = release.pin(rows)
    decisions = release.run(pinned)
    for i, logits in enumerate(last_logits(model, rows)):
        top = logits.topk(2)
        assert pinned[["_top1", "_top2"]].iloc[i].tolist() == top.indices.tolist()
        assert torch.allclose(decisions[i], top.values[0] - top.values[1], atol=1e-4)


def test_start_token_and_padding_do_not_count(llama):
    folder, _ = llama
    release = Release.load(folder, device="cpu")
    batch = release.batch(sequences())
    assert batch.mask[0].tolist() == [False, True, True, False, False, False]
    assert batch.last.tolist() == [2, 3, 4, 5, 2, 3]


def test_a_language_model_keeps_no_cache(llama):
    folder, _ = llama
    release = Release.load(folder, device="cpu")
    batch = release.batch(sequences())
    assert release.model(input_ids=batch.kwargs["input_ids"]).past_key_values is None


def test_many_rows_decide_as_few(llama):
    folder, _ = llama
    release = Release.load(folder, device="cpu")
    rows = release.pin(sequences())
    many = pd.concat([rows] * 60, ignore_index=True)  # more than one batch
    assert torch.allclose(release.run(many)[-6:], release.run(rows), atol=1e-4)


def test_an_end_token_that_also_pads_is_a_token(llama):
    folder, model = llama
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(pad_token_id=2)))
    decision = dict(kind="logit_difference", positive=4, negative=3)
    release = Release.load(folder, device="cpu", decision=decision)
    rows = pd.DataFrame(dict(sequence_id=[0, 1], input_ids=[[1, 5, 6, 2], [1, 7, 2]]))
    logits = last_logits(model, rows)
    assert release.batch(rows).last.tolist() == [3, 2]
    assert torch.allclose(release.run(rows), logits[:, 4] - logits[:, 3], atol=1e-4)


def test_the_new_release_is_asked_about_the_old_ones_tokens(llama, tmp_path):
    folder, model = llama
    changed = copy.deepcopy(model)
    weight = changed.lm_head.weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight.add_(noise)
    changed.save_pretrained(tmp_path / "new")
    old = Release.load(folder, device="cpu")
    new = Release.load(tmp_path / "new", device="cpu")
    rows = old.pin(sequences())
    assert (old.run(rows) >= 0).all()
    assert (new.run(rows) < 0).any()
    assert new.pin(rows) is rows


# Classifiers


def saved_bert(folder, labels):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_labels=labels,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    return model


ENTRY_TWO = dict(kind="column", column=2)


@pytest.mark.parametrize(
    "labels, decision, expected",
    [
        (1, None, lambda logits: logits[:, 0]),
        (2, None, lambda logits: logits[:, 1] - logits[:, 0]),
        (3, ENTRY_TWO, lambda logits: logits[:, 2]),
    ],
    ids=["one label", "two labels", "three labels"],
)
def test_sequence_classifiers(tmp_path, labels, decision, expected):
    model = saved_bert(tmp_path / "bert", labels)
    release = Release.load(tmp_path / "bert", device="cpu", decision=decision)
    rows = sequences()
    logits = torch.cat([model(torch.tensor([ids])).logits for ids in rows["input_ids"]])
    assert torch.allclose(release.run(rows), expected(logits), atol=1e-4)
    assert release.default_sites == (Site("bert.encoder.layer.0"),)
    assert release.pin(rows) is rows


def test_a_classifier_of_three_labels_needs_a_decision(tmp_path):
    saved_bert(tmp_path / "bert", 3)
    refused(lambda: Release.load(tmp_path / "bert", device="cpu"), "3 labels", "decision=")


# Weights


def test_tied_and_sharded_weights(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=V,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 1

    one = Release.load(tmp_path / "one", device="cpu")
    many = Release.load(tmp_path / "many", device="cpu")
    tied = one.model.transformer.wte.weight
    assert one.model.lm_head.weight.data_ptr() == tied.data_ptr()
    rows = one.pin(sequences())
    assert torch.equal(one.run(rows), many.run(rows))
    assert one.fingerprint == many.fingerprint

    shards[1].unlink()
    refused(lambda: Release.load(tmp_path / "many"), shards[1].name)


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda w: w.pop("lm_head.weight"), "lm_head.weight is missing"),
        (
            lambda w: w.update({"extra.weight": torch.zeros(2)}),
            "extra.weight is not part",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(3)}),
            "model.norm.weight is [3], expected [16]",
        ),
    ],
    ids=["missing", "left over", "another shape"],
)
def test_weights_that_do_not_fit_are_named(llama, change, part):
    folder, _ = llama
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata=dict(format="pt"))
    refused(lambda: Release.load(folder), part)


def test_weights_that_are_cut_off_are_named(llama):
    folder, _ = llama
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(lambda: Release.load(folder), "model.safetensors", "whole")


def test_weights_that_are_not_there_are_named(llama):
    folder, _ = llama
    file = folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    refused(lambda: Release.load(folder), "model.safetensors", "no such file")
    torch.save(weights, folder / "pytorch_model.bin")
    refused(
        lambda: Release.load(folder),
        "pytorch_model.bin",
        "save_file(torch.load('pytorch_model.bin'",
    )


# Configurations


def test_a_configuration_that_builds_no_model_is_named(llama):
    folder, _ = llama
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(architectures=["NoSuchModel"])))
    refused(lambda: Release.load(folder), "NoSuchModel")
    (folder / "config.json").write_text(json.dumps(config | dict(num_attention_heads=3)))
    refused(lambda: Release.load(folder), str(folder))


def test_a_configuration_that_is_broken_or_missing_is_named(llama):
    folder, _ = llama
    (folder / "config.json").write_text("{")
    refused(lambda: Release.load(folder), "config.json")
    (folder / "config.json").unlink()
    refused(lambda: Release.load(folder), "config.json")


# Names


def test_a_folder_that_is_not_there(tmp_path):
    refused(lambda: Release.load(tmp_path / "nowhere"), "no such folder")
    refused(lambda: Release.load(str(tmp_path / "nowhere")), "no such folder")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    def asked(*_, **__):
        raise AssertionError("went to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "releases").mkdir()
    for where in ("releases/v2", "./v2", "a/b/c", tmp_path / "v2"):
        refused(lambda where=where: Release.load(where), "no such folder")
    name_on_the_hub = "gpt-2-of-nobody"
    refused(lambda: Release.load(name_on_the_hub), "AssertionError")
