"Four wirings against their definitions, written out by hand: one sequence at a time, no padding, plain hooks, nothing of the package but the object under test."

import copy
import hashlib
import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_language import BOS, PAD, V, causal, world
from small_wirings import (
    SPECS,
    changed,
    every,
    made,
    mlp,
    nodes,
    of,
    reads,
    rebuilt,
    release,
    rows,
    spec,
    tensors,
    truth,
    without,
)
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.dictionary.checks import CHECKS, ON_A_RELEASE, check_dictionary
from interpkit.dictionary.dictionary import TENSORS, Dictionary, SiteWeights, unit_rows
from interpkit.dictionary.evaluate import attributions, evaluate, run_replaced, splice
from interpkit.dictionary.validity import certify, verify_canary
from interpkit.drift.comparison import Comparison
from interpkit.drift.families import measure_all
from interpkit.drift.printed import deletion_curve, printed
from interpkit.drift.statements import Plan, Statement, decide
from interpkit.explain.ablation import Ablation, all_effects
from interpkit.explain.attribution import explain
from interpkit.model.releases import Release
from interpkit.model.sites import Site

# the object


@every
def test_forward_and_decode(name):
    t = truth(name)
    for x in t.seen:
        acts = {Site.parse(n): h for n, h in x.acts.items()}
        codes = {
            site: reads(t.s, i, x.acts[n], False)
            for i, (n, site) in enumerate(zip(t.s.sources, t.d.sites))
        }
        expected = [
            rebuilt(t.s, j, dict(enumerate(codes.values())), [x.acts[n] for n in t.s.sources])
            for j in range(len(t.s.w))
        ]
        for found in (t.d.forward(acts), t.d.decode(codes, acts)):
            assert list(found) == [Site.parse(n) for n in t.s.targets]
            for a, b in zip(found.values(), expected):
                assert torch.allclose(a, b, atol=1e-4)
    assert t.d.frozen == (t.s.wiring != "sae") and t.d.tied == ("tied" in name)


@every
def test_sparse_codes_are_the_dense_ones_and_write_the_same(name):
    d = truth(name).d
    for x in truth(name).seen:
        acts = {Site.parse(n): h for n, h in x.acts.items()}
        codes = {s: d.encode(s, acts[s]) for s in d.sites}
        for s in d.sites:
            dense, w = d.at(s).encode(acts[s]), d.at(s)
            clear = (
                acts[s] @ w.W_enc + w.b_enc - w.threshold
            ).abs() > 1e-4  # of another product's rounding
            assert (
                torch.allclose(codes[s].dense()[clear], dense[clear], atol=1e-4)
                and ((codes[s].dense() > 0) == (dense > 0))[clear].all()
            )
        for t, h in d.decode({s: c.dense() for s, c in codes.items()}, acts).items():
            assert torch.allclose(d.decode(codes, acts)[t], h, atol=1e-4), t


@every
def test_a_subset_reads_and_writes_what_the_whole_does(name):
    t = truth(name)
    kept = sorted({0, 3, t.d.n_features - 1, t.d.n_features // 2})
    part = t.d.subset(kept[::-1])
    acts = {Site.parse(n): h for n, h in t.seen[0].acts.items()}
    codes = {site: t.d.at(site).encode(acts[site]) for site in t.d.sites}
    for site in t.d.sites:
        mine = [f - t.d.offsets[site] for f in kept if t.d.locate(f)[0] == site]
        assert torch.allclose(part.at(site).encode(acts[site]), codes[site][:, mine], atol=1e-6)
        assert ((part.at(site).encode(acts[site]) > 0) == (codes[site][:, mine] > 0)).all()
        for target, w in t.d.writes(site).items():
            assert torch.equal(part.writes(site)[target], w[mine])
        codes[site][:, [f for f in range(codes[site].shape[1]) if f not in mine]] = 0
    for target, h in t.d.decode(codes, acts).items():
        assert torch.allclose(part.forward(acts)[target], h, atol=1e-5)
    assert part.labels == tuple(t.d.labels[f] for f in kept) and (
        part.wiring,
        part.targets,
        part.tied,
    ) == (t.d.wiring, t.d.targets, t.d.tied)


@every
def test_folder_and_types_round_trip(name, tmp_path):
    d = truth(name).d
    d.save(tmp_path / "d")
    back = Dictionary.load(tmp_path / "d")
    assert (back.wiring, back.sites, back.targets, back.labels, back.fingerprint) == (
        d.wiring,
        d.sites,
        d.targets,
        d.labels,
        d.fingerprint,
    )
    wide = d.to(torch.float64)
    for a, b, c in zip(d.weights, back.weights, wide.weights):
        for n in (*TENSORS, "W_skip"):
            x, y, z = getattr(a, n), getattr(b, n), getattr(c, n)
            assert (x is y is z is None) or (
                torch.equal(x, y) and z.dtype == torch.float64 and torch.equal(z.float(), x)
            ), n
    acts = {Site.parse(n): h.double() for n, h in truth(name).seen[0].acts.items()}
    assert (
        all(h.dtype == torch.float64 for h in wide.forward(acts).values())
        and wide.to(torch.float32).fingerprint == d.fingerprint
    )
    with pytest.raises(InterpkitError) as e:
        wide.forward({s: h.float() for s, h in acts.items()})
    assert e.value.code == 65


@every
def test_the_folder_is_that_of_the_format(name, tmp_path):
    "Shapes and fingerprint as nbs/formats.md says, from the files alone."
    s = SPECS[name][1]()
    truth(name).d.save(tmp_path / "d")
    head, t = (
        json.loads((tmp_path / "d" / "dictionary.json").read_text()),
        load_file(tmp_path / "d" / "weights.safetensors"),
    )
    h = hashlib.sha256(head["wiring"].encode())
    for i, site in enumerate(head["sites"]):
        h.update(
            site.encode() + b"".join(t[f"{n}_{i}"].numpy().astype("<f4").tobytes() for n in TENSORS)
        )
    if head["wiring"] != "sae":
        for i, target in enumerate(head["targets"]):
            h.update(
                target.encode()
                + (t[f"W_skip_{i}"].numpy().astype("<f4").tobytes() if f"W_skip_{i}" in t else b"")
            )
    assert (head["fingerprint"], head["wiring"], head["sites"], head["targets"]) == (
        h.hexdigest(),
        s.wiring,
        s.sources,
        s.targets,
    )
    n = len(s.sources)
    for i, w in enumerate(s.w):
        assert t[f"W_dec_{i}"].shape[:2] == (
            w["W_enc"].shape[1],
            n - i if s.clt and "tied" not in name else 1,
        )
        assert {k for k in t if k.endswith(f"_{i}")} == {f"{k}_{i}" for k in w}


@every
def test_fingerprint_is_of_all_that_it_computes(name):
    d, last = truth(name).d, len(truth(name).d.sites) - 1
    for i, w in enumerate(d.weights):
        for n in (*TENSORS, "W_skip"):
            if getattr(w, n) is None:
                continue
            moved = getattr(w, n).clone()
            moved.view(-1)[-1] += 0.01
            assert (
                replace(
                    d, weights=d.weights[:i] + (replace(w, **{n: moved}),) + d.weights[i + 1 :]
                ).fingerprint
                != d.fingerprint
            ), n
    if d.frozen:
        assert (
            replace(d, targets=(*d.targets[:last], Site("elsewhere"))).fingerprint != d.fingerprint
        )


def test_wirings_that_cannot_be_are_refused():
    site, w = (
        tuple(map(Site, "abc")),
        lambda targets=1, **kw: SiteWeights(**tensors(0, 4, 5, targets, 4) | kw),
    )
    three = lambda *t: tuple(w(k) for k in t)
    for broken in (
        dict(wiring="mesh"),
        dict(targets=()),
        dict(targets=site[:2]),
        dict(targets=tuple(map(Site, "xxz"))),
        dict(targets=site),
        dict(targets=tuple(map(Site, "xbz"))),
        dict(targets=tuple(map(Site, "bcx"))),
        dict(wiring="transcoder"),
        dict(weights=three(2, 1, 1)),
        dict(wiring="clt", weights=three(3, 3, 3)),
        dict(wiring="clt", weights=three(1, 2, 1)),
        dict(wiring="clt", weights=(w(1), w(1), SiteWeights(**tensors(0, 4, 5, 1, 6)))),
        dict(wiring="sae", targets=site, weights=(w(), w(), w(W_skip=torch.eye(4)))),
    ):
        with pytest.raises(InterpkitError) as e:
            Dictionary(
                **dict(
                    sites=site,
                    weights=three(1, 1, 1),
                    wiring="per_layer",
                    targets=tuple(map(Site, "xyz")),
                )
                | broken
            )
        assert e.value.code == 65, broken
    for wrong in (
        dict(W_skip=torch.zeros(4, 3)),
        dict(W_skip=torch.zeros(4, 4, dtype=torch.float64)),
        dict(b_dec=torch.zeros(3)),
    ):
        with pytest.raises(InterpkitError) as e:
            w(**wrong)
        assert e.value.code == 65


# on a release


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
    assert torch.allclose(
        at.size, of(t, lambda a: a.abs().sum(0)), atol=2e-3, rtol=1e-3
    ) and torch.allclose(at.signed, of(t, lambda a: a.sum(0)), atol=2e-3, rtol=1e-3)
    assert (
        of(t, lambda a: a.abs().sum(0)).max() > 0.1 and (at.size - at.signed.abs()).max() >= -1e-5
    )
    for i, x in enumerate(t.seen):
        error, mass = nodes(t, x)
        assert at.error[i].tolist() == pytest.approx(error, rel=5e-3, abs=1e-3) and at.mass[
            i
        ].tolist() == pytest.approx(mass, rel=5e-3, abs=1e-3)
        for site, r in zip(t.d.targets, x.recon):
            assert torch.allclose(at.recon[site][i, t.start : len(r)], r[t.start :], atol=1e-3)


@every
def test_explanations(name):
    t = truth(name)
    for e, x in zip(explain(t.release, t.d, t.rows, top=3), t.seen):
        size, lost = torch.cat([a.abs().sum(0) for a in x.at]).numpy(), sum(x.error)
        assert e.features.share.tolist() == pytest.approx(
            sorted(size[size > 0] / (size.sum() + lost), reverse=True)[:3], abs=1e-3
        ) and e.error_share == pytest.approx(lost / (size.sum() + lost), abs=1e-3)


@every
def test_all_effects(name):
    t = truth(name)
    expected, found = np.stack([x.effect for x in t.seen]), all_effects(t.release, t.d, t.rows)
    assert (
        np.abs(expected).max() > 0.05
        and np.allclose(found, expected, atol=5e-4)
        and (found[expected == 0] == 0).all()
    )


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
        h, r = (
            torch.cat([x.acts[target][t.start :] for x in t.seen]),
            torch.cat([x.recon[j][t.start :] for x in t.seen]),
        )
        fvu.append(float(((h - r) ** 2).sum() / ((h - h.mean(0)) ** 2).sum()))
        rates.append((torch.cat([x.codes[j][t.start :] for x in t.seen]) > 0).double().mean(0))
    assert found["fvu"] == pytest.approx(np.mean(fvu), rel=1e-3) and found["l0"] == pytest.approx(
        np.mean([float(r.sum()) for r in rates]), rel=1e-6
    )
    rates = torch.cat(rates)
    assert found["dead_share"] == pytest.approx(float((rates == 0).double().mean())) and found[
        "dense_share"
    ] == pytest.approx(float((rates > 0.1).double().mean()))
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
    assert torch.equal(before, t.release.run(t.rows)) and not any(
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
        lambda r, d, x: certify(r, d, x),
    ],
)
@pytest.mark.parametrize("wiring", ["per_layer", "clt"])
def test_a_source_after_its_target_is_refused(wiring, ask):
    args = (
        (late(wiring), release("net"), rows("net"))
        if ask is certify
        else (release("net"), late(wiring), rows("net"))
    )
    with pytest.raises(InterpkitError, match="blocks.1:in after it|blocks.1:in") as e:
        ask(*args)
    assert (
        e.value.code == 65
        and "order in which the model passes them" in e.value.mend
        and "blocks.0:out" in e.value.asked
    )


class Pooled(nn.Module):
    "Tokens, then one number a sequence that every token sees again."

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
        h = self.tokens(self.embed(input_ids))
        return self.head(self.again(h + self.pool(h.mean(1))[:, None]).sum(1))


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
    assert torch.allclose(a.signed[:, order], b.signed, atol=1e-4) and torch.allclose(
        a.error, b.error, atol=1e-4
    )
    assert np.allclose(splice(t.release, back, t.rows), splice(t.release, t.d, t.rows), atol=1e-5)


# a whole check


def compared(name) -> Comparison:
    t = truth(name)
    names = [
        "splice error",
        "error share",
        "activation",
        "effect",
        *[f"{n}: feature {f}" for n in ("activation", "effect") for f in (3, 8)],
    ]
    plan = Plan(
        tuple(Statement(n, "valid" if "error" in n else "same", 0.25) for n in names),
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
    assert (
        shares == ["error share"]
        and np.isfinite(table[["numerator", "denominator", "change", "base"]].to_numpy()).all()
    )
    assert all(
        np.isfinite(found[n].ratio)
        and found[n].ratio > 0
        and found[n].outcome in ("PASS", "FAIL", "INCONCLUSIVE")
        for n in ("splice error", "error share", "activation", "effect")
    )
    assert all(
        np.isfinite(v) for site in printed(c)["subspace"].values() for v in site.values()
    ) and list(printed(c)["subspace"]) == [str(s) for s in c.dictionary.targets]


def test_statements_about_a_clt_are_those_of_the_definition():
    name, table = "llama clt", measure_all(compared("llama clt"))
    old, new, w = truth(name), truth(name, 0.1), truth(name).rows.weight.to_numpy()
    share = lambda n: table[table.statement == n]
    E, A = (np.array([nodes(new, x)[k][0] for x in new.seen]) for k in (0, 1))
    assert share("error share").numerator.tolist() == pytest.approx(E.tolist(), rel=1e-2) and share(
        "error share"
    ).denominator.tolist() == pytest.approx((E + A).tolist(), rel=1e-2)
    was, now = (np.stack([x.effect for x in t.seen]) for t in (old, new))
    for f in (3, 8):
        t = share(f"effect: feature {f}")
        i = np.flatnonzero(
            [
                any((torch.cat(list(x.codes.values()), 1)[:, f] > 0).any() for x in pair)
                for pair in zip(old.seen, new.seen)
            ]
        )
        assert t.numerator.tolist() == pytest.approx(
            np.abs(now - was)[i, f].tolist(), abs=1e-3
        ) and t.denominator.tolist() == pytest.approx(np.abs(was)[i, f].tolist(), abs=1e-3)
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
    "Each axis read in both directions; half of what the second block does is written by the first source."
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


@pytest.mark.parametrize("by, action", [(0.01, "REUSE"), (0.9, "RETRAIN")])
def test_a_check_from_modules_to_evidence(tmp_path, by, action):
    import interpkit
    from interpkit.gate.evidence import verify

    torch.manual_seed(0)
    model, data = (
        Linear(),
        pd.DataFrame(
            np.random.default_rng(0).normal(size=(1500, 5)).astype("float32"), columns=list("abcde")
        ).assign(sequence_id=range(1500)),
    )
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
    assert (
        d.validity["measured"]["splice_error"] < 1e-8
        and d.validity["measured"]["error_share"] < 1e-4
    )
    result = interpkit.check(old, new, data, dictionary=d, out=tmp_path / "out")
    shares = [s.name for s in result.verdict.statements if s.name.startswith("error share")]
    assert (
        result.action == action
        and shares == ["error share"]
        and all(np.isfinite(s.ratio) for s in result.verdict.statements)
    )
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000 and verify(
        tmp_path / "out" / "evidence"
    ).verdict.action == action


@pytest.mark.parametrize("name", ["llama clt", "gpt2 per_layer", "net tied clt"])
def test_deletion_takes_several_features_at_once(name):
    t = truth(name)
    found, expected = deletion_curve(t.release, t.d, t.rows, steps=(1, 3)), []
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
    assert found["attributed"] == pytest.approx(expected, rel=1e-3, abs=1e-4) and expected[1] > 0.01


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


# what every dictionary must do, and faults that it must not have


def held_out(name):
    return rows("net") if name.startswith("net") else world(300).rows


def asked(table) -> dict:
    return dict(zip(table.check, table.outcome))


HOLDS = {c.name: "holds" for c in (*CHECKS, *ON_A_RELEASE)}


@every
def test_every_wiring_passes_all_checks(name):
    t = truth(name)
    assert asked(check_dictionary(t.d, release=t.release, rows=held_out(name))) == HOLDS
    assert asked(check_dictionary(t.d)) == HOLDS | {
        c.name: "not asked: no release" for c in ON_A_RELEASE
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_checks_hold_in_every_type(dtype):
    for name in ("gpt2 tied clt", "llama transcoder, skip, other widths", "net sae"):
        check_dictionary(truth(name).d.to(dtype))


def test_checks_hold_for_awkward_dictionaries():
    d = truth("llama clt").d
    check_dictionary(d.subset([0, 1]))  # two sources without features
    check_dictionary(
        replace(
            d,
            weights=tuple(
                replace(
                    w,
                    threshold=torch.where(torch.arange(len(w.threshold)) % 2 == 0, 0.0, torch.inf),
                )
                for w in d.weights
            ),
        )
    )
    check_dictionary(
        replace(
            d,
            weights=tuple(
                replace(w, W_dec=torch.cat([torch.zeros_like(w.W_dec[:2]), w.W_dec[2:]]))
                for w in d.weights
            ),
        )
    )
    check_dictionary(
        certify(truth("llama clt").release, d, truth("llama clt").rows, like=held_out("llama")),
        release=truth("llama clt").release,
        rows=held_out("llama"),
    )


@pytest.mark.skipif(find_spec("sae_lens") is None, reason="SAELens is not installed")
@pytest.mark.parametrize("kind", ["jumprelu", "standard", "gated"])
def test_what_comes_from_saelens_passes_all_checks(kind):
    import test_bridges_saelens as interop

    from interpkit.bridges.saelens import from_saelens

    release, rows = world().old, world(300).rows
    assert (
        asked(
            check_dictionary(
                from_saelens(interop.made(kind), release, rows), release=release, rows=rows
            )
        )
        == HOLDS
    )


def faulty(d, **methods):
    "The dictionary with other methods."
    return type("Faulty", (type(d),), methods)(**{n: getattr(d, n) for n in d.__dataclass_fields__})


def faulty_weights(d, **methods):
    cls = type("FaultyWeights", (SiteWeights,), methods)
    return replace(
        d,
        weights=tuple(cls(**{n: getattr(w, n) for n in w.__dataclass_fields__}) for w in d.weights),
    )


def last(d, **changed):
    return replace(
        d,
        weights=(
            *d.weights[:-1],
            replace(
                d.weights[-1],
                **{n: fn(getattr(d.weights[-1], n).clone()) for n, fn in changed.items()},
            ),
        ),
    )


def put(at, value):
    def fn(t):
        t[at] = value
        return t

    return fn


def no_skip(w, fn):
    return SiteWeights(*(fn(getattr(w, n)) for n in TENSORS))


FAULTS = {
    "NaN in the encoder": ("weights are finite", lambda d: last(d, W_enc=put((0, 0), torch.nan))),
    "NaN in the decoder": (
        "weights are finite",
        lambda d: last(d, W_dec=put((0, 0, 0), torch.nan)),
    ),
    "infinite bias": ("weights are finite", lambda d: last(d, b_enc=put(0, torch.inf))),
    "no bias": (
        "encode is",
        lambda d: faulty_weights(
            d, encode=lambda self, h: (z := self._fits(h) @ self.W_enc) * (z > self.threshold)
        ),
    ),
    "centred first": (
        "encode is",
        lambda d: faulty_weights(d, encode=lambda self, h: SiteWeights.encode(self, h - 0.1)),
    ),
    "above the threshold only what is more": (
        "encode is",
        lambda d: faulty_weights(
            d,
            encode=lambda self, h: torch.relu(
                self._fits(h) @ self.W_enc + self.b_enc - self.threshold
            ),
        ),
    ),
    "NaN as codes": (
        "sparse codes",
        lambda d: faulty(
            d,
            encode=lambda self, s, h: (
                (c := Dictionary.encode(self, s, h)) and replace(c, values=c.values * torch.nan)
            ),
        ),
    ),
    "one code a token": (
        "sparse codes",
        lambda d: faulty(
            d, encode=lambda self, s, h: Dictionary.encode(self, s, h).dense().sum(-1)
        ),
    ),
    "leaks": (
        "codes are 0 below",
        lambda d: faulty_weights(d, encode=lambda self, h: SiteWeights.encode(self, h) + 1e-9),
    ),
    "threshold let through": (
        "thresholds are strict",
        lambda d: faulty_weights(
            d,
            encode=lambda self, h: (
                (z := self._fits(h) @ self.W_enc + self.b_enc) * (z >= self.threshold)
            ),
        ),
    ),
    "rectified output": (
        "decode is linear",
        lambda d: faulty(
            d,
            decode=lambda self, c, a={}: {
                t: h.relu() for t, h in Dictionary.decode(self, c, a).items()
            },
        ),
    ),
    "features out of order": (
        "decode adds",
        lambda d: faulty(
            d,
            decode=lambda self, c, a={}: Dictionary.decode(
                self, {s: x.flip(-1) for s, x in c.items()}, a
            ),
        ),
    ),
    "targets out of order": (
        "decode adds",
        lambda d: faulty(
            d, decode=lambda self, c, a={}: dict(reversed(Dictionary.decode(self, c, a).items()))
        ),
    ),
    "a bias twice": (
        "decode adds",
        lambda d: faulty(
            d,
            written=lambda self, t, c, a={}: (
                Dictionary.written(self, t, c, a) + self.weights[0].b_dec
            ),
        ),
    ),
    "writes to its own layer alone": (
        "decode adds",
        lambda d: faulty(
            d, writes=lambda self, s: dict([next(iter(Dictionary.writes(self, s).items()))])
        ),
    ),
    "a forward of its own": (
        "forward is",
        lambda d: faulty(
            d,
            forward=lambda self, a: {t: h * 1.001 for t, h in Dictionary.forward(self, a).items()},
        ),
    ),
    "a row of length 2": (
        "decoder rows",
        lambda d: last(d, W_dec=lambda t: torch.cat([t[:1] * 2, t[1:]])),
    ),
    "a row 1 % too long": (
        "decoder rows",
        lambda d: last(d, W_dec=lambda t: torch.cat([t[:1] * 1.01, t[1:]])),
    ),
    "a subset of its neighbours": (
        "a subset is exact",
        lambda d: faulty(
            d,
            subset=lambda self, f: Dictionary.subset(
                self, sorted({(i + 1) % self.n_features for i in f})
            ),
        ),
    ),
    "a subset without labels": (
        "a subset is exact",
        lambda d: faulty(d, subset=lambda self, f: replace(Dictionary.subset(self, f), labels=())),
    ),
    "a subset that competes": (
        "a subset is exact",
        lambda d: faulty(
            d,
            subset=lambda self, f: (
                faulty_weights(
                    Dictionary.subset(self, f),
                    encode=lambda w, h: (
                        (c := SiteWeights.encode(w, h)) * (c == c.amax(-1, keepdim=True))
                    ),
                )
                if len(f) < self.n_features
                else self
            ),
        ),
    ),
    "`to` loses the skip": ("types and devices", lambda d: faulty_weights(d, map=no_skip)),
    "`to` rounds": (
        "types and devices",
        lambda d: faulty(
            d, to=lambda self, where: Dictionary.to(Dictionary.to(self, torch.float16), where)
        ),
    ),
    "`to` does nothing": ("types and devices", lambda d: faulty(d, to=lambda self, where: self)),
    "a folder loses its labels": (
        "a folder comes back",
        lambda d: faulty(
            replace(d, labels=tuple(f"named {i}" for i in range(d.n_features))),
            load=classmethod(lambda cls, folder: replace(Dictionary.load(folder), labels=())),
        ),
    ),
    "a folder in half precision": (
        "a folder comes back",
        lambda d: faulty(
            d, save=lambda self, folder: Dictionary.save(Dictionary.to(self, torch.float16), folder)
        ),
    ),
    "a folder that is not written": (
        "a folder comes back",
        lambda d: faulty(d, save=lambda self, folder: None),
    ),
    "any width": (
        "what doesn't fit",
        lambda d: faulty_weights(
            d, encode=lambda self, h: SiteWeights.encode(self, h[..., : self.d])
        ),
    ),
    "any type": (
        "what doesn't fit",
        lambda d: faulty_weights(
            d, encode=lambda self, h: SiteWeights.encode(self, h.to(self.W_enc.dtype))
        ),
    ),
    "torch's own message": (
        "what doesn't fit",
        lambda d: faulty_weights(
            d, encode=lambda self, h: (z := h @ self.W_enc + self.b_enc) * (z > self.threshold)
        ),
    ),
    "weights of two types": (
        "what doesn't fit",
        lambda d: faulty_weights(d, __post_init__=lambda self: None),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    check, plant = FAULTS[fault]
    d = truth("llama clt, skip, from the residual stream").d
    with pytest.raises(InterpkitError) as e:
        check_dictionary(plant(d))
    assert e.value.code == 65 and check in e.value.asked and e.value.given and e.value.mend, str(
        e.value
    )


@pytest.mark.parametrize(
    "name, check, plant",
    [
        (
            "llama transcoder",
            "sites exist",
            lambda d: replace(d, targets=(Site("model.layers.9.mlp"),)),
        ),
        (
            "llama transcoder",
            "sites exist",
            lambda d: replace(d, targets=(Site("model.layers.1.mlp.gate_proj"),)),
        ),
        (
            "llama transcoder",
            "replacement model",
            lambda d: replace(d, targets=(Site("model.layers.0.mlp"),)),
        ),
        ("llama transcoder", "attributions", lambda d: last(d, b_dec=lambda t: t.fill_(3e38))),
    ],
)
def test_a_dictionary_that_does_not_fit_the_release_is_found(name, check, plant):
    t = truth(name)
    with pytest.raises(InterpkitError) as e:
        check_dictionary(plant(t.d), release=t.release, rows=held_out(name))
    assert e.value.code == 65 and check in e.value.asked, str(e.value)


class Steep(nn.Module):
    "Finite as it is, and not where activations are large."

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 10), nn.Linear(10, 1)

    def forward(self, x):
        return self.head(self.first(x).exp())


def test_a_replacement_that_overflows_is_found():
    torch.manual_seed(0)
    release, d = (
        Release.from_module(Steep(), sites=["first:out"], device="cpu"),
        made(spec("transcoder", ["first:in"], ["first:out"], 5, d_out=10)),
    )
    assert asked(check_dictionary(d, release=release, rows=rows("net"))) == HOLDS
    with pytest.raises(InterpkitError, match="30 of 30 rows") as e:
        check_dictionary(last(d, b_dec=lambda t: t.fill_(200.0)), release=release, rows=rows("net"))
    assert e.value.code == 65 and "replacement model" in e.value.asked


def test_a_canary_of_nothing_is_found():
    t = truth("llama transcoder")
    with pytest.raises(InterpkitError, match="nothing but zeros") as e:
        check_dictionary(t.d, release=t.release, rows=world(60).rows)
    assert e.value.code == 65 and "canary" in e.value.asked


def test_what_is_asked_wrongly():
    t = truth("llama transcoder")
    for args in ((t.d, t.release), (t.d, t.release, t.rows.head(0)), (t.d.weights[0],)):
        with pytest.raises(InterpkitError) as e:
            check_dictionary(*args)
        assert e.value.code == 64
