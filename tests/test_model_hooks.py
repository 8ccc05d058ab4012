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


# Over a generation


def generated(model, ids, **how):
    model.generation_config.eos_token_id = None
    return model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, **how)


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_read_over_a_generation_is_what_one_forward_gives(cached):
    model, site = llama().eval(), Site("model.layers.2")
    read, ids = [], torch.tensor([[1, 5, 6], [1, 7, 8]])
    with hooked(model, {site: lambda t: read.append(t.clone())}, n=2, again=True):
        said = generated(model, ids, use_cache=cached)
    assert len(read) == said.shape[1] - 3
    whole = capture(model, [site], Batch(kwargs=dict(input_ids=said[:, :-1]), n=2))[site]
    seen = torch.cat(read, 1) if cached else read[-1]
    assert torch.allclose(seen, whole, atol=1e-3)  # of numbers up to 60
    assert not has_hooks(model)


def test_a_model_is_steered_over_a_generation():
    model, site = llama().eval(), Site("model.layers.2")
    ids, push = torch.tensor([[1, 5, 6]]), torch.linspace(-200, 200, 16)
    with hooked(model, {site: lambda t: t + push}, n=1, again=True):
        steered = generated(model, ids, use_cache=True)
    by_hand = ids
    for _ in range(steered.shape[1] - 3):
        out = run_spliced(
            model, {site: lambda t: t + push}, Batch(kwargs=dict(input_ids=by_hand), n=1)
        )
        by_hand = torch.cat([by_hand, out.logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(steered, by_hand)
    assert not torch.equal(steered, generated(model, ids, use_cache=True))


def test_several_forwards_that_nobody_meant_are_refused_with_the_word_that_allows_them():
    def twice():
        with hooked(model, {Site("model.layers.2"): lambda t: None}):
            generated(model, torch.tensor([[1, 5]]))

    model = llama().eval()
    refused(twice, "again=True", "generate")
    assert not has_hooks(model)


# Tokens that were laid in one row


class Flat(nn.Module):
    "A classifier whose MLP sees all tokens of a batch in one row, as OPT's do."

    def __init__(self):
        super().__init__()
        self.embed, self.mlp, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 1)

    def forward(self, input_ids):
        h = self.embed(input_ids)
        flat = self.mlp(h.reshape(-1, h.shape[-1]))
        return self.head((h + flat.view(h.shape)).sum(1))


def test_tokens_in_one_row_are_read_and_written_by_sequence():
    torch.manual_seed(0)
    model, site = Flat().eval(), Site("mlp")
    ids = torch.randint(0, 9, (B, T))
    batch = Batch(kwargs=dict(input_ids=ids), n=B)
    acts = capture(model, [site], batch)[site]
    with torch.no_grad():
        assert torch.allclose(acts, model.mlp(model.embed(ids)))
        doubled = run_spliced(model, {site: 2 * acts}, batch)
        expected = model.head((model.embed(ids) + 2 * acts).sum(1))
    assert torch.allclose(doubled, expected, atol=1e-5)
    grads = grad_at_sites(Asked(model, lambda out, _: out[:, 0]), [site], batch)[2]
    assert torch.allclose(grads[site], model.head.weight.expand(B, T, 6))
