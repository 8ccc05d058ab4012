"A check in one call: what it answers, what it refuses, and that it keeps to itself."

import socket

import numpy as np
import pandas as pd
import pytest
import torch

from interpkit.core.artefacts import canonical
from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.gate.check import check, schema_notes, training_rows
from interpkit.model.releases import Release


def refused(code=ExitCode.INVALID, **kw) -> InterpkitError:
    with pytest.raises(InterpkitError) as e:
        check(**kw)
    assert e.value.code == code, e.value
    return e.value


@pytest.fixture
def given(tiny):
    return dict(old=tiny.v1, new=tiny.v2, data=tiny.data, dictionary=tiny.dictionary_folder)


def test_folders_modules_and_releases_ask_the_same_question(tiny, given):
    loaded = [Release.load(tiny.releases[n]) for n in ("v1", "v2")]
    a = check(**given).verdict
    b = check(*loaded, tiny.rows, dictionary=tiny.dictionary).verdict
    assert canonical(a.to_dict()) == canonical(b.to_dict()) and (a.outcome, a.action) == (
        "FAIL",
        "REVIEW",
    )


def test_a_release_passes_against_itself_and_one_of_another_width_is_to_retrain(given, tiny):
    assert check(**given | dict(new=tiny.v1)).action == "REUSE"
    wide = check(**given | dict(new=tiny.wide))
    assert (
        wide.action == "RETRAIN"
        and wide.verdict.exit_code == 10
        and "24 wide" in wide.verdict.notes[0]
    )


def test_too_few_sequences_are_inconclusive_and_say_how_many_more(given, tiny, parquet):
    found = check(**given | dict(new=tiny.v1, data=parquet(tiny.rows.head(30))))
    assert (found.verdict.outcome, found.action, found.verdict.exit_code) == (
        "INCONCLUSIVE",
        "COLLECT",
        11,
    ) and found.verdict.collect > 30
    assert not any(r["settles"] for r in found.preview)


BROKEN = {
    "no file": (lambda t, p: dict(data="nowhere.parquet"), "nowhere.parquet"),
    "no parquet": (lambda t, p: dict(data=str(t.at / "tiny_fraud.py")), "parquet"),
    "no rows": (lambda t, p: dict(data=p(t.rows.head(0))), "0 rows"),
    "NaN": (
        lambda t, p: dict(data=p(t.rows.assign(x2=t.rows.x2.where(t.rows.index != 7)))),
        "row 7",
    ),
    "text in a number's column": (lambda t, p: dict(data=p(t.rows.assign(x2="much"))), "x2"),
    "an id twice": (lambda t, p: dict(data=p(t.rows.assign(sequence_id="a"))), "row 1"),
    "a column missing": (lambda t, p: dict(data=p(t.rows.drop(columns="x3"))), "'x3'"),
    "no release": (lambda t, p: dict(new="./nowhere"), "nowhere"),
    "no dictionary": (lambda t, p: dict(dictionary="./nowhere"), "nowhere"),
    "a release as dictionary": (lambda t, p: dict(dictionary=t.v1), "release folder"),
    "another release's dictionary": (lambda t, p: dict(old=t.v2), "dictionary made for 'v1'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_input_is_named_and_leaves_nothing(tiny, given, parquet, tmp_path, what):
    broken, said = BROKEN[what]
    e = refused(**given | broken(tiny, parquet), out=tmp_path / "out")
    assert said in str(e) and not (tmp_path / "out").exists()


def test_rows_of_another_tokenizer_are_named(parquet):
    from interpkit.data.demo import demo_folder, demo_rows

    demo, rows = demo_folder(), demo_rows("v1", 80)
    rows["input_ids"] = [
        x if i != 7 else [*x[:3], 5000, *x[4:]] for i, x in enumerate(rows["input_ids"])
    ]
    e = refused(
        old=demo / "releases/v1",
        new=demo / "releases/v1-tail",
        data=parquet(rows),
        dictionary=demo / "dictionary",
    )
    assert "row 7" in e.given and "tokenizer" in e.mend


def test_weights_that_are_missing_cut_or_pickled_are_named(tiny, given, tmp_path):
    import shutil

    for name, spoil in {
        "missing": lambda f: f.unlink(),
        "cut": lambda f: f.write_bytes(f.read_bytes()[:-40]),
        "changed": lambda f: f.write_bytes(f.read_bytes()[:-4] + b"\0\0\0\1"),
    }.items():
        shutil.copytree(tiny.v2, tmp_path / name)
        spoil(tmp_path / name / "model.safetensors")
        assert "model.safetensors" in str(refused(**given | dict(new=str(tmp_path / name))))


def test_an_unknown_argument_site_or_watched_feature_is_named(given):
    assert "'watched'" in refused(ExitCode.BAD_PARAMETERS, **given, watchd=["unit 3"]).mend
    assert "unit 3" in refused(ExitCode.BAD_PARAMETERS, **given, watched=["unti 3"]).mend
    assert "1" in refused(**given | dict(dictionary=None), sites=["9:out"]).mend


def test_nan_decisions_of_the_new_release_are_no_verdict(tiny, given):
    import copy

    broken = copy.deepcopy(tiny.old.model)
    with torch.no_grad():
        broken[2].bias.fill_(float("nan"))
    assert (
        "finite decisions"
        in refused(
            **given | dict(new=Release.from_module(broken, sites=["1:out"], name="broken"))
        ).asked
    )


def test_a_check_opens_no_connection(given, monkeypatch, tmp_path):
    def no(*_, **__):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", no)
    monkeypatch.setattr(socket, "create_connection", no)
    monkeypatch.setattr(socket, "getaddrinfo", no)
    check(**given, out=tmp_path / "out")


def test_a_dictionary_is_trained_on_other_sequences_than_those_that_are_checked(tiny):
    learn, rest = training_rows(tiny.rows)
    assert (
        not set(learn.sequence_id) & set(rest.sequence_id)
        and len(learn) + len(rest) == len(tiny.rows)
        and 0.4 < len(learn) / len(tiny.rows) < 0.6
    )
    with pytest.raises(InterpkitError, match="stand in both"):
        training_rows(tiny.rows, tiny.rows.head(3))
    own, all_rows = training_rows(tiny.rows.tail(500), tiny.rows.head(100))
    assert len(own) == 100 and len(all_rows) == 500


def test_customers_are_not_split_between_training_and_check(tiny):
    rows = tiny.rows.assign(group_id=[f"c{i // 3}" for i in range(len(tiny.rows))])
    learn, rest = training_rows(rows)
    assert not set(learn.group_id) & set(rest.group_id)


def test_a_check_without_a_dictionary_trains_one_says_so_and_keeps_it(tiny, tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        rng.normal(size=(3000, 6)).astype("float32"), columns=[f"x{i}" for i in range(6)]
    ).assign(sequence_id=[f"n{i}" for i in range(3000)])
    found = check(
        tiny.v1,
        tiny.v1,
        rows,
        out=tmp_path / "out",
        training=dict(features=64, k=12, tokens=600_000),
    )
    assert "No dictionary given" in capsys.readouterr().out
    assert found.passed and (tmp_path / "out" / "dictionary" / "validity.json").exists()
    assert (
        found.dictionary.validity["fingerprint"] == tiny.old.fingerprint
        and len(found.table[found.table.statement == "effect"]) < 1700
    )


def test_changed_columns_and_vocabularies_are_named(tiny, tmp_path):
    import json
    from types import SimpleNamespace

    def release(name, columns, vocabulary=None):
        folder = None
        if vocabulary:
            folder = tmp_path / name
            folder.mkdir()
            (folder / "vocab.json").write_text(json.dumps(vocabulary))
        return SimpleNamespace(name=name, inputs_columns=columns, folder=folder)

    assert schema_notes(release("a", ["x", "y"]), release("b", ["y", "z"])) == [
        "b no longer reads the column 'x'",
        "b also reads the column 'z'",
    ]
    notes = schema_notes(
        release("v1", None, {"<pad>": 0, "grocery": 1, "fuel": 2}),
        release("v2", None, {"<pad>": 0, "fuel": 1, "crypto": 2}),
    )
    assert notes == [
        "the vocabulary of v2 lacks tokens: 'grocery'",
        "the vocabulary of v2 has new tokens: 'crypto'",
        "the vocabulary of v2 gives other ids to tokens: 'fuel'",
    ]


SECRET = "PLANTED-7f3a91"


@pytest.fixture
def planted(tiny):
    rows = tiny.rows.copy()
    rows["sequence_id"] = [f"{SECRET}-{i}" for i in range(len(rows))]
    rows["group_id"] = [f"{SECRET}-customer-{i // 2}" for i in range(len(rows))]
    rows["comment"] = SECRET
    rows["x4"] = rows["x4"].where(rows.index % 5 != 0, 0.31415927)
    return rows


def texts(folder):
    for p in folder.rglob("*"):
        if p.is_file():
            yield p, p.read_bytes()


@pytest.mark.parametrize("examples", ["ids", "none"])
def test_no_customer_leaves_the_run_folder(given, planted, tmp_path, examples):
    found = check(**given | dict(data=planted), out=tmp_path / "out", examples=examples)
    import pyarrow.parquet as pq

    for p, data in texts(tmp_path / "out"):
        if p.suffix == ".parquet":
            data = pq.read_table(p).to_pandas().to_csv().encode()
        assert SECRET.encode() not in data and b"0.3141592" not in data, p
    assert SECRET not in str(found) and SECRET not in found._repr_html_()
    assert bool(found.printed["examples"]) == (examples == "ids")


def test_rows_are_shown_where_a_team_asks_for_them(given, planted, tmp_path):
    found = check(**given | dict(data=planted), out=tmp_path / "out", examples="rows")
    feature, examples = next(iter(found.printed["examples"].items()))
    assert (
        examples[0]["row"]["sequence_id"].startswith(SECRET)
        and SECRET in (tmp_path / "out" / "report.html").read_text()
    )
