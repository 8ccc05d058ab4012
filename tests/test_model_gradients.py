"Gradients of a decision at sites, against finite differences of splices."

import copy

import pytest
import torch
from helpers import refused
from small_models import CASES, Asked, B, at_last, first, llama, mlp, numbers, spliced, tokens
from torch import nn

from interpkit.model.capture import capture
from interpkit.model.gradients import grad_at_sites
from interpkit.model.sites import Site


class InDoubles:
    "A release in 64 bits, which finite differences need."

    def __init__(self, release):
        self.model = copy.deepcopy(release.model).double()
        self.decide = release.decision


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_differences(name):
    build, batch, decision, site, _ = CASES[name]
    release = Asked(build(), decision)
    batch = batch()
    site = Site.parse(site)
    _, acts, grads = grad_at_sites(release, [site], batch)

    exact = InDoubles(release)
    in_doubles = batch.map(lambda t: t.double() if t.is_floating_point() else t)
    exact_acts = capture(exact.model, [site], in_doubles)[site]
    assert torch.allclose(acts[site].double(), exact_acts, atol=1e-4)

    # Llama's norms compute in 32 bits whatever comes
    in_32_bits = "Llama" in type(release.model).__name__
    step, bound = (1e-3, 1e-2) if in_32_bits else (1e-6, 1e-3)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = torch.randn(exact_acts.shape, generator=generator).double()
        direction[(exact_acts.abs() < 1e-4)] = 0  # not across the kink of a ReLU
        above = spliced(exact, site, in_doubles, exact_acts + step * direction)
        below = spliced(exact, site, in_doubles, exact_acts - step * direction)
        rise = (above - below) / (2 * step)
        predicted = (grads[site].double() * direction).sum((1, 2))
        assert torch.allclose(predicted, rise, atol=bound * float(rise.abs().max()) + 1e-5)
    assert not any(p.requires_grad or p.grad is not None for p in release.model.parameters())


def test_gradients_at_several_sites_are_those_at_each_alone():
    release = Asked(llama(), at_last)
    batch = tokens()
    sites = [
        Site("model.layers.0"),
        Site("model.layers.2"),
        Site("model.layers.1.post_attention_layernorm", "in"),
    ]
    _, _, together = grad_at_sites(release, sites, batch)
    for site in sites:
        _, _, alone = grad_at_sites(release, [site], batch)
        assert torch.allclose(together[site], alone[site], atol=1e-5)


def test_the_gradient_is_that_of_a_splice_also_where_the_input_goes_around_the_module():
    """The sum beside the norm is another path: neither a splice nor the gradient takes it, with an
    earlier site in the same pass or without."""
    release = Asked(llama(), at_last)
    batch = tokens()
    norm = Site("model.layers.1.post_attention_layernorm", "in")
    early = Site("model.layers.0")
    _, acts, grads = grad_at_sites(release, [early, norm], batch)
    step = 1e-2 * torch.randn(acts[norm].shape, generator=torch.Generator().manual_seed(0))
    above = spliced(release, norm, batch, acts[norm] + step)
    below = spliced(release, norm, batch, acts[norm] - step)
    predicted = 2 * (grads[norm] * step).sum((1, 2))
    rise = above - below
    assert torch.allclose(predicted, rise, atol=0.02 * float(rise.abs().max()))


def test_the_gradient_of_a_linear_model_is_its_weights():
    net = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.Linear(3, 1))
    _, _, grads = grad_at_sites(Asked(net, first), [Site("0")], numbers())
    assert torch.equal(grads[Site("0")][:, 0], net[2].weight.expand(B, 3))


def test_gradients_work_under_no_grad():
    with torch.no_grad():
        _, _, grads = grad_at_sites(Asked(mlp(), first), [Site("1")], numbers())
    assert grads[Site("1")].abs().sum() > 0


def test_a_detached_decision_is_named():
    detached = Asked(mlp(), lambda out, batch: out[:, 0].detach())
    refused(lambda: grad_at_sites(detached, [Site("1")], numbers()), "gradient")
