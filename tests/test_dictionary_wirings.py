"Four wirings against their definitions, written out by hand, one sequence at a time."

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small_wirings import (
    SPECS,
    every,
    reads,
    rebuilt,
    tensors,
    truth,
)

from interpkit.core.errors import InterpkitError
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import TENSORS, SiteWeights
from interpkit.model.sites import Site


@every
def test_forward_and_decode(name):
    t = truth(name)
    for x in t.seen:
        acts = {Site.parse(n): h for n, h in x.acts.items()}
        codes = {
            site: reads(t.s, i, x.acts[n], False)
            for i, (n, site) in enumerate(zip(t.s.sources, t.d.sites, strict=True))
        }
        expected = [
            rebuilt(t.s, j, dict(enumerate(codes.values())), [x.acts[n] for n in t.s.sources])
            for j in range(len(t.s.w))
        ]
        for found in (t.d.forward(acts), t.d.decode(codes, acts)):
            assert list(found) == [Site.parse(n) for n in t.s.targets]
            for a, b in zip(found.values(), expected, strict=True):
                assert torch.allclose(a, b, atol=1e-4)
    assert t.d.frozen == (t.s.wiring != "sae")
    assert t.d.tied == ("tied" in name)


@every
def test_sparse_codes_are_the_dense_ones_and_write_the_same(name):
    d = truth(name).d
    for x in truth(name).seen:
        acts = {Site.parse(n): h for n, h in x.acts.items()}
        codes = {s: d.encode(s, acts[s]) for s in d.sites}
        for s in d.sites:
            dense = d.at(s).encode(acts[s])
            w = d.at(s)
            clear = (
                acts[s] @ w.W_enc + w.b_enc - w.threshold
            ).abs() > 1e-4  # of another product's rounding
            assert torch.allclose(codes[s].dense()[clear], dense[clear], atol=1e-4)
            assert ((codes[s].dense() > 0) == (dense > 0))[clear].all()
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
    assert part.labels == tuple(t.d.labels[f] for f in kept)
    assert (
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
    for a, b, c in zip(d.weights, back.weights, wide.weights, strict=True):
        for n in (*TENSORS, "W_skip"):
            x = getattr(a, n)
            y = getattr(b, n)
            z = getattr(c, n)
            assert (x is y is z is None) or (
                torch.equal(x, y) and z.dtype == torch.float64 and torch.equal(z.float(), x)
            ), n
    acts = {Site.parse(n): h.double() for n, h in truth(name).seen[0].acts.items()}
    assert all(h.dtype == torch.float64 for h in wide.forward(acts).values())
    assert wide.to(torch.float32).fingerprint == d.fingerprint
    with pytest.raises(InterpkitError) as e:
        wide.forward({s: h.float() for s, h in acts.items()})
    assert e.value.code == 65


@every
def test_the_folder_is_that_of_the_format(name, tmp_path):
    "Shapes and fingerprint as nbs/formats.md says, from the files alone."
    s = SPECS[name][1]()
    truth(name).d.save(tmp_path / "d")
    head = json.loads((tmp_path / "d" / "dictionary.json").read_text())
    t = load_file(tmp_path / "d" / "weights.safetensors")
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
    d = truth(name).d
    last = len(truth(name).d.sites) - 1
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
    site = tuple(map(Site, "abc"))

    def w(targets=1, **kw):
        return SiteWeights(**tensors(0, 4, 5, targets, 4) | kw)

    def three(*t):
        return tuple(w(k) for k in t)

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
