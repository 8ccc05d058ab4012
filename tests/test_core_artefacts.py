"""Artefacts under fire: at every write, flush and rename a full disk or a kill.

Afterwards there is the old folder or the new one, never half of one.
"""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import refused

from interpkit.core import artefacts
from interpkit.core.artefacts import check_artefact, new_artefact, open_artefact
from interpkit.core.benchmarks import bar, write_benchmark
from interpkit.core.digests import digest_file, digest_frame, digest_json, six
from interpkit.core.errors import InterpkitError
from interpkit.core.files import (
    aside_name,
    born,
    is_storage_error,
    read_json,
    remove_leftovers,
    remove_leftovers_in,
    storage_error,
    write_json,
)
from interpkit.core.show import card_html, percent, table_html
from interpkit.gate.runner import locked

OLD, NEW = {"a.txt": "old a", "deep/b.txt": "old b"}, {"a.txt": "new a", "c.txt": "new c"}


def fill(folder, contents):
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text)


def write(folder, contents, overwrite=False):
    with new_artefact(folder, "note", overwrite=overwrite) as tmp:
        fill(tmp, contents)


def contents(folder):
    "What stands under the name: a verified artefact, or nothing."
    if not folder.exists() and not (folder.parent / f".{folder.name}.old").exists():
        return None
    open_artefact(folder, "note")
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.txt")}


class Faults:
    "Lets `before` operations on storage pass and then strikes at each."

    OPERATIONS = [
        (os, "fsync"),
        (os, "rename"),
        (os, "replace"),
        (os, "mkdir"),
        (Path, "mkdir"),
        (Path, "write_text"),
        (artefacts, "_exchange"),
    ]

    def __init__(self, monkeypatch, before, strike, once=False):
        self.left, self.fired, self.once = before, False, once
        for owner, name in self.OPERATIONS:
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name), strike))

    def wrap(self, original, strike):
        def call(*args, **kwargs):
            if self.left == 0 and not (self.once and self.fired):
                self.fired = True
                strike()
            if self.left > 0:
                self.left -= 1
            return original(*args, **kwargs)

        return call


def full():
    raise OSError(errno.ENOSPC, "No space left on device")


def scenario(folder, before: str):
    if before == "old":
        write(folder, OLD)
    return OLD if before == "old" else None


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("before", ["nothing", "old"])
def test_a_full_disk_at_any_operation_leaves_old_or_new_and_no_rubbish(
    tmp_path, monkeypatch, before, exchange
):
    if not exchange:
        monkeypatch.setattr(artefacts, "_exchange", lambda a, b: False)
    for k in range(200):
        folder = tmp_path / str(k) / "lesson"
        folder.parent.mkdir()
        old = scenario(folder, before)
        with monkeypatch.context() as m:
            faults = Faults(m, k, full, once=True)
            error = None
            try:
                write(folder, NEW, overwrite=True)
            except InterpkitError as e:
                error = e
        if not faults.fired:
            break
        assert (error is not None and error.code == 75) or contents(folder) == NEW
        assert contents(folder) in (old, NEW)
        assert [p.name for p in folder.parent.iterdir()] in ([], ["lesson"]), k
    assert not faults.fired
    assert k > 8


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("before", ["nothing", "old"])
def test_a_kill_at_any_operation_leaves_old_or_new(tmp_path, monkeypatch, before, exchange):
    if not exchange:
        monkeypatch.setattr(artefacts, "_exchange", lambda a, b: False)
    for k in range(200):
        folder = tmp_path / str(k) / "lesson"
        folder.parent.mkdir()
        old = scenario(folder, before)
        if (pid := os.fork()) == 0:
            Faults(monkeypatch, k, lambda: os._exit(9))
            try:
                write(folder, NEW, overwrite=True)
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, 9)
        assert contents(folder) in (old, NEW), k
        write(folder, NEW, overwrite=True)
        assert contents(folder) == NEW, k
        assert [p.name for p in folder.parent.iterdir()] == ["lesson"], k
        if status == 0:
            break
    assert status == 0
    assert k > 8


@pytest.mark.parametrize("strike", ["full", "kill"])
def test_write_json_is_old_or_new_at_any_operation(tmp_path, monkeypatch, strike):
    for k in range(50):
        file = tmp_path / str(k) / "result.json"
        file.parent.mkdir()
        write_json(file, dict(run=1))
        if (pid := os.fork()) == 0:
            Faults(monkeypatch, k, full if strike == "full" else lambda: os._exit(9))
            try:
                write_json(file, dict(run=2))
            except InterpkitError as e:
                os._exit(int(e.code))
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert read_json(file) in (dict(run=1), dict(run=2))
        assert status in (
            0,
            75 if strike == "full" else 9,
        )
        if strike == "full":
            assert [p.name for p in file.parent.iterdir()] == ["result.json"]
        write_json(file, dict(run=3))
        assert [p.name for p in file.parent.iterdir()] == ["result.json"]
        if status == 0:
            break
    assert status == 0
    assert k >= 3


def test_a_limit_of_the_system_is_one_clear_error(tmp_path):
    "Not injected: the kernel refuses to let a file grow."
    if (pid := os.fork()) == 0:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with new_artefact(tmp_path / "big", "note") as tmp:
                (tmp / "a").write_bytes(b"x" * 5000)
        except InterpkitError as e:
            os._exit(int(e.code))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_block_goes_through_and_leaves_nothing(tmp_path):
    for error in (ValueError("mine"), FileNotFoundError(errno.ENOENT, "mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            with new_artefact(tmp_path / "lesson", "note") as tmp:
                fill(tmp, NEW)
                raise error
        assert list(tmp_path.iterdir()) == []


def test_wrapped_errors_of_a_full_disk_are_recognised(tmp_path):
    with pytest.raises(InterpkitError) as e:
        with new_artefact(tmp_path / "lesson", "note"):
            raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert e.value.code == 75
    assert "free some space" in e.value.mend
    assert storage_error("x", PermissionError(errno.EACCES, "Permission denied")).code == 64
    assert not is_storage_error(ValueError("28 features"))
    assert not is_storage_error(InterpkitError("a", "os error 28", "c"))


def test_a_writer_at_work_is_left_alone(tmp_path):
    with new_artefact(tmp_path / "lesson", "note") as mine:
        fill(mine, NEW)
        write(tmp_path / "lesson", OLD)
        assert mine.exists()
        shutil.rmtree(tmp_path / "lesson")
    assert contents(tmp_path / "lesson") == NEW


def test_leftovers_of_another_host_go_after_a_day(tmp_path):
    left = tmp_path / ".a[1].json.elsewhere.1.abc.aside"
    left.write_text("half")
    remove_leftovers(tmp_path / "a[1].json")
    assert left.exists()
    os.utime(left, (0, 0))
    remove_leftovers(tmp_path / "a[1].json")
    assert not left.exists()


def left_by(folder: Path, host: str, pid: int, begun: int, name="report.html") -> Path:
    "What a writer of this host and process has left aside."
    left = folder / f".{name}.{host.replace('.', '+')}.{pid}.{begun}.0123abcd.aside"
    left.write_text("rows")
    return left


@pytest.fixture
def ended():
    "The number of a process that has ended."
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_hosts_are_compared_whole(tmp_path, monkeypatch, ended):
    monkeypatch.setattr("socket.gethostname", lambda: "a.bank.example")
    others = [
        left_by(tmp_path, host, ended, 5)
        for host in ("b.bank.example", "a.bank.example.org", "example", "x.a.bank.example", "a", "")
    ]
    mine = left_by(tmp_path, "a.bank.example", ended, 5)
    remove_leftovers(tmp_path / "report.html")
    assert not mine.exists()
    assert all(other.exists() for other in others)


@pytest.mark.parametrize("jump", [-40, -2, 2, 40])
def test_no_clock_that_jumps_takes_the_work_of_the_living(tmp_path, monkeypatch, jump):
    "Neither of a process here, nor of one elsewhere that goes on writing."
    then = time.time() + jump * 86400
    here = aside_name(tmp_path / "lesson")
    fill_folder = tmp_path / f".lesson.elsewhere.1.1.{'0' * 8}.aside"
    for folder in (here, fill_folder):
        folder.mkdir()
        (folder / "part").write_text("half")
        os.utime(folder, (then, then))
    monkeypatch.setattr("time.time", lambda: then + 10 * 86400)
    remove_leftovers(tmp_path / "lesson")
    assert here.exists()
    assert fill_folder.exists()


def test_a_number_that_another_process_has_now_is_nobodys(tmp_path):
    "As in a container that is started again: its processes have the numbers of before."
    me = os.getpid()
    dead = left_by(tmp_path, socket.gethostname(), me, born(me) + 1)
    alive = aside_name(tmp_path / "report.html")
    alive.write_text("rows")
    remove_leftovers(tmp_path / "report.html")
    assert not dead.exists()
    assert alive.exists()


def test_a_killed_writer_that_nobody_buried_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    left = left_by(tmp_path, socket.gethostname(), process.pid, born(process.pid))
    remove_leftovers_in(tmp_path)
    assert left.exists()
    process.kill()
    while born(process.pid):  # a zombie has none
        time.sleep(0.01)
    remove_leftovers_in(tmp_path)
    assert not left.exists()
    process.wait()


def test_what_a_killed_command_left_is_removed_by_the_next_one(tmp_path, ended):
    (tmp_path / "run" / "report").mkdir(parents=True)
    host, run = socket.gethostname(), tmp_path / "run"
    left = [left_by(run, host, ended, 5), left_by(run / "report", host, ended, 5, "result.json")]
    (run / ".evidence.x.aside").mkdir()  # somebody's own
    (run / "notes.aside").touch()
    with locked(run):
        assert not any(file.exists() for file in left)
        assert (run / ".evidence.x.aside").exists()
        assert (run / "notes.aside").exists()


def test_every_kind_of_tampering_is_named(tmp_path):
    def tampered(change):
        folder = tmp_path / "lesson"
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, OLD)
        change(folder)
        error = refused(lambda: open_artefact(folder, "note"))
        assert "restore" in error.mend
        return error.given

    assert tampered(lambda f: (f / "a.txt").write_text("old A")) == "a.txt was changed"
    assert tampered(lambda f: (f / "deep/b.txt").unlink()) == "deep/b.txt is missing"
    assert tampered(lambda f: (f / "deep/x.txt").write_text("")) == "deep/x.txt was added"
    assert (
        tampered(lambda f: (f / "deep/manifest.json").write_text("{}"))
        == "deep/manifest.json was added"
    )

    def link(f):
        shutil.copy(f / "a.txt", tmp_path / "same")
        (f / "a.txt").unlink()
        (f / "a.txt").symlink_to(tmp_path / "same")

    assert tampered(link) == "a.txt is a link"
    for text in (b"[]", b"{}", b'{"files": 3}', b"{", "\ud800".encode("utf-8", "surrogatepass")):
        tampered(lambda f, text=text: (f / "manifest.json").write_bytes(text))
    both = tampered(lambda f: [(f / "a.txt").write_text("x"), (f / "deep/b.txt").unlink()])
    assert both == "deep/b.txt is missing; a.txt was changed"


def test_wrong_folders_are_refused(tmp_path):
    write(tmp_path / "lesson", OLD)
    for folder, kind in (
        (tmp_path / "nowhere", None),
        (tmp_path, None),
        (tmp_path / "lesson", "release"),
    ):
        refused(lambda folder=folder, kind=kind: open_artefact(folder, kind))
    refused(lambda: write(tmp_path / "lesson", NEW), "exists")
    assert open_artefact(tmp_path / "lesson", "note") == tmp_path / "lesson"
    assert check_artefact(tmp_path / "lesson") == []


def test_the_folder_is_readable_by_others_as_the_mask_says(tmp_path):
    write(tmp_path / "lesson", OLD)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "lesson").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_is_canonical_and_finite(tmp_path):
    a = write_json(tmp_path / "a", dict(x=1, y=[np.float64(0.5), np.arange(2)], p=Path("z")))
    b = write_json(tmp_path / "b", dict(p="z", y=[0.5, [0, 1]], x=1))
    assert digest_file(a) == digest_file(b)
    assert a.read_text().startswith('{\n "p"')
    for bad in (dict(x=np.nan), [np.inf]):
        refused(lambda bad=bad: write_json(tmp_path / "c.json", bad))
        assert not (tmp_path / "c.json").exists()
    for bad in (tmp_path / "missing.json", tmp_path):
        refused(lambda bad=bad: read_json(bad))
    refused(lambda: write_json(tmp_path / "no/such/folder.json", {}), code=64)


DIGESTS = """
import pandas as pd
from interpkit.core.digests import digest_frame, digest_json
print(digest_frame(pd.DataFrame(dict(a=[1.5, 2.0], s=['x', None], l=[[1, 2], [3]]))))
print(digest_json(dict(b={'x': 1}, a=[1.5, None, 'ä'])))
"""


def test_digests_are_the_same_in_another_process(tmp_path):
    frame = pd.DataFrame(dict(a=[1.5, 2.0], s=["x", None], l=[[1, 2], [3]]))
    here = [digest_frame(frame), digest_json(dict(b={"x": 1}, a=[1.5, None, "ä"]))]
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env=os.environ | dict(PYTHONHASHSEED=seed),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == here


FRAME = pd.DataFrame(
    dict(
        sequence_id=["a", "b"],
        x=[0.5, np.nan],
        n=[1, 2],
        ids=[[1, 2], [3]],
        segment=["north", None],
        when=pd.to_datetime(["2024-01-01", "2024-01-02"]),
    )
)


def test_a_frame_keeps_its_digest_through_parquet(tmp_path):
    FRAME.to_parquet(tmp_path / "f.parquet")
    assert digest_frame(pd.read_parquet(tmp_path / "f.parquet")) == digest_frame(FRAME)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.assign(x=[0.5, 0.0]),
        lambda f: f.assign(n=[1.0, 2.0]),
        lambda f: f.assign(n=["1", "2"]),
        lambda f: f.iloc[::-1],
        lambda f: f.head(1),
        lambda f: f.assign(ids=[[1], [2, 3]]),
        lambda f: f.assign(segment=["north", "None"]),
        lambda f: f.assign(segment=["north", "nan"]),
        lambda f: f.rename(columns=dict(x="y")),
        lambda f: f.drop(columns="when"),
        lambda f: f.assign(when=f.when + pd.Timedelta(1, "s")),
    ],
)
def test_any_change_of_a_frame_changes_its_digest(change):
    assert digest_frame(change(FRAME)) != digest_frame(FRAME)


def test_six_digits():
    assert [six(x) for x in (123456789.0, 1.2345678e-9, 0.0, -2 / 3, 1e300)] == [
        123457000.0,
        1.23457e-9,
        0.0,
        -0.666667,
        1e300,
    ]


def test_benchmarks_keep_what_did_not_hold(tmp_path):
    file = write_benchmark(
        "speed",
        [dict(n=np.int64(3), seconds=0.2)],
        [bar("fast", "<= 0.1 s", 0.2, np.bool_(False))],
        folder=tmp_path / "deep/results",
    )
    found = json.loads(file.read_text())
    assert file.name == "speed.json"
    assert found["bars"] == [dict(what="fast", goal="<= 0.1 s", measured=0.2, holds=False)]
    assert "packages" in found["environment"]


def test_nothing_of_a_label_runs_in_a_browser():
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    for html in (
        table_html([{evil: evil}], caption=evil),
        card_html(evil, {evil: evil}),
        table_html(pd.DataFrame({"a": [evil]})),
    ):
        assert "<script" not in html
        assert "<img" not in html
        assert "&lt;script&gt;" in html
    assert "0.3<" in table_html([dict(x=0.1 + 0.2)])
    assert "<td style='text-align:left;padding:2px 10px'>3<" in table_html([dict(x=3, y=0.5)])
    assert percent(float("nan")) == "-"
    assert percent(2.0) == "2.0x"
    assert percent(0.0512, 1) == "5.1 %"


@pytest.mark.parametrize(
    "there, said",
    [
        ("file", "is a file"),
        ("folder", "is a folder of something else"),
        ("other", "is letter"),
        ("odd", "is a folder of something else"),
    ],
)
def test_nothing_but_an_artefact_of_its_kind_is_replaced(tmp_path, there, said):
    place = tmp_path / "x"
    if there == "file":
        place.write_text("thesis")
    if there in ("folder", "odd"):
        place.mkdir()
        fill(place, OLD)
    if there == "odd":
        (place / "manifest.json").write_text("[]")
    if there == "other":
        with new_artefact(place, "letter") as tmp:
            fill(tmp, OLD)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InterpkitError, match=said) as e:
        write(place, NEW, overwrite=True)
    assert e.value.code == 65
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", NEW, overwrite=True)
    assert contents(tmp_path / "x") == NEW


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_in_which_no_folder_can_be_is_one_clear_error():
    with pytest.raises(InterpkitError, match="a place that can be written to: /proc/x") as e:
        write(Path("/proc/x"), NEW)
    assert e.value.code == 64


@pytest.mark.parametrize("what", ["a folder", "a link to itself", "a file as its folder"])
def test_what_stands_in_the_way_of_a_file_is_no_matter_of_another_try(tmp_path, what):
    "A scheduler repeats what ends with 75, and a folder that has a file's name stays one."
    place = tmp_path / "policy.json"
    if what == "a folder":
        (place / "x").mkdir(parents=True)
    elif what == "a link to itself":
        place = tmp_path / "loop" / "policy.json"
        (tmp_path / "loop").symlink_to("loop")
    else:
        (tmp_path / "file").write_text("x")
        place = tmp_path / "file" / "policy.json"
    refused(lambda: write_json(place, {}), "a place that can be written to", code=64)
