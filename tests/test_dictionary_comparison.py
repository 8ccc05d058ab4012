"A whole release check of every wiring, from measured tables to evidence."

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_language import causal
from small_wirings import (
    changed,
    made,
    nodes,
    spec,
    truth,
    without,
)
from torch import nn

from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import certify
from interpkit.dictionary.weights import SiteWeights, unit_rows
from interpkit.drift.comparison import Comparison
from interpkit.drift.measure import measure_all
from interpkit.drift.printed import deletion_curve, printed
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.model.releases import Release
from interpkit.model.sites import Site

VALID = dict.fromkeys(("splice error", "error share", "active features"), "valid")


def compared(name) -> Comparison:
    t = truth(name)
    names = [
        "splice error",
        "error share",
        "active features",
        "activation",
        "effect",
        "inputs",
        "decisions",
        *[f"effect: feature {f}" for f in (3, 8)],
    ]
    plan = Plan(
        tuple(Statement(n, VALID.get(n, "same"), 0.25) for n in names),
        (3, 8),
        sequences=len(t.rows),
        features=t.d.n_features,
        draws=4,
    )
    return Comparison(
        t.release, truth(name, 0.1, name == "llama clt").release, t.d, t.rows, plan, "salt"
    )


@pytest.mark.parametrize(
    "name",
    [
        "llama clt",
        "llama tied clt",
        "llama transcoder, skip, other widths",
        "gpt2 per_layer",
        "net clt",
    ],
)
def test_a_release_is_compared_to_the_end(name):
    c = compared(name)
    assert not c.incompatible
    table = measure_all(c)
    found = {s.name: s for s in decide(table, c.plan)}
    shares = [n for n in table.statement.unique() if n.startswith("error share")]
    assert shares == ["error share"]
    assert np.isfinite(table[["numerator", "denominator", "change", "base"]].to_numpy()).all()
    assert all(
        np.isfinite(found[n].ratio)
        and found[n].ratio > 0
        and found[n].outcome in ("PASS", "FAIL", "INCONCLUSIVE")
        for n in (*VALID, "activation", "effect", "inputs", "decisions")
    )
    assert all(np.isfinite(v) for site in printed(c)["subspace"].values() for v in site.values())
    assert list(printed(c)["subspace"]) == [str(s) for s in c.dictionary.targets]


def test_statements_about_a_clt_are_those_of_the_definition():
    name = "llama clt"
    table = measure_all(compared("llama clt"))
    old = truth(name)
    new = truth(name, 0.1)
    w = truth(name).rows.weight.to_numpy()

    def share(n):
        return table[table.statement == n]

    E, A = (np.array([nodes(new, x)[k][0] for x in new.seen]) for k in (0, 1))
    assert share("error share").numerator.tolist() == pytest.approx(E.tolist(), rel=1e-2)
    assert share("error share").denominator.tolist() == pytest.approx((E + A).tolist(), rel=1e-2)
    sides = []
    for t in (old, new):  # effects in units of each release: the mean distance from the mean
        decision = np.array([x.decision for x in t.seen])
        off = np.abs(decision - np.average(decision, weights=w))
        sides.append(np.stack([x.effect for x in t.seen]) / np.average(off, weights=w))
    was, now = sides
    for f in (3, 8):
        t = share(f"effect: feature {f}")
        i = np.flatnonzero(
            [
                any((torch.cat(list(x.codes.values()), 1)[:, f] > 0).any() for x in pair)
                for pair in zip(old.seen, new.seen, strict=True)
            ]
        )
        assert t.numerator.tolist() == pytest.approx(np.abs(now - was)[i, f].tolist(), abs=1e-3)
        size = np.abs(was) + np.abs(now)
        assert t.denominator.tolist() == pytest.approx(size[i, f].tolist(), abs=1e-3)
    spliced, bare = (np.array([getattr(x, n) for x in new.seen]) for n in ("spliced", "decision"))
    assert share("splice error").numerator.tolist() == pytest.approx(
        ((spliced - bare) ** 2).tolist(), rel=1e-2, abs=1e-3
    )
    assert share("splice error").denominator.tolist() == pytest.approx(
        ((bare - np.average(bare, weights=w)) ** 2).tolist(), rel=1e-2, abs=1e-3
    )


class Linear(nn.Module):
    "Two blocks that are products: a CLT can say exactly what they do."

    def __init__(self):
        super().__init__()
        self.blocks, self.head = (
            nn.ModuleList(nn.Linear(5, 5, bias=False) for _ in range(2)),
            nn.Linear(5, 1),
        )

    def forward(self, x):
        for b in self.blocks:
            x = x + b(x)
        return self.head(x)


def exact(model) -> Dictionary:
    "Each axis read in both directions; the first source writes half of the second block."
    both, zero, (A, B) = (
        torch.cat([torch.eye(5), -torch.eye(5)]),
        torch.zeros(10),
        (b.weight.T.clone() for b in model.blocks),
    )
    writes = (
        torch.stack([both @ A, both @ (B + A @ B) / 2], 1),
        both @ B[:, None].transpose(0, 1) / 2,
    )
    weights = tuple(
        unit_rows(
            SiteWeights(both.T.contiguous(), zero, zero, w.reshape(10, -1, 5), torch.zeros(5))
        )
        for w in writes
    )
    return Dictionary(
        tuple(Site(f"blocks.{i}", "in") for i in (0, 1)),
        weights,
        wiring="clt",
        targets=tuple(Site(f"blocks.{i}") for i in (0, 1)),
    )


@pytest.mark.parametrize("by, action", [(0.01, "REUSE"), (0.9, "REVIEW")])
def test_a_check_from_modules_to_evidence(tmp_path, by, action):
    import interpkit
    from interpkit.gate.evidence import verify

    torch.manual_seed(0)
    model = Linear()
    data = pd.DataFrame(
        np.random.default_rng(0).normal(size=(1500, 5)).astype("float32"), columns=list("abcde")
    ).assign(sequence_id=range(1500))
    old = Release.from_module(
        model,
        inputs=dict(kind="columns", columns=list("abcde")),
        sites=["blocks.0:out"],
        name="old",
        device="cpu",
    )
    new = Release.from_module(
        changed(copy.deepcopy(model), by),
        inputs=dict(kind="columns", columns=list("abcde")),
        sites=["blocks.0:out"],
        name="new",
        device="cpu",
    )
    d = certify(old, exact(old.model), data)
    assert d.validity["measured"]["splice_error"] < 1e-8
    assert d.validity["measured"]["error_share"] < 1e-4
    result = interpkit.check(old, new, data, dictionary=d, out=tmp_path / "out")
    whole = [s.name for s in result.verdict.statements if not s.segment]
    shares = [name for name in whole if name.startswith("error share")]
    assert result.action == action
    assert shares == ["error share"]
    assert all(np.isfinite(s.ratio) for s in result.verdict.statements)
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert verify(tmp_path / "out" / "evidence").verdict.action == action


@pytest.mark.parametrize("name", ["llama clt", "gpt2 per_layer", "net tied clt"])
def test_deletion_takes_several_features_at_once(name):
    t = truth(name)
    found = deletion_curve(t.release, t.d, t.rows, steps=(1, 3))
    expected = []
    for k in (1, 3):
        moved = []
        for x in t.seen:
            size = torch.cat([a.abs().sum(0) for a in x.at])
            active = torch.cat([(a > 0).any(0) for a in x.codes.values()])
            gone = [
                t.d.locate(int(f))
                for f in torch.where(active, size, -1.0).argsort(descending=True)[:k]
                if active[f]
            ]
            moved.append(
                abs(
                    x.decision
                    - without(
                        t.s,
                        t.release.model,
                        x.x,
                        x.acts,
                        x.codes,
                        [(t.d.sites.index(s), f) for s, f in gone],
                    )
                )
                if gone
                else 0.0
            )
        expected.append(np.mean(moved))
    assert found["attributed"] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert expected[1] > 0.01


def test_a_narrower_release_cannot_be_read():
    t = truth("llama clt")
    narrow = causal(0, "narrow", width=8)
    assert (
        "is 8 wide in narrow and 16 in the dictionary"
        in Comparison(t.release, narrow, t.d, t.rows, Plan(())).incompatible
    )
    target = made(
        spec("transcoder", ["model.layers.1.mlp:in"], ["model.layers.1.mlp.down_proj:in"], 16)
    )
    assert (
        Comparison(t.release, t.release, target, t.rows, Plan(())).incompatible
        == "model.layers.1.mlp.down_proj:in is 32 wide in llama 0.0 and 16 in the dictionary"
    )


@pytest.mark.parametrize("name", ["net sae", "llama clt"])
def test_features_that_never_fire_change_no_number(name):
    few = compared(name)
    more = []
    for w in few.dictionary.weights:
        wide = torch.arange(9 * w.n_features) % w.n_features
        threshold = w.threshold[wide].clone()
        threshold[w.n_features :] = 1e6
        encoder = dict(W_enc=w.W_enc[:, wide], b_enc=w.b_enc[wide], threshold=threshold)
        more.append(replace(w, **encoder, W_dec=w.W_dec[wide]))
    labels = tuple(f"more {i}" for i in range(9 * few.dictionary.n_features))
    wide = replace(few.dictionary, weights=tuple(more), labels=labels)
    first = few.dictionary.sites[0]
    assert wide.at(first).n_features == 9 * few.dictionary.at(first).n_features
    seen = Comparison(few.old, few.new, wide, few.rows, few.plan, "salt").observed
    for matrix in ("active_old", "moved", "size_new"):
        a, b = getattr(few.observed, matrix), getattr(seen, matrix)
        assert np.allclose(a.sum(1), b.sum(1), atol=1e-4), matrix
    assert np.array_equal(few.observed.count_new, seen.count_new)
    assert np.allclose(few.observed.spliced_new, seen.spliced_new, atol=1e-5)
