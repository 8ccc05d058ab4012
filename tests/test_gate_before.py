"What ends a run is found before anything is paid for, and never costs what was paid."

import datetime
import decimal
import json
import os
import uuid
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from torch import nn

from interpkit.core.errors import InterpkitError, invalid
from interpkit.core.files import json_text
from interpkit.data.checksets import read_check_set
from interpkit.drift.simulate import small_world
from interpkit.gate.check import read_for, register, score
from interpkit.gate.check_toml import init_policy
from interpkit.gate.cli import run_training
from interpkit.gate.derived import writable
from interpkit.gate.evidence import verify
from interpkit.gate.jobs import store_of
from interpkit.gate.policy import Policy
from interpkit.gate.runner import remove_if_nothing
from interpkit.model.canaries import canary_rows, tried_canary
from interpkit.model.plain_rows import plain_rows, rows_again
from interpkit.model.reading import require_readable
from interpkit.model.releases import Release
from interpkit.training.train import train_dictionary

N = 240
DAY = datetime.date(2020, 1, 1)


def objects(make) -> pd.Series:
    return pd.Series([make(i) for i in range(N)], dtype=object)


def strange() -> dict[object, pd.Series]:
    "Columns of all kinds that tables hold."
    rng, days = np.random.default_rng(0), pd.date_range("2024-01-01", periods=N, freq="h")
    return {
        "timestamp": pd.Series(days),
        "zone": pd.Series(days.tz_localize("Europe/Rome", nonexistent="shift_forward")),
        "date": objects(lambda i: DAY + datetime.timedelta(i)),
        "moment": objects(lambda i: datetime.datetime(2020, 1, 1, i % 24)),
        "clock": objects(lambda i: datetime.time(i % 24)),
        "price": objects(lambda i: decimal.Decimal(i) / 100),
        "bytes": objects(lambda i: b"ab%03d" % i),
        "uuid": objects(lambda i: uuid.UUID(int=i)),
        "texts": objects(lambda i: ["x", f"y{i}"]),
        "struct": objects(lambda i: dict(a=i, when=DAY, parts=[1.5, i])),
        "mixed": objects(lambda i: i if i % 2 else str(i)),
        "prices": objects(lambda i: [decimal.Decimal(i)] * 2),
        "dates": objects(lambda i: [DAY] * (1 + i % 3)),
        "nested": objects(lambda i: [[1.0 * i, 2.0], [3.0, 4.0]]),
        "ragged": objects(lambda i: [[1.0 * i], [3.0, 4.0]]),
        "sets": objects(lambda i: {i, i + 1}),
        "complex": pd.Series(rng.normal(size=N) + 1j),
        "period": pd.Series(pd.period_range("2020-01", periods=N, freq="D")),
        "span": pd.Series(pd.to_timedelta(np.arange(N), unit="s")),
        "band": pd.Series(pd.cut(rng.normal(size=N), [-9, -0.5, 0.5, 9])),
        "holes": pd.Series(np.where(np.arange(N) % 7, np.arange(N) / 4, np.nan)),
        "whole": pd.Series([None if i % 7 == 0 else i for i in range(N)], dtype="Int64"),
        "flag": pd.Series(np.arange(N) % 3 == 0, dtype="boolean"),
        "nothing": objects(lambda i: None),
        "thing": objects(lambda i: object()),
        "code": pd.Series([f"AB-{i:03d}" for i in range(N)]),
        "text_day": pd.Series(pd.date_range("2024-01-01", periods=N).strftime("%Y-%m-%d")),
        "text_price": pd.Series([f"{i / 4:.2f}" for i in range(N)]),
        "float32": pd.Series(rng.lognormal(size=N).astype("float32")),
        7: pd.Series(rng.normal(size=N)),
        ("a", 1): pd.Series(np.arange(N)),
    }


def table(*names) -> pd.DataFrame:
    rng, all_of_them = np.random.default_rng(1), strange()
    rows = pd.DataFrame(dict(sequence_id=range(N), a=rng.lognormal(size=N), b=rng.normal(size=N)))
    return pd.concat([rows, pd.DataFrame({c: all_of_them[c] for c in names})], axis=1)


def net(width: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1))


def columns(*made) -> torch.Tensor:
    return torch.tensor(np.stack([np.asarray(x, float) for x in made], 1), dtype=torch.float32)


SMALL = dict(tokens=500, n_features=64, k=4)


# Columns that nobody reads


def test_columns_that_nobody_reads_may_hold_anything():
    rows = table(*strange())
    by_function = Release.from_module(
        net(), inputs=lambda rows: columns(rows["a"], rows["b"]), device="cpu"
    )
    by_name = Release.from_module(
        net(), inputs=dict(kind="columns", columns=["a", "b"]), device="cpu"
    )
    for release in (by_function, by_name):
        read = read_for(release, rows)
        release.run(read)
        require_readable(release, read)
        dictionary = train_dictionary(release, read, **SMALL)
        assert dictionary.validity["canary"]
    assert set(dictionary.validity["canary_dtypes"]) == {"sequence_id", "a", "b"}


def test_token_ids_that_nobody_reads_may_be_anything():
    rows = table().assign(input_ids=["text"] * N)
    assert len(read_check_set(rows, ["a", "b"])) == N
    refused(lambda: read_check_set(rows, ["input_ids"]), "list of numbers")


# Canary rows


@pytest.mark.parametrize("name", list(strange()), ids=str)
def test_a_canary_column_has_its_form_and_comes_back_from_json(name):
    rows = table(name)
    made = canary_rows(rows, seed=1)
    again = rows_again(json.loads(json_text("canary", plain_rows(made))))
    assert list(again) == list(made)
    assert plain_rows(again) == plain_rows(made)
    if name in ("thing", "sets", "complex"):
        return  # no form in JSON: left out
    assert name in made
    kinds = {type(x) for x in rows[name].dropna()}
    assert {type(x) for x in made[name].dropna()} <= kinds | {list, int, float}
    if name in ("uuid", "code", "float32", 7):  # values so many that a mean of twenty is new
        assert not set(made[name]) & set(rows[name])


READERS = dict(
    log=lambda r: columns(np.log(r["a"]), np.sqrt(r["a"])),
    reserved=lambda r: columns(r["timestamp"].dt.hour, r["band"].cat.codes),
    lists=lambda r: columns([x[0][0] + x[1][1] for x in r["nested"]], [len(x) for x in r["dates"]]),
    forms=lambda r: columns(r["code"].str[3:].astype(int) / 99, r["text_price"].astype(float)),
    days=lambda r: columns([x.year - 2000 for x in r["date"]], [float(x) for x in r["price"]]),
    holes=lambda r: columns(r["holes"].fillna(-1), r["flag"].astype(float)),
    structs=lambda r: columns([x["parts"][0] for x in r["struct"]], [x.hour for x in r["moment"]]),
    number=lambda r: columns(r[7], r[("a", 1)]),
    between=lambda r: columns(np.log(r["high"] - r["low"]), r["a"]),
)


@pytest.mark.parametrize("name", READERS)
def test_a_pipeline_can_read_its_canary_rows(name):
    low = np.random.default_rng(2).normal(size=N)
    rows = table(*strange()).assign(low=low, high=low + 0.01)
    release = Release.from_module(net(), inputs=READERS[name], device="cpu")
    made = tried_canary(release, rows, release.default_sites)
    assert torch.isfinite(release.run(made)).all()


def test_a_canary_that_can_not_run_is_told_as_such_before_anything_is_stored(tmp_path):
    def strict(rows):
        known = {x: i for i, x in enumerate(table()["a"])}
        return columns([known[x] for x in rows["a"]], rows["b"])

    release = Release.from_module(net(), inputs=strict, device="cpu")
    refused(
        lambda: train_dictionary(release, table(), store=tmp_path / "store", **SMALL),
        "canary rows",
        "KeyError",
    )
    assert not (tmp_path / "store").exists()


def test_a_row_far_down_is_read_before_anything_is_paid_for():
    release = Release.from_module(
        net(), inputs=lambda rows: columns(np.log(rows["a"]), rows["b"]), device="cpu"
    )
    rows = pd.concat([table()] * 3, ignore_index=True)
    rows.loc[555, "a"] = -1.0
    with np.errstate(invalid="ignore"):
        refused(lambda: require_readable(release, rows), "row 555")


# Rows in a report


def test_rows_in_a_report_never_cost_a_verdict(tmp_path):
    world = small_world(n=400)
    n = len(world.rows)
    for release in (world.old, world.new):
        release.run(world.rows)  # its columns are known by now
    rows = world.rows.assign(
        **{str(c): (list(x) * 2)[:n] for c, x in strange().items() if c != "timestamp"}
    )
    plan, preview = register(world.old, world.new, world.dictionary, rows)
    result = score(world.old, world.new, world.dictionary, rows, plan, preview, examples="rows")
    assert result.verdict.outcome == "FAIL"
    folder = result.save(tmp_path / "run")
    assert verify(folder).verdict.outcome == "FAIL"
    shown = next(iter(result.printed["examples"].values()))[0]["row"]
    assert shown["nothing"] is None
    assert shown["date"].startswith("2020-")
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    "x, expected",
    [
        (float("nan"), None),
        (pd.NaT, None),
        (np.datetime64("NaT"), None),
        (np.float32("nan"), None),
        (decimal.Decimal("NaN"), None),
        (float("inf"), "inf"),
        (decimal.Decimal("1.50"), "1.50"),
        (DAY, "2020-01-01"),
        ([np.int64(1), np.nan], [1, None]),
        ({3: b"x"}, {"3": "b'x'"}),
    ],
    ids=str,
)
def test_a_cell_is_null_or_what_json_can_hold(x, expected):
    assert writable(x) == expected


# Folders


def test_only_what_a_run_wrote_is_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "runs" / "train-foo" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    call = partial(run_training, "v1", "rows.parquet", "foo", Policy(), folder="nowhere")
    refused(call, "other things", code=64)
    (mine.parent / ".lock").touch()  # the folder of an earlier run
    with pytest.raises(InterpkitError):
        call()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "kept", ["train_sae/store-1/learn/a", "notes.txt", "dictionary/weights", "preflight/mine.txt"]
)
def test_progress_and_files_of_others_stay(tmp_path, kept):
    run = tmp_path / "run"
    (run / kept).parent.mkdir(parents=True)
    (run / kept).write_text("")
    (run / ".lock").touch()
    remove_if_nothing(run, invalid("rows", "none", "pass rows"))
    assert (run / kept).exists()


def test_a_message_never_points_into_what_was_removed(tmp_path):
    run = tmp_path / "run"
    (run / "notebooks").mkdir(parents=True)
    (run / "notebooks" / "drift.ipynb").touch()
    remove_if_nothing(run, invalid("a job", "a defect", f"look into {run}/notebooks/drift.ipynb"))
    assert (run / "notebooks" / "drift.ipynb").exists()
    remove_if_nothing(run, invalid("rows", "none", "pass rows"))
    assert not run.exists()


def test_another_training_keeps_its_progress(tmp_path):
    (tmp_path / "store-of-mine").mkdir()
    store_of(tmp_path, "v1")
    assert (tmp_path / "store-of-mine").exists()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_policy_is_whole_or_not_there(tmp_path, monkeypatch, fails):
    world = small_world(n=200)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    out = tmp_path / "check.toml"
    refused(lambda: init_policy(world.old, world.rows, out), "check.toml", code=75)
    assert os.listdir(tmp_path) == []
