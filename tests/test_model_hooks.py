"Hooks: what can be no site, and that nothing is left behind in a model."

import pytest
import torch
from helpers import refused
from small_models import Asked, B, T, Twice, first, has_hooks, llama, mlp, numbers, tokens
from torch import nn

from interpkit.core.errors import InterpkitError
from interpkit.model.batch import Batch
from interpkit.model.capture import capture, run_spliced
from interpkit.model.gradients import grad_at_sites
from interpkit.model.hooks import hooked
from interpkit.model.prefix import Prefix
from interpkit.model.sites import Site


def test_what_is_no_site_is_named():
    model = llama().eval()
    batch = tokens()
    refused(lambda: capture(model, [Site("model.layer.1")], batch), "model.layers.1")
    too_narrow = torch.zeros(B, T, 15)
    refused(
        lambda: run_spliced(model, {Site("model.layers.1"): too_narrow}, batch),
        "model.layers.1:out",
        "[7, 6, 16]",
        "[7, 6, 15]",
    )
    token_ids = Site("model.embed_tokens", "in")
    refused(lambda: capture(model, [token_ids], batch), "floating")
    assert not has_hooks(model)


def test_a_recurrent_layer_with_sequences_in_second_place_is_no_site():
    net = nn.Sequential(nn.GRU(4, 3)).eval()
    batch = Batch(args=(torch.randn(5, B, 4),), n=B)
    refused(lambda: capture(net, [Site("0")], batch), "batch_first")


@pytest.mark.parametrize(
    "call",
    [
        lambda release, site, batch: Prefix(release, [site], batch),
        lambda release, site, batch: run_spliced(release.model, {site: lambda h: h}, batch),
        lambda release, site, batch: grad_at_sites(release, [site], batch),
    ],
    ids=["prefix", "splice", "gradient"],
)
def test_a_module_that_runs_twice_or_never_is_no_site(call):
    release = Asked(Twice(), first)
    refused(lambda: call(release, Site("act"), numbers()), "more than once")
    refused(lambda: call(release, Site("idle"), numbers()), "does not use")


def test_a_module_that_never_runs_can_not_be_read():
    refused(lambda: capture(Twice(), [Site("idle")], numbers()), "does not use")


def test_a_hook_that_fails_leaves_no_hook_behind():
    net = mlp()
    too_narrow = {Site("0"): lambda t: t[:, :, :2]}
    with pytest.raises(InterpkitError), hooked(net, too_narrow, B):
        numbers().run(net)
    assert not has_hooks(net)
