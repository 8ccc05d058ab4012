"""Every way in which a command ends has its number in one table, and its cause is the real one.

Files of another form, pipes in place of files, signals, readers that went away, code that ends the
process: each with at least three of its kind that nobody reported.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import refused
from house import NBS
from small_models import bert, gpt2
from small_runs import asked_of, by_hand, flags, line
from torch import nn
from torch.utils.checkpoint import checkpoint

from interpkit.core.artefacts import write_manifest
from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.core.files import read_json
from interpkit.data.checksets import read_check_set
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import verify_canary
from interpkit.drift.simulate import small_world
from interpkit.gate import jobs
from interpkit.gate.check import check, register, score, try_out
from interpkit.gate.cli import run as ipk
from interpkit.gate.exits import SIGNALS, closed_pipe, code_of
from interpkit.gate.notebooks import code_cells
from interpkit.gate.parameters import Drift
from interpkit.gate.policy import Policy
from interpkit.gate.results import asked as question
from interpkit.gate.results import result_of
from interpkit.gate.runner import locked
from interpkit.model.gradients import grad_at_sites
from interpkit.model.releases import Release
from interpkit.model.sites import Site

BAD, INVALID, RETRY = ExitCode.BAD_PARAMETERS, ExitCode.INVALID, ExitCode.RETRY


# The table


def test_every_code_stands_in_the_guides_table():
    guide = (NBS / "guide.md").read_text()
    table = guide[guide.index("## Exit codes") :].split("\n## ")[0]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    assert told == {int(code) for code in ExitCode}
    assert "papermill" in table


# Signals


@pytest.fixture(autouse=True)
def signals_are_heard():
    "Also where these tests run in the background of a shell, or under nohup, which ignore some."
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in before:
        heard = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, heard)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


SLEEPS = """
import sys, tempfile, time
from interpkit.gate.exits import code_of

def command():
    with tempfile.TemporaryDirectory(prefix="ipk-"):
        print("begun", flush=True)
        time.sleep(60)

sys.exit(code_of(command))
"""


@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_has_its_code_and_leaves_no_temporary_folder(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPS],
        env=os.environ | dict(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "same command again" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_signal_that_was_to_be_ignored_is_ignored(tmp_path):
    "As `nohup` asks for."
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + SLEEPS
    command = [sys.executable, "-c", ignoring.replace("time.sleep(60)", "time.sleep(1)")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0


RUNS = """
import sys
from interpkit.gate.exits import code_of
from interpkit.gate.parameters import Drift
from interpkit.gate.runner import run_job

sys.exit(code_of(lambda: run_job("drift", Drift(run=sys.argv[1]), folder=sys.argv[2])))
"""
CELL = "import json, os, time\nopen(run + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"


def test_a_job_that_a_scheduler_ends_takes_its_kernel_and_folders_along(tmp_path):
    notebook = read_json(NBS / "jobs" / "drift.ipynb")
    [cell] = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    sleeps = cell | dict(source=CELL, id="sleeps", metadata={})
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/drift.ipynb").write_text(json.dumps(notebook | dict(cells=[cell, sleeps])))
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", RUNS, str(tmp_path / "run"), str(tmp_path / "jobs")],
        env=os.environ | dict(TMPDIR=str(tmp_path / "tmp")),
    )
    file = tmp_path / "run" / "pid"
    while not (file.exists() and file.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait() == 143
    assert not list((tmp_path / "tmp").iterdir())
    assert not Path(f"/proc/{file.read_text()}").exists()


# What is printed, and who reads it


def test_what_could_not_be_printed_is_no_success():
    command = f"{sys.executable} -m interpkit.gate.cli jobs > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 75
    assert "Traceback" not in done.stderr


def hidden(code):
    "What typer makes of a pipe that was closed."
    try:
        raise BrokenPipeError
    except BrokenPipeError:
        sys.exit(code)


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda: hidden(1), 75),
        (lambda: (_ for _ in ()).throw(BrokenPipeError), 75),
        (lambda: sys.exit(0), 1),
        (lambda: sys.exit("Ms Smith"), 1),
        (lambda: (_ for _ in ()).throw(MemoryError), 75),
        (lambda: open("/no/such/place/x", "w"), 1),
        (lambda: os.open("/proc/1/mem", os.O_RDWR), 64),
        (lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")), 75),
        (lambda: 1 / 0, 1),
        (lambda: 11, 11),
        (lambda: None, 0),
    ],
)
def test_whatever_ends_a_command_has_its_code(call, code, capsys):
    if os.geteuid() == 0 and code == 64:
        pytest.skip("root may open anything")
    assert code_of(call) == code
    told = capsys.readouterr().err
    assert "Smith" not in told
    assert bool(told) == (code not in (0, 11))
    assert closed_pipe(ValueError()) is None


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_typer_does_not_take_a_signal_for_another_one(number, code, monkeypatch, capsys):
    monkeypatch.setattr("interpkit.gate.cli.findings", lambda: os.kill(os.getpid(), number))
    assert ipk(["doctor"]) == code
    assert "Ended by SIG" in capsys.readouterr().err


STOPPING = "import sys\ndef build(): sys.exit(0)\ndef inputs(rows): sys.exit(0)\n"


@pytest.mark.parametrize("part", ["factory", "inputs", "module"])
def test_code_that_ends_the_process_is_no_success(tiny, tmp_path, part, capsys):
    from interpkit.core.digests import digest_file

    folder = Path(shutil.copytree(tiny.v2, tmp_path / "v2"))
    (folder / "manifest.json").unlink()
    source = "import sys\nsys.exit(0)\n" if part == "module" else STOPPING
    (folder / "code" / "stops.py").write_text(source)
    head = read_json(folder / "release.json")
    head["code"]["stops"] = digest_file(folder / "code" / "stops.py")
    name = dict(factory="build", inputs="inputs", module="build")[part]
    head["inputs" if part == "inputs" else "factory"] = f"stops:{name}"
    (folder / "release.json").write_text(json.dumps(head))
    new = ["init", *flags(dict(new=folder, data=tiny.data, out=tmp_path / "check.toml"))]
    assert ipk(new) == 65
    assert "SystemExit" in capsys.readouterr().err
    assert not (tmp_path / "check.toml").exists()


@pytest.mark.parametrize("words", [["check", "--config", ""], ["train", "--config", ""]])
def test_an_empty_policy_is_not_taken_for_the_usual_one(tiny, words, tmp_path, capsys):
    where = dict(old=tiny.v1, new=tiny.v2, data=tiny.data, out=tmp_path / "run")
    if words[0] == "train":
        where = dict(release=tiny.v1, data=tiny.data, out=tmp_path / "made")
    assert ipk([*words, *flags(where)]) == 64
    assert "variable of the shell" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, code",
    [
        (["verify", ""], 64),
        (["verify", "."], 65),
        (["jobs", "--copy", ""], 64),
        (["jobs", "--copy", "/proc/x"], 64),
        (["sign", "--new-key", "/proc/x.pem"], 64),
        (["check", "--old", "a\0", "--new", "b", "--data", "c"], 64),
        (["check", "--old", "a", "--new", "b", "--data", "c", "--timeout", "-1"], 64),
        (["check", "--old", "a", "--new", "b", "--data", ".", "--out", "x" * 300], 64),
        (["train", "--release", "a", "--data", "b", "--out", "m", "--lr", "nan"], 64),
        ([], 64),
    ],
    ids=str,
)
def test_an_odd_command_line_has_its_code(words, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ipk(words) == code
    assert "report it" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_evidence_is_verified_from_within(runs, monkeypatch, capsys):
    for place in (runs / "v2", runs / "v2" / "evidence"):
        monkeypatch.chdir(place)
        assert ipk(["verify", "."]) == 10
    assert Path("verdict.json").exists()


# Files of another form

DEEP = "[" * 100_000 + "]" * 100_000
FOREIGN = ["[]", "{}", "3", "null", '"x"', "", "\x00", "[" * 60 + "]" * 60, DEEP, '"\\ud800"']
FOREIGN += ['{"a": 1, "a": 2}', "1" * 5000, '{"format": 1}', "{'a': 1}", "NaN"]
OTHERS = (None, 3, -1.5, True, "x", [], {}, [3], [None], {"a": [{}]}, 10**400)


def changed_parts(content, path=()):
    "A JSON value with each of its parts in another type, or left out, one at a time."
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for name, x in items:
        where = (*path, name)
        for other in OTHERS:
            if type(other) is not type(x):
                yield where, other
        if isinstance(x, (dict, list)) and len(path) < 2:
            yield from changed_parts(x, where)


def with_part(content, where, other):
    made = json.loads(json.dumps(content))
    inner = made
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = other
    return made


@pytest.fixture
def asked(tiny, tmp_path):
    return asked_of(tiny, tiny.v2, tmp_path / "run")


@pytest.fixture
def done(asked, runs):
    shutil.copytree(runs / "v2", asked.run)
    return asked


@pytest.mark.parametrize("name", ["check.json", "preflight/result.json"])
def test_a_file_of_a_run_of_another_form_is_told(done, name, capsys):
    file = Path(done.run) / name
    kept = read_json(file)
    parts = [json.dumps(with_part(kept, *p)) for p in changed_parts(kept) if p[1] != 10**400]
    (Path(done.run) / "report.html").unlink()  # which would be drawn again each time
    for text in [*FOREIGN, *parts[:: len(parts) // 8]]:
        file.write_text(text)
        code = ipk(line(done))
        told = capsys.readouterr().err
        assert code in (64, 65) or (code == 10 and text in parts), (text[:60], told)
        assert "report it" not in told, (text[:60], told)


@pytest.mark.parametrize("name", ["check.json", "preflight/result.json", "preview.json", "salt"])
def test_a_job_names_a_file_of_another_form(done, name):
    file = Path(done.run) / name
    for text in FOREIGN[name == "preview.json" :]:  # a list of no statements is one
        file.write_text(text)
        refused(lambda: jobs.drift(Drift(run=done.run)), name.split("/")[-1])


def test_an_error_of_a_job_is_never_lost_in_its_form(done):
    for job in ("preflight", "drift", "report"):
        (Path(done.run) / job / "result.json").write_text("[]")
        refused(lambda job=job: result_of(done.run, job), "the whole")


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_policy_of_another_form_is_told(tiny, tmp_path, suffix, capsys):
    file = tmp_path / f"check.{suffix}"
    where = dict(old=tiny.v1, new=tiny.v2, data=tiny.data, out=tmp_path / "run", config=file)
    texts = FOREIGN if suffix == "json" else [f"a = {DEEP}", "a = ", "training = 3", "limits = []"]
    if suffix == "toml":
        texts += ["decision = " + "{a = " * 60 + "1" + "}" * 60, "seed = 1\nseed = 2", "\x00"]
    for text in texts:
        if text == "{}":
            continue  # all defaults
        file.write_text(text)
        assert ipk(["check", *flags(where)]) == 64, text[:60]
    file.write_bytes(b"seed = 1 # \xff")
    assert ipk(["check", *flags(where)]) == 64
    assert "Traceback" not in capsys.readouterr().err
    refused(lambda: Policy.read(dict(training=3), training__k=8), "training", code=BAD)


def loads_or_refuses(call, what):
    "Either the call returns, or it raises one clear error with code 64 or 65."
    try:
        call()
    except InterpkitError as e:
        assert e.code in (BAD, INVALID), (what, e)
        return True
    return False


def test_a_release_json_of_another_form_is_told(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.v1, tmp_path / "v1"))
    (folder / "manifest.json").unlink()
    head = read_json(folder / "release.json")
    rows = tiny.rows.head(4)

    def use():
        Release.load(folder, device="cpu").run(rows)

    use()
    told = []
    for where, other in changed_parts(head):
        (folder / "release.json").write_text(json.dumps(with_part(head, where, other)))
        told.append(loads_or_refuses(use, (where, other)))
    for text in FOREIGN:
        (folder / "release.json").write_text(text)
        refused(use)
    assert sum(told) > len(told) / 2
    for x in ("x", [1], True, 1.5):
        (folder / "release.json").write_text(
            json.dumps(head | dict(decision=dict(kind="column", column=x)))
        )
        refused(use, "whole number")


@pytest.mark.parametrize("name", ["validity.json", "dictionary.json"])
def test_a_dictionary_of_another_form_is_told(tiny, tmp_path, name):
    folder = Path(shutil.copytree(tiny.dictionary_folder, tmp_path / "dictionary"))
    content = read_json(folder / name)

    def use():
        verify_canary(tiny.old, Dictionary.load(folder))

    def written(text):
        (folder / name).write_text(text)
        write_manifest(folder, "dictionary")

    parts = list(changed_parts(content))
    use()
    told = []
    for where, other in parts[:: max(1, len(parts) // 25)]:
        written(json.dumps(with_part(content, where, other)))
        told.append(loads_or_refuses(use, (where, other)))
    for text in FOREIGN:
        written(text)
        refused(use)
    assert sum(told) > len(told) / 3


def test_a_manifest_of_another_form_is_told(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny.dictionary_folder, tmp_path / "dictionary"))
    content = read_json(folder / "manifest.json")
    texts = [json.dumps(with_part(content, *part)) for part in changed_parts(content)]
    for text in [*FOREIGN, *texts]:
        (folder / "manifest.json").write_text(text)
        refused(lambda: Dictionary.load(folder))


# Pipes in place of files


def test_a_pipe_is_refused_and_not_waited_for(tiny, tmp_path, capsys):
    folder = Path(shutil.copytree(tiny.v2, tmp_path / "v2"))
    data, config = tmp_path / "rows.parquet", tmp_path / "check.toml"
    places = [folder / "manifest.json", folder / "release.json", folder / "model.safetensors"]
    places += [data, config]
    for place in places:
        place.unlink(missing_ok=True)
        os.mkfifo(place)
    refused(lambda: question(asked_of(tiny, str(folder), tmp_path / "run")), "a pipe")
    (folder / "manifest.json").unlink()
    refused(lambda: Release.load(folder), "a pipe")
    (folder / "release.json").unlink()
    shutil.copy(Path(tiny.v2) / "release.json", folder)
    refused(lambda: Release.load(folder), "model.safetensors")
    refused(lambda: read_check_set(data), "a pipe")
    refused(lambda: Policy.read(config), "a pipe", code=BAD)
    refused(lambda: code_cells(config), "a pipe", code=BAD)


@pytest.mark.parametrize("name", ["check.json", "preflight/result.json"])
def test_a_pipe_in_a_run_is_refused_and_not_waited_for(done, name, capsys):
    (Path(done.run) / name).unlink()
    os.mkfifo(Path(done.run) / name)
    assert ipk(line(done)) == 65
    assert "a pipe" in capsys.readouterr().err


def test_a_lock_that_is_a_pipe_locks(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / ".lock")
    with locked(tmp_path / "run"):
        pass


# The real cause


def net(width=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("thing", [net().forward, net().state_dict(), object(), nn.Linear, None])
def test_what_is_no_module_is_told_as_such(thing):
    refused(lambda: Release.from_module(thing), "a torch module, a Release", code=64)


class Checkpointed(nn.Module):
    def __init__(self, **how):
        super().__init__()
        self.first, self.block, self.head = nn.Linear(2, 8), net(8), nn.Linear(1, 1)
        self.how = how

    def forward(self, x):
        return self.head(checkpoint(self.block, self.first(x), **self.how))


@pytest.mark.parametrize("how", [dict(use_reentrant=True), dict(use_reentrant=False)])
@pytest.mark.filterwarnings("ignore")
def test_checkpointing_in_the_forward_is_named_or_does_no_harm(how):
    rows = pd.DataFrame(dict(sequence_id=range(4), a=[0.1, 0.2, 0.3, 0.4], b=1.0))
    torch.manual_seed(0)
    release = Release.from_module(Checkpointed(**how), sites=["block.1"], device="cpu")
    torch.manual_seed(0)
    plain = Checkpointed(**how)
    plain.forward = None
    del plain.forward
    sites = [Site("block.1")]

    def gradients():
        return grad_at_sites(release, sites, release.batch(rows))

    try:
        decision, _, grads = gradients()
    except InterpkitError as e:
        assert "checkpointing" in e.given
        return
    assert grads[sites[0]].abs().sum() > 0
    assert torch.equal(decision, release.run(rows))


def test_a_forward_without_gradients_names_them():
    class Off(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            with torch.no_grad():
                return self.net(x)

    rows = pd.DataFrame(dict(sequence_id=range(4), a=[0.1, 0.2, 0.3, 0.4], b=1.0))
    release = Release.from_module(Off(), sites=["net.1"], device="cpu")
    call = lambda: grad_at_sites(release, [Site("net.1")], release.batch(rows))  # noqa: E731
    refused(call, "no_grad", "net.1")


@pytest.mark.parametrize("pad", [-1, -100, 1.5, "x", True, [0]])
def test_padding_that_is_no_token_is_named(pad):
    spec = dict(kind="tokens", pad=pad)
    refused(lambda: Release.from_module(gpt2(), inputs=spec), "token id >= 0 as 'pad'")
    if pad == -100:
        rows = pd.DataFrame(dict(sequence_id=[0, 1], input_ids=[[1, 2, -100], [1, 2, 3]]))
        refused(lambda: read_check_set(rows, ["input_ids"]), "where a negative number pads")


class Positions(nn.Module):
    "Learnt positions, in one of the forms in which people write them."

    def __init__(self, form):
        super().__init__()
        self.tokens, self.head = nn.Embedding(20, 4), nn.Linear(4, 1)
        if form == "table":
            self.pos_emb = nn.Embedding(8, 4)
        elif form == "parameter":
            self.positions = nn.Parameter(torch.zeros(1, 8, 4))
        else:
            self.register_buffer("pe", torch.zeros(8, 1, 4))
        self.form = form

    def forward(self, ids):
        x, n = self.tokens(ids), ids.shape[1]
        if self.form == "table":
            return self.head((x + self.pos_emb(torch.arange(n))).mean(1))
        if self.form == "parameter":
            return self.head((x + self.positions).mean(1))
        return self.head((x.transpose(0, 1) + self.pe[:n]).mean(0))


@pytest.mark.parametrize("form", ["table", "parameter", "buffer", "gpt2", "bert", "function"])
def test_a_row_longer_than_the_positions_is_named_with_both_numbers(form):
    spec: object = dict(kind="tokens", bos=None, pad=None)
    decision, sites = None, ["tokens"]
    if form in ("gpt2", "bert"):
        model = dict(gpt2=gpt2, bert=bert)[form]()
        limit = model.config.max_position_embeddings
        decision, sites = dict(kind="top_two") if form == "gpt2" else None, None
    else:
        model, limit = Positions("table" if form == "function" else form), 8
    if form == "function":
        spec = lambda rows: torch.tensor(rows["input_ids"].tolist())  # noqa: E731
    release = Release.from_module(model, inputs=spec, decision=decision, device="cpu", sites=sites)
    long = [3] * (limit + 4)
    rows = pd.DataFrame(dict(sequence_id=[7, 8], input_ids=[long, long], _top1=1, _top2=2))
    row = "a row has" if form == "function" else "row 0 has"
    told = f"{row} {limit + 4} tokens, and the model {limit} positions"
    refused(lambda: release.run(rows), told, "cut the rows")


def test_a_date_an_interval_and_a_period_may_be_a_segment():
    days = pd.date_range("2024-01-01", periods=60)
    for names in (
        days,
        pd.Series(days.date),
        pd.cut(pd.Series(range(60)), 3),
        days.to_period("M"),
        pd.Series([True, False] * 30),
        pd.Series([1.5, 2.5] * 30),
    ):
        rows = pd.DataFrame(dict(sequence_id=range(60), a=1.0)).assign(segment=list(names))
        assert len(read_check_set(rows, ["a"])) == 60
    for odd in ([1], {"a": 1}, (1, 2)):
        rows = pd.DataFrame(dict(sequence_id=range(3), a=1.0, segment=[odd] * 3))
        refused(lambda rows=rows: read_check_set(rows, ["a"]), "a list or a table")


def test_an_input_called_weight_is_named():
    rows = pd.DataFrame(dict(sequence_id=range(6), age=[1.0] * 6, weight=[70.0, 80.5] * 3))
    for name in ("weight", "label", "group_id", "sequence_id"):
        spec = dict(kind="columns", columns=["age", name])
        refused(lambda spec=spec: Release.from_module(net(), inputs=spec), name, "rename")
    guessed = Release.from_module(net(), device="cpu")
    refused(lambda: guessed.run(rows), "weight: no inputs", "another name")
    reads = Release.from_module(
        net(), inputs=lambda rows: rows[["age", "weight"]].to_numpy(), device="cpu"
    )
    refused(lambda: try_out(reads, reads, rows), "reads as an input")
    leaves = Release.from_module(
        net(), inputs=lambda rows: rows[["age", "age"]].to_numpy(), device="cpu"
    )
    try_out(leaves, leaves, rows)


@pytest.fixture(scope="module")
def world():
    return small_world(n=400)


@pytest.fixture(scope="module")
def usual(world):
    return check(world.old, world.new, world.rows, dictionary=world.dictionary)


@pytest.mark.parametrize("weight", [1.7e308, 5e-324])
def test_only_the_ratio_of_weights_counts_whatever_their_size(world, usual, weight):
    rows = world.rows.assign(weight=weight)
    plan, preview = register(world.old, world.new, world.dictionary, rows)
    found = score(world.old, world.new, world.dictionary, rows, plan, preview).verdict
    assert found.to_dict()["statements"] == usual.verdict.to_dict()["statements"]
    assert len(found.headline) < 200


def test_weights_from_the_smallest_to_the_largest_number_are_weights(world):
    rows = world.rows.assign(weight=[1e-300, 1.0, 1e300, 1.7e308] * 100)
    plan, preview = register(world.old, world.new, world.dictionary, rows)
    found = score(world.old, world.new, world.dictionary, rows, plan, preview)
    assert all(s.n_eff <= 101 for s in found.verdict.statements)
    assert "e+" not in str(found)


def test_the_folder_of_a_check_in_one_call_is_its_owners_alone(usual, tmp_path):
    folder = usual.save(tmp_path / "saved")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_any_salt_and_any_order_of_rows_give_the_same_verdict(world):
    "With groups, weights and times; `check` draws a salt of its own each time."
    n = len(world.rows)
    times = pd.date_range("2024-01-01", periods=n, freq="6h")
    rows = world.rows.assign(
        group_id=[f"c{7 * i % 301}" for i in range(n)],
        weight=[(1.0, 20.0, 3.7)[i % 3] for i in range(n)],
        timestamp=times,
    )
    seen = set()
    for order in (None, 1):
        given = rows if order is None else rows.sample(frac=1, random_state=order)
        found = check(world.old, world.new, given, dictionary=world.dictionary, draws=2)
        seen.add(json.dumps(found.verdict.to_dict(), sort_keys=True))
    assert len(seen) == 1


def test_a_run_may_have_any_name(tiny, tmp_path):
    for name in ("run %s %d {1}", "a'b\"c$HOME", "-p rün\n2"):
        p = asked_of(tiny, tiny.v2, tmp_path / name)
        by_hand(p, "preflight")
        assert (tmp_path / name / "check.json").exists()
