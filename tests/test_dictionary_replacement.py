"Replacement model, attributions and effects of every wiring, one sequence at a time."

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import refused
from small_language import BOS, PAD, V, world
from small_wirings import (
    every,
    made,
    mlp,
    nodes,
    of,
    release,
    rows,
    spec,
    truth,
)
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.evaluate import attributions, evaluate
from interpkit.dictionary.replacement import run_replaced, splice
from interpkit.dictionary.validity import certify, verify_canary
from interpkit.explain.ablation import Ablation, all_effects
from interpkit.explain.attribution import explain
from interpkit.model.releases import Release


@every
def test_replacement_model(name):
    t = truth(name)
    found = splice(t.release, t.d, t.rows)
    assert found.bare.tolist() == pytest.approx([x.decision for x in t.seen], abs=1e-4)
    assert found.spliced.tolist() == pytest.approx([x.spliced for x in t.seen], abs=2e-3)
    assert max(abs(x.spliced - x.decision) for x in t.seen) > 0.05
    batch = t.release.batch(t.rows)
    assert t.release.decide(run_replaced(t.release, t.d, batch), batch).tolist() == pytest.approx(
        found.spliced.tolist(), abs=1e-5
    )


@every
def test_attributions(name):
    t = truth(name)
    at = attributions(t.release, t.d, t.release.batch(t.rows))
    size, signed = (torch.tensor(x.toarray(), dtype=torch.float32) for x in (at.size, at.signed))
    assert torch.allclose(size, of(t, lambda a: a.abs().sum(0)), atol=2e-3, rtol=1e-3)
    assert torch.allclose(signed, of(t, lambda a: a.sum(0)), atol=2e-3, rtol=1e-3)
    assert of(t, lambda a: a.abs().sum(0)).max() > 0.1
    assert (size - signed.abs()).max() >= -1e-5
    for i, x in enumerate(t.seen):
        error, mass = nodes(t, x)
        assert at.error[i].tolist() == pytest.approx(error, rel=5e-3, abs=1e-3)
        assert at.mass[i].tolist() == pytest.approx(mass, rel=5e-3, abs=1e-3)
        for site, r in zip(t.d.targets, x.recon, strict=True):
            assert torch.allclose(at.recon[site][i, t.start : len(r)], r[t.start :], atol=1e-3)


@every
def test_explanations(name):
    t = truth(name)
    for e, x in zip(explain(t.release, t.d, t.rows, top=3), t.seen, strict=True):
        size = torch.cat([a.abs().sum(0) for a in x.at]).numpy()
        lost = sum(x.error)
        assert e.features.share.tolist() == pytest.approx(
            sorted(size[size > 0] / (size.sum() + lost), reverse=True)[:3], abs=1e-3
        )
        assert e.error_share == pytest.approx(lost / (size.sum() + lost), abs=1e-3)


@every
def test_all_effects(name):
    t = truth(name)
    expected = np.stack([x.effect for x in t.seen])
    found = all_effects(t.release, t.d, t.rows)
    assert np.abs(expected).max() > 0.05
    assert np.allclose(found, expected, atol=5e-4)
    assert (np.abs(found[expected == 0]) < 1e-6).all()  # exactly 0, but for activations of 1e-8


@pytest.mark.parametrize("name", ["llama clt", "gpt2 tied clt", "gpt2 per_layer", "net clt"])
def test_effects_pair_by_pair(name, monkeypatch):
    t = truth(name)
    expected = np.stack([x.effect for x in t.seen])
    s, f = np.nonzero(expected)
    order = np.random.default_rng(0).permutation(np.r_[np.arange(len(s)), 0, 0])
    ablation = Ablation(t.release, t.d, t.release.batch(t.rows))
    assert set(ablation.prefix.mode.values()) == {"from site"}
    assert np.allclose(
        ablation.effects(s[order], f[order]), expected[s[order], f[order]], atol=5e-4
    )
    ablation.prefix.mode = dict.fromkeys(ablation.prefix.mode, "full")
    assert np.allclose(
        ablation.effects(s[order], f[order]), expected[s[order], f[order]], atol=5e-4
    )
    monkeypatch.setattr("interpkit.model.prefix.CACHED", 300)
    assert np.allclose(
        ablation.effects(s[order], f[order]), expected[s[order], f[order]], atol=5e-4
    )


@every
def test_what_is_measured(name):
    t = truth(name)
    found = evaluate(t.release, t.d, t.rows)
    weight = t.rows.weight.to_numpy() if "weight" in t.rows else np.ones(len(t.rows))
    bare, now = (np.array([getattr(x, n) for x in t.seen]) for n in ("decision", "spliced"))
    assert found["splice_error"] == pytest.approx(
        (weight * (now - bare) ** 2).sum()
        / (weight * (bare - (weight * bare).sum() / weight.sum()) ** 2).sum(),
        rel=1e-2,
    )
    error, mass = (np.array([nodes(t, x)[k] for x in t.seen]) for k in (0, 1))
    assert found["error_share"] == pytest.approx(
        ((weight @ error) / (weight @ (error + mass))).max(), rel=2e-3
    )
    fvu, rates = [], []
    for j, target in enumerate(t.s.targets):
        h = torch.cat([x.acts[target][t.start :] for x in t.seen])
        r = torch.cat([x.recon[j][t.start :] for x in t.seen])
        fvu.append(float(((h - r) ** 2).sum() / ((h - h.mean(0)) ** 2).sum()))
        rates.append((torch.cat([x.codes[j][t.start :] for x in t.seen]) > 0).double().mean(0))
    assert found["fvu"] == pytest.approx(np.mean(fvu), rel=1e-3)
    assert found["l0"] == pytest.approx(np.mean([float(r.sum()) for r in rates]), rel=1e-6)
    rates = torch.cat(rates)
    assert found["dead_share"] == pytest.approx(float((rates == 0).double().mean()))
    assert found["dense_share"] == pytest.approx(float((rates > 0.1).double().mean()))
    assert found["sequences"] == len(t.rows)


@every
def test_certificate(name, tmp_path):
    t = truth(name)
    certified = certify(
        t.release, t.d, t.rows, like=t.rows if name.startswith("net") else world(300).rows
    )
    verify_canary(t.release, certified)
    assert all(
        v.abs().sum() > 0 for v in certified.canary.values()
    )  # a canary of start tokens alone would hold anywhere
    certified.save(tmp_path / "d")
    verify_canary(t.release, Dictionary.load(tmp_path / "d", t.release))
    assert {str(s) for s in (*t.d.sites, *t.d.targets)} <= set(certified.canary)
    elsewhere = {
        **certified.canary,
        str(t.d.targets[-1]): certified.canary[str(t.d.targets[-1])] * 1.1,
    }
    with pytest.raises(InterpkitError, match="canary") as e:
        verify_canary(t.release, replace(certified, canary=elsewhere))
    assert e.value.code == 65
    w = t.d.weights[-1]
    other = replace(certified, weights=(*t.d.weights[:-1], replace(w, W_dec=w.W_dec.roll(1, 0))))
    with pytest.raises(InterpkitError, match="other weights"):
        verify_canary(t.release, other)


@every
def test_the_model_is_left_as_it_was(name):
    t = truth(name)
    before = t.release.run(t.rows)
    all_effects(t.release, t.d, t.rows)
    evaluate(t.release, t.d, t.rows)
    assert torch.equal(before, t.release.run(t.rows))
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__
        for m in t.release.model.modules()
    )


# the order of the forward


def late(wiring="per_layer"):
    "Sources that a forward passes after what they write."
    return made(
        spec(
            wiring,
            [mlp("net", i, "in") for i in (1, 0)],
            [mlp("net", i, "out") for i in ((1, 0) if wiring == "clt" else (0, 1))],
            10,
        )
    )


@pytest.mark.parametrize(
    "ask",
    [
        evaluate,
        all_effects,
        explain,
        certify,
        splice,
        lambda r, d, x: attributions(r, d, r.batch(x)),
    ],
)
@pytest.mark.parametrize("wiring", ["per_layer", "clt"])
def test_a_source_after_its_target_is_refused(wiring, ask):
    error = refused(partial(ask, release("net"), late(wiring), rows("net")), "blocks.1:in")
    assert "order in which the model passes them" in error.mend
    assert "blocks.0:out" in error.asked


class Pooled(nn.Module):
    "Tokens, then one number per sequence that every token sees again."

    def __init__(self):
        super().__init__()
        self.embed, self.tokens, self.pool, self.again, self.head = (
            nn.Embedding(V, 8),
            nn.Identity(),
            nn.Identity(),
            nn.Identity(),
            nn.Linear(8, 1),
        )

    def forward(self, input_ids, attention_mask):
        real = attention_mask[..., None]
        h = self.tokens(self.embed(input_ids)) * real
        mean = self.pool(h.sum(1) / real.sum(1))[:, None]
        return self.head((self.again(h + mean) * real).sum(1))


@pytest.mark.parametrize("source, target", [("tokens:in", "pool:out"), ("pool:in", "again:out")])
@pytest.mark.parametrize("ask", [evaluate, all_effects, splice])
def test_source_and_target_have_the_same_positions(source, target, ask):
    torch.manual_seed(0)
    r = Release.from_module(
        Pooled(),
        inputs=dict(kind="tokens", bos=BOS, pad=PAD),
        decision=lambda out: out[:, 0],
        sites=["pool:out"],
        device="cpu",
    )
    with pytest.raises(InterpkitError, match="positions") as e:
        ask(r, made(spec("transcoder", [source], [target], 8)), rows("llama"))
    assert e.value.code == 65


def test_layers_may_be_named_in_any_order():
    "The same transcoders, last layer first: the same effects, attributions and replacement."
    t = truth("llama per_layer")
    back = Dictionary(
        t.d.sites[::-1], t.d.weights[::-1], wiring="per_layer", targets=t.d.targets[::-1]
    )
    order = np.concatenate([back.offsets[s] + np.arange(t.d.at(s).n_features) for s in t.d.sites])
    assert np.allclose(
        all_effects(t.release, back, t.rows)[:, order],
        all_effects(t.release, t.d, t.rows),
        atol=1e-5,
    )
    a, b = (attributions(t.release, d, t.release.batch(t.rows)) for d in (back, t.d))
    assert np.allclose(a.signed.toarray()[:, order], b.signed.toarray(), atol=1e-4)
    assert torch.allclose(a.error, b.error, atol=1e-4)
    assert np.allclose(splice(t.release, back, t.rows), splice(t.release, t.d, t.rows), atol=1e-5)
