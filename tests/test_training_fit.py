"Training runs under fire: killed, out of disk, fed with NaN, collapsed. What was learnt before is kept, and what goes on ends as if nothing had happened."

import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from interpkit.core import artefacts
from interpkit.core.artefacts import read_json
from interpkit.core.errors import InterpkitError
from interpkit.model.releases import Release
from interpkit.training import fit as module
from interpkit.training import trainer as sparse_training
from interpkit.training.fit import (
    Watch,
    check_fold,
    complaints,
    curves,
    fit,
    go_on,
    line,
    made_by,
)
from interpkit.training.train import train_dictionary
from interpkit.training.trainer import OBJECTIVES, Recipe, Trainer

STEPS, SIZE, D, SITES = 120, 280, 12, "layers.0:in, layers.1:in, layers.2:in"
KINDS = dict(sae={}, clt={}, skip=dict(skip=True), tied=dict(tied=True))


def how(kind="sae", steps=STEPS, **options):
    return Recipe(40, 4, steps * SIZE, SIZE, 3e-3, window=20, **KINDS[kind], **options)


def batches(kind="sae", steps=STEPS, at=None, change=None):
    "Activations of known directions, the first 59 batches set the scale: tensors for an SAE, else sources and targets of one layer or of three. `change` may spoil batch `at`."
    g, n = torch.Generator().manual_seed(0), dict(sae=1, skip=1).get(kind, 3)
    reads, writes = (
        normalize(torch.randn(n, 30, D, generator=torch.Generator().manual_seed(s)), dim=2)
        for s in (1, 2)
    )
    for step in range(steps):
        codes = (torch.rand(SIZE, 30, generator=g) < 0.13) * (
            0.5 + torch.rand(SIZE, 30, generator=g)
        )
        x = [codes @ r + 0.1 * torch.randn(SIZE, D, generator=g) + 0.5 for r in reads]
        y = [torch.relu(codes @ w) for w in writes]
        if step == at:
            change(x, y)
        yield x[0] if kind == "sae" else (x, y)


def named(kind):
    return dict(sae="layers.0:out", skip="layers.0:in").get(kind, SITES)


def state(t: Trainer) -> dict:
    "All that a trainer is, to the last bit."
    adam = t.adam.state[t.parameter]
    tensors = dict(
        flat=t.p.flat,
        silent=t.silent,
        random=t.random.get_state(),
        **{n: adam[n] for n in ("step", "exp_avg", "exp_avg_sq")},
    )
    tensors |= {
        f"{n} {i}": x
        for i, w in enumerate(t.weights())
        for n, x in vars(w).items()
        if x is not None
    }
    return {n: x.numpy().tobytes() for n, x in tensors.items()} | {
        n: getattr(t, n) for n in ("taken", "threshold", "penalty", "l0", "fvu", "loss", "revived")
    }


def rows_of(folder):
    return [json.loads(x) for x in (folder / "log.jsonl").read_text().splitlines()]


def raised(code, call, *said) -> InterpkitError:
    with pytest.raises(InterpkitError) as e:
        call()
    assert e.value.code == code, e.value
    for text in said:
        assert text in str(e.value), e.value
    return e.value


def last_good(folder, error, kind="sae", step=None, **options) -> Trainer:
    "The checkpoint that an error names: it loads, all of it is finite, and it is of that step."
    assert str(folder / "checkpoint") in error.mend
    t = go_on(folder / "checkpoint", how(kind, **options))
    assert f"until step {t.taken} " in error.mend and (step is None or t.taken == step)
    assert torch.isfinite(t.p.flat).all() and all(
        torch.isfinite(w.W_enc).all() for w in t.weights()
    )
    return t


# going on


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_stops_twice_ends_like_one_that_never_did(tmp_path, kind, objective):
    r = how(kind, objective=objective, prefixes=(10,) if kind in ("sae", "clt") else ())
    whole = fit(batches(kind), r, named(kind), folder=tmp_path / "whole", every=30)
    for upto, kept in ((65, 60), (97, 90)):
        raised(
            65,
            lambda: fit(
                islice(batches(kind), upto), r, named(kind), folder=tmp_path / "parts", every=30
            ),
            f"until step {kept} ",
        )
    parts = fit(batches(kind), r, named(kind), folder=tmp_path / "parts", every=30)
    assert state(parts) == state(whole) and whole.revived > 0
    again = fit(iter(()), r, named(kind), folder=tmp_path / "parts")  # complete: asks for no batch
    assert state(again) == state(whole)
    assert (
        [x["step"] for x in rows_of(tmp_path / "parts")]
        == [x["step"] for x in rows_of(tmp_path / "whole")]
        == list(range(1, STEPS + 1))
    )
    unkept = fit(batches(kind), r, named(kind))
    assert state(unkept) == state(whole)  # keeping changes nothing


def test_a_checkpoint_holds_all_that_a_step_depends_on(tmp_path):
    "One step after loading equals one step of the trainer that was kept, whatever it was doing."
    for kind in KINDS:
        stream = batches(kind)
        t = Trainer(
            how(kind),
            *(lambda x: (x,) if torch.is_tensor(x) else x)(next(stream)),
            site=named(kind),
        )
        for i, x in enumerate(stream):
            x = (x,) if torch.is_tensor(x) else x
            if i % 29 == 0 and i:
                t.keep(tmp_path / kind)
                other = go_on(tmp_path / kind, how(kind))
                other.step(*x)
            t.step(*x)
            if i % 29 == 0 and i:
                assert state(other) == state(t)


KILLS = """
import os, random, signal, sys, time
sys.path.insert(0, "tests")
from test_training_fit import *
import safetensors.torch
root, kind, objective, kills, steps, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
r, random = how(kind, steps, objective=objective), random.Random(seed)
run = lambda folder: fit(batches(kind, steps), r, named(kind), folder=folder, every=5)

def strike_at(n):
    left = [n]
    def wrap(original):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        return call
    for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (Path, "mkdir"), (Path, "write_text"), (artefacts, "_exchange"), (safetensors.torch, "save_file")): setattr(owner, name, wrap(getattr(owner, name)))

def child(strike):
    if (pid := os.fork()) == 0:
        try: strike(); run(root / "killed")
        except BaseException: import traceback; traceback.print_exc(); os._exit(1)
        os._exit(0)
    return pid

began = time.monotonic()
whole = run(root / "whole")
took, done, steps_seen = time.monotonic() - began, 0, []
while done < kills:
    inside = done % 2
    pid = child((lambda: strike_at(random.randrange(5, 120))) if inside else (lambda: None))
    if not inside: time.sleep(random.uniform(0.02, 0.25) * took); os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0: shutil.rmtree(root / "killed"); done, steps_seen = 0, []; continue  # it was faster: begin anew
    assert status == -9, status
    kept = root / "killed" / "checkpoint"
    steps_seen.append(go_on(kept, r).taken if kept.exists() else 0)
    done += 1
again = run(root / "killed")
assert state(again) == state(whole)
assert [x["step"] for x in rows_of(root / "killed")] == [x["step"] for x in rows_of(root / "whole")]
assert steps_seen == sorted(steps_seen), steps_seen
assert sorted(p.name for p in (root / "killed").iterdir()) == ["checkpoint", "log.jsonl"]
print(steps_seen)
"""


def script(code, *args):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=os.environ | dict(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )


def test_killed_at_any_moment_and_finished_it_is_the_same(tmp_path):
    done = script(KILLS, tmp_path, "clt", "jumprelu", 6, 300, 0)
    assert done.returncode == 0, done.stderr
    assert max(json.loads(done.stdout)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_kills(tmp_path, kind, objective):
    done = script(KILLS, tmp_path, kind, objective, 10, 600, 1)
    assert done.returncode == 0, done.stderr


def two_layers():
    torch.manual_seed(0)
    return Release.from_module(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)),
        sites=["1:out"],
        name="v1",
        device="cpu",
    )


def table(n=400):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        rng.normal(size=(n, 6)).astype("float32"), columns=[f"x{i}" for i in range(6)]
    ).assign(sequence_id=[f"s{i}" for i in range(n)])


def train(store, wiring="per_layer", **kwargs):
    ends = dict(sites=["0:in", "2:in"], targets=["0:out", "2:out"]) if wiring != "sae" else {}
    return train_dictionary(
        two_layers(),
        table(),
        **ends,
        n_features=32,
        k=4,
        tokens=200 * 128,
        batch_size=128,
        wiring=wiring,
        store=store,
        **kwargs,
    )


def killed_after(tokens, *args):
    "SIGKILL from within after so many tokens; whether it came to that."
    if (pid := os.fork()) == 0:
        left = [tokens]

        def count(n):
            left[0] -= n
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            train(*args, progress=count)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_dictionary_that_was_killed_in_either_layer_has_the_same_fingerprint(tmp_path):
    done = script(
        """
import sys; sys.path.insert(0, "tests")
from test_training_fit import *
import warnings; warnings.simplefilter("ignore")
root = Path(sys.argv[1])
for wiring in ("per_layer", "clt"):
    whole = train(root / f"{wiring} whole", wiring)
    for tokens in (70 * 128, 100 * 128, (170 if wiring == "clt" else 205) * 128): print(killed_after(tokens if wiring == "per_layer" else tokens // 2, root / wiring, wiring))
    again = train(root / wiring, wiring)
    assert again.fingerprint == whole.fingerprint and again.training == whole.training, wiring
""",
        tmp_path,
    )
    assert done.returncode == 0 and done.stdout.split() == ["True"] * 6, (done.stdout, done.stderr)


def test_one_store_serves_several_wirings_and_mixes_nothing(tmp_path):
    "The same sites as transcoders and as a CLT: their checkpoints lie in the same place."
    train(tmp_path / "s")
    raised(64, lambda: train(tmp_path / "s", "clt"), "other batches")
    shutil.rmtree(tmp_path / "s" / "training-0")
    assert train(tmp_path / "s", "clt").fingerprint == train(tmp_path / "t", "clt").fingerprint


# failing loudly


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["source", "target"])
def test_nan_at_one_layer_is_named_with_step_and_site(tmp_path, side, value):
    def spoil(x, y):
        (x if side == "source" else y)[1][3, 4] = value

    e = raised(
        65,
        lambda: fit(
            batches("clt", at=70, change=spoil), how("clt"), SITES, folder=tmp_path, every=20
        ),
    )
    assert (
        "NaN or infinity at "
        + ("layers.1:in" if side == "source" else "the target of layers.1:in")
        + " in training batch 70"
    ) in e.given
    last_good(tmp_path, e, "clt", 60)


def test_a_short_training_that_ends_worse_than_it_began_is_refused_or_said():
    "Under a hundred steps nothing else is looked at."
    far, near = (Recipe(40, 4, 60 * SIZE, SIZE, lr) for lr in (50.0, 0.003))
    raised(
        65,
        lambda: fit(batches(steps=60), far),
        "times the variance is unexplained",
        "in the last of 60 steps",
        "smaller learning rate than lr=50",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = fit(batches(steps=60), near)
    trainer.loss = 1.5
    assert any("more unexplained than there is" in c for c in complaints(trainer))


def test_nan_in_the_first_tokens_leaves_no_checkpoint(tmp_path):
    def spoil(x, y):
        y[2][0, 0] = math.nan

    e = raised(
        65,
        lambda: fit(batches("clt", at=3, change=spoil), how("clt"), SITES, folder=tmp_path),
        "the target of layers.2:in in training batch 3",
    )
    assert "what was learnt" not in e.mend and not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("where", ["W_enc", "W_dec", "b_enc"])
@pytest.mark.parametrize("at", [58, 59, 65, 119])
def test_a_nan_in_a_gradient_never_reaches_a_checkpoint(tmp_path, monkeypatch, where, at):
    "Also where its feature just falls silent, and in the very step that a checkpoint is of."
    original, calls = sparse_training.gradients, []

    def planted(p, grad, *args, **kwargs):
        out = original(p, grad, *args, **kwargs)
        if len(calls) == at:
            getattr(grad, where)[1].view(-1)[7] = math.nan
        calls.append(1)
        return out

    monkeypatch.setattr(sparse_training, "gradients", planted)
    e = raised(
        65,
        lambda: fit(batches("clt"), how("clt", revive_until=0.0), SITES, folder=tmp_path, every=20),
    )
    assert "layers.1:in" in e.given and "step" in e.given and "smaller learning rate" in e.mend
    assert last_good(tmp_path, e, "clt", revive_until=0.0).taken <= at


def tampered(monkeypatch, at, change):
    "`change(trainer)` after step `at`."
    original = Trainer.step

    def step(self, *args):
        original(self, *args)
        if self.taken == at:
            change(self)

    monkeypatch.setattr(Trainer, "step", step)


def test_the_death_of_one_layer_is_named(tmp_path, monkeypatch):
    def kill(t):
        t.p.b_enc[1][3:], t.p.b_enc[1][:3] = -100.0, 5.0  # three of forty fire all the time

    tampered(monkeypatch, 65, kill)
    e = raised(
        65,
        lambda: fit(batches("clt"), how("clt", revive_until=0.0), SITES, folder=tmp_path, every=20),
        "features that fire",
        "of 40 dead at layers.1:in in step",
    )
    assert 60 <= last_good(tmp_path, e, "clt", revive_until=0.0).taken <= 80


@pytest.mark.parametrize(
    "bias,objective", [(-100.0, "batchtopk"), (5.0, "relu"), (-100.0, "jumprelu")]
)
def test_l0_out_of_band_at_one_layer_is_named(tmp_path, monkeypatch, bias, objective):
    def move(t):
        t.p.b_enc[2][:] = bias

    tampered(monkeypatch, 65, move)
    options = dict(objective=objective, revive_until=0.0)
    e = raised(
        65,
        lambda: fit(batches("clt"), how("clt", **options), SITES, folder=tmp_path, every=20),
        "at layers.2:in in step",
    )
    assert (
        "about 4 active features a token" in e.asked
        or "a loss that falls" in e.asked
        or "features that fire" in e.asked
    )
    last_good(tmp_path, e, "clt", **options)


def test_batches_that_end_early_leave_the_last_checkpoint(tmp_path):
    e = raised(
        65,
        lambda: fit(batches("tied", 75), how("tied"), SITES, folder=tmp_path, every=20),
        "120 batches",
        SITES,
    )
    assert e.given == "75" and "more epochs" in e.mend
    last_good(tmp_path, e, "tied", 60)


@pytest.mark.parametrize("mean,variation", [(1e6, 1e-2), (1e6, 1.0), (1e5, 1e-1), (3e5, 1e-1)])
def test_a_site_that_32_bits_do_not_carry_is_refused(tmp_path, mean, variation):
    for kind in ("sae", "clt"):

        def far():
            for x in batches(kind):
                yield (
                    mean + variation * x
                    if torch.is_tensor(x)
                    else ([x[0][0], mean + variation * x[0][1], x[0][2]], x[1])
                )

        e = raised(
            65,
            lambda: fit(far(), how(kind), named(kind), folder=tmp_path / kind),
            "layers.0:out" if kind == "sae" else "layers.",
        )
        assert "another site" in e.mend


def test_a_fold_that_changes_the_output_is_found_at_the_next_checkpoint(tmp_path, monkeypatch):
    original = Trainer._folded

    def folded(self, i):
        w = original(self, i)
        return sparse_training.replace(w, b_dec=w.b_dec + 0.3) if self.taken > 65 and i == 1 else w

    monkeypatch.setattr(Trainer, "_folded", folded)
    e = raised(
        65,
        lambda: fit(batches("clt"), how("clt"), SITES, folder=tmp_path, every=20),
        "reconstructions at layers.1:in",
        "after step 80",
    )
    last_good(tmp_path, e, "clt", 60)
    raised(
        65,
        lambda: fit(batches("clt"), how("clt"), SITES, folder=tmp_path, every=20),
        "after step 80",
    )  # and again: it never counts as done
    raised(
        65, lambda: fit(batches("clt"), how("clt"), SITES), f"after step {STEPS}"
    )  # without a folder at the end


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_fold_of_every_wiring_is_exact(kind, objective):
    t = fit(batches(kind), how(kind, objective=objective), named(kind))
    x = next(batches(kind, 1))
    xs = [x] if kind == "sae" else x[0]
    for inside, outside, o in zip(module._inside(t, xs), module._outside(t.weights(), xs), t.outs):
        assert float((inside - outside).square().mean()) < 1e-8 * o.size**2
    with torch.no_grad():
        t.weights = lambda w=t.weights(): tuple(
            sparse_training.replace(x, W_dec=x.W_dec * 1.2) for x in w
        )
    raised(65, lambda: check_fold(t, xs), "reconstructions at")


# checkpoints of something else, and broken ones


@pytest.fixture
def kept(tmp_path):
    raised(
        65,
        lambda: fit(
            batches("clt", 75), how("clt"), SITES, folder=tmp_path / "run", data="march", every=20
        ),
        "until step 60 ",
    )
    return tmp_path / "run"


@pytest.mark.parametrize(
    "change,said",
    [
        (dict(seed=1), "seed=0, not 1"),
        (dict(objective="topk"), "objective=batchtopk, not topk"),
        (dict(prefixes=(8,)), "prefixes=[], not [8, 40]"),
        (dict(data="april"), "other batches"),
        (dict(site="layers.0:in"), "not layers.0:in"),
    ],
)
def test_a_checkpoint_of_another_run_says_what_differs(kept, change, said):
    before = {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    where = dict(data="march", site=SITES) | {
        n: change.pop(n) for n in ("data", "site") if n in change
    }
    e = raised(
        64, lambda: fit(batches("clt"), how("clt", **change), folder=kept, **where), said, str(kept)
    )
    assert (
        "what was learnt" not in e.mend
        and {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()} == before
    )


def test_a_run_that_goes_on_by_other_means_says_so(kept, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go_on(kept / "checkpoint", how("clt"), "march")
    was = made_by()
    for now, said in (
        (dict(code="0123456789ab"), f"code {was['code']}, now 0123456789ab"),
        (dict(torch="9.9.9"), f"torch {was['torch']}, now 9.9.9"),
        (dict(threads=64), f"threads {was['threads']}, now 64"),
    ):
        monkeypatch.setattr(module, "made_by", lambda device: was | now)
        with pytest.warns(
            UserWarning, match=re.escape(f"other means than it began with ({said}): its weights")
        ):
            again = go_on(kept / "checkpoint", how("clt"), "march")
        assert again.taken == 60
    again.keep(kept / "checkpoint", "march")  # written by the other means ...
    monkeypatch.setattr(
        module, "made_by", lambda device: was
    )  # ... and gone on with by the first ones
    with pytest.warns(UserWarning, match="by others in between"):
        go_on(kept / "checkpoint", how("clt"), "march")
    s = read_json(kept / "checkpoint" / "state.json")
    assert s["by"] == [was, was | now]
    artefacts.write_json(
        kept / "checkpoint" / "state.json", {n: x for n, x in s.items() if n != "by"}
    )  # of an older version
    artefacts.write_manifest(kept / "checkpoint", "training")
    with pytest.warns(UserWarning, match="code unknown"):
        go_on(kept / "checkpoint", how("clt"), "march")


def test_whose_kernels_ran_is_part_of_it(monkeypatch):
    pytest.importorskip("triton", minversion="3.7")
    if torch.cuda.is_available():
        pytest.skip("Triton interprets nothing in a process that compiles")
    assert made_by()["kernels"] == "torch"
    monkeypatch.setenv("INTERPKIT_KERNELS", "triton")
    assert made_by()["kernels"] == "triton"


def test_the_code_of_a_checkpoint_is_all_of_this_floor(monkeypatch, tmp_path):
    home = Path(module.__file__).parent
    shutil.copytree(home, tmp_path / "dictionary")
    monkeypatch.setattr(
        inspect, "getfile", lambda _: str(tmp_path / "dictionary" / "sparse_training.py")
    )
    same = made_by()["code"]
    (tmp_path / "dictionary" / "kernels.py").write_text((home / "kernels.py").read_text() + "\n")
    assert made_by()["code"] != same


def test_a_checkpoint_of_another_format_is_refused(kept):
    s = read_json(kept / "checkpoint" / "state.json")
    artefacts.write_json(kept / "checkpoint" / "state.json", dict(format=2, other=s["taken"]))
    artefacts.write_manifest(kept / "checkpoint", "training")
    raised(
        64, lambda: fit(batches("clt"), how("clt"), SITES, folder=kept, data="march"), "format 2"
    )


def test_batches_of_another_shape_are_refused(kept):
    for other in (
        ([torch.randn(SIZE, D)] * 2, [torch.randn(SIZE, D)] * 2),
        ([torch.randn(SIZE, D)] * 3, [torch.randn(SIZE, D)] * 2 + [torch.randn(SIZE, 5)]),
        ([torch.randn(SIZE, D)] * 3, [torch.randn(SIZE - 1, D)] * 3),
    ):
        e = raised(
            64,
            lambda: fit(
                iter([None] * 60 + [other] * 60), how("clt"), SITES, folder=kept, data="march"
            ),
            "training batch 60",
        )
        assert "until step 60 " in e.mend


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "manifest.json"])
@pytest.mark.parametrize("change", ["truncated", "changed", "missing", "empty"])
def test_a_broken_checkpoint_is_one_clear_error(kept, name, change):
    file = kept / "checkpoint" / name
    data = file.read_bytes()
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes(
            dict(
                truncated=data[: len(data) // 2],
                changed=data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
                empty=b"",
            )[change]
        )
    e = raised(65, lambda: fit(batches("clt"), how("clt"), SITES, folder=kept, data="march"))
    assert "checkpoint" in str(e) and "what was learnt" not in e.mend and e.__cause__ is None


def test_a_replacement_that_was_interrupted_is_finished(kept):
    "Where folders can't change names in one step, a kill may leave the checkpoint under its older name."
    os.rename(kept / "checkpoint", kept / ".checkpoint.old")
    seen = []
    fit(batches("clt"), how("clt"), SITES, folder=kept, data="march", progress=seen.append)
    assert sum(seen) == 60 * SIZE  # went on, did not begin anew


# a full disk


def test_a_full_disk_at_any_operation_keeps_the_earlier_checkpoint(tmp_path, kept, monkeypatch):
    import errno

    import safetensors.torch

    whole = state(fit(batches("clt"), how("clt"), SITES))
    fired, n = True, 0
    while fired:
        folder = tmp_path / f"full {n}"
        shutil.copytree(kept, folder)
        with monkeypatch.context() as m:
            left, fired, error = [n], False, None

            def wrap(original):
                def call(*args, **kwargs):
                    nonlocal fired
                    left[0] -= 1
                    if left[0] == -1:
                        fired = True
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return original(*args, **kwargs)

                return call

            for owner, name in (
                (os, "fsync"),
                (os, "rename"),
                (os, "replace"),
                (Path, "mkdir"),
                (Path, "write_text"),
                (artefacts, "_exchange"),
                (safetensors.torch, "save_file"),
            ):
                m.setattr(owner, name, wrap(getattr(owner, name)))
            m.setattr(module, "open", wrap(open), raising=False)
            try:
                fit(batches("clt"), how("clt"), SITES, folder=folder, data="march", every=60)
            except InterpkitError as e:
                error = e
        t = go_on(folder / "checkpoint", how("clt"), "march")
        if fired:
            assert (
                error is not None
                and error.code == 75
                and "free some space" in error.mend
                and t.taken in (60, 120)
            ), (n, error)
        if fired and n % 7 == 0:
            assert (
                state(fit(batches("clt"), how("clt"), SITES, folder=folder, data="march")) == whole
            )
        assert not [
            p.name for p in folder.iterdir() if p.name not in ("checkpoint", "log.jsonl")
        ], n
        shutil.rmtree(folder)
        n += 1
    assert n > 60 and error is None


# what it says


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder, watched = tmp_path_factory.mktemp("logged"), []
    fit(batches("clt"), how("clt"), SITES, folder=folder, watch=watched.append)
    return folder, watched


def test_the_log_holds_what_one_wants_to_know(logged):
    folder, watched = logged
    rows = rows_of(folder)
    assert rows == watched and len(rows) == STEPS
    for i, r in enumerate(rows, 1):
        assert set(r) == {
            "site",
            "step",
            "steps",
            "tokens",
            "loss",
            "fvu",
            "l0",
            "dead_share",
            "tokens_per_second",
            "seconds_left",
            "peak_memory_mib",
        }
        assert (
            r["step"] == i
            and r["steps"] == STEPS
            and r["tokens"] == i * SIZE
            and r["site"] == rows[0]["site"]
            and all(math.isfinite(x) for n, x in r.items() if n != "site")
        )
        assert r["tokens_per_second"] > 0 and r["peak_memory_mib"] > 50 and r["seconds_left"] >= 0
    assert (
        rows[-1]["seconds_left"] == 0
        and rows[-1]["fvu"] < rows[5]["fvu"]
        and 2 < rows[-1]["l0"] < 8
    )


def test_a_line_says_it_in_words():
    row = dict(
        site="layers.1:in",
        step=500,
        steps=1000,
        tokens=1_024_000,
        loss=0.01234,
        fvu=0.0119,
        l0=15.94,
        dead_share=0.005,
        tokens_per_second=81_000,
        seconds_left=1200,
        peak_memory_mib=840,
    )
    assert (
        line(row)
        == "train at layers.1:in: 1,024,000 of 2,048,000 tokens, 1,200 s left: loss 0.0123, FVU 0.0119, L0 15.9, dead 0.5%, 81,000 tokens/s, 840 MiB"
    )
    assert line(row | dict(site="layers.1:in, layers.2:in")).startswith(
        "train at 2 sources: 1,024,000 of"
    )


def test_curves_show_the_log(logged):
    folder, rows = logged
    for source in (rows, folder / "log.jsonl", str(folder / "log.jsonl")):
        axes = curves(source).axes
        assert [a.get_title() for a in axes] == ["FVU", "L0", "share of dead features"]
        for ax, key in zip(axes, ("fvu", "l0", "dead_share")):
            x, y = ax.lines[0].get_data()
            assert x.tolist() == [r["tokens"] for r in rows] and y.tolist() == [
                r[key] for r in rows
            ]
    assert len(curves([]).axes) == 3


def test_without_a_front_end_watch_prints_the_first_line_and_the_last(capsys):
    watch = Watch(every=1000)
    fit(batches(), how(), watch=watch)
    said = capsys.readouterr().out.splitlines()
    assert (
        said == [line(watch.rows[0]), line(watch.rows[-1])]
        and len(watch.rows) == STEPS
        and watch.rows[-1]["step"] == STEPS
    )
    often = Watch(every=0)
    fit(batches(), how(), watch=often)
    assert len(capsys.readouterr().out.splitlines()) == STEPS


def test_watch_in_a_front_end_draws_and_in_a_job_prints(monkeypatch, capsys):
    from types import SimpleNamespace

    import IPython
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=1))
    monkeypatch.setattr(
        IPython.display,
        "display",
        lambda figure, display_id: shown.append(figure) or SimpleNamespace(update=shown.append),
    )
    monkeypatch.delenv("IPK_PROGRESS", raising=False)
    fit(batches(), how(), watch=Watch())
    assert (
        len(shown) >= 2
        and capsys.readouterr().out == ""
        and shown[-1].axes[0].lines[0].get_xdata()[-1] == STEPS * SIZE
    )
    monkeypatch.setenv("IPK_PROGRESS", "1")
    fit(batches(), how(), watch=Watch())
    assert "FVU" in capsys.readouterr().out


def test_a_log_line_cut_by_a_kill_goes(kept):
    (kept / "log.jsonl").open("a").write('{"step": 7')
    fit(batches("clt"), how("clt"), SITES, folder=kept, data="march")
    assert [r["step"] for r in rows_of(kept)] == list(range(1, STEPS + 1))


def test_complaints_are_about_the_layer_that_is_meant():
    t = fit(batches("clt"), how("clt"), SITES)
    t.l0 = [2.0, 4.0, 6.0]  # right on average
    t.silent[1, :30] = 10**9
    found = complaints(t)
    assert (
        len(found) == 3
        and "layers.0:in ended with 2.00" in found[0]
        and "75% of the features at layers.1:in" in found[1]
        and "layers.2:in ended with 6.00" in found[2]
    )
