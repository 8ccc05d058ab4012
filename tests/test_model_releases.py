"Releases in their three forms: what they decide, how they are saved and identified, and what they refuse."

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.model.canaries import canary, canary_rows, compare_canary
from interpkit.model.fingerprints import fingerprint
from interpkit.model.hub_folders import SAID
from interpkit.model.releases import Release
from interpkit.model.sites import Site, suggest_sites

V = 20
MODULE = """
import torch
from torch import nn

class FraudNet(nn.Module):
    def __init__(self, width=8, act="relu"):
        super().__init__()
        self.numbers, self.country, self.act, self.head = nn.Linear(2, width), nn.Embedding(5, width), getattr(torch, act), nn.Linear(width, 2)
    def forward(self, x, country): return SCALE * self.head(self.act(self.numbers(x) + self.country(country)))

def collate(rows): return dict(x=rows[["amount", "age"]].to_numpy(), country=rows["country"].to_numpy())
def score(out): return out[:, 1] - 0.5 * out[:, 0]
def wrong_size(): return FraudNet(4)
"""


def raised(code, fn, *parts):
    with pytest.raises(InterpkitError) as e:
        fn()
    assert e.value.code == code, e.value
    for p in parts:
        assert p in str(e.value), (p, str(e.value))
    return str(e.value)


@pytest.fixture
def code(tmp_path, monkeypatch):
    "Writes a module that a release's class lives in, and imports it anew."
    monkeypatch.syspath_prepend(str(tmp_path / "src"))

    def write(text, name="fraud_model"):
        file = (tmp_path / "src").joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        for m in [m for m in sys.modules if m.split(".")[0] == name.split(".")[0]]:
            del sys.modules[m]
        import importlib

        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for m in ("fraud_model", "bank", "bank.models", "bank.parts", "helper_of_model"):
        sys.modules.pop(m, None)


@pytest.fixture(scope="module")
def rows():
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


def fraud(code, scale=1, name="fraud_model", **kwargs):
    module = code(f"SCALE = {scale}" + MODULE, name)
    torch.manual_seed(0)
    net = module.FraudNet(**kwargs)
    return module, Release.from_module(
        net,
        inputs=module.collate,
        decision=module.score,
        sites=["numbers:out"],
        name="v1",
        device="cpu",
    )


@pytest.fixture
def llama_folder(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
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
    )
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama", model.eval()


def sequences(n=6):
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        dict(
            sequence_id=range(n),
            input_ids=[[1, *rng.integers(3, V, 2 + i % 4).tolist()] for i in range(n)],
        )
    )


# ---- live modules


def test_a_live_module_is_copied_and_left_alone(rows):
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    x = rows[["sequence_id", "amount", "age", "segment", "label"]]
    release = Release.from_module(net, device="cpu")
    before = release.run(x)
    assert (
        torch.allclose(
            before, net(torch.tensor(rows[["amount", "age"]].to_numpy()))[:, 0].float(), atol=1e-5
        )
        and before.dtype == torch.float32
    )
    assert (
        all(p.requires_grad and p.dtype == torch.float64 for p in net.parameters()) and net.training
    )
    with torch.no_grad():
        net[0].weight.zero_()
    assert (
        torch.equal(release.run(x), before)
        and not release.for_sign_off
        and "not for sign-off" in repr(release)
    )
    assert release.inputs_columns == ["amount", "age"]
    assert torch.equal(
        release.run(x[["age", "label", "amount"]]), before
    )  # the order of columns is that of the first rows


def test_two_columns_of_output_give_their_difference(rows):
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    out = net(torch.tensor(rows[["amount", "age"]].to_numpy("float32")))
    assert torch.allclose(
        Release.from_module(net, device="cpu").run(rows[["amount", "age"]]),
        out[:, 1] - out[:, 0],
        atol=1e-6,
    )


def test_what_can_not_be_guessed_holds_the_call_to_paste(rows):
    three = Release.from_module(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)), device="cpu"
    )
    raised(
        65,
        lambda: three.run(rows[["amount", "age"]]),
        "Release.from_module(model, inputs=..., decision=lambda out: out[:, 1])",
    )
    text = rows.assign(name="x")
    raised(
        65, lambda: three.run(text), "name", "def collate(rows)", "decision=lambda out: out[:, 1]"
    )
    raised(65, lambda: three.run(sequences()), "'kind': 'tokens'")


def test_a_function_may_return_numpy_doubles_dicts_and_masks(code, rows):
    module, release = fraud(code)
    x, c = (
        torch.tensor(rows[["amount", "age"]].to_numpy("float32")),
        torch.tensor(rows["country"].to_numpy()),
    )
    out = release.model(x, c)
    assert torch.allclose(release.run(rows), out[:, 1] - 0.5 * out[:, 0], atol=1e-6)
    as_tuple = Release.from_module(
        release.model,
        inputs=lambda r: (r[["amount", "age"]].to_numpy(), torch.tensor(r["country"].to_numpy())),
        decision=lambda out: out[:, 1],
        device="cpu",
    )
    assert torch.allclose(as_tuple.run(rows), out[:, 1], atol=1e-6)

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)

        def forward(self, x):
            return self.b(self.act(self.a(x)))

    pooled = Release.from_module(
        Pooled(),
        inputs=lambda r: dict(x=torch.ones(len(r), 3, 2), mask=torch.tensor([[1, 1, 0]] * len(r))),
        decision=lambda out, batch: out[range(len(out)), batch.last, 0],
        device="cpu",
    )
    batch = pooled.batch(rows)
    assert (
        batch.mask.tolist()[0] == [True, True, False]
        and batch.last.tolist() == [1] * 60
        and "mask" not in batch.kwargs
    )  # its forward takes no mask
    assert pooled.run(rows).shape == (60,)


def test_an_argument_for_all_sequences_is_not_taken_apart(rows):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)

        def forward(self, x, positions):
            return self.b(self.act(self.a(x + positions[:, None]))).mean(1)

    torch.manual_seed(0)
    release = Release.from_module(
        Positions(),
        inputs=lambda r: (
            torch.tensor(r["amount"].to_numpy("float32"))[:, None, None].expand(-1, 6, -1).clone(),
            torch.arange(6.0) / 3,
        ),
        device="cpu",
    )
    six = release.batch(rows.head(6))  # as many sequences as positions
    assert torch.allclose(release.run(six.take(torch.tensor([5, 0]))), release.run(six)[[5, 0]])
    assert (
        release.batch(rows.head(6)).take(torch.tensor([5])).args[1].tolist() == six.args[1].tolist()
    )


def test_an_inputs_function_that_loses_rows_is_refused(rows):
    release = Release.from_module(
        nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)),
        inputs=lambda r: torch.tensor(
            r[r["age"] > -1e9].drop_duplicates("country")["amount"].to_numpy("float32")
        )[:, None],
        device="cpu",
    )
    raised(65, lambda: release.run(rows), "must keep all rows")
    broken = Release.from_module(
        nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)),
        inputs=lambda r: r["amonut"],
        device="cpu",
    )
    raised(65, lambda: broken.run(rows), "KeyError", "amount")


def test_columns_that_the_model_could_not_read_are_not_remembered(rows):
    release = Release.from_module(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), device="cpu"
    )
    raised(65, lambda: release.run(rows), "[60, 3]")
    assert (
        release.inputs_columns is None
        and release.run(rows[["age", "amount"]]).shape == (60,)
        and release.inputs_columns == ["age", "amount"]
    )


def test_rows_the_model_can_not_take_are_named_without_their_values(rows):
    release = Release.from_module(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), device="cpu"
    )
    raised(
        65, lambda: release.run(rows.drop(columns=["segment"])), "forward of Sequential", "[60, 3]"
    )
    good = rows[["amount", "age"]]
    release = Release.from_module(release.model, device="cpu")
    release.run(good)
    raised(
        65, lambda: release.run(good.rename(columns=dict(age="agee"))), "age", "did you mean 'agee'"
    )
    planted = good.assign(
        age=good["age"].where(good.index != 7, np.nan),
        amount=good["amount"].where(good.index != 7, 424242.0),
    )
    assert "424242" not in raised(65, lambda: release.run(planted), "'age'", "row 7")
    over = Release.from_module(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)),
        decision=lambda out: torch.where(torch.arange(len(out)) == 3, torch.nan, out[:, 0]),
        device="cpu",
    )
    raised(65, lambda: over.run(good), "finite decisions", "row 3")
    raised(65, lambda: release.run(good.head(0)), "0 rows")
    raised(
        65,
        lambda: Release.from_module(release.model, decision=lambda out: out[0], device="cpu").run(
            good
        ),
        "one decision per sequence",
    )


def test_suggested_sites():
    class Relu(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.a, self.b, self.c = (
                nn.ReLU(),
                nn.Linear(2, 4),
                nn.Linear(4, 4),
                nn.Linear(4, 1),
            )

        def forward(self, x):
            return self.c(self.act(self.b(self.act(self.a(x)))))

    class Entities(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = nn.ModuleList([nn.Embedding(50, 30), nn.Embedding(50, 30)])
            self.net = nn.Sequential(
                nn.Linear(2, 4),
                nn.GELU(),
                nn.Linear(4, 4),
                nn.GELU(),
                nn.Linear(4, 4),
                nn.GELU(),
                nn.Linear(4, 1),
            )

    blocks = nn.ModuleDict(
        dict(layers=nn.ModuleList([nn.TransformerEncoderLayer(4, 1, 8) for _ in range(9)]))
    )
    assert suggest_sites(Relu()) == (Site("b", "in"),)  # one activation module, used twice
    assert suggest_sites(Entities()) == (Site("net.3"),)  # tables are no blocks
    for n, middle in ((2, 0), (3, 0), (4, 1), (5, 2), (6, 2), (9, 4)):
        assert suggest_sites(
            nn.ModuleDict(
                dict(layers=nn.ModuleList([nn.TransformerEncoderLayer(4, 1, 8) for _ in range(n)]))
            )
        ) == (Site(f"layers.{middle}"),)
    raised(65, lambda: suggest_sites(nn.Linear(2, 1)), "sites=")
    raised(65, lambda: Release.from_module(Relu(), sites=["bb:out"], device="cpu"), "bb", "nearest")
    raised(64, lambda: Release.from_module(Relu(), sites=["b:left"], device="cpu"))


def test_the_table_of_sites(rows, llama_folder, capsys):
    release = Release.from_module(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)), device="cpu"
    )
    assert release.sites()["shape"].tolist() == ["", "", ""]  # no rows seen yet
    table = release.sites(rows[["amount", "age"]]).set_index("site")
    assert (
        table["shape"].to_dict() == {"0:out": "[B, 8]", "1:out": "[B, 8]", "2:out": "[B, 1]"}
        and table.loc["1:out", "suggestion"]
        and not table.loc["0:out", "suggestion"]
    )
    inner = (
        Release.from_module(release.model, sites=["2:in"], device="cpu")
        .sites(rows[["amount", "age"]])
        .set_index("site")
    )
    assert (
        inner.loc["2:in", "suggestion"]
        and not inner.loc["2:out", "suggestion"]
        and inner.loc["2:in", "shape"].endswith("8]")
    )
    llama = Release.load(llama_folder[0], device="cpu").sites().set_index("site")["shape"]
    assert (
        llama["model.layers.2:out"] == "[B, T, 16]"
        and llama["model.layers.0.mlp.gate_proj:out"] == "[B, T, 32]"
        and "model.layers.2.self_attn:out" in llama.index
    )


def test_reprs_carry_no_script():
    release = Release.from_module(
        nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)),
        name="<script>alert(1)</script>",
        device="cpu",
    )
    html = release._repr_html_()
    assert (
        "<script" not in html
        and "&lt;script&gt;" in html
        and release.fingerprint[:12] in html
        and "not for sign-off" in html
        and "\n" not in repr(release)
    )


# ---- folders of one's own code


def test_a_saved_release_decides_as_the_live_one(code, rows, tmp_path):
    _, live = fraud(code, width=6)
    saved = live.save(tmp_path / "v1", factory_args=dict(width=6))
    assert (
        saved.for_sign_off
        and saved.kind == "folder"
        and torch.equal(saved.run(rows), live.run(rows))
        and saved.default_sites == live.default_sites
    )
    again = Release.load(tmp_path / "v1", device="cpu")
    assert again.fingerprint == saved.fingerprint and sorted(os.listdir(tmp_path / "v1")) == [
        "code",
        "manifest.json",
        "model.safetensors",
        "release.json",
    ]
    raised(65, lambda: live.save(tmp_path / "v1", factory_args=dict(width=6)), "exists")
    raised(64, lambda: again.save(tmp_path / "v2"))


def test_loading_a_release_writes_nothing_into_its_folder_and_reads_no_bytecode_there(
    code, rows, tmp_path
):
    _, live = fraud(code)
    live.save(tmp_path / "v1")
    load = [
        sys.executable,
        "-c",
        f"from interpkit.model.releases import Release\nRelease.load({str(tmp_path / 'v1')!r}, device='cpu')",
    ]
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        subprocess.run(load, check=True, cwd=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_two_releases_may_have_different_code_of_one_name(code, rows, tmp_path):
    _, one = fraud(code, scale=1)
    old = one.save(tmp_path / "v1")
    _, two = fraud(code, scale=3)
    new = two.save(tmp_path / "v2")
    sys.modules.pop("fraud_model")
    old, new = (
        Release.load(tmp_path / "v1", device="cpu"),
        Release.load(tmp_path / "v2", device="cpu"),
    )
    assert (
        torch.allclose(3 * old.run(rows), new.run(rows), rtol=1e-4)
        and old.run(rows).abs().max() > 0
        and old.fingerprint != new.fingerprint
    )


def test_code_in_a_package_is_imported_by_name_and_its_digest_holds(code, rows, tmp_path):
    code("SCALE = 2\n", "bank.parts")
    code("from .parts import SCALE" + MODULE, "bank.models")
    code("SCALE = 2\n", "bank.parts")
    import importlib

    models = importlib.import_module("bank.models")
    live = Release.from_module(
        models.FraudNet(),
        inputs=models.collate,
        decision=models.score,
        sites=["numbers:out"],
        device="cpu",
    )
    saved = live.save(tmp_path / "v1")
    assert torch.equal(saved.run(rows), live.run(rows)) and not (tmp_path / "v1/code").exists()
    assert set(json.loads((tmp_path / "v1/release.json").read_text())["code"]) == {
        "bank.models",
        "bank.parts",
    }
    code("SCALE = 5\n", "bank.parts")  # a file that the class's file imports has changed
    raised(65, lambda: Release.load(tmp_path / "v1"), "bank.parts", "another version")


def test_a_neighbour_that_the_class_imports_is_part_of_the_code(code, rows, tmp_path):
    code("SCALE = 2\n", "helper_of_model")
    module = code("from helper_of_model import SCALE\nimport helper_of_model" + MODULE)
    live = Release.from_module(
        module.FraudNet(),
        inputs=module.collate,
        decision=module.score,
        sites=["numbers:out"],
        device="cpu",
    )
    live.save(tmp_path / "v1")
    code("SCALE = 3\n", "helper_of_model")
    raised(65, lambda: Release.load(tmp_path / "v1"), "helper_of_model")


def test_what_can_not_be_saved(code, rows, tmp_path):
    module, live = fraud(code)
    like = lambda **k: Release.from_module(
        live.model,
        **{
            **dict(
                inputs=module.collate, decision=module.score, sites=["numbers:out"], device="cpu"
            ),
            **k,
        },
    )
    raised(
        64,
        lambda: like(decision=lambda out: out[:, 1]).save(tmp_path / "a"),
        "lambda",
        "fraud_model.py",
    )
    raised(64, lambda: like(inputs=lambda r: module.collate(r)).save(tmp_path / "a"), "inputs")

    class Inner(module.FraudNet):
        pass

    raised(
        64,
        lambda: Release.from_module(
            Inner(),
            inputs=module.collate,
            decision=module.score,
            sites=["numbers:out"],
            device="cpu",
        ).save(tmp_path / "a"),
        "Inner",
    )
    Inner.__module__, Inner.__qualname__ = "__main__", "Inner"
    raised(
        64,
        lambda: Release.from_module(
            Inner(),
            inputs=module.collate,
            decision=module.score,
            sites=["numbers:out"],
            device="cpu",
        ).save(tmp_path / "a"),
        "__main__",
    )
    raised(
        64,
        lambda: live.save(tmp_path / "a", factory=module.wrong_size),
        "numbers.weight is [8, 2], expected [4, 2]",
        "factory_args",
    )
    raised(64, lambda: live.save(tmp_path / "a", factory_args=dict(depth=3)), "depth")
    raised(64, lambda: like(inputs=None).save(tmp_path / "a"), "release.run(rows)")
    assert not (tmp_path / "a").exists() and not [p for p in os.listdir(tmp_path) if "aside" in p]


def test_columns_and_decision_learnt_from_rows_are_saved(code, rows, tmp_path):
    module = code(
        "from torch import nn\ndef build(width=8): return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))\ndef tanh(): return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))\n"
    )
    live = Release.from_module(module.build(), device="cpu")
    expected = live.run(rows[["amount", "age"]])
    raised(
        64, lambda: live.save(tmp_path / "a", factory=module.tanh), "other ones"
    )  # the same weights, another function
    saved = live.save(tmp_path / "a", factory=module.build)
    head = json.loads((tmp_path / "a/release.json").read_text())
    assert head["inputs"] == {"kind": "columns", "columns": ["amount", "age"]} and head[
        "decision"
    ] == {"kind": "difference"}
    assert torch.equal(saved.run(rows), expected) and saved.inputs_columns == [
        "amount",
        "age",
    ]  # `country` is no input


def test_any_changed_byte_of_a_release_is_named(code, tmp_path):
    _, live = fraud(code)
    live.save(tmp_path / "v1")
    for name in ("model.safetensors", "release.json", "code/fraud_model.py"):
        file = tmp_path / "v1" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        raised(65, lambda: Release.load(tmp_path / "v1"), name, "changed")
        file.write_bytes(whole)
    (tmp_path / "v1/model.safetensors").unlink()
    raised(65, lambda: Release.load(tmp_path / "v1"), "model.safetensors is missing")


def test_a_hand_written_release_folder_and_its_mistakes(code, rows, tmp_path):
    module, live = fraud(code)
    folder = tmp_path / "hand"
    folder.mkdir()
    save_file(live.model.state_dict(), folder / "w.safetensors")
    head = dict(
        format=1,
        name="hand",
        factory="fraud_model:FraudNet",
        weights="w.safetensors",
        inputs="fraud_model:collate",
        decision=dict(kind="column", column=1),
        sites=["numbers:out"],
        columns=["amount", "age", "country"],
    )

    def write(**k):
        (folder / "release.json").write_text(json.dumps({**head, **k}))

    write()
    release = Release.load(folder, device="cpu")
    assert release.inputs_columns == ["amount", "age", "country"] and torch.allclose(
        release.run(rows), live.model(**live.batch(rows).kwargs)[:, 1]
    )
    for change, said in (
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
    ):
        write(**change)
        raised(65, lambda: Release.load(folder, device="cpu"), said)
    write(decision=dict(kind="column", column=7))
    raised(65, lambda: Release.load(folder, device="cpu").run(rows), "0 to 1")
    (folder / "release.json").write_text("{")
    raised(65, lambda: Release.load(folder, device="cpu"), "JSON")


# ---- Hugging Face


def test_a_hugging_face_folder_and_what_was_assumed(llama_folder, capsys):
    folder, model = llama_folder
    SAID.clear()
    release = Release.load(folder, device="cpu")
    said = capsys.readouterr().out
    assert (
        "top_two" in said
        and "start token 1" in said
        and "padding 0" in said
        and "model.layers.2:out" in said
    )
    Release.load(folder, device="cpu")
    assert capsys.readouterr().out == ""  # said once
    rows = sequences()
    raised(65, lambda: release.run(rows), ".pin(rows)")
    pinned = release.pin(rows)
    for i, ids in enumerate(rows["input_ids"]):  # one by one, without padding
        top = model(torch.tensor([ids])).logits[0, -1].topk(2)
        assert pinned[["_top1", "_top2"]].iloc[i].tolist() == top.indices.tolist()
        assert torch.allclose(release.run(pinned)[i], top.values[0] - top.values[1], atol=1e-4)
    batch = release.batch(rows)
    assert batch.mask[0].tolist() == [False, True, True] + [False] * 3 and batch.last.tolist() == [
        2,
        3,
        4,
        5,
        2,
        3,
    ]
    assert release.model(input_ids=batch.kwargs["input_ids"]).past_key_values is None  # no cache


def test_padded_rows_decide_as_unpadded_ones(llama_folder):
    release = Release.load(llama_folder[0], device="cpu")
    rows = release.pin(sequences())
    padded = rows.assign(input_ids=[[*x, *[0] * 5] for x in rows["input_ids"]])
    assert (
        torch.allclose(release.run(padded), release.run(rows), atol=1e-4)
        and release.batch(padded).mask.sum() == release.batch(rows).mask.sum()
    )
    assert torch.allclose(
        release.run(pd.concat([rows] * 60, ignore_index=True))[-6:], release.run(rows), atol=1e-4
    )  # more than one batch


def test_an_end_token_that_also_pads_is_a_token(llama_folder):
    folder, model = llama_folder
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(pad_token_id=2)))
    release = Release.load(
        folder, device="cpu", decision=dict(kind="logit_difference", positive=4, negative=3)
    )
    rows = pd.DataFrame(dict(sequence_id=[0, 1], input_ids=[[1, 5, 6, 2], [1, 7, 2]]))
    logits = torch.stack([model(torch.tensor([x])).logits[0, -1] for x in rows["input_ids"]])
    assert release.batch(rows).last.tolist() == [3, 2] and torch.allclose(
        release.run(rows), logits[:, 4] - logits[:, 3], atol=1e-4
    )


def test_the_new_release_is_asked_about_the_old_ones_tokens(llama_folder, tmp_path):

    folder, model = llama_folder
    new = copy.deepcopy(model)
    with torch.no_grad():
        new.lm_head.weight.add_(
            torch.randn(new.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
        )
    new.save_pretrained(tmp_path / "new")
    old, new = Release.load(folder, device="cpu"), Release.load(tmp_path / "new", device="cpu")
    rows = old.pin(sequences())
    assert (old.run(rows) >= 0).all() and (new.run(rows) < 0).any() and new.pin(rows) is rows


@pytest.mark.parametrize("labels, decision", [(1, "scalar"), (2, "difference"), (3, None)])
def test_sequence_classifiers(tmp_path, labels, decision):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_labels=labels,
            initializer_range=0.5,
        )
    ).eval()
    model.save_pretrained(tmp_path / "bert")
    rows = sequences()
    if decision is None:
        raised(65, lambda: Release.load(tmp_path / "bert", device="cpu"), "3 labels", "decision=")
        release = Release.load(
            tmp_path / "bert", device="cpu", decision=dict(kind="column", column=2)
        )
    else:
        release = Release.load(tmp_path / "bert", device="cpu")
    logits = torch.cat([model(torch.tensor([x])).logits for x in rows["input_ids"]])
    expected = (
        logits[:, 2]
        if decision is None
        else logits[:, 0]
        if labels == 1
        else logits[:, 1] - logits[:, 0]
    )
    assert (
        torch.allclose(release.run(rows), expected, atol=1e-4)
        and release.default_sites == (Site("bert.encoder.layer.0"),)
        and release.pin(rows) is rows
    )


def test_tied_and_sharded_weights(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V,
            n_embd=16,
            n_layer=3,
            n_head=2,
            n_positions=16,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).eval()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    one, many = (
        Release.load(tmp_path / "one", device="cpu"),
        Release.load(tmp_path / "many", device="cpu"),
    )
    assert (
        len(list((tmp_path / "many").glob("*.safetensors"))) > 1
        and one.model.lm_head.weight.data_ptr() == one.model.transformer.wte.weight.data_ptr()
    )
    rows = one.pin(sequences())
    assert torch.equal(one.run(rows), many.run(rows)) and one.fingerprint == many.fingerprint
    shard = sorted((tmp_path / "many").glob("*.safetensors"))[1]
    shard.unlink()
    raised(65, lambda: Release.load(tmp_path / "many"), shard.name)


def test_a_live_hugging_face_model_is_saved_as_such(llama_folder, tmp_path):
    _, model = llama_folder
    vocabulary = {f"t{i}": i for i in range(V)}
    live = Release.from_module(
        model,
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=dict(kind="logit_difference", positive=4, negative=3),
        sites=["model.layers.1:out"],
        name="v1",
        device="cpu",
    )
    saved = live.save(tmp_path / "v1", vocabulary=vocabulary)
    rows = sequences()
    logits = torch.stack([model(torch.tensor([x])).logits[0, -1] for x in rows["input_ids"]])
    assert (
        torch.allclose(saved.run(rows), logits[:, 4] - logits[:, 3], atol=1e-4)
        and saved.inputs_columns == ["input_ids"]
        and saved.name == "v1"
    )
    other = live.save(tmp_path / "v2", vocabulary=dict(vocabulary, t99=3))
    assert other.fingerprint != saved.fingerprint  # the vocabulary is part of a release
    assert type(Release.load(tmp_path / "v1", device="cpu").model).__name__ == "LlamaForCausalLM"


def test_token_ids_out_of_the_vocabulary_name_the_row_and_nothing_of_it(llama_folder):
    release = Release.load(llama_folder[0], device="cpu")
    rows = sequences()
    bad = rows.assign(input_ids=[*rows["input_ids"][:4], [1, 777, 13, 14], rows["input_ids"][5]])
    said = raised(65, lambda: release.pin(bad), "'input_ids'", "row 4", "0 to 19")
    assert "777" not in said and "13" not in said
    for x, part in (
        ([1, -3], "0 to 19"),
        ([1, 2.5], "row 4"),
        ([], "row 4"),
        (None, "row 4"),
        ([0, 0], "row 4"),
        ("abc", "row 4"),
    ):
        raised(
            65,
            lambda: release.pin(
                rows.assign(input_ids=[*rows["input_ids"][:4], x, rows["input_ids"][5]])
            ),
            part,
        )
    raised(65, lambda: release.pin(rows.rename(columns=dict(input_ids="tokens"))), "input_ids")


def test_broken_hugging_face_folders(llama_folder, tmp_path):
    folder, _ = llama_folder
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, said = load_file(weights), json.loads(config.read_text())

    def tried(tensors, *parts):
        save_file(tensors, weights, metadata=dict(format="pt"))
        raised(65, lambda: Release.load(folder), *parts)

    tried({k: v for k, v in whole.items() if k != "lm_head.weight"}, "lm_head.weight is missing")
    tried(whole | {"extra.weight": torch.zeros(2)}, "extra.weight is not part")
    tried(whole | {"model.norm.weight": torch.zeros(3)}, "model.norm.weight is [3], expected [16]")
    save_file(whole, weights, metadata=dict(format="pt"))
    weights.write_bytes(weights.read_bytes()[:-100])
    raised(65, lambda: Release.load(folder), "model.safetensors", "whole")
    weights.unlink()
    raised(65, lambda: Release.load(folder), "model.safetensors", "no such file")
    torch.save(whole, folder / "pytorch_model.bin")
    raised(
        65,
        lambda: Release.load(folder),
        "pytorch_model.bin",
        "save_file(torch.load('pytorch_model.bin'",
    )
    (folder / "pytorch_model.bin").unlink()
    save_file(whole, weights, metadata=dict(format="pt"))
    config.write_text(json.dumps(said | dict(architectures=["NoSuchModel"])))
    raised(65, lambda: Release.load(folder), "NoSuchModel")
    config.write_text(json.dumps(said | dict(num_attention_heads=3)))
    raised(65, lambda: Release.load(folder), str(folder))
    config.write_text("{")
    raised(65, lambda: Release.load(folder), "config.json")
    config.unlink()
    raised(65, lambda: Release.load(folder), "config.json")
    raised(65, lambda: Release.load(tmp_path / "nowhere"), "no such folder")
    raised(65, lambda: Release.load(str(tmp_path / "nowhere")), "no such folder")


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    def asked(*_, **__):
        raise AssertionError("went to the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "releases").mkdir()
    for where in ("releases/v2", "./v2", "a/b/c", tmp_path / "v2"):
        raised(65, lambda: Release.load(where), "no such folder")
    raised(65, lambda: Release.load("gpt-2-of-nobody"), "AssertionError")  # a name on the hub


def test_bad_devices():
    raised(64, lambda: Release.from_module(nn.Linear(1, 1), device="tpu"), "tpu")
    if not torch.cuda.is_available():
        raised(64, lambda: Release.from_module(nn.Linear(1, 1), device="cuda"), "device='cpu'")


# ---- fingerprints and canaries


def test_the_fingerprint_is_stable_across_processes_and_orders(code, rows, tmp_path, llama_folder):
    _, live = fraud(code)
    saved = live.save(tmp_path / "v1")
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from interpkit.model.releases import Release\nprint(Release.load({str(tmp_path / 'v1')!r}, device='cpu').fingerprint)",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=tmp_path,
    )
    assert found.stdout.strip() == saved.fingerprint, found.stderr
    folder, _ = llama_folder
    before = Release.load(folder, device="cpu").fingerprint
    weights = load_file(folder / "model.safetensors")
    save_file(
        dict(reversed(weights.items())), folder / "model.safetensors", metadata=dict(format="pt")
    )
    assert Release.load(folder, device="cpu").fingerprint == before


def test_the_fingerprint_changes_with_one_ulp_of_any_tensor_and_with_every_other_part(llama_folder):
    folder, _ = llama_folder
    marks = [Release.load(folder, device="cpu").fingerprint]
    whole = load_file(folder / "model.safetensors")
    for name in (
        "model.norm.weight",
        "model.layers.3.mlp.up_proj.weight",
        "model.embed_tokens.weight",
    ):
        other = {k: v.clone() for k, v in whole.items()}
        flat = other[name].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        save_file(other, folder / "model.safetensors", metadata=dict(format="pt"))
        marks.append(Release.load(folder, device="cpu").fingerprint)
    save_file(whole, folder / "model.safetensors", metadata=dict(format="pt"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(rms_norm_eps=1e-3)))
    marks.append(Release.load(folder, device="cpu").fingerprint)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").write_text(json.dumps(dict(a=1)))
    marks.append(Release.load(folder, device="cpu").fingerprint)
    (folder / "vocab.json").unlink()
    assert (
        len(set(marks)) == len(marks) and Release.load(folder, device="cpu").fingerprint == marks[0]
    )


def test_the_fingerprint_sees_names_shapes_buffers_and_code():
    a, b = nn.Linear(2, 3), nn.BatchNorm1d(3)
    c = copy.deepcopy(b)
    c.running_mean[0] = 1e-30
    assert fingerprint(b) != fingerprint(c)
    assert fingerprint(a, code=dict(m="1")) != fingerprint(a, code=dict(m="2")) != fingerprint(a)
    relu, gelu = (
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)),
    )
    gelu.load_state_dict(relu.state_dict())
    assert (
        Release.from_module(relu, device="cpu").fingerprint
        != Release.from_module(gelu, device="cpu").fingerprint
        == Release.from_module(copy.deepcopy(gelu), name="x", device="cpu").fingerprint
    )
    flat, tall = nn.Module(), nn.Module()
    flat.w, tall.w = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2))
    assert fingerprint(flat) != fingerprint(tall)


def test_no_value_of_fewer_than_twenty_rows_gets_into_a_canary():
    rng = np.random.default_rng(0)
    n = 300
    rows = pd.DataFrame(
        dict(
            sequence_id=[f"PLANTED-{i}" for i in range(n)],
            name=[f"PLANTED {i}" for i in range(n)],
            city=np.where(np.arange(n) < 19, "PLANTED", "Rome"),
            cat=pd.Categorical(["PLANTED"] + ["x"] * (n - 1)),
            flag=np.arange(n) % 2 == 0,
            account=rng.integers(10**6, 10**7, n),
            code=np.where(np.arange(n) < 19, 9, np.arange(n) % 3),
            amount=rng.normal(size=n).round(2),
            segment="PLANTED",
            label=1,
            input_ids=[[1, 5 + i % 3, 40 + i] + [6] * (i % 9) + [2] for i in range(n)],
        )
    )
    rows["factor:x"] = [[0] * len(x) for x in rows["input_ids"]]
    rows["_top1"] = rows["account"]
    for seed in range(5):
        made = canary_rows(rows, n=40, seed=seed)
        assert (
            len(made) == 40
            and "PLANTED" not in made.to_json()
            and "PLANTED" not in str(getattr(made["cat"].dtype, "categories", ""))
        )
        for c in ("city", "code", "account", "amount", "flag"):
            rare = rows[c].value_counts()[lambda k: k < 20].index
            assert not set(made[c]) & set(rare), c
            assert made[c].dtype.kind == rows[c].dtype.kind
        assert {t for x in made["input_ids"] for t in x} <= {1, 2, 5, 6, 7} and all(
            x[0] == 1 and x[-1] == 2 for x in made["input_ids"]
        )
        assert not {"segment", "label", "_top1", "factor:x"} & set(made)
    assert canary_rows(rows, seed=3).equals(canary_rows(rows, seed=3)) and not canary_rows(
        rows, seed=3
    ).equals(canary_rows(rows, seed=4))


@pytest.mark.parametrize("n", [1, 5, 19])
def test_a_canary_of_too_few_rows_holds_nothing_of_them(n):
    rows = pd.DataFrame(
        dict(
            sequence_id=range(n),
            amount=np.arange(n) + 1e6 + 0.5,
            age=np.arange(n) + 30,
            name=["P"] * n,
            on=[True] * n,
            input_ids=[[11, 12, 13]] * n,
        )
    )
    made = canary_rows(rows)
    assert (
        made["amount"].abs().max() < 10
        and not set(made["age"]) & set(rows["age"])
        and "P" not in set(made["name"])
        and not made["on"].any()
    )
    assert {t for x in made["input_ids"] for t in x} == {0}


def test_the_canary_of_a_release(llama_folder):
    folder, model = llama_folder
    release = Release.load(folder, device="cpu")
    rows = canary_rows(
        pd.DataFrame(
            dict(
                sequence_id=range(80),
                input_ids=[[1, 5 + i % 4, 9, *[7] * (i % 3)] for i in range(80)],
            )
        )
    )
    expected = canary(release, rows, release.default_sites)
    assert compare_canary(
        expected, canary(Release.load(folder, device="cpu"), rows, release.default_sites)
    )[0]
    acts = expected["model.layers.2:out"]
    assert (
        acts.shape[0] == 16 and (acts[:, 0] == 0).all() and np.abs(acts[:, 1]).min() > 0
    )  # the start token does not count
    for k, ok in ((1e-6, True), (1e-1, False)):
        with torch.no_grad():
            release.model.model.layers[1].mlp.down_proj.weight.mul_(1 + k)
        good, message = compare_canary(expected, canary(release, rows, release.default_sites))
        assert good == ok and "relative" in message


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_release_on_cuda(llama_folder):
    on_cpu, on_gpu = (Release.load(llama_folder[0], device=d) for d in ("cpu", "cuda"))
    rows = on_cpu.pin(sequences())
    assert (
        on_gpu.device.type == "cuda"
        and on_gpu.fingerprint == on_cpu.fingerprint
        and torch.allclose(on_gpu.run(rows).cpu(), on_cpu.run(rows), atol=1e-3)
    )
    assert compare_canary(
        canary(on_cpu, rows, on_cpu.default_sites), canary(on_gpu, rows, on_cpu.default_sites)
    )[0]
    assert Release.load(llama_folder[0]).device.type == "cuda"
