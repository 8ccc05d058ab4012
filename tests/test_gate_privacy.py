"""No row leaves with an exception: ten canaries, three privacy modes, four kinds of exceptions.

Somebody's own code stops where it sees rows: in what makes the inputs, in the forward, in the
decision, in a family of statements. What is told then is searched for the rows: the error, its
traceback in a terminal and in a notebook, error.json and every other file of the run.
"""

import json
import os
import shutil
import stat
import traceback
from itertools import cycle
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused
from IPython.core.ultratb import VerboseTB
from small_runs import asked_of, by_hand, flags, line

from interpkit.core.digests import digest_file
from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.core.failures import told
from interpkit.core.files import read_json, write_json
from interpkit.drift.comparison import frame_of
from interpkit.drift.measure import measured_by
from interpkit.gate import runner
from interpkit.gate.cli import run as ipk
from interpkit.gate.jobs import look_up
from interpkit.gate.results import salt_of
from interpkit.model.batch import Batch, shape_words
from interpkit.model.releases import Release

CANARIES = [
    "CANARY-7f3a91",
    "Ms Jane Smith-Canary",
    "jane.canary@bank.example",
    "DE89370400440532013000",
    "+44 20 7946 0018",
    "4929-1234-5678-9012",
    "0.3141592653",
    "Ängstlich-Käufer",
    "<b>CANARY</b>",
    "two\nlines-of-a-canary",
]
KINDS = {
    "value": "raise ValueError(f'could not convert {words}')",
    "chained": "\n    try:\n        {}[words]\n    except KeyError as e:\n"
    "        raise RuntimeError('mat1 and mat2 shapes of ' + words) from e",
    "own": "e = Odd(words)\n    e.add_note(words)\n    raise e",
    "interpkit": "raise InterpkitError(words, words, words, 65)",
    "exit": "raise SystemExit(words)",
}
SOURCE = """
import torch
from torch import nn
from interpkit.core.errors import InterpkitError

SEEN = []


class Odd(Exception):
    pass


def stop():
    words = " ".join(map(str, SEEN[0]["note"]))
    {stop}


def inputs(rows):
    SEEN[:] = [rows]
    if "{where}" == "inputs":
        stop()
    return rows[["x0", "x1", "x2", "x3", "x4", "x5"]].to_numpy()


def decision(out):
    if "{where}" == "decision":
        stop()
    return out[:, 0]


class Net(nn.Sequential):
    def forward(self, x):
        if "{where}" == "forward":
            stop()
        return super().forward(x)


def build():
    return Net(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
"""
WHERE = ("inputs", "decision", "forward")


def planted(tiny, n=100):
    return tiny.rows.head(n).assign(note=[CANARIES[i % 10] for i in range(n)])


def stopping(tiny, folder: Path, where: str, kind: str) -> str:
    "The folder of a release whose own code stops, with the text of its rows."
    shutil.copytree(tiny.v2, folder)
    (folder / "manifest.json").unlink()
    shutil.rmtree(folder / "code")
    (folder / "code").mkdir()
    source = SOURCE.replace("{where}", where).replace("{stop}", KINDS[kind])
    (folder / "code" / "stops.py").write_text(source)
    head = read_json(folder / "release.json")
    named = dict(factory="stops:build", inputs="stops:inputs", decision="stops:decision")
    code = dict(code={"stops": digest_file(folder / "code" / "stops.py")}, factory_args={})
    write_json(folder / "release.json", head | named | code)
    return str(folder)


def shown(error: BaseException) -> str:
    "What a terminal and a notebook show of an exception."
    kind, where = type(error), error.__traceback__
    text = "".join(traceback.format_exception(error))
    text += VerboseTB(theme_name="nocolor", include_vars=False).text(kind, error, where)
    return text + str(error) + json.dumps(str(error))


def files_of(folder) -> str:
    "The text of all files of a run."
    kept = [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".parquet"]
    return "\n".join(p.read_text(errors="replace") for p in kept)


def assert_clean(text: str):
    for canary in CANARIES:
        for form in (canary, json.dumps(canary)[1:-1], canary.encode().hex()):
            assert form not in text, form


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.delenv("IPK_DEBUG", raising=False)


PLACES = cycle(WHERE)


@pytest.mark.parametrize("examples", ["ids", "rows", "none"])
@pytest.mark.parametrize("kind, where", [(kind, next(PLACES)) for kind in KINDS])
def test_no_row_leaves_with_an_exception(tiny, tmp_path, parquet, quiet, examples, kind, where):
    p = asked_of(
        tiny,
        stopping(tiny, tmp_path / "stops", where, kind),
        tmp_path / "run",
        data=parquet(planted(tiny)),
        policy=str(write_json(tmp_path / "p.json", dict(examples=examples))),
    )
    with pytest.raises(InterpkitError) as caught:
        by_hand(p, "preflight")
    assert caught.value.code == ExitCode.INVALID
    assert "stops.py" in caught.value.given
    assert "(stop)" in caught.value.given
    assert "IPK_DEBUG=1" in caught.value.mend
    assert (tmp_path / "run/preflight/error.json").exists()
    text = "".join(traceback.format_exception(caught.value)) + str(caught.value)
    assert_clean(text + files_of(tmp_path / "run"))


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("kind", ["value", "interpkit"])
def test_a_call_in_a_notebook_shows_no_row(tiny, tmp_path, quiet, where, kind):
    "Its traceback shows lines of code, and no exception behind the error."
    release = Release.load(stopping(tiny, tmp_path / "stops", where, kind), device="cpu")
    with pytest.raises(InterpkitError) as caught:
        release.run(planted(tiny, 20))
    assert_clean(shown(caught.value))


def test_who_sits_before_the_rows_may_ask_for_the_words(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("IPK_DEBUG", "1")
    release = Release.load(stopping(tiny, tmp_path / "stops", "decision", "value"), device="cpu")
    error = refused(lambda: release.run(planted(tiny, 20)), CANARIES[0])
    assert isinstance(error.__cause__, ValueError)
    monkeypatch.setenv("IPK_DEBUG", "0")
    error = refused(lambda: release.run(planted(tiny, 20)))
    assert error.__cause__ is None


@pytest.mark.slow
def test_a_kernel_keeps_no_row_in_its_notebook(tiny, tmp_path, parquet, quiet, capsys, monkeypatch):
    "The whole way: `ipk check`, its standard error, the executed notebook, the folder."
    new = stopping(tiny, tmp_path / "stops", "decision", "chained")
    p = asked_of(tiny, new, tmp_path / "run", data=parquet(planted(tiny)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()  # of an earlier start: the folder stays
    assert ipk(line(p)) == 65
    told_there = capsys.readouterr().err
    assert "stops.py" in told_there
    assert (tmp_path / "run/notebooks/preflight.ipynb").exists()
    assert_clean(told_there + files_of(tmp_path / "run"))


def tables_of(folder) -> str:
    "All that stands in the tables of a folder, as text."
    return "\n".join(pd.read_parquet(p).to_csv() for p in Path(folder).rglob("*.parquet"))


@pytest.mark.parametrize("examples", ["ids", "rows", "none"])
def test_a_check_that_ends_well_keeps_rows_only_where_a_team_asked_for_them(
    tiny, tmp_path, parquet, capfd, examples
):
    "Ids, free text, group and segment names: what a policy does not show stands nowhere."
    rows = planted(tiny, 400)
    ids = [f"{CANARIES[i % 10]} {i}" for i in range(400)]
    rows = rows.assign(sequence_id=ids, group_id=ids)
    policy = str(write_json(tmp_path / "p.json", dict(examples=examples, alerts=0)))
    p = asked_of(tiny, tiny.v2, tmp_path / "run", data=parquet(rows), policy=policy)
    by_hand(p)
    assert ipk(["verify", p.run]) == 10
    said = capfd.readouterr()
    holders = {
        f.relative_to(p.run).as_posix()
        for f in Path(p.run).rglob("*")
        if f.is_file() and any(c in f.read_text(errors="replace") for c in (*CANARIES, "CANARY"))
    }
    assert holders <= ({"evidence/printed.json", "report.html"} if examples == "rows" else set())
    assert bool(holders) == (examples == "rows")
    assert_clean(said.out + said.err + tables_of(p.run))


@pytest.mark.slow
def test_ten_canaries_in_three_modes_and_all_kinds_of_exceptions_by_the_whole_way(
    tiny, tmp_path, parquet, quiet, capfd
):
    "`ipk check` with its kernels; what it prints, and every file that it leaves, is searched."
    data, found, tried = parquet(planted(tiny)), 0, 0
    for i, kind in enumerate(KINDS):
        for examples in ("ids", "rows", "none"):
            name = f"{kind}-{examples}"
            new = stopping(tiny, tmp_path / f"stops-{name}", WHERE[(i + tried) % 3], kind)
            config = write_json(tmp_path / f"{name}.json", dict(examples=examples))
            p = asked_of(tiny, new, tmp_path / name, data=data)
            Path(p.run).mkdir()
            (Path(p.run) / ".lock").touch()  # of an earlier start: the folder stays
            assert ipk([*line(p), "--config", str(config)]) == 65
            said = capfd.readouterr()
            text = said.out + said.err + files_of(p.run) + tables_of(p.run)
            assert "stops.py" in said.err
            found += sum(canary in text for canary in CANARIES)
            tried += 1
    with capfd.disabled():
        print(
            f"\n{len(CANARIES)} canaries, 3 modes, {len(KINDS)} kinds: {tried} runs, {found} found"
        )
    assert (tried, found) == (15, 0)


def test_a_family_of_a_teams_own_tells_no_row(quiet):
    class Own:
        name = "own"

        def measure(self, comparison):
            raise KeyError(CANARIES[0])

    error = refused(lambda: measured_by(Own(), None), "KeyError", "own")
    assert_clean(shown(error))


def test_a_defect_tells_no_row_in_a_terminal(monkeypatch, capsys, quiet):
    "Nor does the text of a library that a command did not expect."

    def parse(*_):
        return float(CANARIES[0])

    monkeypatch.setattr("interpkit.gate.cli.verified", parse)
    assert ipk(["verify", "nowhere"]) == 1
    err = capsys.readouterr().err
    assert "ValueError in test_gate_privacy.py" in err
    assert_clean(err)


def test_words_of_torch_about_shapes_are_told_and_nobody_elses():
    net = torch.nn.Linear(2, 1)

    def words(call) -> str:
        try:
            call()
        except Exception as e:
            return shape_words(e)

    def by_hand():
        raise RuntimeError(f"mat1 and mat2 shapes of {CANARIES[0]}")

    assert "cannot be multiplied" in words(lambda: net(torch.zeros(1, 3)))
    assert "unexpected keyword" in words(lambda: net(mask=1))
    assert "must match" in words(lambda: torch.zeros(2) + torch.zeros(3))
    assert words(by_hand) == ""
    assert words(lambda: float(f"dtype of {CANARIES[0]}")) == ""
    assert words(lambda: {}[f"must match {CANARIES[0]}"]) == ""
    assert words(lambda: torch.zeros(2)[57]) == ""
    batch = Batch(args=(torch.zeros(1, 3),), n=1)
    refused(lambda: batch.run(net), "mat1 and mat2 shapes cannot be multiplied (1x3 and 2x1)")


def test_what_is_told_names_the_innermost_line_of_ones_own():
    def outer():
        return pd.Series([1]).map(inner)

    def inner(x):
        raise LookupError("words")

    try:
        outer()
    except LookupError as e:
        assert told(e).startswith("LookupError in test_gate_privacy.py, line ")
        assert told(e).endswith("(inner)")


# Who can read a run


def rights(path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_run_folder_is_its_owners_alone(tiny, tmp_path, monkeypatch):
    p = asked_of(tiny, tiny.v2, tmp_path / "runs" / "one")
    by_hand(p, "preflight")
    assert rights(p.run) == 0o700
    assert rights(tmp_path / "runs") != 0o700
    assert rights(Path(p.run) / "salt") == 0o600
    assert "salt" not in read_json(Path(p.run) / "check.json")
    with runner.locked(tmp_path / "two"):
        assert rights(tmp_path / "two") == 0o700
    monkeypatch.chdir(tmp_path)
    few = dict(release=tiny.v1, data=tiny.data, out="made", jobs="nowhere")
    assert ipk(["train", *flags(few)]) == 64
    (tmp_path / "open").mkdir(mode=0o755)
    with runner.locked(tmp_path / "open"):
        assert rights(tmp_path / "open") == 0o755  # as somebody made it


def test_without_the_salt_nobody_looks_a_sequence_up(tiny, runs, tmp_path):
    run = Path(shutil.copytree(runs / "v2", tmp_path / "run"))
    sequence = pq.read_table(run / "evidence/table.parquet")["sequence"][0].as_py()
    assert len(look_up(run, [sequence])) == 1
    (run / "salt").unlink()
    refused(lambda: look_up(run, [sequence]), "salt")
    assert ipk(["verify", str(run)]) == 10
    for odd in ("", "x" * 32, "a" * 31, "a" * 64):
        (run / "salt").write_text(odd)
        refused(lambda: salt_of(run), "32 hex digits")


def test_a_table_tells_no_weight_of_one_customer():
    n = 100
    loan = [12345.67 + 1.37 * i for i in range(n)]
    rows = pd.DataFrame(dict(sequence_id=range(n), weight=loan))
    told_there = frame_of(rows, "salt").weight
    raw = {round(x, 2) for x in loan} | {round(x / (sum(loan) / n), 6) for x in loan}
    assert not raw & set(told_there)
    assert all(float(f"{w:.2g}") == w for w in told_there)
    sampled = frame_of(rows.assign(weight=[1.5, 30.0] * 50), "salt").weight
    assert set(sampled) == {1.0, 20.0}
    few = frame_of(rows.assign(weight=[2.0] * 95 + [2.0 * 3.14159] * 5), "salt").weight
    assert set(few) == {1.0, 3.1}
