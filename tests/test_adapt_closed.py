"The closed form: exact where an update is affine, in every wiring; else chosen on held-out tokens."

from dataclasses import replace

import numpy as np
import pytest
import small_updates as small
import torch
from helpers import refused
from scipy import sparse
from small_wirings import SPECS, made, release, rows

from interpkit.adapt.closed import closed_form
from interpkit.adapt.mapped import active_per_token, parts_of, through_maps, untied
from interpkit.adapt.maps import AffineMap, fit_map, share_left
from interpkit.adapt.paired import Paired, paired_activations
from interpkit.adapt.polish import polish, unexplained
from interpkit.adapt.refit import _change
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.dictionary.dictionary import Dictionary
from interpkit.model.releases import Release

# the same tokens


def sites_of(d):
    return tuple(dict.fromkeys((*d.sites, *d.targets)))


@pytest.mark.parametrize("name", ["llama per_layer", "gpt2 clt", "net sae"])
def test_tokens_of_both_releases_stand_side_by_side(name):
    kind, make = SPECS[name]
    d, old, new = made(make()), release(kind), release(kind, 0.05)
    both = paired_activations(old, new, rows(kind), sites_of(d))
    alone = paired_activations(old, old, rows(kind), sites_of(d))
    for s in sites_of(d):
        assert torch.equal(alone.old[s], alone.new[s])
        assert torch.equal(alone.old[s], both.old[s])
        assert not torch.equal(both.old[s], both.new[s])
        assert both.sequence[s].unique().numel() == len(rows(kind))
    few = paired_activations(old, new, rows(kind), sites_of(d), tokens=7)
    assert few.tokens == 7
    held = both.held(d.targets[0])
    inside = set(both.sequence[d.targets[0]][held].tolist())
    assert not inside & set(both.sequence[d.targets[0]][~held].tolist())


def test_releases_that_read_other_positions_are_refused():
    kind, make = SPECS["llama sae"]
    d, old = made(make()), release(kind)
    other = replace(old, inputs=replace(old.inputs, bos=None))
    refused(lambda: paired_activations(old, other, rows(kind), sites_of(d)), "same positions")


# maps


def test_a_rotation_is_exact_with_two_tokens_per_direction_and_noise_stays():
    torch.manual_seed(0)
    x, Q = torch.randn(40, 16), torch.linalg.qr(torch.randn(16, 16)).Q
    held = torch.arange(40) % 5 == 0
    assert fit_map(x[:32], x[:32] @ Q + 2, held[:32]).rest < 1e-6
    same = fit_map(x, x, held)
    assert same.kind == "none" and torch.equal(same.A, torch.eye(16))
    assert fit_map(x, torch.randn(40, 16), held).rest > 0.5
    other = torch.randn(16, 9)
    wide = fit_map(torch.cat([x] * 4), torch.cat([x] * 4) @ other, torch.cat([held] * 4))
    assert wide.A.shape == (16, 9) and wide.rest < 1e-4


@pytest.mark.parametrize("factor", [0.5, 1.2, 2.0])
def test_other_units_are_found_in_directions_that_hardly_vary(factor):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 16, generator=g) * torch.logspace(-4, 0, 16)
    held = torch.arange(300) % 5 == 0
    assert (fit_map(x, factor * x + 1, held).A - factor * torch.eye(16)).abs().max() < 1e-3
    Q = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q
    found = fit_map(x, factor * x @ Q, held)
    assert (found.A - factor * Q).abs().max() < 1e-2 * factor


def exact_update(d, n=400, seed=0):
    "Activations at all sites, and what an affine map of its own makes of each."
    g = torch.Generator().manual_seed(seed)
    widths = {s: w.d for s, w in zip(d.sites, d.weights, strict=True)}
    widths |= {t: w.d_out for t, w in zip(d.targets, d.weights, strict=True)}
    acts = {s: torch.randn(n, k, generator=g) for s, k in widths.items()}
    maps = {s: (torch.linalg.qr(torch.randn(k, k, generator=g)).Q, 1.0) for s, k in widths.items()}
    return acts, {s: x @ maps[s][0] + maps[s][1] for s, x in acts.items()}, maps


@pytest.mark.parametrize("name", SPECS)
def test_maps_are_exact_in_every_wiring(name):
    "What the new dictionary makes of new activations is what the old one made, carried over."
    d = made(SPECS[name][1]())
    acts, new, maps = exact_update(d)
    back = {s: AffineMap(maps[s][0].T, -maps[s][1] * maps[s][0].T.sum(0), "", 0.0) for s in d.sites}
    forth = {
        t: AffineMap(maps[t][0], torch.full((len(maps[t][0]),), maps[t][1]), "", 0)
        for t in d.targets
    }
    followed = replace(untied(d), weights=through_maps(d, back, forth))
    read = {s: acts[s] for s in d.sites}
    for t, y in d.forward(read).items():
        wanted = y @ maps[t][0] + maps[t][1]
        got = followed.forward({s: new[s] for s in d.sites})[t]
        assert ((wanted - got).abs() < 1e-3).float().mean() > 0.999, t


@pytest.mark.parametrize("name", SPECS)
def test_the_closed_form_keeps_what_was_explained_in_every_wiring(name):
    d = made(SPECS[name][1]())
    acts, new, _ = exact_update(d)
    number = torch.arange(400) // 4
    both = Paired(acts, new, {s: number for s in acts})
    followed = closed_form(d, both)
    before = np.mean([unexplained(p, acts) for p in parts_of(untied(d))])
    after = np.mean([unexplained(p, new) for p in parts_of(followed)])
    assert after < before * 1.02
    l0 = active_per_token(d, acts), active_per_token(followed, new)
    for s in d.sites:
        assert abs(l0[1][s] / l0[0][s] - 1) < 0.02
    assert set(followed.lineage[-1]["refit"].values()) == {None}  # maps were enough
    assert followed.lineage[-1]["parent"] == d.fingerprint
    assert not followed.validity and not followed.canary


def test_other_widths_are_refused_by_the_closed_form():
    d = made(SPECS["net sae"][1]())
    acts, new, _ = exact_update(d)
    wider = {s: torch.cat([x, x], 1) for s, x in new.items()}
    both = Paired(acts, wider, {s: torch.arange(400) for s in acts})
    refused(lambda: closed_form(d, both), "20 wide, was 10", "ipk train")


# refit


@pytest.mark.parametrize("penalty", [0.1, 3.0, 100.0])
def test_conjugate_gradients_solve_the_normal_equations(penalty):
    rng = np.random.default_rng(0)
    codes = rng.random((200, 30)) * (rng.random((200, 30)) < 0.2)
    codes[:, 7] = 0  # a feature that never fires stays as it is
    missing = rng.normal(size=(200, 5))
    rows, bias = _change(sparse.csr_array(codes), missing, penalty)
    centred = codes - codes.mean(0)
    fired = np.maximum((codes > 0).sum(0), 1)
    strength = (codes**2).sum(0) / fired
    strength[7] = (codes**2).sum() / (codes > 0).sum()
    wanted = np.linalg.solve(
        centred.T @ centred + penalty * np.diag(strength), centred.T @ (missing - missing.mean(0))
    )
    assert np.allclose(rows, wanted, atol=0.02 * abs(wanted).max())
    assert np.allclose(bias, missing.mean(0) - codes.mean(0) @ rows)
    assert not rows[7].any()


# polish


@pytest.mark.parametrize("wiring", ["sae", "clt"])
def test_polish_learns_what_no_map_explains(wiring):
    old, new = (Release.load(demo_folder() / "releases" / n) for n in ("v1", "v2"))
    d = Dictionary.load(demo_folder() / ("dictionary" if wiring == "sae" else "clt"))
    sites = sites_of(d)
    n = 4000 if wiring == "sae" else 2000
    both = paired_activations(old, new, demo_rows("v2", 100, "train"), sites, tokens=n)
    assert both.tokens == n
    parts = both.old, both.new, both.sequence
    fit = Paired(*({s: x[s][: n - 800] for s in sites} for x in parts))
    aside = {s: both.new[s][n - 800 :] for s in sites}
    begun = closed_form(d, fit)
    l0 = active_per_token(d, fit.old)
    after = polish(begun, fit.new, {s: fit.held(s) for s in sites}, l0, epochs=2)
    left = [np.mean([unexplained(p, aside) for p in parts_of(x)]) for x in (d, begun, after)]
    assert left[1] < 0.2 * left[0]
    assert left[2] <= left[1]
    if wiring == "sae":
        assert left[2] < 0.95 * left[1]


def test_polish_takes_the_beginning_where_nothing_is_better():
    d, acts = small.trained(), torch.randn(64, 12)
    (site,) = d.sites
    held = torch.arange(64) % 2 == 0
    l0 = active_per_token(d, {site: acts})
    after = polish(d, {site: acts}, {site: held}, l0, epochs=1)
    fvu = after.lineage[-1]["fvu"][0]
    assert unexplained(after, {site: acts[held]}) == pytest.approx(min(fvu), rel=1e-3)
    assert share_left(acts, acts) == 0
