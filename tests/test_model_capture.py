"Reading and writing at sites of many kinds of modules, against the plain forward by value."

import pytest
import torch
from small_models import (
    CASES,
    Asked,
    B,
    Keywords,
    first,
    has_hooks,
    llama,
    mlp,
    numbers,
    seeded,
    spliced,
    tokens,
)

from interpkit.model.capture import capture, run_spliced
from interpkit.model.gradients import grad_at_sites
from interpkit.model.sites import Site


@pytest.mark.parametrize("name", CASES)
def test_activations_put_back_change_nothing(name):
    build, batch, decision, site, _ = CASES[name]
    release = Asked(build(), decision)
    batch = batch()
    site = Site.parse(site)
    bare = release.decide(batch.run(release.model), batch)
    assert bare.std() > 1e-3
    acts = capture(release.model, [site], batch)[site]
    assert acts.ndim == 3
    assert len(acts) == batch.n
    assert torch.allclose(spliced(release, site, batch, acts), bare, atol=1e-5)
    assert not torch.allclose(spliced(release, site, batch, acts.flip(-1)), bare, atol=1e-3)


def test_many_sites_are_read_in_one_pass():
    model = llama().eval()
    sites = [Site(f"model.layers.{i}") for i in (2, 0, 1)] + [Site("model.layers.1", "in")]
    acts = capture(model, sites, tokens())
    assert list(acts) == sites
    assert torch.equal(acts[Site("model.layers.0")], acts[Site("model.layers.1", "in")])


def test_only_the_positions_that_are_asked_for_are_kept():
    model = llama().eval()
    batch = tokens()
    sites = [Site("model.layers.2"), Site("model.layers.1", "in")]
    everywhere = capture(model, sites, batch)
    at_end = capture(model, sites, batch, positions=batch.last)
    at_start = capture(model, sites, batch, positions=0)
    for site in sites:
        expected = everywhere[site][torch.arange(B), batch.last]
        assert torch.equal(at_end[site][:, 0], expected)
        assert torch.equal(at_start[site][:, 0], everywhere[site][:, 0])


def test_a_plain_network_has_no_positions():
    acts = capture(mlp().eval(), [Site("1")], numbers(), positions=3)
    assert acts[Site("1")].shape == (B, 1, 8)


def test_the_forward_stops_after_the_last_site():
    net = mlp().eval()
    passed = []
    net[4].register_forward_hook(lambda *_: passed.append(1))
    capture(net, [Site("0"), Site("2")], numbers())
    assert not passed
    capture(net, [Site("0"), Site("2")], numbers(), stop=False)
    assert passed
    assert not has_hooks(net, without=("4",))


def test_a_model_that_catches_exceptions_does_not_catch_the_stop():
    model = seeded(Keywords).eval()
    batch = numbers()
    inner = capture(model, [Site("block.inner")], batch)[Site("block.inner")]
    assert torch.allclose(inner[:, 0], model.block.inner(model.first(batch.args[0])))


def test_captured_values_survive_in_place_operations():
    net = mlp().eval()
    batch = numbers()
    before, after = Site("0"), Site("1")
    acts = capture(net, [before, after], batch, stop=False)
    assert torch.allclose(acts[before][:, 0], net[0](batch.args[0]))
    assert (acts[before] < 0).any()
    assert (acts[after] >= 0).all()
    _, kept, _ = grad_at_sites(Asked(net, first), [before, after], batch)
    assert torch.equal(kept[before], acts[before])
    assert torch.equal(kept[after], acts[after])


def test_a_replacement_survives_in_place_operations():
    new = torch.randn(B, 1, 8)
    before = new.clone()
    run_spliced(mlp().eval(), {Site("0"): new}, numbers())
    assert torch.equal(new, before)
