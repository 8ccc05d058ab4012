"""Explanations and ablations against their definition.

Take a feature out with a plain hook, run the whole model again, subtract.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from small_language import by_hand, directions, every_effect, truth, world
from torch import nn

from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.weights import SiteWeights
from interpkit.explain.ablation import Ablation, all_effects
from interpkit.explain.attribution import explain
from interpkit.model.releases import Release
from interpkit.model.sites import Site

# ablation


def test_all_effects_of_a_transformer_are_those_of_the_definition():
    w = world()
    expected = every_effect("old")
    effects = all_effects(w.old, w.dictionary, w.rows)
    assert np.abs(expected).max() > 0.5
    assert ((expected != 0).sum(0) > 0)[[0, 1, 24, 25]].any()
    assert np.allclose(effects, expected, atol=2e-4)
    assert (effects[expected == 0] == 0).all()


def test_effects_pair_by_pair_in_any_order_and_repeated():
    w = world()
    expected = every_effect("old")
    sequence, feature = np.nonzero(expected)
    twice = np.r_[np.arange(len(sequence)), np.arange(len(sequence)), 0, 0]
    order = np.random.default_rng(0).permutation(twice)
    sequence, feature = sequence[order], feature[order]
    ablation = Ablation(w.old, w.dictionary, w.old.batch(w.rows))
    effects = ablation.effects(sequence, feature)
    assert np.allclose(effects, expected[sequence, feature], atol=2e-4)
    idle = np.argwhere(expected == 0)
    assert (ablation.effects(idle[:, 0], idle[:, 1]) == 0).all()
    nothing = np.zeros(0, int)
    assert ablation.effects(nothing, nothing).shape == (0,)


def test_ablation_leaves_the_model_as_it_was():
    w = world()
    before = w.old.run(w.rows)
    all_effects(w.old, w.dictionary, w.rows)
    assert torch.equal(before, w.old.run(w.rows))
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in w.old.model.modules())


def test_all_effects_of_a_network_at_two_sites():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))
    rows = pd.DataFrame(
        np.random.default_rng(0).normal(size=(30, 5)).astype("float32"), columns=list("abcde")
    ).assign(sequence_id=range(30))
    release = Release.from_module(net, sites=["1:out", "3:in"], device="cpu")
    d = Dictionary(
        (Site("1"), Site("3", "in")), (directions(1, 10, 8, 0.1), directions(2, 7, 6, 0.1))
    )
    x = torch.tensor(rows[list("abcde")].to_numpy())
    expected = np.zeros((30, 17))
    with torch.no_grad():
        for start, cut, w in ((0, 2, d.weights[0]), (10, 3, d.weights[1])):
            h = net[:cut](x)
            a = by_hand(w, h)
            for f in range(a.shape[1]):
                expected[:, start + f] = (net(x) - net[cut:](h - a[:, [f]] * w.W_dec[f, 0]))[:, 0]
    assert np.allclose(all_effects(release, d, rows), expected, atol=1e-5)
    assert (np.abs(expected) > 1e-3).sum() > 50


def test_the_dictionarys_own_error_stays_in_place():
    "Removing a feature leaves what the dictionary does not read, and not the reconstruction."
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Identity(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[2].weight.copy_(torch.tensor([[2.0, 10.0]]))
    one = torch.tensor([[1.0, 0.0]])
    zero, far_off = torch.zeros(1), torch.tensor([5.0, 5.0])
    weights = SiteWeights(one.T.contiguous(), zero, zero, one, far_off)
    d = Dictionary((Site("1"),), (weights,))
    rows = pd.DataFrame(dict(a=[3.0], b=[1.0])).astype("float32").assign(sequence_id=[0])
    columns = dict(kind="columns", columns=["a", "b"])
    release = Release.from_module(net, inputs=columns, sites=["1:out"], device="cpu")
    assert all_effects(release, d, rows).tolist() == [[6.0]]


# attribution


def linear_after():
    "A network that is linear after its site, its release, a dictionary and rows."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4), nn.Linear(4, 1))
    rows = pd.DataFrame(
        np.random.default_rng(1).normal(size=(40, 5)).astype("float32"), columns=list("abcde")
    ).assign(sequence_id=[f"s{i}" for i in range(40)])
    release = Release.from_module(net, sites=["1:out"], device="cpu")
    weights = directions(4, 12, 8, 0.2)
    return net, release, Dictionary((Site("1"),), (weights,), tuple("abcdefghijkl")), rows


def test_gradient_times_activation_is_the_effect_where_the_rest_is_linear():
    net, release, d, rows = linear_after()
    effects = all_effects(release, d, rows)
    for i, e in enumerate(explain(release, d, rows, top=12)):
        features, attributions = e.features.feature, e.features.attribution
        explained = {
            f: pytest.approx(x, abs=1e-5) for f, x in zip(features, attributions, strict=True)
        }
        assert explained == {f: effects[i, f] for f in np.flatnonzero(effects[i])}


def test_an_explanation_sums_to_the_decision_and_its_shares_to_one():
    net, release, d, rows = linear_after()
    w = d.weights[0]
    x = torch.tensor(rows[list("abcde")].to_numpy())
    with torch.no_grad():
        h = net[:2](x)
        u = (net[3].weight @ net[2].weight)[0]
        rest = (h - by_hand(w, h) @ w.W_dec[:, 0] - w.b_dec) @ u  # the error node, signed
        constant = float(w.b_dec @ u + net[3].weight @ net[2].bias + net[3].bias)
    for i, e in enumerate(explain(release, d, rows, top=12)):
        assert e.sequence_id == f"s{i}"
        assert e.decision == pytest.approx(
            e.features.attribution.sum() + float(rest[i]) + constant, abs=1e-4
        )
        assert e.features.share.sum() + e.error_share == pytest.approx(1.0, abs=1e-5)
        assert e.features.share.is_monotonic_decreasing
        whole = e.features.attribution.abs().sum() + abs(float(rest[i]))
        assert e.error_share == pytest.approx(abs(float(rest[i])) / whole, abs=1e-4)
        assert e.features.label.tolist() == [d.labels[f] for f in e.features.feature]


def test_explanations_of_a_transformer_add_up_over_tokens_and_sites():
    w = world()
    explanations = explain(w.old, w.dictionary, w.rows, top=5)
    for e, t in zip(explanations, truth("old"), strict=True):
        signed = np.concatenate([t.site[k].at.sum(0).numpy() for k in (0, 1)])
        size = np.concatenate([t.site[k].at.abs().sum(0).numpy() for k in (0, 1)])
        lost = sum(t.site[k].error for k in (0, 1))
        assert e.features.feature.tolist() == np.argsort(-size, kind="stable")[:5].tolist()
        assert e.features.attribution.tolist() == pytest.approx(
            signed[e.features.feature], abs=1e-3
        )
        assert e.features.share.tolist() == pytest.approx(
            size[e.features.feature] / (size.sum() + lost), abs=1e-4
        )
        assert e.error_share == pytest.approx(lost / (size.sum() + lost), abs=1e-4)


def test_a_sequence_without_active_features_is_not_explained_at_all():
    net, release, d, rows = linear_after()
    deaf = {**vars(d.weights[0]), "threshold": torch.full((12,), 1e6)}
    silent = Dictionary(d.sites, (SiteWeights(**deaf),))
    e = explain(release, silent, rows.head(1))[0]
    assert len(e.features) == 0
    assert e.error_share == 1.0
    assert "100 %" in repr(e)


def test_features_that_share_a_label_can_be_told_apart():
    net, release, d, rows = linear_after()
    same = Dictionary(d.sites, d.weights, ("same",) * 12)
    e = explain(release, same, rows.head(1), top=12)[0]
    assert len(set(e.features.label)) == len(e.features) > 1


def test_explaining_thousands_is_refused():
    net, release, d, rows = linear_after()
    refused(lambda: explain(release, d, pd.concat([rows] * 26)), "1,000", code=64)
