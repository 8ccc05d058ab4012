"Who is who: found where it is known, never claimed where it is not, and carried along a chain."

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from scipy import sparse

from interpkit.adapt.decoys import decoys
from interpkit.adapt.fired import Fired, correlations
from interpkit.adapt.identity import Identity, identify
from interpkit.adapt.lineage import (
    carried,
    labelled,
    lineage_figure,
    lineage_table,
    origins,
    recorded,
    renumbered,
)
from interpkit.adapt.maps import AffineMap
from interpkit.core.statistics import clopper_pearson
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.sites import Site

SITE, D = Site.parse("layers.0:out"), 40


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def as_dictionary(rows: np.ndarray) -> Dictionary:
    "A dictionary that writes these rows; what it reads is not asked here."
    W = torch.tensor(unit(rows)).float()
    zero = torch.zeros(len(W))
    return Dictionary((SITE,), (SiteWeights(W.T.contiguous(), zero, zero, W, torch.zeros(D)),))


def as_fired(codes: np.ndarray, per: int = 10) -> Fired:
    number = np.arange(len(codes)) // per
    acts = torch.randn(len(codes), D, generator=torch.Generator().manual_seed(0))
    return Fired(sparse.csr_array(codes), number, codes.sum(0), acts)


def events(rng, n, F, rate=0.03):
    return (rng.random((n, F)) < rate) * (0.5 + rng.random((n, F)))


def world(seed: int, n: int = 3000, F: int = 60):
    """Old features of four kinds of fate, by thirds and halves of a third.

    The first 20 are preserved in another order and with noise; 20 have a near-twin that fires
    with them and writes elsewhere; 20 one that writes alike and fires elsewhere."""
    rng = np.random.default_rng(seed)
    old, rows = events(rng, n, F), unit(rng.normal(size=(F, D)))
    new, to = old.copy(), rows.copy()
    new[:, :20] *= 1 + 0.1 * rng.normal(size=(n, 20))
    new[:, 20:40] *= 1 + 0.1 * rng.normal(size=(n, 20))
    to[20:40] = unit(rng.normal(size=(20, D)))
    to[40:] = unit(rows[40:] + 0.05 * rng.normal(size=(20, D)))
    new[:, 40:] = events(rng, n, 20)
    order = rng.permutation(F)
    Q = np.linalg.qr(rng.normal(size=(D, D)))[0]
    forth = {SITE: AffineMap(torch.tensor(Q).float(), torch.zeros(D), "", 0.0)}
    sides = (
        (as_dictionary(rows), {SITE: as_fired(old)}),
        (as_dictionary((to @ Q)[order]), {SITE: as_fired(new[:, order])}),
    )
    return sides, forth, np.argsort(order)


def test_correlations_are_those_of_numpy():
    rng = np.random.default_rng(0)
    a, b = events(rng, 300, 6, 0.3), events(rng, 300, 4, 0.3)
    found = correlations(sparse.csr_array(a), sparse.csr_array(b)).toarray()
    assert np.allclose(found, np.corrcoef(a.T, b.T)[:6, 6:], atol=1e-9)


def test_one_huge_activation_makes_no_two_features_one():
    rng = np.random.default_rng(0)
    tokens = rng.permutation(400)
    a, b = np.zeros((400, 1)), np.zeros((400, 1))
    a[tokens[:60]] = b[tokens[59:119]] = 1
    a[tokens[59]] = b[tokens[59]] = 300
    assert np.corrcoef(a.T, b.T)[0, 1] > 0.99
    assert correlations(sparse.csr_array(a), sparse.csr_array(b)).toarray().max() < 0.05


def test_all_that_are_preserved_are_found_and_no_others():
    "Ten worlds: 200 features that are preserved, 400 that only fire or only write alike."
    found = false = 0
    for seed in range(10):
        sides, forth, place = world(seed)
        number = identify(*sides, forth).new_number
        found += int((number[:20] == place[:20]).sum())
        false += int((number[20:] >= 0).sum())
    assert found == 200
    assert false == 0 and clopper_pearson(false, 400)[1] < 0.01


def test_decoys_pass_at_less_than_one_in_a_hundred():
    passed = asked = 0
    for seed in range(4):
        sides, forth, _ = world(seed)
        rates = decoys(identify(*sides, forth), *sides, forth).decoys.set_index("decoy")
        passed, asked = passed + rates.passed["all"], asked + rates.asked["all"]
        assert len(rates) == 6
    assert clopper_pearson(int(passed), int(asked))[1] < 0.01


def test_a_dictionary_of_twins_is_told_by_its_decoys():
    "Where every feature is there twice, neighbours pass, and the rate says so."
    rng = np.random.default_rng(0)
    codes, rows = events(rng, 6000, 20), unit(rng.normal(size=(20, D)))
    twice = as_dictionary(np.vstack([rows, rows])), {SITE: as_fired(np.hstack([codes, codes]))}
    forth = {SITE: AffineMap(torch.eye(D), torch.zeros(D), "", 0.0)}
    rates = decoys(identify(twice, twice, forth), twice, twice, forth).decoys.set_index("decoy")
    assert rates.share["own dictionary, fires most alike"] == 1


def fates(old_codes, new_codes, old_rows, new_rows) -> Identity:
    forth = {SITE: AffineMap(torch.eye(D), torch.zeros(D), "", 0.0)}
    sides = [
        (as_dictionary(r), {SITE: as_fired(c)})
        for c, r in ((old_codes, old_rows), (new_codes, new_rows))
    ]
    return identify(*sides, forth)


def test_split_merged_retired_new_and_undetermined():
    rng = np.random.default_rng(0)
    whole, rows = events(rng, 6000, 6, 0.1), unit(rng.normal(size=(6, D)))
    whole[200:, 5] = 0  # too rare
    half = np.arange(6000)[:, None] % 2 == 0
    parts = np.hstack([whole[:, :1] * half, whole[:, :1] * ~half])
    away = unit(rng.normal(size=(1, D)))
    near = np.vstack([unit(rows[:1] + 0.3 * away), unit(rows[:1] - 0.3 * away)])
    codes = np.hstack([parts, whole[:, 1:3], events(rng, 6000, 1, 0.1)])
    split = fates(whole, codes, rows, np.vstack([near, rows[1:3], away]))
    old = split.table[split.table.feature >= 0].set_index("feature").status
    assert old.tolist() == ["split", *["preserved"] * 2, *["retired"] * 2, "undetermined"]
    assert split.counts["new"] == 1  # the halves are accounted for
    merged = fates(codes, whole, np.vstack([near, rows[1:3], away]), rows)
    old = merged.table[merged.table.feature >= 0].set_index("feature").status
    assert old.tolist() == ["merged", "merged", "preserved", "preserved", "retired"]
    assert (merged.table.new[:2] == 0).all() and merged.new_number[:2].tolist() == [-1, -1]


# names


def test_renumbering_changes_names_and_nothing_else():
    (old, new), forth, _ = world(0)
    identity = identify(old, new, forth)
    ordered, known = renumbered(new[0], identity, old[0])
    assert (known.new_number[:20] == np.arange(20)).all()
    x = torch.randn(50, D)
    assert torch.allclose(
        ordered.forward({SITE: x})[SITE], new[0].forward({SITE: x})[SITE], atol=1e-4
    )
    assert known.kept == identity.kept and known.counts == identity.counts


def test_labels_and_watched_features_follow_preserved_ones_alone():
    (old, new), forth, place = world(1)
    first = replace(old[0], labels=tuple(f"kind {i}" for i in range(60)))
    identity = identify((first, old[1]), new, forth)
    named = labelled(new[0], identity, first)
    assert [named.labels[j] for j in place[:20]] == [f"kind {i}" for i in range(20)]
    assert not any(label.startswith("kind") for label in np.delete(named.labels, place[:20]))
    kept, lost = carried([3, 30, 50], identity)
    assert kept == {3: place[3]} and lost == [30, 50]
    refused(lambda: carried([60], identity), "from 0 to 59", code=64)


def test_a_chain_is_followed_to_its_beginning(tmp_path):
    d = as_dictionary(np.eye(4, D))
    lines = pd.DataFrame(dict(feature=range(4), new=[1, 0, -1, 3]))
    lines["status"] = ["preserved", "preserved", "retired", "preserved"]
    lines = lines.assign(activation=1.0, decoder=1.0, tokens=50, share=1.0, site=str(SITE))
    identity = Identity(lines, (4, 4))
    for step in ("closed form", "polish"):
        d = recorded(d.with_weights(d.weights, step=step, tokens=9), identity)
    d.save(tmp_path / "d")
    again = Dictionary.load(tmp_path / "d")
    assert origins(again).tolist() == [0, 1, -1, 3]  # twice there and back
    assert lineage_table(again).step.tolist() == ["closed form", "polish"]
    assert again.lineage[-1]["identity"]["counts"]["retired"] == 1
    assert lineage_figure(again).axes and origins(as_dictionary(np.eye(4, D))).tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("few", [0, 5])
def test_too_few_firings_decide_nothing(few):
    codes = np.zeros((400, 3))
    codes[:few] = 1.0
    identity = fates(codes, codes, np.eye(3, D), np.eye(3, D))
    assert identity.counts["undetermined"] == 3 and identity.kept == 0
