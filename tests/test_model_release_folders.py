"Releases in folders of one's own code: saved, loaded, written by hand, and broken."

import importlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import refused
from safetensors.torch import save_file
from small_releases import (
    MODULE,
    V,
    fraud,
    fraud_release,
    fraud_rows,
    last_logits,
    module_writer,
    saved_llama,
    sequences,
)

from interpkit.core.digests import digest_file
from interpkit.model.releases import Release

PLAIN_MODULE = """
from torch import nn


def build(width=8):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))


def tanh():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
"""


@pytest.fixture(scope="module")
def rows():
    return fraud_rows()


@pytest.fixture
def code(tmp_path, monkeypatch):
    yield from module_writer(tmp_path, monkeypatch)


# Saved and loaded


def test_a_saved_release_decides_as_the_live_one(code, rows, tmp_path):
    _, live = fraud(code, width=6)
    saved = live.save(tmp_path / "v1", factory_args=dict(width=6))
    assert saved.for_sign_off
    assert saved.kind == "folder"
    assert torch.equal(saved.run(rows), live.run(rows))
    assert saved.default_sites == live.default_sites
    assert sorted(os.listdir(tmp_path / "v1")) == [
        "code",
        "manifest.json",
        "model.safetensors",
        "release.json",
    ]


def test_a_folder_is_not_overwritten_and_not_saved_again(code, tmp_path):
    _, live = fraud(code)
    saved = live.save(tmp_path / "v1")
    again = Release.load(tmp_path / "v1", device="cpu")
    assert again.fingerprint == saved.fingerprint
    refused(lambda: live.save(tmp_path / "v1"), "exists")
    refused(lambda: again.save(tmp_path / "v2"), code=64)


def test_loading_a_release_writes_nothing_into_its_folder_and_reads_no_bytecode_there(
    code, tmp_path
):
    _, live = fraud(code)
    live.save(tmp_path / "v1")
    folder = str(tmp_path / "v1")
    script = f"from interpkit.model.releases import Release\nRelease.load({folder!r}, device='cpu')"
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_columns_and_decision_learnt_from_rows_are_saved(code, rows, tmp_path):
    module = code(PLAIN_MODULE)
    live = Release.from_module(module.build(), device="cpu")
    expected = live.run(rows[["amount", "age"]])
    saved = live.save(tmp_path / "a", factory=module.build)
    head = json.loads((tmp_path / "a/release.json").read_text())
    assert head["inputs"] == {"kind": "columns", "columns": ["amount", "age"]}
    assert head["decision"] == {"kind": "difference"}
    assert torch.equal(saved.run(rows), expected)
    assert saved.inputs_columns == ["amount", "age"]  # `country` is no input


def test_a_live_hugging_face_model_is_saved_as_such(tmp_path):
    model = saved_llama(tmp_path / "llama")
    live = Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=dict(kind="logit_difference", positive=4, negative=3),
        sites=["model.layers.1:out"],
        name="v1",
        device="cpu",
    )
    vocabulary = {f"t{i}": i for i in range(V)}
    saved = live.save(tmp_path / "v1", vocabulary=vocabulary)
    rows = sequences()
    logits = last_logits(model, rows)
    assert torch.allclose(saved.run(rows), logits[:, 4] - logits[:, 3], atol=1e-4)
    assert saved.inputs_columns == ["input_ids"]
    assert saved.name == "v1"
    again = Release.load(tmp_path / "v1", device="cpu")
    assert type(again.model).__name__ == "LlamaForCausalLM"

    other = live.save(tmp_path / "v2", vocabulary=dict(vocabulary, t99=3))
    assert other.fingerprint != saved.fingerprint  # the vocabulary is part of a release


# Code


def test_two_releases_may_have_different_code_of_one_name(code, rows, tmp_path):
    for name, scale in (("v1", 1), ("v2", 3)):
        _, live = fraud(code, scale=scale)
        live.save(tmp_path / name)
    sys.modules.pop("fraud_model")
    old = Release.load(tmp_path / "v1", device="cpu")
    new = Release.load(tmp_path / "v2", device="cpu")
    assert torch.allclose(3 * old.run(rows), new.run(rows), rtol=1e-4)
    assert old.run(rows).abs().max() > 0
    assert old.fingerprint != new.fingerprint


def test_code_in_a_package_is_imported_by_name_and_its_digest_holds(code, rows, tmp_path):
    code("SCALE = 2\n", "bank.parts")
    code("from .parts import SCALE" + MODULE, "bank.models")
    code("SCALE = 2\n", "bank.parts")
    live = fraud_release(importlib.import_module("bank.models"))
    saved = live.save(tmp_path / "v1")
    assert torch.equal(saved.run(rows), live.run(rows))
    assert not (tmp_path / "v1/code").exists()
    head = json.loads((tmp_path / "v1/release.json").read_text())
    assert set(head["code"]) == {"bank.models", "bank.parts"}

    code("SCALE = 5\n", "bank.parts")  # a file that the class's file imports has changed
    refused(lambda: Release.load(tmp_path / "v1"), "bank.parts", "another version")


READ = """

def read(rows):
    import fraud_model

    return fraud_model.collate(rows)
"""
LATE = """

def late(out):
    import helper_of_model

    return helper_of_model.SCALE * score(out)
"""


def test_a_copy_imports_the_copies_beside_it_and_not_what_lies_on_the_path(code, rows, tmp_path):
    for name, scale in (("v1", 1), ("v2", 3), ("v3", 7)):  # that of v3 is on the path in the end
        helper = code(f"SCALE = {scale}" + READ, "helper_of_model")
        module = code("from helper_of_model import SCALE" + MODULE + LATE)
        fraud_release(module, inputs=helper.read, decision=module.late).save(tmp_path / name)
    old, new = (Release.load(tmp_path / name, device="cpu").run(rows) for name in ("v1", "v2"))
    assert torch.allclose(9 * old, new, rtol=1e-4)
    assert old.abs().max() > 0


def test_what_was_imported_before_its_file_changed_is_not_what_runs(code, rows, tmp_path):
    text = "import helper_of_model\nfrom helper_of_model import SCALE"
    helper = code("SCALE = 2\n", "helper_of_model")
    fraud_release(code(text + MODULE)).save(tmp_path / "v1")
    before = Release.load(tmp_path / "v1", device="cpu").run(rows)
    file = Path(helper.__file__)
    file.write_text("SCALE = 30\n")  # and Python still holds what it has imported
    head = json.loads((tmp_path / "v1/release.json").read_text())
    head["code"]["helper_of_model"] = digest_file(file)
    (tmp_path / "v1/release.json").write_text(json.dumps(head))
    (tmp_path / "v1/manifest.json").unlink()
    after = Release.load(tmp_path / "v1", device="cpu").run(rows)
    assert torch.allclose(15 * before, after, rtol=1e-4)


def test_a_neighbour_that_the_class_imports_is_part_of_the_code(code, tmp_path):
    code("SCALE = 2\n", "helper_of_model")
    module = code("from helper_of_model import SCALE\nimport helper_of_model" + MODULE)
    fraud_release(module).save(tmp_path / "v1")
    code("SCALE = 3\n", "helper_of_model")
    refused(lambda: Release.load(tmp_path / "v1"), "helper_of_model")


# What can't be saved


def nothing_is_left(tmp_path) -> bool:
    "Whether no folder is there, and none that was put aside."
    left = [name for name in os.listdir(tmp_path) if "aside" in name]
    return not left and not (tmp_path / "a").exists()


def test_functions_that_can_not_be_imported_are_not_saved(code, tmp_path):
    module, _ = fraud(code)
    to = tmp_path / "a"
    with_lambda = fraud_release(module, decision=lambda out: out[:, 1])
    refused(lambda: with_lambda.save(to), "lambda", "fraud_model.py", code=64)
    inner = fraud_release(module, inputs=lambda rows: module.collate(rows))
    refused(lambda: inner.save(to), "inputs", code=64)
    assert nothing_is_left(tmp_path)


def test_classes_that_can_not_be_imported_are_not_saved(code, tmp_path):
    module, _ = fraud(code)

    class Inner(module.FraudNet):
        pass

    refused(lambda: fraud_release(module, Inner()).save(tmp_path / "a"), "Inner", code=64)
    Inner.__module__ = "__main__"
    Inner.__qualname__ = "Inner"
    refused(lambda: fraud_release(module, Inner()).save(tmp_path / "a"), "__main__", code=64)
    assert nothing_is_left(tmp_path)


def test_a_factory_that_builds_another_model_is_refused(code, tmp_path):
    module, live = fraud(code)
    refused(
        lambda: live.save(tmp_path / "a", factory=module.wrong_size),
        "numbers.weight is [8, 2], expected [4, 2]",
        "factory_args",
        code=64,
    )
    refused(
        lambda: live.save(tmp_path / "a", factory_args=dict(depth=3)),
        "depth",
        code=64,
    )
    assert nothing_is_left(tmp_path)


def test_a_factory_that_builds_another_function_of_the_same_weights_is_refused(
    code, rows, tmp_path
):
    module = code(PLAIN_MODULE)
    live = Release.from_module(module.build(), device="cpu")
    live.run(rows[["amount", "age"]])
    refused(lambda: live.save(tmp_path / "a", factory=module.tanh), "other ones", code=64)


def test_a_release_that_has_not_seen_rows_is_not_saved(code, tmp_path):
    module, _ = fraud(code)
    unseen = fraud_release(module, inputs=None)
    refused(lambda: unseen.save(tmp_path / "a"), "release.run(rows)", code=64)
    assert nothing_is_left(tmp_path)


# Broken folders


def test_any_changed_byte_of_a_release_is_named(code, tmp_path):
    _, live = fraud(code)
    live.save(tmp_path / "v1")
    for name in ("model.safetensors", "release.json", "code/fraud_model.py"):
        file = tmp_path / "v1" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        refused(lambda: Release.load(tmp_path / "v1"), name, "changed")
        file.write_bytes(whole)
    (tmp_path / "v1/model.safetensors").unlink()
    refused(lambda: Release.load(tmp_path / "v1"), "model.safetensors is missing")


HEAD = dict(
    format=1,
    name="hand",
    factory="fraud_model:FraudNet",
    weights="w.safetensors",
    inputs="fraud_model:collate",
    decision=dict(kind="column", column=1),
    sites=["numbers:out"],
    columns=["amount", "age", "country"],
)


@pytest.fixture
def by_hand(code, tmp_path):
    "A folder written by hand: `by_hand(**changed)` writes release.json and gives the folder."
    module, live = fraud(code)
    folder = tmp_path / "hand"
    folder.mkdir()
    save_file(live.model.state_dict(), folder / "w.safetensors")
    listed = dict(code={"fraud_model": digest_file(module.__file__)})

    def write(**changed):
        (folder / "release.json").write_text(json.dumps(HEAD | listed | changed))
        return folder

    write.live = live
    return write


def test_a_hand_written_release_folder(by_hand, rows):
    release = Release.load(by_hand(), device="cpu")
    live = by_hand.live
    expected = live.model(**live.batch(rows).kwargs)[:, 1]
    assert release.inputs_columns == ["amount", "age", "country"]
    assert torch.allclose(release.run(rows), expected)


@pytest.mark.parametrize(
    "changed, part",
    [
        (dict(format=2), "format"),
        (dict(factory="fraud_model:FraudNt"), "FraudNt"),
        (dict(factory="no_such_module:A"), "no_such_module"),
        (dict(factory_args=dict(width="x")), "factory_args"),
        (dict(factory_args=dict(width=4)), "expected [4, 2]"),
        (dict(decision=dict(kind="colum", column=1)), "did you mean 'column'"),
        (dict(decision=dict(kind="column", col=1)), "col"),
        (dict(inputs=dict(kind="pictures")), "pictures"),
        (dict(sites=["number"]), "numbers"),
        (dict(weights="x.safetensors"), "x.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_mistake_in_release_json_is_named(by_hand, changed, part):
    folder = by_hand(**changed)
    refused(lambda: Release.load(folder, device="cpu"), part)


def test_a_column_that_the_output_does_not_have_is_named(by_hand, rows):
    folder = by_hand(decision=dict(kind="column", column=7))
    release = Release.load(folder, device="cpu")
    refused(lambda: release.run(rows), "0 to 1")


def test_a_release_json_that_is_no_json_is_named(by_hand):
    folder = by_hand()
    (folder / "release.json").write_text("{")
    refused(lambda: Release.load(folder, device="cpu"), "JSON")


# A folder is data until somebody says otherwise


EVIL = "import pathlib\npathlib.Path({0!r}).write_text('ran')\nfrom fraud_model import *\n"


@pytest.mark.parametrize(
    "changed",
    [
        dict(factory="os:system", factory_args=dict(command="touch {0}")),
        dict(factory="subprocess:getoutput", factory_args=dict(cmd="touch {0}")),
        dict(factory="pathlib:Path", code={"pathlib": "0" * 64}),
        dict(inputs="builtins:eval"),
        dict(decision="os.path:exists"),
        dict(factory="_io:open"),
    ],
    ids=lambda changed: next(iter(changed.values())),
)
def test_what_belongs_to_python_is_never_called(by_hand, tmp_path, changed):
    mark = tmp_path / "ran"
    changed = json.loads(json.dumps(changed).replace("{0}", str(mark)))
    refused(lambda: Release.load(by_hand(**changed), device="cpu"), "Python's own")
    assert not mark.exists()


@pytest.mark.parametrize("part", ["factory", "inputs", "decision"])
@pytest.mark.parametrize("name", ["evil", "evil_package.parts"])
def test_a_module_that_is_not_listed_does_not_run_and_the_line_allows_it(
    by_hand, code, tmp_path, monkeypatch, part, name
):
    mark = tmp_path / "ran"
    source = tmp_path / "src" / (name.replace(".", "/") + ".py")
    source.parent.mkdir(exist_ok=True)
    source.write_text(EVIL.format(str(mark)))
    if "." in name:
        (source.parent / "__init__.py").write_text(EVIL.format(str(mark)))
    whole = dict(factory="FraudNet", inputs="collate", decision="score")
    folder = by_hand(**{part: f"{name}:{whole[part]}"})
    listed = json.loads((folder / "release.json").read_text())["code"]
    for _ in range(2 if "." in name else 1):  # the package around a module runs as well
        error = refused(partial(Release.load, folder, device="cpu"), "not listed", "evil")
        assert not mark.exists()
        line = json.loads("{" + error.mend.partition("release.json: ")[2] + "}")
        listed |= line["code"]
        folder = by_hand(**{part: f"{name}:{whole[part]}"}, code=listed)
    Release.load(folder, device="cpu")
    assert mark.exists()
    for gone in [m for m in sys.modules if m.startswith("evil")]:
        del sys.modules[gone]


def test_code_that_was_laid_into_a_folder_is_refused(by_hand):
    folder = by_hand()
    (folder / "code").mkdir()
    (folder / "code" / "fraud_model.py").write_text(
        "raise SystemExit"
    )  # before the one on the path
    refused(lambda: Release.load(folder, device="cpu"), "fraud_model", "another version")
    (folder / "code" / "fraud_model.py").rename(folder / "code" / "extra.py")
    refused(lambda: Release.load(folder, device="cpu"), "'extra' is not listed", '"code": {"extra"')
    (folder / "code" / "deep").mkdir()
    (folder / "code" / "extra.py").rename(folder / "code" / "deep" / "extra.py")
    refused(lambda: Release.load(folder, device="cpu"), "deep.extra")


def test_linked_code_is_refused(by_hand, tmp_path):
    folder = by_hand()
    source = sys.modules["fraud_model"].__file__
    (folder / "code").mkdir()
    (folder / "code" / "fraud_model.py").symlink_to(source)
    refused(lambda: Release.load(folder, device="cpu"), "fraud_model.py is a link")
    (folder / "code" / "fraud_model.py").unlink()
    (folder / "code").rmdir()
    (folder / "code").symlink_to(tmp_path / "src")
    refused(lambda: Release.load(folder, device="cpu"), "code is a link")


def test_a_helper_that_is_imported_has_to_be_listed(by_hand, code):
    code("SCALE = 1\n", "helper_of_model")
    module = code("from helper_of_model import SCALE" + MODULE)
    listed = {"fraud_model": digest_file(module.__file__)}
    refused(
        lambda: Release.load(by_hand(code=listed), device="cpu"),
        "'fraud_model' imports it",
        '"code": {"helper_of_model"',
    )


@pytest.mark.parametrize(
    "listed",
    [["fraud_model"], "fraud_model", {"../fraud_model": "a"}, {"fraud_model": None}, {"": "a"}],
    ids=str,
)
def test_a_list_of_code_of_another_form_is_refused(by_hand, listed):
    refused(lambda: Release.load(by_hand(code=listed), device="cpu"), "release.json")
