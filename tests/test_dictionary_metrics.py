"The spliced metric against its definition, and its intervals against simulated worlds."

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from scipy.stats import t as student
from small_language import BOS, PAD, V, causal, directions, world
from small_wirings import SPECS, made, reads, rebuilt, release, rows
from torch import nn

from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.core.statistics import clopper_pearson, signed_interval, weighted_auc
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.means import mean_activations, skip_alone
from interpkit.dictionary.metrics import Metric, spliced_metric
from interpkit.dictionary.validity import certify
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.releases import Release
from interpkit.model.sites import Site


def spoken(release, data: pd.DataFrame) -> pd.DataFrame:
    "The rows with tokens that the model itself says: only on these it is better than guessing."
    torch.manual_seed(0)

    def say(ids):
        return (
            int(
                torch.multinomial(
                    release.model(input_ids=torch.tensor([ids])).logits[0, -1, 3:].softmax(-1), 1
                )
            )
            + 3
        )

    told = []
    for n in data.input_ids.map(len):
        ids = [BOS]
        while len(ids) < n:
            ids.append(say(ids))
        told.append(ids)
    return data.assign(input_ids=told)


@lru_cache
def truth(name: str) -> dict:
    "Release, rows, and for each run the output of every sequence [T, V] or [1], one at a time."
    kind, make = SPECS[name]
    s = make()
    r = release(kind)
    data = rows(kind)
    if kind != "net":
        data = spoken(r, data)
    inputs = (
        [torch.tensor([x]) for x in data.input_ids]
        if "input_ids" in data
        else list(torch.tensor(data[list("abcde")].to_numpy())[:, None])
    )
    start = "input_ids" in data
    weight = data.weight.to_numpy() if "weight" in data else np.ones(len(data))

    def forward(x, edits):
        return hooked(r.model, x, s, edits)

    sums = {t: 0 for t in s.targets}
    for x, w in zip(inputs, weight, strict=True):
        _, arrived = forward(x, {})
        for t in s.targets:
            sums[t] = sums[t] + w * arrived[t][start:].double().sum(0)
    n = sum(w * (x.shape[1] - 1 if start else 1) for x, w in zip(inputs, weight, strict=True))
    means = {t: (v / n).float() for t, v in sums.items()}
    hold = {
        t: lambda h, m=m: torch.cat([h[:1], m.expand(len(h) - 1, -1)]) if start else m.expand_as(h)
        for t, m in means.items()
    }
    out = {
        run: [forward(x, edits)[0] for x in inputs]
        for run, edits in dict(bare={}, ablated=hold, spliced=None).items()
    }
    return dict(release=r, rows=data, dictionary=made(s), out=out, means=means, weight=weight)


def hooked(model, x, s, edits):
    "Output and what arrived at all sites [T, d]; `edits` None: the replacement model."
    arrived = {}
    codes = {}
    acts = {}
    handles = []
    start = not x.is_floating_point()

    def seen(site, value):
        t = value[0] if isinstance(value, tuple) else value
        h = arrived[site] = t[0] if t.ndim == 3 else t
        if edits is None and site in s.sources:
            i = s.sources.index(site)
            codes[i], acts[i] = reads(s, i, h, start), h
        new = None
        if edits is None and site in s.targets:
            new = rebuilt(s, s.targets.index(site), codes, acts)
            new = torch.cat([h[:1], new[1:]]) if start else new
        elif edits and site in edits:
            new = edits[site](h)
        if new is None:
            return None
        new = new[None] if t.ndim == 3 else new
        return (new, *value[1:]) if isinstance(value, tuple) else new

    for site in dict.fromkeys([*s.sources, *s.targets]):
        name, side = site.split(":")
        m = model.get_submodule(name)
        handles.append(
            m.register_forward_pre_hook(lambda m, a, site=site: seen(site, a))
            if side == "in"
            else m.register_forward_hook(lambda m, a, out, site=site: seen(site, out))
        )
    try:
        with torch.no_grad():
            out = model(x) if x.is_floating_point() else model(input_ids=x).logits
    finally:
        for h in handles:
            h.remove()
    return out[0], arrived


def nats(logits, ids) -> float:
    p = logits.double().log_softmax(-1)
    return -sum(float(p[i, ids[i + 1]]) for i in range(len(ids) - 1))


def refutes(a, b, q) -> Callable[[float], float]:
    "How far sum(a - R b) is beyond q standard errors."
    return lambda R: abs((a - R * b).sum()) - q * np.std(a - R * b, ddof=1) * np.sqrt(len(a))


LANGUAGE = [n for n in SPECS if not n.startswith("net")]


@pytest.mark.parametrize("name", LANGUAGE)
def test_cross_entropy_is_that_of_the_definition(name):
    t = truth(name)
    found = spliced_metric(t["release"], t["dictionary"], t["rows"])
    ids = list(t["rows"].input_ids)
    w = t["weight"]
    sums = {
        run: np.array([nats(o, x) for o, x in zip(out, ids, strict=True)])
        for run, out in t["out"].items()
    }
    n = np.array([len(x) - 1 for x in ids])
    level = {run: (w * x).sum() / (w * n).sum() for run, x in sums.items()}
    assert found.name == "cross_entropy"
    assert found.sequences == len(ids)
    for run in level:
        assert getattr(found, run) == pytest.approx(level[run], rel=2e-5), run
    assert abs(level["spliced"] - level["bare"]) > 1e-3
    assert abs(level["ablated"] - level["bare"]) > 1e-3
    assert found.difference == pytest.approx(level["spliced"] - level["bare"], abs=1e-4)
    if level["ablated"] > level["bare"]:
        assert found.share == pytest.approx(
            1 - (level["spliced"] - level["bare"]) / (level["ablated"] - level["bare"]), abs=2e-3
        )
    else:
        assert np.isnan(found.share)
        assert not np.isfinite(found.intervals["share"].upper)


@pytest.mark.parametrize("name", ["net clt", "net sae"])
def test_intervals_hold_what_the_groups_do_not_refute(name):
    t = truth(name)
    rng = np.random.default_rng(2)
    x = pd.DataFrame(2 * rng.normal(size=(160, 5)).astype("float32"), columns=list("abcde"))
    w = rng.choice([1.0, 3.0], 160)
    score = made_alone(dict(t, rows=x), np.ones(160, bool), w)
    y = (score["bare"] > np.median(score["bare"])).astype(float)
    data = x.assign(
        sequence_id=range(160), label=y, weight=w, group_id=[f"c{i // 2}" for i in range(160)]
    )
    found = spliced_metric(t["release"], t["dictionary"], data)

    def grouped(v):
        return pd.Series(v * w).groupby(np.arange(160) // 2).sum().to_numpy()

    sums = {run: np.log1p(np.exp(z)) - y * z for run, z in score.items()}
    W = grouped(np.ones(160))
    q = student.ppf(0.975, W.sum() ** 2 / (W**2).sum() - 1)
    parts = {run: (grouped(v), W) for run, v in sums.items()} | dict(
        difference=(grouped(sums["spliced"] - sums["bare"]), W),
        share=(grouped(sums["ablated"] - sums["spliced"]), grouped(sums["ablated"] - sums["bare"])),
    )
    for key, (a, b) in parts.items():
        i = found.intervals[key]
        off = refutes(a, b, q)
        assert i.n == 80, key
        assert i.ratio == pytest.approx(a.sum() / b.sum(), rel=1e-3, abs=1e-5), key
        assert i.lower < i.ratio < i.upper, key
        assert np.isfinite([i.lower, i.upper]).all(), key
        for R in (i.lower, i.upper):
            assert abs(off(R)) < 1e-2 * q * np.std(a - R * b, ddof=1) * np.sqrt(80), key
        assert off(i.lower - 0.1 * (i.upper - i.lower)) > 0 > off((i.lower + i.upper) / 2)


@pytest.mark.parametrize("name", ["net clt", "net sae"])
def test_log_loss_and_auc_leave_out_missing_labels(name):
    t = truth(name)
    rng = np.random.default_rng(1)
    label = rng.choice([0.0, 1.0, np.nan], len(t["rows"]))
    weight = rng.choice([1.0, 5.0], len(t["rows"]))
    data = t["rows"].assign(label=label)
    keep = ~np.isnan(label)
    alone = made_alone(t, keep)
    loss, auc = (spliced_metric(t["release"], t["dictionary"], data, m) for m in ("auto", "auc"))
    assert loss.name == "log_loss"
    assert loss.sequences == auc.sequences == keep.sum() < len(data)
    assert auc.intervals == {}
    assert auc.higher_is_better
    for run, score in alone.items():
        y = label[keep]
        p = 1 / (1 + np.exp(-score))
        assert getattr(loss, run) == pytest.approx(
            float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()), rel=1e-4
        ), run
        pairs = [(a > b) + 0.5 * (a == b) for a in score[y == 1] for b in score[y == 0]]
        if run != "ablated":
            assert getattr(auc, run) == pytest.approx(np.mean(pairs)), run
    weighted = spliced_metric(t["release"], t["dictionary"], data.assign(weight=weight), "log_loss")
    y = label[keep]
    p = 1 / (1 + np.exp(-alone["spliced"]))
    w = weight[keep]  # what is spliced knows no mean
    assert weighted.spliced == pytest.approx(
        float(-(w * (y * np.log(p) + (1 - y) * np.log(1 - p))).sum() / w.sum()), rel=1e-4
    )


def made_alone(t, keep, weight=None) -> dict:
    "Scores of the rows that are kept [n]; the means are theirs alone."
    part = np.flatnonzero(keep)
    out = {}
    kind, make = SPECS["net clt" if t["dictionary"].wiring == "clt" else "net sae"]
    s = make()
    x = torch.tensor(t["rows"][list("abcde")].to_numpy())[part]
    arrived = [hooked(t["release"].model, i[None], s, {})[1] for i in x]
    w = torch.ones(len(x)) if weight is None else torch.tensor(weight).float()
    means = {
        k: (w[:, None] * torch.cat([a[k] for a in arrived])).sum(0) / w.sum() for k in s.targets
    }
    for run, edits in dict(
        bare={}, spliced=None, ablated={k: lambda h, m=m: m.expand_as(h) for k, m in means.items()}
    ).items():
        out[run] = np.array(
            [float(hooked(t["release"].model, i[None], s, edits)[0]) for i in x], float
        )
    return out


@pytest.mark.parametrize("seed", range(4))
def test_weighted_auc_compares_all_pairs(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 60)
    s = rng.integers(0, 9, 60) / 3
    w = rng.choice([0.0, 1.0, 7.0], 60)
    pairs = [
        (w[i] * w[j], (s[i] > s[j]) + 0.5 * (s[i] == s[j]))
        for i in range(60)
        for j in range(60)
        if y[i] == 1 and y[j] == 0
    ]
    assert weighted_auc(y, s, w) == pytest.approx(
        sum(a * b for a, b in pairs) / sum(a for a, _ in pairs)
    )


# What is known beforehand


def whole(d: int) -> SiteWeights:
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    return SiteWeights(
        both.T.contiguous(), torch.zeros(2 * d), torch.zeros(2 * d), both, torch.zeros(d)
    )


def constant(v) -> SiteWeights:
    return SiteWeights(
        torch.zeros(len(v), 4), torch.zeros(4), torch.ones(4), torch.eye(len(v))[:4], v
    )


def test_an_identity_recovers_all_and_the_mean_nothing():
    w = world()
    rows_ = spoken(world().old, world(60).rows)
    for sites in (w.old.default_sites[:1], w.old.default_sites):
        identity = Dictionary(tuple(sites), tuple(whole(16) for _ in sites))
        found = spliced_metric(w.old, identity, rows_)
        assert found.share == pytest.approx(1, abs=1e-5)
        assert found.bare == pytest.approx(found.spliced, abs=1e-6)
        assert found.ablated > found.bare + 0.01
        means = mean_activations(w.old, identity, rows_)
        nothing = spliced_metric(
            w.old,
            replace(identity, weights=tuple(constant(means[s]) for s in sites), labels=()),
            rows_,
        )
        assert nothing.share == pytest.approx(0, abs=1e-6)
        assert nothing.spliced == pytest.approx(nothing.ablated, abs=1e-6)
        i = nothing.intervals["share"]
        assert i.lower == pytest.approx(0, abs=1e-4) == i.upper


def test_the_mean_is_of_positions_that_count_and_weighted():
    t = truth("llama sae")
    found = mean_activations(t["release"], t["dictionary"], t["rows"])
    assert set(t["rows"].weight) == {1.0, 3.0}
    for site, m in found.items():
        assert torch.allclose(m, t["means"][str(site)], atol=1e-5)
    plain = mean_activations(t["release"], t["dictionary"], t["rows"].drop(columns="weight"))
    assert all(not torch.allclose(plain[s], found[s], atol=1e-3) for s in found)


def test_numbers_do_not_depend_on_batches(monkeypatch):
    w = world()
    once = spliced_metric(w.old, w.dictionary, w.rows)
    monkeypatch.setattr("interpkit.dictionary.replacement.batch_size", lambda *a: 3)
    again = spliced_metric(w.old, w.dictionary, w.rows)
    for run in ("bare", "spliced", "ablated"):
        assert getattr(again, run) == pytest.approx(getattr(once, run), rel=1e-5)


def last_logit(output, batch, rows):
    at = (
        batch.last
        if hasattr(batch, "last") and batch.last is not None
        else torch.zeros(batch.n, dtype=torch.long)
    )
    return output.logits[torch.arange(batch.n), at, 7]


def test_a_function_of_ones_own_and_its_direction():
    t = truth("llama sae")
    out = {run: np.array([float(o[-1, 7]) for o in t["out"][run]]) for run in t["out"]}
    w = t["weight"]
    lower, higher = (
        spliced_metric(t["release"], t["dictionary"], t["rows"], last_logit, higher_is_better=h)
        for h in (False, True)
    )
    for run, x in out.items():
        assert (
            getattr(lower, run)
            == getattr(higher, run)
            == pytest.approx((w * x).sum() / w.sum(), abs=1e-4)
        )
    assert lower.name == "last_logit"
    assert (
        np.isnan([lower.share, higher.share]).sum() == 1
    )  # one of the directions has nothing to recover
    assert np.isnan([m.intervals["share"].ratio for m in (lower, higher)]).sum() == 1
    one = spliced_metric(
        t["release"], t["dictionary"], t["rows"], lambda o, b, r: torch.tensor(r.weight.to_numpy())
    )
    assert one.bare == one.spliced == pytest.approx((w * w).sum() / w.sum())


# Coverage


def simulated(rng, groups: int, size: int = 4):
    "Differences of `groups` customers of `size` sequences each; true share lost 0.2."
    customer = np.repeat(rng.normal(0, 1, groups), size)
    b = rng.lognormal(0, 0.5, groups * size) * 2 + customer
    a = 0.2 * 2 * np.exp(0.125) + 0.4 * customer + rng.normal(0, 0.3, groups * size)
    return a, b, np.repeat(np.arange(groups), size)


def covered(weighted: bool, clustered: bool, n: int = 2000) -> tuple[float, float]:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(n):
        a, b, group = simulated(rng, 100)
        weight = rng.choice([1.0, 4.0], len(a)) if weighted else None
        i = signed_interval(a, b, weight, group if clustered else None)
        hits += i.lower <= 0.2 <= i.upper
    return clopper_pearson(hits, n)


@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_cover_as_they_promise(weighted):
    low, high = covered(weighted, clustered=True)
    assert low > 0.93, (low, high)
    assert high > 0.945, (low, high)


def test_counting_sequences_of_one_customer_as_independent_breaks_it():
    assert covered(False, clustered=False)[1] < 0.9


def test_where_the_ablation_does_no_harm_there_is_no_bound():
    rng = np.random.default_rng(0)
    unbounded = 0
    hits = 0
    for _ in range(400):
        a = rng.normal(0.5, 1, 100)
        b = rng.normal(0.05, 1, 100)  # a true ratio of 10
        i = signed_interval(a, b)
        unbounded += not np.isfinite(i.upper)
        hits += i.lower <= 10 <= i.upper
    assert unbounded > 300
    assert clopper_pearson(hits, 400)[1] > 0.95
    assert not np.isfinite(signed_interval([1.0], [2.0]).upper)


# Bad input


class Bag(nn.Module):
    "Logits for each token, of an encoder that sees the whole sequence."

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Embedding(V, 8), nn.Identity(), nn.Linear(8, V)

    def forward(self, input_ids):
        h = self.embed(input_ids)
        return self.head(self.hidden(h + h.mean(1, keepdim=True)))


def net(decision=None, scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8),
        nn.ReLU(),
        nn.Linear(8, 1),
        nn.Sigmoid() if decision == "probability" else nn.Identity(),
    )
    return Release.from_module(model, sites=["1:out"], device="cpu"), Dictionary(
        (Site("1"),), (directions(3, 12, 8),)
    )


def table(n=40, **columns):
    return pd.DataFrame(
        np.random.default_rng(0).normal(size=(n, 3)).astype("float32"), columns=list("abc")
    ).assign(sequence_id=np.arange(n), **columns)


def declined(*args, code: int = ExitCode.INVALID, **kwargs) -> InterpkitError:
    "The error of a metric that can't be had."
    return refused(partial(spliced_metric, *args, **kwargs), code=code)


def test_what_is_missing_is_said():
    r, d = net()
    labels = np.arange(40) % 2
    assert "label" in declined(r, d, table()).asked
    assert "none in 40 rows" in declined(r, d, table(label=np.full(40, np.nan)), "log_loss").given
    assert (
        "another value in 1 of 40 rows"
        in declined(r, d, table(label=np.where(np.arange(40) == 7, 2, labels)), "log_loss").given
    )
    assert (
        "another value"
        in declined(r, d, table(label=[*["fraud"] * 20, *[None] * 20]), "log_loss").given
    )
    assert "only 1 in 40" in declined(r, d, table(label=np.ones(40)), "auc").given
    assert declined(r, d, table(label=labels), "cros_entropy", code=64).code == 64
    assert "cross_entropy" in declined(r, d, table(label=labels), "cros_entropy", code=64).mend
    assert declined(r, d, table(label=labels), "auc", alpha=0, code=64).code == 64
    assert declined(r, d, table(label=labels).head(0), "auc").code == 65
    assert "in all rows" in declined(r, d, table(label=labels, weight=np.zeros(40)), "auc").given
    assert "logits" in declined(r, d, table(label=labels), "cross_entropy").asked
    assert spliced_metric(r, d, table(label=labels.astype(bool)), "auc") == spliced_metric(
        r, d, table(label=labels), "auc"
    )


def test_a_probability_is_no_log_odds():
    r, d = net("probability")
    e = declined(r, d, table(label=np.arange(40) % 2))
    assert "log odds" in e.asked
    assert e.code == 65
    assert spliced_metric(r, d, table(label=np.arange(40) % 2), "auc").bare > 0


def test_an_encoder_predicts_no_next_token():
    torch.manual_seed(0)
    r = Release.from_module(
        Bag(),
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=lambda out: out[:, 0, 3] * 5,
        sites=["hidden:out"],
        device="cpu",
    )
    d = Dictionary((Site("hidden"),), (directions(3, 12, 8),))
    data = world().rows
    assert "no later token" in declined(r, d, data, "cross_entropy").asked
    assert spliced_metric(r, d, data.assign(label=np.arange(len(data)) % 2)).name == "log_loss"
    one_token = data.assign(input_ids=[[BOS]] * len(data))
    assert declined(causal(0, "v1"), world().dictionary, one_token).code == 65


@pytest.mark.parametrize(
    "made",
    [
        lambda o, b, r: o.logits,
        lambda o, b, r: 1.0,
        lambda o, b, r: torch.zeros(b.n + 1),
        lambda o, b, r: torch.zeros(b.n, 1),
    ],
)
def test_a_function_of_another_shape_is_refused(made):
    w = world()
    e = declined(w.old, w.dictionary, w.rows, made)
    assert "one number per sequence" in e.asked
    assert e.code == 65


def test_nan_is_named_with_its_run_and_row():
    w = world()

    def bad(output, batch, rows):
        return torch.where(torch.tensor((rows.sequence_id == "s5").to_numpy()), torch.nan, 1.0)

    e = declined(w.old, w.dictionary, w.rows, bad)
    assert "bare" in e.asked
    assert "row 5 (1 of" in e.given
    loud = replace(
        w.dictionary,
        weights=(
            w.dictionary.weights[0],
            replace(w.dictionary.weights[1], b_dec=torch.full((16,), torch.inf)),
        ),
    )
    assert "replacement model" in declined(w.old, loud, w.rows).asked


def test_a_metric_can_be_looked_at():
    t = truth("gpt2 clt")
    m = spliced_metric(t["release"], t["dictionary"], t["rows"])
    assert isinstance(m, Metric)
    assert "cross_entropy" in repr(m)
    assert "\n" not in repr(m)
    assert "<script" not in m._repr_html_()
    assert "nats per token" in m._repr_html_()
    assert list(m.table()["of"])[-1] == "share recovered"
    assert f"{m.bare:.4f}" in m._repr_html_()
    with pytest.raises(AttributeError):
        m.bare = 1.0


# a skip


def with_skip(skip, features):
    "A transcoder of a linear layer whose skip and features each do a share of what it does."
    net = nn.Sequential(nn.Identity(), nn.Linear(6, 6), nn.Linear(6, 1))
    torch.manual_seed(0)
    for p in net.parameters():
        nn.init.normal_(p)
    columns = [f"x{i}" for i in range(6)]
    release = Release.from_module(
        net,
        sites=["1:out"],
        decision=dict(kind="scalar"),
        inputs=dict(kind="columns", columns=columns),
        name="line",
    )
    W = net[1].weight.detach().T
    rows = torch.cat([W, -W])
    norm = rows.norm(dim=1)
    w = SiteWeights(
        torch.cat([torch.eye(6), -torch.eye(6)], 1) * norm,
        torch.zeros(12),
        torch.zeros(12),
        features * (rows / norm[:, None])[:, None],
        net[1].bias.detach(),
        skip * W,
    )
    table = pd.DataFrame(
        np.random.default_rng(0).normal(1.5, 1, size=(300, 6)).astype("float32"), columns=columns
    ).assign(sequence_id=range(300), weight=np.arange(300) % 3)
    return (
        release,
        Dictionary(
            (Site.parse("0:out"),), (w,), wiring="transcoder", targets=(Site.parse("1:out"),)
        ),
        table,
    )


@pytest.mark.parametrize(
    "skip, features, alone, said",
    [
        (0.9, 0.1, 0.01, False),
        (0.5, 0.5, 0.25, False),
        (0.0, 1.0, 1.0, False),
        (0.0, 0.2, 1.0, False),
        (-0.2, 0.3, 1.44, False),
        (0.9, 0.0, 0.01, True),
        (0.5, 0.05, 0.25, True),
    ],
)
def test_what_a_skip_does_alone_is_measured_and_said_where_it_is_most(skip, features, alone, said):
    "A layer that is linear: of its variance the skip alone misses (1 - skip)^2, whatever the mean."
    release, d, table = with_skip(skip, features)
    assert skip_alone(release, d, table) == pytest.approx(alone, abs=1e-4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = certify(release, d, table).validity["measured"]
    assert found["skip_alone"] == pytest.approx(alone, abs=1e-4)
    assert any("the skip does most" in str(w.message) for w in caught) == said
    assert skip + features != 1 or found["splice_error"] < 1e-6


def test_without_a_skip_nothing_is_measured_of_it():
    release, d, table = with_skip(0.0, 1.0)
    bare = replace(d, weights=tuple(replace(w, W_skip=None) for w in d.weights))
    assert skip_alone(release, bare, table) is None
    assert "skip_alone" not in certify(release, bare, table).validity["measured"]
