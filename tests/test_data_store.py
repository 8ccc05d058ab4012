"""The activation store: the same bytes after any kill, and nothing half-written on a full disk.

Nothing is mixed, and nothing is silently short.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from small_store import HIDDEN, POOLED, Network, make_rows, release_of, tree, write

from interpkit.core.errors import InterpkitError
from interpkit.core.files import write_json
from interpkit.data.store import ActivationStore
from interpkit.model.releases import Release


def test_what_is_read_is_what_the_model_had_at_the_positions_that_count(tmp_path):
    rows = make_rows()
    release = release_of()
    store = write(tmp_path / "s", rows, release)
    expected = torch.cat(
        [release.model.hidden.weight[torch.tensor(x[1:])] for x in rows.input_ids]
    ).detach()
    assert torch.equal(store.read(HIDDEN), expected)
    assert store.n_tokens == len(expected) == sum(len(x) - 1 for x in rows.input_ids)
    assert store.read(POOLED).shape == (70, 3)
    assert store.tokens(POOLED) == store.n_sequences == 70
    assert (store.d(HIDDEN), store.d(POOLED)) == (4, 3)
    assert torch.equal(
        store.read(POOLED)[:8], release.batch(rows.head(8)).run(release.model).detach()
    )


@pytest.mark.parametrize(
    "dtype,torch_dtype",
    [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)],
)
def test_dtypes(tmp_path, dtype, torch_dtype):
    store = write(tmp_path / dtype, dtype=dtype)
    whole = write(tmp_path / "whole")
    assert store.read(HIDDEN).dtype == torch_dtype
    assert torch.equal(store.read(HIDDEN), whole.read(HIDDEN).to(torch_dtype))
    assert next(store.batches(HIDDEN, 10)).dtype == torch.float32


def test_what_does_not_fit_into_the_dtype_is_refused_with_its_row(tmp_path):
    rows = make_rows(20)
    rows.at[13, "input_ids"] = [1, 49]
    for i in range(20):
        if i != 13:
            rows.at[i, "input_ids"] = [1, 2, 0]
    big = release_of(scale=1e5)
    error = refused(
        lambda: write(tmp_path / "s", rows, big, sites=[HIDDEN], dtype="fp16"), "row 13", code=64
    )
    assert "bf16" in error.mend
    with torch.no_grad():
        big.model.hidden.weight[49] = torch.nan
    refused(lambda: write(tmp_path / "t", rows, big, sites=[HIDDEN]), "row 13")
    assert not (tmp_path / "t").exists()


def test_a_row_is_called_what_the_caller_calls_it(tmp_path):
    rows = make_rows(40).set_axis(range(100, 140))
    release = release_of()
    rows.at[131, "input_ids"] = [1, 49]
    for i in range(100, 140):
        if i != 131:
            rows.at[i, "input_ids"] = [1, 2, 3]
    with torch.no_grad():
        release.model.hidden.weight[49] = torch.nan
    for numbers, said in ((None, "row 131"), (np.arange(40) * 2, "row 62")):
        with pytest.raises(InterpkitError, match=rf"{said}\b"):
            write(tmp_path / said, rows, release, sites=[HIDDEN], numbers=numbers)


def test_nan_in_padding_is_nobodys_concern(tmp_path):
    release = release_of()
    with torch.no_grad():
        release.model.hidden.weight[0] = torch.nan
    assert torch.isfinite(write(tmp_path / "s", release=release, sites=[HIDDEN]).read(HIDDEN)).all()


ROOT = Path(__file__).parent.parent
STRUCK = """
import os
import sys
from pathlib import Path

import torch
from small_store import make_rows, tree, write

from interpkit.core.errors import InterpkitError
from interpkit.data import shards
from interpkit.data.store import ActivationStore

torch.set_num_threads(1)
root = Path(sys.argv[1])


def run(folder):
    return tree(write(folder, rows=make_rows(24), shard_sequences=8).folder)


def strike_at(k):
    "Let k operations on storage pass and strike at the next."
    left = [k]

    def wrap(original):
        def call(*args, **kwargs):
            if left[0] == 0:
                {strike}
            left[0] -= 1
            return original(*args, **kwargs)

        return call

    operations = [
        (os, "fsync"),
        (os, "replace"),
        (Path, "write_text"),
        (shards, "save_tensors"),
        (Path, "mkdir"),
    ]
    for owner, name in operations:
        setattr(owner, name, wrap(getattr(owner, name)))


reference = run(root / "reference")
for k in range(100):
    folder = root / str(k)
    if (pid := os.fork()) == 0:
        strike_at(k)
        try:
            run(folder)
        except InterpkitError as e:
            os._exit(int(e.code))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, {code}), status
    if {code} == 75 and folder.exists():
        assert not [p for p in folder.iterdir() if "aside" in p.name]
    if status:
        try:
            ActivationStore(folder)
        except InterpkitError:
            pass
        else:
            assert tree(folder) == reference
    assert run(folder) == reference, k
    if status == 0:
        break
print(k)
"""
SLOWLY = """
import sys
import time

from small_store import write


def progress(done, n):
    print(done, flush=True)
    time.sleep(0.5)


write(sys.argv[1], progress=progress)
"""
SMALL_FILES = """
import resource
import signal
import sys

from small_store import make_rows, write

from interpkit.core.errors import InterpkitError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    write(sys.argv[1], rows=make_rows(400), shard_sequences=300)
except InterpkitError as e:
    print(e)
    sys.exit(int(e.code))
"""


def start(code, folder):
    "A process that runs `code`, with the modules of these tests at hand."
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | dict(OMP_NUM_THREADS="1", PYTHONPATH=path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    "strike,code",
    [("os._exit(9)", 9), ("raise OSError(28, 'No space left on device')", 75)],
    ids=["kill", "full disk"],
)
def test_struck_at_any_operation_the_next_call_completes_the_same_bytes(tmp_path, strike, code):
    process = start(STRUCK.format(strike=strike, code=code), tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert int(out) >= 15


def test_kill_minus_nine_then_the_same_call_again(tmp_path):
    process = start(SLOWLY, tmp_path / "s")
    assert [process.stdout.readline(), process.stdout.readline()] == ["16\n", "32\n"]
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    refused(lambda: ActivationStore(tmp_path / "s"), "shard-00004.safetensors is missing")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("shard*")}
    (tmp_path / "s/shard-00001.safetensors").write_bytes(b"half")
    write(tmp_path / "s")
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("shard*")}
    assert tree(tmp_path / "s") == tree(write(tmp_path / "whole").folder)
    assert (
        before["shard-00000.safetensors"] == after["shard-00000.safetensors"]
    )  # verified, not made again


def test_a_disk_that_is_full_for_the_system_too(tmp_path):
    process = start(SMALL_FILES, tmp_path / "s")
    out, err = process.communicate()
    assert process.returncode == 75, (out, err)
    assert "free some space" in out
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["store.json"]


@pytest.mark.parametrize(
    "change,said",
    [
        (dict(release=release_of("v2")), "another release"),
        (dict(rows=make_rows(seed=1)), "another rows"),
        (dict(rows=make_rows().iloc[::-1]), "another order of the rows"),
        (dict(rows=make_rows(60)), "number of rows"),
        (dict(sites=[HIDDEN]), "another sites"),
        (dict(sites=[POOLED, HIDDEN]), "another sites"),
        (dict(dtype="bf16"), "another dtype"),
        (dict(shard_sequences=17), "another shard_sequences"),
    ],
)
def test_a_store_of_something_else_is_refused_and_left_alone(tmp_path, change, said):
    write(tmp_path / "s")
    before = tree(tmp_path / "s")
    assert said in refused(lambda: write(tmp_path / "s", **change)).given
    assert tree(tmp_path / "s") == before


@pytest.mark.parametrize(
    "damage,said",
    [
        (lambda f: (f / "shard-00002.safetensors").unlink(), "shard-00002.safetensors is missing"),
        (
            lambda f: (f / "shard-00002.safetensors").write_bytes(b"x"),
            "shard-00002.safetensors was changed",
        ),
        (lambda f: (f / "manifest.json").unlink(), "shard-00000.safetensors is missing"),
        (lambda f: (f / "shard-00009.safetensors").write_bytes(b"x"), "was added"),
        (
            lambda f: write_json(
                f / "store.json", json.loads((f / "store.json").read_text()) | dict(sequences=40)
            ),
            "store.json was changed",
        ),
        (lambda f: (f / "store.json").unlink(), "no store.json"),
    ],
)
def test_a_damaged_store_is_not_read(tmp_path, damage, said):
    write(tmp_path / "s")
    damage(tmp_path / "s")
    assert said in refused(lambda: ActivationStore(tmp_path / "s")).given


@pytest.mark.parametrize(
    "wrong,code",
    [
        (dict(dtype="fp8"), 64),
        (dict(shard_sequences=0), 64),
        (dict(batch=0), 64),
        (dict(sites=[HIDDEN, HIDDEN]), 64),
        (dict(sites=["hiden"]), 65),
        (dict(rows=make_rows().head(0)), 65),
        (dict(rows=make_rows().drop(columns="sequence_id")), 65),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, wrong, code):
    refused(lambda: write(tmp_path / "s", **wrong), code=code)


def test_a_folder_with_other_files_is_not_filled(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused(lambda: write(tmp_path), code=64)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def sorted_rows(x):
    return x[np.lexsort(x.T.numpy())]


def test_an_epoch_holds_every_token_once_in_an_order_of_the_seed(tmp_path):
    store = write(tmp_path / "s")
    acts = store.read(HIDDEN)

    def epoch(seed):
        return torch.cat(list(store.batches(HIDDEN, 32, seed=seed, epochs=1)))

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert torch.equal(sorted_rows(first), sorted_rows(acts))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, acts)
    two = torch.cat(list(store.batches(HIDDEN, 32, seed=1, epochs=2)))
    whole = len(acts) // 32 * 32  # the next batch has tokens of both epochs
    assert torch.equal(two[:whole], first[:whole])
    each = torch.cat(list(store.batches(HIDDEN, 1, seed=1, epochs=2))).split(len(acts))
    assert all(torch.equal(sorted_rows(tokens), sorted_rows(acts)) for tokens in each)
    assert not torch.equal(*each)


def test_shuffling_crosses_shards(tmp_path):
    rows = make_rows(64).assign(input_ids=[[1, 2 + i // 2] for i in range(64)])
    values = next(write(tmp_path / "s", rows).batches(HIDDEN, 16, seed=0))[:, 0]
    assert (values < 0.4).any()  # sequences of the first shard
    assert (values > 1.0).any()  # and of the last


def test_blocks_smaller_than_the_store_lose_and_repeat_nothing(tmp_path, monkeypatch):
    from interpkit.data import store as module

    store = write(tmp_path / "s")
    for block, batch in ((7, 3), (20, 64), (1, 1000)):
        monkeypatch.setattr(module, "BLOCK", block)
        got = list(store.batches(HIDDEN, batch, seed=1, epochs=2))
        assert {len(b) for b in got[:-1]} <= {batch}
        assert 0 < len(got[-1]) <= batch
        assert torch.equal(
            sorted_rows(torch.cat(got)), sorted_rows(torch.cat([store.read(HIDDEN)] * 2))
        )


def test_more_tokens_than_the_epochs_hold_are_refused_before_the_first_batch(tmp_path):
    store = write(tmp_path / "s")
    n = store.n_tokens
    refused(lambda: store.batches(HIDDEN, 10, epochs=3, tokens=3 * n + 1), f"hold {3 * n}")
    assert sum(map(len, store.batches(HIDDEN, 10, epochs=3, tokens=3 * n))) == 3 * n
    assert sum(map(len, store.batches(HIDDEN, 10, tokens=5 * n + 3))) == 5 * n + 3
    assert [len(b) for b in store.batches(HIDDEN, 10, tokens=25)] == [10, 10, 5]


def test_without_epochs_it_never_ends(tmp_path):
    store = write(tmp_path / "s", make_rows(3), sites=[HIDDEN])
    endless = store.batches(HIDDEN, 4)
    assert all(len(next(endless)) == 4 for _ in range(200))


def test_reading_refuses_what_it_does_not_have(tmp_path):
    store = write(tmp_path / "s", sites=[HIDDEN])
    for call in (
        lambda: store.read(POOLED),
        lambda: store.d("pooled"),
        lambda: store.batches(POOLED, 4),
        lambda: store.batches(HIDDEN, 0),
        lambda: store.batches(HIDDEN, 4, epochs=0),
    ):
        refused(call, code=64)
    uncounted = Release.from_module(
        Network(),
        inputs=lambda rows: dict(
            input_ids=torch.ones(len(rows), 1, dtype=torch.long),
            attention_mask=torch.ones(len(rows), 1),
            mask=torch.zeros(len(rows), 1),
        ),
        decision=lambda out: out[:, 0],
        sites=[HIDDEN],
        device="cpu",
    )
    nothing = write(tmp_path / "t", make_rows(4), uncounted, sites=[HIDDEN])
    refused(lambda: nothing.batches(HIDDEN, 4), "no position")
