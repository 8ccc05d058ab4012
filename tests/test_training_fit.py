"""Training runs under fire: killed, out of disk, fed with NaN, collapsed.

What was learnt before is kept, and what goes on ends as if nothing had happened."""

import errno
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import refused
from small_trainings import (
    KINDS,
    SITES,
    SIZE,
    STEPS,
    D,
    batches,
    how,
    named,
    rows_of,
    run,
    state,
    train,
)

from interpkit.core import artefacts
from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.core.files import read_json
from interpkit.training import checkpoint, watch
from interpkit.training.checkpoint import go_on, keep, made_by
from interpkit.training.complaints import (
    check_fold,
    complaints,
    decided,
    rebuilt_by_trainer,
    rebuilt_by_weights,
    stop_where_collapsed,
)
from interpkit.training.fit import fit
from interpkit.training.recipe import OBJECTIVES, Recipe, recipe
from interpkit.training.start import centred_batch
from interpkit.training.trainer import Trainer
from interpkit.training.watch import Watch, curves, line


def last_good(folder, error, kind="sae", step=None, **options) -> Trainer:
    "The checkpoint that an error names: it loads, all of it is finite, and it is of that step."
    assert str(folder / "checkpoint") in error.mend
    t = go_on(folder / "checkpoint", how(kind, **options))
    assert f"until step {t.taken} " in error.mend
    assert step is None or t.taken == step
    assert torch.isfinite(t.p.flat).all()
    assert all(torch.isfinite(w.W_enc).all() for w in t.weights())
    return t


# what comes in


@pytest.mark.parametrize(
    "spoilt, words",
    [
        (lambda x: x[:0], "[0, 12]"),
        (lambda x: x.view(4, -1, 12), "[4, 70, 12]"),
        (lambda x: x[:, :5], "of widths [12]"),
    ],
)
@pytest.mark.parametrize("at", [1, 80])
def test_a_batch_of_another_form_is_refused_in_words(spoilt, words, at):
    stream = (spoilt(x[0]) if i == at else x[0] for i, (x, _) in enumerate(batches()))
    with pytest.raises(InterpkitError) as caught:
        fit(stream, how())
    assert words in str(caught.value), str(caught.value)


@pytest.mark.parametrize("form", [torch.float16, torch.bfloat16, torch.float64, "gradients"])
def test_activations_of_any_precision_are_read_in_32_bits(form):
    def given():
        for (x,), _ in batches(steps=6):
            yield x.clone().requires_grad_() if form == "gradients" else x.to(form)

    whole = [x.detach().float() for x in given()]
    assert state(fit(given(), how(steps=6))) == state(fit(whole, how(steps=6)))


def test_targets_of_two_widths_are_refused_before_a_step():
    x = torch.randn(SIZE, 8)
    pair = [x, x], [x[:, :6], x[:, :3]]
    refused(lambda: fit([pair] * STEPS, how("clt")), "6, 3", code=ExitCode.BAD_PARAMETERS)


NO_NUMBERS = [
    dict(n_features=0),
    dict(k=1.5),
    dict(batch_size=-5),
    dict(seed="a"),
    dict(tokens=2e6),
]


@pytest.mark.parametrize("bad", NO_NUMBERS)
def test_sizes_that_are_no_numbers_of_things_are_refused(bad):
    (name,) = bad
    sizes = dict(n_features=16, k=2, tokens=1000) | bad
    refused(lambda: recipe(**sizes), f"{name}={bad[name]!r}", code=ExitCode.BAD_PARAMETERS)


def test_what_is_no_activations_or_no_recipe_is_named():
    x = torch.randn(STEPS * SIZE, D)
    for given, name in (
        ([x.numpy()], "ndarray"),
        ([7], "int"),
        ([([x.numpy()], [])], "ndarray"),
    ):
        refused(lambda given=given: fit(given, how()), name, "torch.as_tensor")
    refused(lambda: fit(x, how()), f"float32 [{D}]", "acts.split(batch_size)")
    refused(lambda: fit([], how()), "no batch")
    for given, name in ((dict(k=3), "a dict"), (x.split(SIZE), "a tuple")):
        parts = name, "fit(batches, recipe("
        refused(lambda given=given: fit(how(), given), *parts, code=ExitCode.BAD_PARAMETERS)


@pytest.mark.parametrize("sources", [[], [torch.randn(9, D).double()], [torch.randn(2, 9, D)]])
def test_a_trainer_takes_float32_of_tokens_and_nothing_else(sources):
    part = "float32, [tokens, d]" if sources else "0 sources"
    refused(lambda: Trainer(how(), sources), part, code=ExitCode.BAD_PARAMETERS)


# going on


def every_pair():
    "Each kind by one objective and each objective of one kind; the rest of the grid is slow."
    for kind, objective in product(KINDS, OBJECTIVES):
        near = kind == "sae" or objective == "batchtopk"
        yield pytest.param(kind, objective, marks=[] if near else pytest.mark.slow)


@pytest.mark.parametrize("kind, objective", every_pair())
def test_a_run_that_stops_twice_ends_like_one_that_never_did(tmp_path, kind, objective):
    r = how(kind, objective=objective, prefixes=(10,) if kind in ("sae", "clt") else ())
    too_many = (kind, objective) != ("tied", "relu")  # which would not reach its k in these steps
    r = replace(r, n_features=160) if too_many else r  # of 30 directions: some die, whatever rounds
    whole_folder, parts_folder = tmp_path / "whole", tmp_path / "parts"

    def stopped_at(n):
        return fit(islice(batches(kind), n), r, named(kind), folder=parts_folder, every=30)

    whole = run(kind, r, folder=whole_folder, every=30)
    refused(lambda: stopped_at(65), "until step 60 ")
    refused(lambda: stopped_at(97), "until step 90 ")
    assert state(run(kind, r, folder=parts_folder, every=30)) == state(whole)
    assert whole.revived > 0 or not too_many
    again = fit(iter(()), r, named(kind), folder=parts_folder)  # complete: asks for no batch
    assert state(again) == state(whole)
    for folder in (parts_folder, whole_folder):
        assert [x["step"] for x in rows_of(folder)] == list(range(1, STEPS + 1))
    assert state(run(kind, r)) == state(whole)  # keeping changes nothing


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_all_that_a_step_depends_on(tmp_path, kind):
    "One step after loading equals one step of the trainer that was kept, whatever it was doing."
    stream = batches(kind)
    t = Trainer(how(kind), *next(stream), site=named(kind))
    for i, batch in enumerate(stream):
        is_kept = i % 29 == 0 and i > 0
        if is_kept:
            keep(t, tmp_path / kind)
            other = go_on(tmp_path / kind, how(kind))
            other.step(*batch)
        t.step(*batch)
        if is_kept:
            assert state(other) == state(t)


def test_a_single_tensor_is_the_batch_of_an_sae():
    alone = fit((sources[0] for sources, _ in batches()), how(), named("sae"))
    assert state(alone) == state(run("sae"))


KILLS = """
import os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, "tests")
import safetensors.torch
from small_trainings import batches, how, named, rows_of, state
from interpkit.core import artefacts
from interpkit.training.checkpoint import go_on
from interpkit.training.fit import fit
root, kind, objective = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
kills, steps, seed = map(int, sys.argv[4:])
recipe = how(kind, steps, objective=objective)
random = random.Random(seed)

def run(folder):
    return fit(batches(kind, steps), recipe, named(kind), folder=folder, every=5)

OPERATIONS = [
    (os, "fsync"), (os, "rename"), (os, "replace"), (Path, "mkdir"), (Path, "write_text"),
    (artefacts, "_exchange"), (safetensors.torch, "save_file"),
]

def strike_at(n):
    left = [n]
    def wrap(original):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)
        return call
    for owner, name in OPERATIONS:
        setattr(owner, name, wrap(getattr(owner, name)))

def child(operations):
    if (pid := os.fork()) == 0:
        try:
            if operations is not None:
                strike_at(operations)
            run(root / "killed")
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

began = time.monotonic()
whole = run(root / "whole")
took = time.monotonic() - began
done, steps_seen = 0, []
while done < kills:
    is_inside = done % 2
    pid = child(random.randrange(5, 120) if is_inside else None)
    if not is_inside:
        time.sleep(random.uniform(0.02, 0.25) * took)
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 0:  # it was faster: begin anew
        shutil.rmtree(root / "killed")
        done, steps_seen = 0, []
        continue
    assert status == -9, status
    kept = root / "killed" / "checkpoint"
    steps_seen.append(go_on(kept, recipe).taken if kept.exists() else 0)
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
    done = script(KILLS, tmp_path, "clt", "jumprelu", 4, 300, 0)
    assert done.returncode == 0, done.stderr
    assert max(json.loads(done.stdout)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_kills(tmp_path, kind, objective):
    done = script(KILLS, tmp_path, kind, objective, 10, 600, 1)
    assert done.returncode == 0, done.stderr


KILLED_IN_A_LAYER = """
import sys, warnings
from pathlib import Path
sys.path.insert(0, "tests")
from small_trainings import killed_after, train
warnings.simplefilter("ignore")
root = Path(sys.argv[1])
for wiring, batches in (("per_layer", (70, 100, 205)), ("clt", (35, 50, 85))):
    whole = train(root / f"{wiring} whole", wiring)
    for n in batches:
        print(killed_after(n * 128, root / wiring, wiring))
    again = train(root / wiring, wiring)
    assert again.fingerprint == whole.fingerprint, wiring
    assert again.training == whole.training, wiring
"""


@pytest.mark.slow
def test_a_dictionary_that_was_killed_in_either_layer_has_the_same_fingerprint(tmp_path):
    done = script(KILLED_IN_A_LAYER, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 6


def test_one_store_serves_several_wirings_and_mixes_nothing(tmp_path):
    "The same sites as transcoders and as a CLT: their checkpoints lie in the same place."
    train(tmp_path / "s")
    refused(lambda: train(tmp_path / "s", "clt"), "other batches", code=64)
    shutil.rmtree(tmp_path / "s" / "training-0")
    assert train(tmp_path / "s", "clt").fingerprint == train(tmp_path / "t", "clt").fingerprint


# failing loudly


def fit_spoilt(folder, at, change, **kwargs):
    "A CLT on batches of which one is spoilt."
    return fit(batches("clt", at=at, change=change), how("clt"), SITES, folder=folder, **kwargs)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["source", "target"])
def test_nan_at_one_layer_is_named_with_step_and_site(tmp_path, side, value):
    def spoil(x, y):
        (x if side == "source" else y)[1][3, 4] = value

    e = refused(lambda: fit_spoilt(tmp_path, 70, spoil, every=20))
    name = "layers.1:in" if side == "source" else "the target of layers.1:in"
    assert f"NaN or infinity at {name} in training batch 70" in e.given
    last_good(tmp_path, e, "clt", 60)


def test_a_short_training_that_ends_worse_than_it_began_is_refused_or_said():
    "Under a hundred steps nothing else is looked at."
    far, near = (Recipe(40, 4, 60 * SIZE, SIZE, lr) for lr in (500.0, 0.003))
    refused(
        lambda: fit(batches(steps=60), far),
        "times the variance is unexplained",
        "in the last of 60 steps",
        "smaller learning rate than lr=500",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = fit(batches(steps=60), near)
    trainer.loss = 1.5
    assert any("more unexplained than there is" in text for text in complaints(trainer))


@pytest.mark.parametrize("kind", ["sae", "clt"])
def test_too_few_active_features_stop_what_no_other_source_explains(kind):
    x, y = next(iter(batches(kind)))
    t = Trainer(how(kind, objective="topk"), x, y, site=named(kind))
    t.taken = t.recipe.steps
    t.loss = t.fvu = 0.2
    t.l0[-1] = 1.0  # 4 were asked for
    if kind == "sae":
        refused(lambda: stop_where_collapsed(t), "about 4 active features", "1 at")
    else:
        stop_where_collapsed(t)  # the last of three layers may be left with nothing to say
    t.fvu = 0.6
    refused(lambda: stop_where_collapsed(t), "about 4 active features", "1 at")
    t.fvu, t.l0[-1] = 0.2, 9.0  # too many are so for every source
    refused(lambda: stop_where_collapsed(t), "about 4 active features", "9 at")


def test_layers_that_share_k_are_held_against_it_together():
    x, y = next(iter(batches("clt")))
    t = Trainer(how("clt"), x, y, site=named("clt"))
    t.taken, t.loss, t.fvu = t.recipe.steps, 0.2, 0.2
    t.l0 = [9.0, 2.5, 0.5]
    stop_where_collapsed(t)
    assert not complaints(t)
    t.l0 = [9.0, 2.7, 0.3]
    (text,) = complaints(t)
    assert "layers.2:in has 0.30 active features" in text
    for l0, fvu in ((9.0, 0.2), (1.0, 0.2), (1.0, 0.6)):
        t.l0, t.fvu = [l0] * 3, fvu
        refused(lambda: stop_where_collapsed(t), "about 4 active features", f"{l0:g} at layers.0")


def test_nan_in_the_first_tokens_leaves_no_checkpoint(tmp_path):
    def spoil(x, y):
        y[2][0, 0] = math.nan

    e = refused(
        lambda: fit_spoilt(tmp_path, 3, spoil), "the target of layers.2:in in training batch 3"
    )
    assert "what was learnt" not in e.mend
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    "where, at",
    [*(("W_enc", at) for at in (58, 59, 65, 119)), ("W_dec", 59), ("W_dec", 65), ("b_enc", 119)],
)
def test_a_nan_in_a_gradient_never_reaches_a_checkpoint(tmp_path, monkeypatch, where, at):
    "Also where its feature just falls silent, and in the very step that a checkpoint is of."
    original = Trainer.move

    def planted(self, tensor, gradient):
        if self.taken == at and tensor is getattr(self.p, where)[1]:
            gradient.view(-1)[7] = math.nan
        original(self, tensor, gradient)

    monkeypatch.setattr(Trainer, "move", planted)
    recipe = how("clt", revive_until=0.0)
    e = refused(lambda: run("clt", recipe, folder=tmp_path, every=20), "smaller learning rate")
    assert "layers.1:in" in e.given
    assert "step" in e.given
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
        t.p.b_enc[1][3:] = -100.0
        t.p.b_enc[1][:3] = 5.0  # three of forty fire all the time

    tampered(monkeypatch, 65, kill)
    recipe = how("clt", revive_until=0.0)
    e = refused(
        lambda: run("clt", recipe, folder=tmp_path, every=20),
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
    recipe = how("clt", **options)
    e = refused(lambda: run("clt", recipe, folder=tmp_path, every=20), "at layers.2:in in step")
    asked = ("about 4 active features per token", "a loss that falls", "features that fire")
    assert any(text in e.asked for text in asked)
    last_good(tmp_path, e, "clt", **options)


def test_batches_that_end_early_leave_the_last_checkpoint(tmp_path):
    e = refused(
        lambda: fit(batches("tied", 75), how("tied"), SITES, folder=tmp_path, every=20),
        "120 batches",
        SITES,
    )
    assert e.given == "75"
    assert "another epoch" in e.mend
    last_good(tmp_path, e, "tied", 60)


@pytest.mark.parametrize("kind", ["sae", "clt"])
@pytest.mark.parametrize("mean,variation", [(1e6, 1e-2), (1e6, 1.0), (1e5, 1e-1), (3e5, 1e-1)])
def test_a_site_that_32_bits_do_not_carry_is_refused(tmp_path, kind, mean, variation):
    def far():
        for x, y in batches(kind):
            i = len(x) // 2
            yield [*x[:i], mean + variation * x[i], *x[i + 1 :]], y

    e = refused(
        lambda: fit(far(), how(kind), named(kind), folder=tmp_path),
        "layers.0:out" if kind == "sae" else "layers.",
    )
    assert "another site" in e.mend


def test_a_fold_that_changes_the_output_is_found_at_the_next_checkpoint(tmp_path, monkeypatch):
    original = Trainer.folded

    def folded(self, i):
        w = original(self, i)
        return replace(w, b_dec=w.b_dec + 0.3) if self.taken > 65 and i == 1 else w

    monkeypatch.setattr(Trainer, "folded", folded)

    def kept():
        return run("clt", folder=tmp_path, every=20)

    e = refused(kept, "reconstructions at layers.1:in", "after step 80")
    last_good(tmp_path, e, "clt", 60)
    refused(kept, "after step 80")  # and again: it never counts as done
    refused(lambda: run("clt"), f"after step {STEPS}")  # without a folder at the end


@pytest.mark.parametrize("size", [SIZE // 2, 2 * SIZE])
def test_batches_are_of_the_size_that_the_recipe_counts_in(size):
    "Else a training takes other steps, on other tokens, than its record says."
    others = (torch.randn(size, D) for _ in range(STEPS))
    parts = f"batches of {SIZE} tokens", str(size)
    refused(lambda: fit(others, how()), *parts, code=ExitCode.BAD_PARAMETERS)


def test_another_training_s_checkpoint_is_not_gone_on_with(tmp_path):
    "Without `data` its first batch says whose it is."
    first, other = ([torch.randn(SIZE, D) for _ in range(STEPS)] for _ in range(2))
    kept = fit(first, how(), folder=tmp_path)
    refused(
        lambda: fit(other, how(), folder=tmp_path),
        "other batches",
        str(tmp_path),
        code=ExitCode.BAD_PARAMETERS,
    )
    assert state(fit(first, how(), folder=tmp_path)) == state(kept)


def test_later_batches_may_be_smaller_but_not_larger(tmp_path):
    "The last of an epoch is; a larger one is refused, after going on from a checkpoint too."
    good = [torch.randn(SIZE, D) for _ in range(STEPS)]
    last_of_an_epoch = [*good[:9], good[9][:5], *good[10:]]
    assert fit(last_of_an_epoch, how()).taken == STEPS
    larger = [*good[:70], torch.randn(SIZE + 1, D), *good[71:]]
    for _ in range(2):  # the second goes on
        refused(
            lambda: fit(larger, how(), folder=tmp_path, every=20),
            f"{SIZE + 1} in batch 70",
            "until step 60",
            code=ExitCode.BAD_PARAMETERS,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_features_at_the_very_threshold_say_nothing_of_a_fold(kind):
    "As revived features are, each for a token of the batch that a checkpoint looks at."
    t = run(kind)
    sources, targets = next(batches(kind, 1))
    xs, y = centred_batch(sources, targets, t.scales, t.outs)
    for i, x in enumerate(xs):
        t.silent[i].fill_(t.recipe.window_tokens)
        white = t.whitened(i, x)
        for _ in range(60):  # a few at a time, until all are
            t.revive(i, white, t.p.shape.part(y, i))
    assert t.revived >= t.recipe.n_features * len(xs)
    assert not decided(t, sources).all()
    check_fold(t, sources)
    right = t.weights()
    t.site_weights = lambda i: replace(right[i], W_dec=right[i].W_dec * 1.2)
    refused(lambda: check_fold(t, sources), "reconstructions at")


def test_a_few_tokens_are_not_enough_to_judge_a_fold_by():
    "Six on which nothing fires, and one again and again, whose feature is at the very threshold."
    t, (sources, _) = run("sae"), next(batches("sae", 1))
    x = sources[0]
    white = t.whitened(0, t.scales[0].centred(x))
    pre = white @ t.p.W_enc[0].T + t.p.b_enc[0]
    token, f = divmod(int(pre.argmax()), pre.shape[1])
    t.p.b_enc[0][f] += t.threshold[0] - pre[token, f]
    quiet = t.scales[0].mean.expand(6, -1)
    looked_at = [torch.cat([quiet, x[token].expand(58, -1)])]
    assert 0 < int(decided(t, looked_at).sum()) < 16
    right = t.weights()
    t.site_weights = lambda i: replace(right[i], W_dec=0 * right[i].W_dec)
    refused(lambda: check_fold(t, looked_at), "reconstructions at")


@pytest.mark.parametrize("kind, objective", every_pair())
def test_the_fold_of_every_wiring_is_exact(kind, objective):
    t = run(kind, how(kind, objective=objective))
    sources, _ = next(batches(kind, 1))
    weights = t.weights()
    by_trainer = rebuilt_by_trainer(t, sources)
    by_weights = rebuilt_by_weights(weights, sources)
    for a, b, out in zip(by_trainer, by_weights, t.outs, strict=True):
        assert float((a - b).square().mean()) < 1e-8 * out.size**2

    def longer(i):
        return replace(weights[i], W_dec=weights[i].W_dec * 1.2)

    t.site_weights = longer
    refused(lambda: check_fold(t, sources), "reconstructions at")


# checkpoints of something else, and broken ones


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory):
    "A run whose batches ended after step 75."
    folder = tmp_path_factory.mktemp("early") / "run"
    refused(
        lambda: fit(batches("clt", 75), how("clt"), SITES, folder=folder, data="march", every=20),
        "until step 60 ",
    )
    return folder


@pytest.fixture
def kept(ended_early, tmp_path):
    "A copy of that run, with its checkpoint of step 60."
    return Path(shutil.copytree(ended_early, tmp_path / "run"))


def gone_on(folder, recipe=None, **kwargs) -> Trainer:
    "The run that `kept` began, from its checkpoint to the end."
    return run("clt", recipe, folder=folder, **(dict(data="march") | kwargs))


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
        n: x for n, x in change.items() if n in ("data", "site")
    }
    recipe = how("clt", **{n: x for n, x in change.items() if n not in where})
    e = refused(lambda: fit(batches("clt"), recipe, folder=kept, **where), said, str(kept), code=64)
    assert "what was learnt" not in e.mend
    assert {p: p.read_bytes() for p in kept.rglob("*") if p.is_file()} == before


def test_a_run_that_goes_on_by_other_means_says_so(kept, monkeypatch):
    folder = kept / "checkpoint"

    def load():
        return go_on(folder, how("clt"), "march")

    def by(means):
        monkeypatch.setattr(checkpoint, "made_by", lambda device: means)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load()
    was = made_by()
    for now, said in (
        (dict(code="0123456789ab"), f"code {was['code']}, now 0123456789ab"),
        (dict(torch="9.9.9"), f"torch {was['torch']}, now 9.9.9"),
        (dict(threads=64), f"threads {was['threads']}, now 64"),
    ):
        by(was | now)
        text = f"other means than it began with ({said}): its weights"
        with pytest.warns(UserWarning, match=re.escape(text)):
            again = load()
        assert again.taken == 60
    keep(again, folder, "march")  # written by the other means ...
    by(was)  # ... and gone on with by the first ones
    with pytest.warns(UserWarning, match="by others in between"):
        load()
    stored = read_json(folder / "state.json")
    assert stored["by"] == [was, was | dict(threads=64)]
    del stored["by"]  # of an older version
    artefacts.write_json(folder / "state.json", stored)
    artefacts.write_manifest(folder, "training")
    with pytest.warns(UserWarning, match="code unknown"):
        load()


def test_whose_kernels_ran_is_part_of_it(monkeypatch):
    pytest.importorskip("triton", minversion="3.7")
    if torch.cuda.is_available():
        pytest.skip("Triton interprets nothing in a process that compiles")
    assert made_by()["kernels"] == "torch"
    monkeypatch.setenv("INTERPKIT_KERNELS", "triton")
    assert made_by()["kernels"] == "triton"


@pytest.mark.parametrize("module", ["training/gradients.py", "sparse/products.py"])
def test_the_code_of_a_checkpoint_is_all_that_a_step_runs(monkeypatch, tmp_path, module):
    home = Path(checkpoint.__file__).parents[1]
    for floor in ("training", "sparse"):
        shutil.copytree(home / floor, tmp_path / floor)
    trainer = str(tmp_path / "training" / "trainer.py")
    monkeypatch.setattr(inspect, "getfile", lambda _: trainer)
    before = made_by()["code"]
    with open(tmp_path / module, "a") as f:
        f.write("\n")
    assert made_by()["code"] != before


def test_a_checkpoint_of_another_format_is_refused(kept):
    folder = kept / "checkpoint"
    taken = read_json(folder / "state.json")["taken"]
    artefacts.write_json(folder / "state.json", dict(format=2, other=taken))
    artefacts.write_manifest(folder, "training")
    refused(lambda: gone_on(kept), "format 2", code=64)


@pytest.mark.parametrize(
    "sources,targets",
    [
        ([(SIZE, D)] * 2, [(SIZE, D)] * 2),
        ([(SIZE, D)] * 3, [(SIZE, D), (SIZE, D), (SIZE, 5)]),
        ([(SIZE, D)] * 3, [(SIZE - 1, D)] * 3),
    ],
)
def test_batches_of_another_shape_are_refused(kept, sources, targets):
    other = ([torch.randn(s) for s in sources], [torch.randn(s) for s in targets])
    later = iter([None] * 60 + [other] * 60)  # those that were taken are not looked at
    e = refused(
        lambda: fit(later, how("clt"), SITES, folder=kept, data="march"),
        "training batch 60",
        code=64,
    )
    assert "until step 60 " in e.mend


def spoil_file(file: Path, change: str):
    data = file.read_bytes()
    if change == "missing":
        file.unlink()
    if change == "truncated":
        file.write_bytes(data[: len(data) // 2])
    if change == "changed":
        file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    if change == "empty":
        file.write_bytes(b"")


@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "manifest.json"])
@pytest.mark.parametrize("change", ["truncated", "changed", "missing", "empty"])
def test_a_broken_checkpoint_is_one_clear_error(kept, name, change):
    spoil_file(kept / "checkpoint" / name, change)
    e = refused(lambda: gone_on(kept), "checkpoint")
    assert "what was learnt" not in e.mend
    assert e.__cause__ is None


def test_a_replacement_that_was_interrupted_is_finished(kept):
    "Where folders can't change names at once, a kill may leave a checkpoint under its older name."
    os.rename(kept / "checkpoint", kept / ".checkpoint.old")
    seen = []
    gone_on(kept, progress=seen.append)
    assert sum(seen) == 60 * SIZE  # went on, did not begin anew


# a full disk

WRITES = [
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (artefacts, "_exchange"),
    (safetensors.torch, "save_file"),
]


class FullDisk:
    "Every write counts; the n-th finds no space."

    def __init__(self, n: int):
        self.left = n
        self.fired = False

    def wrap(self, original):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == -1:
                self.fired = True
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return call


def fit_on_a_full_disk(folder, n, monkeypatch) -> tuple[bool, InterpkitError | None]:
    "Whether the n-th write was reached, and the error of the run."
    disk, error = FullDisk(n), None
    with monkeypatch.context() as m:
        for owner, name in WRITES:
            m.setattr(owner, name, disk.wrap(getattr(owner, name)))
        m.setattr(watch, "open", disk.wrap(open), raising=False)
        try:
            gone_on(folder, every=60)
        except InterpkitError as e:
            error = e
    return disk.fired, error


def test_a_full_disk_at_any_operation_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    "From step 110 to the end: ten lines of the log and a checkpoint, an operation at a time."
    whole, kept = state(run("clt")), tmp_path / "run"
    refused(
        lambda: fit(batches("clt", 115), how("clt"), SITES, folder=kept, data="march", every=110),
        "until step 110 ",
    )
    fired, n = True, 0
    while fired:
        folder = tmp_path / f"full {n}"
        shutil.copytree(kept, folder)
        fired, error = fit_on_a_full_disk(folder, n, monkeypatch)
        t = go_on(folder / "checkpoint", how("clt"), "march")
        if fired:
            assert error is not None, n
            assert error.code == 75, error
            assert "free some space" in error.mend, error
            assert t.taken in (110, 120), n
        if fired and n % 7 == 0:
            assert state(gone_on(folder)) == whole
        assert {p.name for p in folder.iterdir()} <= {"checkpoint", "log.jsonl"}, n
        shutil.rmtree(folder)
        n += 1
    assert n > 20
    assert error is None


# what it says


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    folder, watched = tmp_path_factory.mktemp("logged"), []
    run("clt", folder=folder, watch=watched.append)
    return folder, watched


LOGGED = (
    "site step steps tokens loss fvu l0 dead_share tokens_per_second seconds_left peak_memory_mib"
).split()


def test_the_log_holds_what_one_wants_to_know(logged):
    folder, watched = logged
    rows = rows_of(folder)
    assert rows == watched
    assert len(rows) == STEPS
    for i, r in enumerate(rows, 1):
        assert set(r) == set(LOGGED)
        assert (r["step"], r["steps"], r["tokens"]) == (i, STEPS, i * SIZE)
        assert r["site"] == rows[0]["site"]
        assert all(math.isfinite(x) for n, x in r.items() if n != "site")
        assert r["tokens_per_second"] > 0
        assert r["peak_memory_mib"] > 50
        assert r["seconds_left"] >= 0
    assert rows[-1]["seconds_left"] == 0
    assert rows[-1]["fvu"] < rows[5]["fvu"]
    assert 2 < rows[-1]["l0"] < 8


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
    assert line(row) == (
        "train at layers.1:in: 1,024,000 of 2,048,000 tokens, 1,200 s left: loss 0.0123, "
        "FVU 0.0119, L0 15.9, dead 0.5%, 81,000 tokens/s, 840 MiB"
    )
    both = row | dict(site="layers.1:in, layers.2:in")
    assert line(both).startswith("train at 2 sources: 1,024,000 of")


def test_curves_show_the_log(logged):
    folder, rows = logged
    for source in (rows, folder / "log.jsonl", str(folder / "log.jsonl")):
        axes = curves(source).axes
        assert [a.get_title() for a in axes] == ["FVU", "L0", "share of dead features"]
        for ax, key in zip(axes, ("fvu", "l0", "dead_share"), strict=True):
            x, y = ax.lines[0].get_data()
            assert x.tolist() == [r["tokens"] for r in rows]
            assert y.tolist() == [r[key] for r in rows]
    assert len(curves([]).axes) == 3
    assert curves(rows).patch.get_alpha() == 0  # no white box on a dark page


def test_without_a_front_end_watch_prints_the_first_line_and_the_last(capsys):
    seldom = Watch(every=1000)
    run("sae", watch=seldom)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [line(seldom.rows[0]), line(seldom.rows[-1])]
    assert len(seldom.rows) == STEPS
    assert seldom.rows[-1]["step"] == STEPS
    run("sae", watch=Watch(every=0))
    assert len(capsys.readouterr().out.splitlines()) == STEPS


def test_watch_in_a_front_end_draws_and_in_a_job_prints(monkeypatch, capsys):
    from types import SimpleNamespace

    import IPython
    import IPython.display

    shown = []

    def display(figure, display_id):
        shown.append(figure)
        return SimpleNamespace(update=shown.append)

    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=1))
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.delenv("IPK_PROGRESS", raising=False)
    run("sae", watch=Watch())
    assert len(shown) >= 2
    assert capsys.readouterr().out == ""
    assert shown[-1].axes[0].lines[0].get_xdata()[-1] == STEPS * SIZE
    monkeypatch.setenv("IPK_PROGRESS", "1")
    run("sae", watch=Watch())
    assert "FVU" in capsys.readouterr().out


def test_a_log_line_cut_by_a_kill_goes(kept):
    with (kept / "log.jsonl").open("a") as f:
        f.write('{"step": 7')
    gone_on(kept)
    assert [r["step"] for r in rows_of(kept)] == list(range(1, STEPS + 1))


def test_complaints_are_about_the_layer_that_is_meant():
    t = run("clt", how("clt", objective="topk"))
    t.l0 = [2.0, 4.0, 6.0]  # right on average
    t.silent[1, :30] = 10**9
    first, second, third = complaints(t)
    assert "layers.0:in ended with 2.00" in first
    assert "layers.2:in ended with 6.00" in second
    assert "75% of the features at layers.1:in" in third


@pytest.mark.parametrize(
    "batches, told",
    [
        ([[torch.zeros(8, 4)]] * 3, "two lists of tensors"),
        ([(torch.zeros(8, 4), torch.zeros(8, 4))] * 3, "two lists of tensors"),
        ([([], [])] * 3, "a source or more"),
        ([(None, None)] * 3, "two lists of tensors"),
        (
            [([torch.zeros(8, 4)] * 2, [torch.zeros(8, 4)] * 2)]
            + [([torch.zeros(8, 4)], [torch.zeros(8, 4)])] * 3,
            "the same sources and targets",
        ),
    ],
)
def test_batches_of_another_form_are_refused(batches, told):
    refused(lambda: fit(batches, Recipe(16, 2, 10_000, 8, 1e-3)), told)
