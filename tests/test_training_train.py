"""From a release to a certified dictionary.

Thresholds, labels, training, validity, and dictionaries that are no good."""

import warnings
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_language import SITES, V, directions, without_starts, world
from torch import nn

from interpkit.core.cautions import FIT, unfit_words
from interpkit.core.errors import InterpkitError
from interpkit.data.checksets import hash_split
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import certify, verify_canary
from interpkit.dictionary.weights import TENSORS, SiteWeights
from interpkit.drift.limits import Limits
from interpkit.drift.scores import fit_or_raise, score_old
from interpkit.gate.results import training_words
from interpkit.model.releases import Release
from interpkit.model.sites import Site
from interpkit.training import train
from interpkit.training.finish import calibrate, calibrate_together
from interpkit.training.train import train_dictionary


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 1)
    )


def table(n=600, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype("float32")
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(6)]).assign(
        sequence_id=[f"s{i}" for i in range(n)]
    )


def units(d=24, labels=()):
    return Dictionary(
        (Site("1"),),
        (SiteWeights(torch.eye(d), torch.zeros(d), torch.zeros(d), torch.eye(d), torch.zeros(d)),),
        labels,
    )


@lru_cache
def v1():
    return Release.from_module(net(), sites=["1:out"], name="v1", device="cpu")


@lru_cache
def trained(seed=0):
    return train_dictionary(
        v1(), table(), n_features=48, k=8, tokens=60_000, batch_size=256, lr=3e-3, seed=seed
    )


# thresholds


@pytest.mark.parametrize("k", [1, 2.5, 4])
def test_calibrate_gives_k_active_features(k):
    w = directions(1, 40, 8, threshold=9.0)
    acts = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    c = calibrate(w, acts, k)
    assert int((c.encode(acts) > 0).sum()) == round(k * 400)
    assert c.threshold.unique().numel() == 1
    assert all(torch.equal(getattr(c, n), getattr(w, n)) for n in TENSORS if n != "threshold")


def test_calibrate_never_counts_what_is_negative():
    w = directions(1, 4, 8)
    c = calibrate(replace(w, b_enc=torch.full((4,), -100.0)), torch.randn(50, 8), 2)
    assert c.threshold.tolist() == [0.0] * 4
    acts = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    few = calibrate(w, acts, 4)  # as many as there are
    assert few.threshold.tolist() == [0.0] * 4


@pytest.mark.parametrize("threshold", [0.0, 1e-12, 1.0])
def test_k_is_shared_whatever_the_size_of_thresholds(threshold):
    pair = [directions(i, 40, 8, threshold=threshold) for i in (1, 2)]
    acts = torch.randn(2, 400, 8, generator=torch.Generator().manual_seed(0)).unbind()
    made = calibrate_together(pair, acts, 3)
    assert sum(int((w.encode(x) > 0).sum()) for w, x in zip(made, acts, strict=True)) == 2400


@pytest.mark.parametrize("k", [1, 2.5, 4])
def test_sources_that_share_k_get_one_factor(k):
    pair = [directions(1, 40, 8, threshold=0.5), directions(2, 40, 8, threshold=1.0)]
    acts = torch.randn(2, 400, 8, generator=torch.Generator().manual_seed(0)).unbind()
    made = calibrate_together(pair, acts, k)
    each = [int((w.encode(x) > 0).sum()) for w, x in zip(made, acts, strict=True)]
    assert sum(each) == round(2 * k * 400)
    assert each[0] > each[1]  # its thresholds were half as high
    factors = [w.threshold / v.threshold for w, v in zip(made, pair, strict=True)]
    assert torch.allclose(factors[0], factors[1])
    none = [replace(w, b_enc=torch.full((40,), -100.0)) for w in pair]
    assert not any(w.threshold.any() for w in calibrate_together(none, acts, k))


# training


def test_training_explains_its_release_and_says_how_it_was_made():
    "Three processors times three seeds: splice error 0.050 to 0.077, error share 0.11 to 0.13."
    d = trained()
    measured = d.validity["measured"]
    assert measured["splice_error"] < 0.12
    assert measured["error_share"] < 0.30
    assert 4 < measured["l0"] < 12
    assert d.n_features == 48
    lengths = d.weights[0].W_dec[:, 0].norm(dim=1)
    assert torch.allclose(lengths, torch.ones(48), atol=1e-5)
    assert (d.weights[0].threshold >= 0).all()
    assert d.training["seed"] == 0
    assert d.training["k"] == 8
    assert d.validity["fingerprint"] == v1().fingerprint
    assert len(set(d.labels)) == 48
    verify_canary(v1(), d)
    fit_or_raise(d, score_old(v1(), d, table(seed=5)), Limits())


def test_training_depends_on_its_seed_alone():
    torch.manual_seed(123)
    np.random.seed(5)

    def make(seed):
        return train_dictionary(
            v1(), table(), n_features=16, k=4, tokens=5_000, batch_size=256, seed=seed
        )

    before = torch.random.get_rng_state()
    first = make(0)
    assert torch.equal(before, torch.random.get_rng_state())  # a caller's random numbers stay
    torch.manual_seed(7)
    assert make(0).fingerprint == first.fingerprint
    assert make(1).fingerprint != first.fingerprint


def sizes(attempts):
    return [(x["k"], x["n_features"]) for x in attempts]


def test_sizes_that_nobody_gave_grow_until_the_dictionary_is_fit(tmp_path):
    how = dict(tokens=5_000, batch_size=256, attempts=3)
    strict = dict(splice_error=1e-9)
    with pytest.warns(UserWarning) as told:
        d = train_dictionary(v1(), table(), limits=strict, store=tmp_path / "all", **how)
    texts = [str(w.message) for w in told if "unfit" in str(w.message)]
    tried = d.training["attempts"]
    assert sizes(tried) == [(8, 192), (16, 384), (32, 768)]
    assert "training 2 of at most 3" in texts[0] and "k=8, n_features=192" in texts[0]
    assert "training 3 of at most 3" in texts[1] and "k=16, n_features=384" in texts[1]
    assert "at its limits" in texts[2] and "the best was kept" in texts[2]
    kept = [x["k"] for x in tried if x["splice_error"] == min(y["splice_error"] for y in tried)]
    assert d.training["k"] in kept  # the best of all, not the last
    assert {p.name for p in (tmp_path / "all").glob("times-*")} == {"times-2", "times-4"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = train_dictionary(v1(), table(), limits=strict, store=tmp_path / "all", **how)
        assert again.fingerprint == d.fingerprint  # goes on from what is stored
        once = train_dictionary(v1(), table(), limits=dict(splice_error=0.999), **how)
        few = train_dictionary(v1(), table(), limits=strict, **(how | dict(attempts=1)))
    assert "attempts" not in once.training | few.training
    assert once.fingerprint == few.fingerprint  # the first is what it was


@pytest.mark.parametrize("given", [dict(k=8), dict(n_features=192), dict(k=8, n_features=192)])
def test_sizes_that_were_given_are_kept(given):
    with pytest.warns(UserWarning, match="k=8, n_features=192: try k=16, n_features=384"):
        d = train_dictionary(
            v1(), table(), tokens=2_000, batch_size=256, limits=dict(splice_error=1e-9), **given
        )
    assert (d.training["k"], d.n_features) == (8, 192)


def test_a_later_training_that_fails_leaves_the_first(monkeypatch):
    "Memory that is not there for the larger one is no reason to lose what was learnt."
    first = v1().default_sites[0]
    made = []

    def no_memory(*args, **kwargs):
        made.append(args)
        if len(made) > 1:
            raise MemoryError
        return real(*args, **kwargs)

    real = train.calibrate
    monkeypatch.setattr(train, "calibrate", no_memory)
    with pytest.warns(UserWarning, match="what was there is kept: MemoryError"):
        d = train_dictionary(
            v1(), table(), tokens=2_000, batch_size=256, limits=dict(splice_error=1e-9)
        )
    assert d.sites == (first,) and d.n_features == 192
    grown = dict(k=16, n_features=384, failed="MemoryError")
    assert d.training["attempts"][1:] == [grown]
    result = dict(release="v1", features=192, measured=d.validity["measured"])
    words = training_words(result | dict(attempts=d.training["attempts"]), "d")
    assert "Training 2: k 16, features 384, failed: MemoryError" in words


@pytest.mark.parametrize(
    "wrong", [dict(attempts=0), dict(limits=dict(splice=0.1)), dict(limits=dict(error_share=2))]
)
def test_attempts_and_limits_are_looked_at_first(wrong):
    refused(lambda: train_dictionary(v1(), table(), **wrong), code=64)


def test_an_unfit_dictionary_is_told_when_it_was_trained():
    "It is kept: whoever asks for wider limits, or only looks, may use it."
    with pytest.warns(UserWarning, match=r"unfit for a check.*splice error.*\(k\) help most"):
        d = train_dictionary(v1(), table(), n_features=8, k=1, tokens=5_000, batch_size=256)
    assert d.validity["measured"]["splice_error"] > 0.3
    assert unfit_words(trained().validity["measured"]) == ""
    usual = Limits()
    assert dict(splice_error=usual.splice_error, error_share=usual.error_share) == FIT


def test_training_refuses_what_cant_work():
    e = refused(lambda: train_dictionary(v1(), table(), n_features=8, k=9), code=64)
    assert "k=9, n_features=8" in e.given
    refused(lambda: train_dictionary(v1(), table(60)), "300 sequences")

    class Overflows(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 1)

        def forward(self, x):
            return self.head(self.hidden(x).nan_to_num(0))

    model = Overflows()
    with torch.no_grad():
        model.hidden.weight.fill_(float("nan"))
    release = Release.from_module(model, sites=["hidden:out"], device="cpu")
    refused(lambda: train_dictionary(release, table(400)), "NaN")


# what is refused at once: nothing is stored, and nothing trained


def refused_at_once(tmp_path, code, *parts, release=None, rows=None, **kwargs) -> InterpkitError:
    "The one clear error of a call that trains far too long for a test, before a batch was used."
    used, store = [], tmp_path / "store"
    how = dict(n_features=16, k=4, tokens=40_000, batch_size=256, store=store, progress=used.append)
    release = v1() if release is None else release
    rows = table() if rows is None else rows
    error = refused(lambda: train_dictionary(release, rows, **(how | kwargs)), *parts, code=code)
    assert not used
    assert not store.exists()
    return error


@pytest.mark.parametrize(
    "kwargs,said",
    [
        (dict(finish=-1), "finish"),
        (dict(finish=2.5), "finish"),
        (dict(finish=True), "finish"),
        (dict(k=4.0), "k=4"),
        (dict(k=0), "k=0"),
        (dict(n_features=0), "n_features=0"),
        (dict(n_features=-1), "n_features=-1"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(tokens=None), "tokens=None"),
        (dict(tokens=5000.5), "tokens=5000.5"),
        (dict(tokens=2e4), "tokens=20000"),
        (dict(lr="a"), "lr='a'"),
        (dict(lr=float("nan")), "lr=nan"),
        (dict(seed=None), "seed=None"),
        (dict(seed=-1), "seed=-1"),
        (dict(prefixes=16), "prefixes=16"),
        (dict(prefixes=("a",)), "prefixes=('a',)"),
        (dict(warm_up="a"), "warm_up='a'"),
        (dict(sites=3), "sites=3"),
        (dict(sites=0), "sites=0"),
        (dict(sites=["1", "1:out"]), "1:out more than once"),
        (dict(wiring="transcoder", sites="0:in", targets=2), "targets=2"),
        (dict(watch=True), "watch=True"),
        (dict(progress=1), "progress=1"),
        (dict(store=3), "store=3"),
    ],
)
def test_what_is_passed_is_refused_at_once(tmp_path, kwargs, said):
    refused_at_once(tmp_path, 64, said, **kwargs)


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path):
    d = train_dictionary(
        v1(),
        table(),
        n_features=np.int64(16),
        k=np.int64(4),
        tokens=np.int64(5_000),
        batch_size=256,
        seed=np.int64(0),
    )
    d.save(tmp_path / "d")
    assert Dictionary.load(tmp_path / "d").fingerprint == d.fingerprint


@pytest.mark.parametrize("rows", [None, 3, np.zeros((3, 2)), [[1.0]]])
def test_rows_that_are_no_table(rows):
    refused(lambda: train_dictionary(v1(), rows), "DataFrame", code=64)


def test_rows_in_another_form_are_the_same_rows():
    few = [dict(x=[1.0])]  # whose sequences have no names
    refused(lambda: train_dictionary(v1(), few), "'sequence_id'")
    refused(lambda: train_dictionary(v1(), "rows.parquet"), "no such file")


def test_rows_without_ids_or_with_a_weight_below_zero(tmp_path):
    refused_at_once(tmp_path, 65, "sequence_id", rows=table().drop(columns="sequence_id"))
    ids = table()["sequence_id"].where(np.arange(600) != 41)
    refused_at_once(tmp_path, 65, "sequence_id", "row 41", rows=table().assign(sequence_id=ids))
    for w in (-1.0, np.nan):
        refused_at_once(
            tmp_path,
            65,
            "weight",
            "row 590",
            rows=table().assign(weight=np.where(np.arange(600) == 590, w, 1.0)),
        )


@pytest.mark.parametrize("release", [net(), "folder/v1", None])
def test_what_is_no_release(release):
    refused(lambda: train_dictionary(release, table()), "Release.from_module", code=64)


def made(forward, decision=None, sites="act:out") -> Release:
    "A release of a small network with a forward of its own."

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 12)
            self.act = nn.ReLU()
            self.side = nn.Linear(6, 12)
            self.head = nn.Linear(12, 1)

    Net.forward = forward
    torch.manual_seed(0)
    return Release.from_module(Net(), sites=sites, decision=decision, device="cpu")


def plain(self, x):
    return self.head(self.act(self.a(x)))


@pytest.mark.parametrize("wiring", ["transcoder", "per_layer", "clt"])
def test_a_target_that_is_passed_before_its_source(tmp_path, wiring):
    e = refused_at_once(
        tmp_path,
        65,
        "before 0:out",
        "2:out after it",
        wiring=wiring,
        sites=["2:out"],
        targets=["0:out"],
    )
    assert "order" in e.mend


def test_a_decision_that_fails_or_is_not_finite(tmp_path):
    refused_at_once(
        tmp_path,
        65,
        "decision stops with ZeroDivisionError",
        release=made(plain, lambda out: out[:, 0] / (1 // 0)),
    )
    refused_at_once(
        tmp_path, 65, "finite decisions", release=made(plain, lambda out: out[:, 0] * float("nan"))
    )
    refused_at_once(
        tmp_path,
        65,
        "finite gradients",
        "act:out",
        release=made(plain, lambda out: (out[:, 0] * 0).abs().sqrt()),
    )


def test_a_decision_without_gradient_at_a_target(tmp_path):
    refused_at_once(
        tmp_path, 65, "gradient at the sites", release=made(plain, lambda out: out[:, 0].detach())
    )

    def beside(self, x):
        self.side(x)
        return plain(self, x)

    for sites in ("side:out", ["act:out", "side:out"]):
        refused_at_once(tmp_path, 65, "gradient at the sites", release=made(beside, sites=sites))

    def quiet(self, x):  # a gradient of 0 on a few rows is none of this
        return self.head(self.act(self.a(x)) * (x[:, :1] < 9))

    rows = table()
    rows.loc[:15, "x0"] = 10.0
    with torch.no_grad():
        train_dictionary(
            made(quiet, lambda out: out[:, 0] + 0), rows, n_features=16, k=4, tokens=5_000
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_site_of_another_type(tmp_path, dtype):
    refused_at_once(
        tmp_path,
        65,
        f"{dtype} at act:out".removeprefix("torch."),
        release=made(lambda self, x: self.head(self.act(self.a(x).to(dtype)).float())),
    )


def test_a_finish_on_logits_that_no_output_has(tmp_path):
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(V, 8), nn.Linear(8, 8), nn.Linear(8, V)

        def forward(self, input_ids):
            return self.head(self.mix(self.embed(input_ids)))

    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        dict(sequence_id=range(300), input_ids=rng.integers(3, V, (300, 5)).tolist())
    )
    release = Release.from_module(
        Language(),
        inputs=dict(kind="tokens", bos=1, pad=0),
        decision=dict(kind="top_two"),
        sites=["mix:out"],
        device="cpu",
    )
    refused_at_once(tmp_path, 64, "on='decision'", release=release, rows=rows, finish=5)


# a model that answers otherwise each time


@pytest.mark.parametrize(
    "forward,at",
    [
        (lambda self, x: self.head(self.act(nn.functional.dropout(self.a(x), 0.1))), "act:out"),
        (lambda self, x: self.head(self.act(self.a(x) + 0.01 * torch.randn(12))), "act:out"),
        (
            lambda self, x: self.head(nn.functional.dropout(self.act(self.a(x)), 0.1)),
            "the decision",
        ),
    ],
)
def test_dropout_and_sampling_are_refused(tmp_path, forward, at):
    e = refused_at_once(tmp_path, 65, at, "again", "eval()", release=made(forward))
    assert "dropout" in e.mend
    assert "sampling" in e.mend


@pytest.mark.parametrize("layer", [nn.Dropout(0.2), nn.BatchNorm1d(24)])
def test_a_model_in_training_mode_is_refused(tmp_path, layer):
    model = net()
    model.insert(1, layer)
    release = Release.from_module(model, sites=["2:out"], device="cpu")
    state = {n: t.clone() for n, t in release.model.state_dict().items()}
    release.model.train()
    refused_at_once(tmp_path, 65, "training mode", "eval()", release=release)
    assert all(torch.equal(t, state[n]) for n, t in release.model.state_dict().items())
    release.model.eval()
    train_dictionary(release, table(), n_features=16, k=4, tokens=5_000)


# which row, which groups


class Breaks(nn.Module):
    "NaN where the first column is above 50."

    def __init__(self):
        super().__init__()
        self.a, self.act, self.head = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1)

    def forward(self, x):
        return self.head(self.act(self.a(x) * torch.where(x[:, :1] > 50, torch.nan, 1.0)))


@pytest.mark.parametrize("index", ["numbers", "text", "twice"])
@pytest.mark.parametrize("stream", [False, True])
def test_nan_is_blamed_on_the_row_that_the_caller_passed(stream, index):
    torch.manual_seed(0)
    release = Release.from_module(Breaks(), sites=["act:out"], device="cpu")
    rows = table()
    if index != "numbers":
        rows.index = [f"r{i}" for i in range(600)] if index == "text" else np.arange(600) % 300
    held = hash_split(rows, 0.1, salt="held out")
    for part in (~held, held):
        bad = rows.copy()
        n = len(rows[part])
        at = np.flatnonzero(part)[[n // 2, n - 2]]  # two rows far from the first
        bad.iloc[at, 0] = 99.0
        with pytest.raises(InterpkitError, match="NaN") as e:
            train_dictionary(
                release, bad, n_features=16, k=4, tokens=40_000, batch_size=64, stream=stream
            )
        assert e.value.code == 65
        blamed = int(e.value.given.rpartition("row ")[2])
        assert blamed in at
        assert stream or blamed == at[0]


def test_rows_without_a_group_are_held_out_as_others(tmp_path):
    groups = [f"g{i // 2}" if i < 300 else None for i in range(600)]
    d = train_dictionary(
        v1(), table().assign(group_id=groups), n_features=16, k=4, tokens=5_000, batch_size=256
    )
    held = 600 - d.training["sequences"]
    assert 40 < held < 80
    assert held == hash_split(table().assign(group_id=groups), 0.1, "held out").sum()


def test_too_few_groups_are_called_that(tmp_path):
    e = refused_at_once(
        tmp_path, 65, "600 sequences in 3 groups", rows=table().assign(group_id=np.arange(600) % 3)
    )
    assert "groups" in e.asked
    assert "group_id" in e.mend
    assert "more rows" not in e.mend
    for rows in (table(60), table(60).assign(group_id=np.arange(60))):
        e = refused_at_once(tmp_path, 65, "300 sequences", rows=rows)
        assert "60" in e.given
        assert "group" not in str(e)
        assert "ipk train --data" in e.mend


# validity


def test_the_canary_holds_after_a_round_trip(tmp_path):
    trained().save(tmp_path / "d")
    verify_canary(
        Release.from_module(net(), sites=["1:out"], name="v1 again", device="cpu"),
        Dictionary.load(tmp_path / "d"),
    )
    tokens = certify(world().old, world().dictionary, world().rows, like=many())
    tokens.save(tmp_path / "t")
    verify_canary(world().old, Dictionary.load(tmp_path / "t"))


def test_loading_for_another_release_says_so(tmp_path):
    trained().save(tmp_path / "d")
    with pytest.warns(UserWarning, match="made for 'v1', not for 'v9'"):
        Dictionary.load(
            tmp_path / "d", Release.from_module(net(1), sites=["1:out"], name="v9", device="cpu")
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Dictionary.load(tmp_path / "d", v1())


def test_a_foreign_release_is_refused():
    changed = net()
    with torch.no_grad():
        changed[4].bias += 1e-3
    for release in (
        Release.from_module(changed, sites=["1:out"], name="v2", device="cpu"),
        Release.from_module(net(1), sites=["1:out"], name="v3", device="cpu"),
    ):
        with pytest.raises(InterpkitError, match="made for 'v1'") as e:
            verify_canary(release, trained())
        assert e.value.code == 65
    refused(lambda: verify_canary(v1(), units()), "no release")


def test_a_release_that_computes_something_else_is_refused():
    moved = v1().model
    other = replace(
        v1(), model=Release.from_module(net(), sites=["1:out"], device="cpu").model
    )  # same fingerprint, as after a change of driver
    with torch.no_grad():
        other.model[0].weight.mul_(1.01)
    with pytest.raises(InterpkitError, match="canary"):
        verify_canary(other, trained())
    with torch.no_grad():
        other.model[0].weight.copy_(moved[0].weight)
    verify_canary(other, trained())


def test_other_weights_under_an_old_certificate_are_refused():
    d = trained()
    for n in ("W_dec", "b_dec"):  # which no canary activation would show
        w = replace(d.weights[0], **{n: getattr(d.weights[0], n) * 1.01})
        with pytest.raises(InterpkitError, match="other weights"):
            verify_canary(v1(), replace(d, weights=(w,)))
    with pytest.raises(InterpkitError, match="no canary"):
        verify_canary(v1(), replace(d, canary={}))
    verify_canary(v1(), replace(d, labels=tuple(f"renamed {i}" for i in range(48))))


def test_a_canary_that_says_nothing_is_announced():
    """Ids that stand in fewer than twenty rows go into no canary.

    With few rows only start tokens are left, and here nobody counts those."""
    w = world(60)
    old = without_starts(w.old)
    with pytest.warns(UserWarning, match="says nothing of model.layers"):
        certify(old, w.dictionary, w.rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certify(old, w.dictionary, w.rows, like=many())


def test_padding_does_not_dilute_the_canary():
    w = world()
    loud = Dictionary(
        SITES, tuple(replace(x, b_enc=x.b_enc + 1) for x in w.dictionary.weights)
    )  # fires at padding, where activations are zero
    d = certify(w.old, loud, w.rows, like=many())
    canary = {n: t.clone() for n, t in d.canary.items()}
    counts = {s: (canary[str(s)] != 0).any(-1) for s in SITES}
    active = {s: canary[f"codes {s}"] > 0 for s in SITES}
    real = sum(int(active[s][counts[s]].sum()) for s in SITES)
    everywhere = sum(int(active[s].sum()) for s in SITES)
    lost = real // 1000 + 1  # more than one in a thousand where it counts, fewer of all
    assert lost <= everywhere / 1000
    first = SITES[0]
    for i, t, f in (
        ((canary[f"codes {first}"] > 0) & counts[first][..., None]).nonzero()[:lost].tolist()
    ):
        canary[f"codes {first}"][i, t, f] = 0
    with pytest.raises(InterpkitError, match="active features"):
        verify_canary(w.old, replace(d, canary=canary))
    verify_canary(w.old, d)


def many():
    return pd.concat(
        [world().rows] * 20, ignore_index=True
    )  # a canary shows no value that fewer than twenty rows have


# dictionaries that are no good


def bad(kind: str) -> Dictionary:
    d, w = trained(), trained().weights[0]
    if kind == "random directions":
        return Dictionary(
            d.sites, (calibrate(directions(9, 48, 24, 0.0), torch.relu(torch.randn(2000, 24)), 8),)
        )
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    return Dictionary(d.sites, (replace(w, W_enc=w.W_enc[:, order], b_enc=w.b_enc[order]),))


@pytest.mark.parametrize("kind", ["random directions", "permuted encoder"])
def test_an_unfit_dictionary_is_refused(kind):
    with pytest.raises(InterpkitError, match="unfit") as e:
        fit_or_raise(bad(kind), score_old(v1(), bad(kind), table(seed=5)), Limits())
    assert e.value.code == 65
    assert "ipk train" in e.value.mend


def test_a_release_that_always_decides_the_same_is_no_proof_of_fitness():
    model = net()
    with torch.no_grad():
        model[4].weight.zero_()
    flat = Release.from_module(model, sites=["1:out"], name="flat", device="cpu")
    with pytest.raises(InterpkitError, match="all alike"):
        fit_or_raise(units(), score_old(flat, units(), table()), Limits())
