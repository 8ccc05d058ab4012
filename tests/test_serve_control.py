"The audit log under kills, full disks and forgers; the budget controller under load."

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from helpers import refused

from interpkit.core.errors import ExitCode
from interpkit.core.files import DAY
from interpkit.serve.chain import log_files, log_lines, verify_log
from interpkit.serve.controller import Controller
from interpkit.serve.costs import Cost, Costs
from interpkit.serve.levels import LEVELS, ON_EXHAUST, Budget, level_number
from interpkit.serve.load import Load, Paired
from interpkit.serve.log import AuditLog, hashed, read_log
from interpkit.serve.records import Record, TrustLabel
from interpkit.serve.writer import Chain

UNREAD = TrustLabel("ABSTAIN", ("not read",))
NOW = 1.8e9


def record(name="1", **kw) -> Record:
    return Record(str(name), NOW, "off", UNREAD, **kw)


def written(folder: Path, n: int = 3) -> Path:
    "The one file of a log of `n` records, with nothing else in it."
    chain = Chain(folder)
    chain.write([(NOW, "record", dict(request=f"r{i}")) for i in range(n)])
    chain.close()
    return log_files(folder)[0]


# The chain


def test_no_byte_can_be_changed(tmp_path):
    path = written(tmp_path)
    data = path.read_bytes()
    for i in sorted({*range(0, len(data), 3), *range(len(data) - 80, len(data))}):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        if i == len(data) - 1:  # no newline at the end: as a kill leaves it
            assert verify_log(tmp_path).torn
        else:
            refused(lambda: verify_log(tmp_path), "line ")
    path.write_bytes(data)
    assert verify_log(tmp_path).lines == 3


def test_no_line_can_be_left_out_put_in_or_moved(tmp_path):
    path = written(tmp_path, 4)
    a, b, c, d = path.read_bytes().splitlines(keepends=True)
    for at, lines in {
        1: ([b, c, d], [b, a, c, d], [b"\n", a, b, c, d], [b"[]\n"]),
        2: ([a, c, d], [a, a, b, c, d], [a, c, b, d], [a, b"{}\n", b, c, d]),
        3: ([a, b, b, c, d], [a, b, d]),
        5: ([a, b, c, d, d], [a, b, c, d, b"null\n"]),
    }.items():
        for wrong in ([*x] for x in lines):
            path.write_bytes(b"".join(wrong))
            refused(lambda: verify_log(tmp_path), f"line {at} of {path.name}", "new folder")


def test_a_cut_end_and_another_chain_are_seen_by_a_head_kept_elsewhere(tmp_path):
    path = written(tmp_path)
    head = verify_log(tmp_path).head
    lines = path.read_bytes().splitlines(keepends=True)
    assert verify_log(tmp_path, head=head).head == head
    path.write_bytes(b"".join(lines[:2]))
    assert verify_log(tmp_path).lines == 2
    refused(lambda: verify_log(tmp_path, head=head), "the log ends at line 2")
    path.unlink()
    chain = Chain(tmp_path)
    chain.write([(NOW, "record", dict(request="another")) for _ in range(5)])
    chain.close()
    refused(lambda: verify_log(tmp_path, head=head), "line 3 has another digest")
    for p in log_files(tmp_path):
        p.unlink()
    refused(lambda: verify_log(tmp_path, head=head), "the log ends at line 0")
    refused(lambda: verify_log(tmp_path / "none"), "there is none")


@pytest.mark.filterwarnings("ignore:.*half written")
def test_a_line_torn_at_any_byte_is_set_aside_and_told(tmp_path):
    path = written(tmp_path)
    data = path.read_bytes()
    start = data.rfind(b"\n", 0, -1) + 1
    for end in range(start + 1, len(data), 9):
        for newer in log_files(tmp_path)[1:]:
            newer.unlink()
        path.write_bytes(data[:end])
        assert verify_log(tmp_path).torn == end - start
        with AuditLog(tmp_path):
            pass
        opened = read_log(tmp_path, "open").iloc[-1]
        assert not opened["clean"] and opened["torn"]["bytes"] == end - start
        assert (tmp_path / opened["torn"]["file"]).read_bytes() == data[start:end]
        assert verify_log(tmp_path).records == 2 and not verify_log(tmp_path).torn
    for newer in log_files(tmp_path)[1:]:
        newer.unlink()
    path.write_bytes(data[:10])  # the very first line
    with pytest.warns(UserWarning, match="10 bytes now lie in"):
        AuditLog(tmp_path).close()
    assert verify_log(tmp_path).lines == 2  # open, close


def by_days(folder, days=10, keep_days=None) -> Chain:
    chain = Chain(folder, keep_days=keep_days)
    for day in range(days):
        chain.write([(NOW + day * DAY, "record", dict(request=str(i))) for i in range(3)])
    chain.close()
    return chain


def test_retention_removes_whole_files_and_the_chain_still_holds(tmp_path):
    chain = by_days(tmp_path, keep_days=4)
    state = verify_log(tmp_path, head=chain.head)
    assert 4 <= state.files <= 6
    assert state.removed == log_lines(tmp_path).__next__()["n"] - 1 > 0
    early = (1, "0" * 64)
    refused(lambda: verify_log(tmp_path, head=early), "line 1 was removed")
    log_files(tmp_path)[0].unlink()  # one more, which no line tells of
    refused(lambda: verify_log(tmp_path), "no line says that others were removed")


def test_a_file_that_is_missing_in_the_middle_is_missed(tmp_path):
    by_days(tmp_path)
    log_files(tmp_path)[4].unlink()
    refused(lambda: verify_log(tmp_path), "lines are missing")


def test_a_kill_between_the_line_of_retention_and_the_removal_is_made_good(tmp_path, monkeypatch):
    by_days(tmp_path)

    def killed(self, **kw):
        raise KeyboardInterrupt

    chain = Chain(tmp_path, keep_days=4)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Path, "unlink", killed)
        chain.retain(NOW + 10 * DAY)
    chain.close()
    assert len(log_files(tmp_path)) == 11 and verify_log(tmp_path).removed == 0
    chain = Chain(tmp_path, keep_days=4)
    chain.retain(NOW + 10 * DAY)
    chain.close()
    assert len(log_files(tmp_path)) == 5 and verify_log(tmp_path).removed == 18


def test_a_clock_that_goes_back_breaks_nothing(tmp_path):
    chain = Chain(tmp_path, keep_days=2)
    for day in (5, 0, 6, 1, 2, 9):
        chain.write([(NOW + day * DAY, "record", {})])
    chain.close()
    assert verify_log(tmp_path, head=chain.head).n == chain.head[0] >= 6


# The log


def test_what_was_flushed_is_there_after_a_kill(tmp_path):
    code = f"""
    import sys
    from interpkit.serve.log import AuditLog
    from interpkit.serve.records import Record, TrustLabel
    unread = TrustLabel("ABSTAIN", ("not read",))
    log = AuditLog({str(tmp_path)!r}, fsync="never")
    for i in range(10**9):
        log.append(Record(str(i), 1.8e9, "off", unread))
        if i % 100 == 0:
            assert log.flush()
            print(i + 1, flush=True)
    """
    flushed = 0
    for _ in range(2):
        one = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
        )
        for line in one.stdout:
            if int(line) > 500:
                break
        # a second writer, while the first one runs
        holder = f"process {one.pid} writes"
        refused(lambda: AuditLog(tmp_path), holder, code=ExitCode.BAD_PARAMETERS)
        one.send_signal(signal.SIGKILL)
        one.wait()
        flushed += int(line)
        state = verify_log(tmp_path)
        assert state.records >= flushed and not state.clean
        flushed = state.records
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AuditLog(tmp_path).close()
    assert verify_log(tmp_path).clean


FULL = """
import os, sys, time
from interpkit.serve.chain import verify_log
from interpkit.serve.log import AuditLog
from interpkit.serve.records import Record, TrustLabel
unread = TrustLabel("ABSTAIN", ("not read",))
room, policy = sys.argv[1:]
is_mount = os.path.ismount(room)
def fill(full):
    if is_mount and full:
        with open(room + "/ballast", "wb") as file:
            try:
                while True: file.write(b"x" * 512); file.flush()
            except OSError: pass
    elif is_mount:
        os.unlink(room + "/ballast")
    else:
        import resource
        size = sum(os.path.getsize(os.path.join(room, "log", f)) for f in os.listdir(room + "/log"))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100 if full else hard, hard))
def put(n): return [log.append(Record(str(i), 1.8e9, "off", unread)) for i in range(n)]
log = AuditLog(room + "/log", on_full=policy, capacity=50)
first = put(20)
assert all(first) and log.flush()
try: fill(True)
except OSError: pass
put(30)
assert not log.flush(0.3) and log.trouble, log
answers = put(100)
told = log.trouble
fill(False)
assert log.flush(20), log
assert not log.trouble
assert all(put(1)) and log.flush()
lost = log.lost
assert log.close() == 0
print(verify_log(room + "/log").records, lost, verify_log(room + "/log").lost, any(answers), told)
"""


@pytest.mark.parametrize("policy", ["stop", "count"])
def test_a_full_disk_is_known_at_once_and_leaves_a_gap_in_the_chain(tmp_path, policy):
    run = [sys.executable, "-c", FULL, str(tmp_path), policy]
    mount = f"mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "
    inside = ["unshare", "-rm", "sh", "-c", mount + '"$@"', "sh"]
    has_mount = subprocess.run([*inside, "true"], capture_output=True).returncode == 0
    done = subprocess.run(
        [*inside, *run] if has_mount else run, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    records, lost, gap, served, told = done.stdout.split(maxsplit=4)
    assert int(records) + int(lost) == 20 + 30 + 100 + 1
    assert int(gap) == int(lost) > 0
    assert served == str(policy == "count")
    assert told.strip() in ("No space left on device", "File too large")


def test_a_disk_that_hangs_costs_no_memory_and_no_time_of_the_caller(tmp_path, monkeypatch):
    log = AuditLog(tmp_path, capacity=100, on_full="count")
    assert log.flush()
    hangs = threading.Event()
    monkeypatch.setattr("interpkit.serve.writer.os.fsync", lambda fd: hangs.wait())
    assert log.append(record())
    while log._queue:  # until the thread has taken it, and hangs
        time.sleep(0.001)
    assert all(log.append(record(i)) for i in range(1000))
    assert len(log._queue) == 100 and log.lost == 900
    hangs.set()
    assert log.flush()
    log.close()
    assert verify_log(tmp_path).records == 101 and verify_log(tmp_path).lost == 900


def test_a_file_that_is_moved_away_while_it_is_written_to_stops_the_log(tmp_path):
    with AuditLog(tmp_path) as log:
        assert log.append(record()) and log.flush()
        (path,) = log_files(tmp_path)
        path.rename(tmp_path / "elsewhere")
        assert log.append(record("2")) and not log.flush(0.2)
        assert log.stopped and "removed" in log.trouble
        (tmp_path / "elsewhere").rename(path)
    assert verify_log(tmp_path).records == 2


def test_numbers_that_would_throw_records_away_are_refused(tmp_path):
    for odd in (
        dict(keep_days=-1),
        dict(keep_days=0),
        dict(capacity=0),
        dict(file_mb=float("nan")),
    ):
        refused(lambda k=odd: AuditLog(tmp_path, **k), "over 0", code=ExitCode.BAD_PARAMETERS)


def test_threads_share_a_log_and_nothing_is_lost_or_told_twice(tmp_path):
    with AuditLog(tmp_path, fsync="never", file_mb=0.05) as log:
        threads = [
            threading.Thread(
                target=lambda t=t: [log.append(record(f"{t}.{i}")) for i in range(300)]
            )
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert verify_log(tmp_path).files > 1
    kept = read_log(tmp_path)
    assert set(kept["request"]) == {f"{t}.{i}" for t in range(4) for i in range(300)}
    assert len(kept) == 1200


def test_a_process_that_was_forked_writes_nothing(tmp_path):
    with AuditLog(tmp_path) as log:
        if (pid := os.fork()) == 0:
            os._exit(log.append(record()) or log.close())
        assert os.waitpid(pid, 0)[1] == 0
        assert log.append(record())
    assert verify_log(tmp_path).records == 1
    assert not log.append(record())  # closed


def test_no_words_of_an_exception_and_no_customer_reach_the_disk(tmp_path):
    failed = TrustLabel("INVALID", ("failed",), ("KeyError: 'Jane Doe, 4711'",))
    with AuditLog(tmp_path, salt="pepper") as log:
        log.append(Record("Jane Doe", NOW, "monitor", failed, active={3: 1.5}))
        log.append(Record("2", NOW, "monitor", failed, scores={"Jane Doe": object()}))
    text = "".join(p.read_text() for p in log_files(tmp_path))
    assert "Jane" not in text and "4711" not in text
    assert list(read_log(tmp_path)["reasons"]) == ["failed"]


def test_numbers_that_json_does_not_know_are_kept_as_none(tmp_path):
    odd = record(decision=float("nan"), active={1: np.float32("inf")}, scores=dict(p=np.float64(1)))
    with AuditLog(tmp_path) as log:
        assert log.append(odd) and log.append(record("2", scores={"p": object()}))
        assert log.append(record("3"))
    (line,) = [x for x in log_lines(tmp_path) if x["kind"] == "record" and x["n"] == 2]
    assert line["body"]["decision"] is None and line["body"]["active"] == {"1": None}
    assert [x["kind"] for x in log_lines(tmp_path)] == [
        *("open", "record", "unwritable", "record", "close")
    ]
    for path in log_files(tmp_path):
        for text in path.read_text().splitlines():
            json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize("salt", ["", "pepper"])
def test_an_id_of_any_characters_does_not_stop_the_log(tmp_path, salt):
    odd = ["\ud800", "a\nb", '"}\n{"n":1', "\x00", "e\u0301", ""]
    with AuditLog(tmp_path, salt=salt) as log:
        assert all(log.append(record(name)) for name in odd)
        assert log.append(replace(record("no label"), label=None)) and log.append(record("last"))
        assert log.flush() and not log.trouble
    kinds = [x["kind"] for x in log_lines(tmp_path)]
    assert kinds == ["open", *["record"] * len(odd), "unwritable", "record", "close"]
    assert list(read_log(tmp_path)["request"]) == [hashed(x, salt) for x in [*odd, "last"]]


# The budget controller


def level(name, added, coverage, **kw) -> Cost:
    "A level that adds so many percent to a forward of 1 ms."
    us = dict(added_us=10 * added, added_p99_us=10 * added, bare_p99_us=1000.0)
    return Cost(name, 1, 32, coverage=coverage, features=128, cpu_pct=added, **us | kw)


TRULY = {"off": 0.0, "monitor-last": 0.5, "monitor": 2.0, "full": 20.0}  # percent
COVERAGE = {"monitor-last": 0.7, "monitor": 0.8, "full": 0.95}
COSTS = Costs(tuple(level(name, TRULY[name], share) for name, share in COVERAGE.items()))
BUDGET = Budget(added_latency_pct=5, cpu_pct_mean=5)


def line_of_requests(control, rates, seed=0, truly=TRULY, service=(1.0,), queue=True):
    """Random requests of 1 ms at one server, one rate (per second) each; `service` stretches them.

    Times in the system, in ms. `control` is a controller, or None for a model without monitor.
    """
    rng, now, free = random.Random(seed), 0.0, 0.0
    running, times = deque(), []
    for i, rate in enumerate(rates):
        now += rng.expovariate(rate)
        base = 1e-3 * rng.lognormvariate(-0.045, 0.3) * service[min(i, len(service) - 1)]
        while running and running[0][0] <= now:
            control.observe(*running.popleft()[1:])
        level = control.level(now, len(running) * queue) if control else "off"
        seconds = base * (1 + truly[level] / 100)
        free = max(free, now) + seconds
        times.append(1e3 * (free - now))
        if control:
            running.append((free, level, seconds, seconds))
    return times


STEP = [300] * 3000 + [900] * 2000


@pytest.mark.parametrize("queue", [True, False])  # whether anybody tells how long the queue is
def test_a_load_that_triples_changes_the_level_within_50_requests(queue):
    moved = []
    for seed in range(20):
        control = Controller(BUDGET, COSTS, seed=seed)
        times = line_of_requests(control, STEP, seed, queue=queue)
        bare = line_of_requests(None, STEP, seed)
        steps = [c for c in control.changes if c.n > 3000]
        assert steps[0].n <= 3050, steps
        order = [level_number(x.before) - level_number(x.after) for x in control.changes]
        assert set(map(abs, order)) == {1}  # by one level at a time
        moved.append(np.quantile(times[3000:], 0.99) / np.quantile(bare[3000:], 0.99) - 1)
    assert np.mean(moved) < 0.01  # the same requests with and without interpretation


@pytest.mark.parametrize("rate", [300, 500, 600, 700, 800, 900])
def test_a_steady_noisy_load_makes_few_changes_also_at_the_border_of_a_level(rate):
    control = Controller(BUDGET, COSTS)  # monitor bears 2.5, which is a rate of 600
    line_of_requests(control, [rate] * 30_000, seed=1)
    assert len(control.changes) <= 20
    if rate == 300:
        assert len(control.changes) <= 2 and control.step == "monitor"


def test_when_the_load_is_gone_the_levels_come_back_one_by_one():
    control = Controller(BUDGET, COSTS)
    line_of_requests(control, [300] * 1000 + [1500] * 300 + [300] * 2500)
    assert control.step == "monitor"
    *_, first, second = control.changes
    assert (first.after, second.after) == ("monitor-last", "monitor")
    assert second.n - first.n >= 200


def test_a_server_that_becomes_ten_times_slower_is_noticed():
    control = Controller(BUDGET, COSTS)
    line_of_requests(control, [300] * 1200, service=[1.0] * 1000 + [10.0])
    assert [c.after for c in control.changes] == ["monitor-last", "off"]
    assert control.changes[0].n <= 1050


def test_costs_that_are_too_low_are_found_out_by_the_bare_arm():
    control = Controller(BUDGET, COSTS, bare_share=0.02)
    line_of_requests(control, [200] * 30_000, truly=TRULY | {"monitor": 15.0})
    (change,) = control.changes
    assert change.after == "monitor-last" and "measured beside the bare arm" in change.why
    assert control.measured["monitor"].time_lower > 5


def test_a_level_within_its_budget_is_not_accused_by_the_noise_of_the_bare_arm():
    "Windows of 24 blocks at an overhead of 4.9 % of 5: the lower end passes 5 % in 1 of 4,000."
    rng, wrong, looks = random.Random(0), 0, 0
    paired = Paired()
    for _ in range(120_000):
        bare = rng.random() < 0.1
        base = rng.lognormvariate(0, 0.3)
        if paired.observe(bare, base if bare else 1.049 * base, base):
            looks += 1
            wrong += paired.overhead().time_lower > 5
    assert looks > 1000
    # looks overlap by 23 of 24 blocks; even as if each were alone, this is far from chance
    assert scipy.stats.binomtest(wrong, looks).proportion_ci(0.95, "exact").low < 1e-3


def test_bounds_of_every_kind_and_none_at_all():
    for part in ("added_latency_p99_us", "added_latency_pct", "cpu_pct_mean"):
        bounds = dict(added_latency_pct=None, cpu_pct_mean=None) | {part: 10.0}
        control = Controller(Budget(**bounds), COSTS)
        assert control.step == ("monitor-last" if part.endswith("us") else "monitor"), part
    control = Controller(Budget(added_latency_pct=None, cpu_pct_mean=None), COSTS)
    line_of_requests(control, [2000] * 500)  # no bound, no step down
    assert control.step == "full" and not control.changes
    refused(
        lambda: Controller(Budget(added_latency_pct=0.1), COSTS),
        *("the cheapest, monitor-last", "5 us"),
        code=ExitCode.BAD_PARAMETERS,
    )
    refused(lambda: Load(0), "served at the same time", code=ExitCode.BAD_PARAMETERS)


def test_odd_clocks_and_times_break_nothing():
    control = Controller(BUDGET, COSTS)
    for i in range(100):
        now = (0.0, 1.0, 1.0, 0.5)[i % 4]
        assert control.level(now, queue=0) in LEVELS
        control.observe(control.step, (float("nan"), -1.0, float("inf"), 0.0)[i % 4], float("nan"))
    for _ in range(100):
        assert control.level(7.0, queue=10**6) in LEVELS  # all at once
    assert control.step == "off"


def test_coverage_that_was_promised_is_watched_and_explanations_are_withheld():
    for on_exhaust in ON_EXHAUST:
        budget = replace(BUDGET, min_coverage=0.6, on_exhaust=on_exhaust)
        control = Controller(budget, COSTS)
        line_of_requests(control, [300] * 1000)
        assert not control.exhausted and 0.77 < control.coverage < 0.8
        line_of_requests(control, [1500] * 2000)
        assert control.step == "off" and control.exhausted
        assert control.withholds == (on_exhaust == "fail closed")
        line_of_requests(control, [100] * 6000)
        assert not control.exhausted
    high = replace(BUDGET, min_coverage=0.9)  # what is watched too little is no step
    refused(lambda: Controller(high, COSTS), "coverage", code=ExitCode.BAD_PARAMETERS)


def test_the_bare_arm_is_as_large_as_it_was_asked_to_be_and_told():
    control, told = Controller(BUDGET, COSTS, bare_share=0.05), []
    control.on_change = told.append
    levels = [control.level(i * 0.01) for i in range(4000)]
    share = scipy.stats.binomtest(levels.count("off"), 4000).proportion_ci(0.99, "exact")
    assert share.low < 0.05 < share.high and set(levels) == {"off", "monitor"}
    line_of_requests(control, [5000] * 100)
    assert told == list(control.changes) and told
