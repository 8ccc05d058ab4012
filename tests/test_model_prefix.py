"Running from a site onward, against the whole model by value."

import pytest
import torch
from helpers import refused
from small_models import (
    CASES,
    Asked,
    B,
    Twice,
    at_last,
    first,
    llama,
    mlp,
    numbers,
    seeded,
    spliced,
    tokens,
)
from torch import nn

from interpkit.model.gradients import grad_at_sites
from interpkit.model.prefix import Prefix
from interpkit.model.sites import Site


class Seen(nn.Linear):
    "Keeps something of its own beside what it returns."

    def forward(self, x):
        out = super().forward(x)
        self.seen = out.sin()
        return out


class Remembers(nn.Module):
    "Hands something on beside its output, as some attention layers do."

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        return self.head(self.hidden(h) + self.first.seen)


class Meets(nn.Module):
    "Its sequences depend on each other."

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        return self.head((h - h.mean(0)) * torch.arange(len(h))[:, None])


def one_by_one(release, site, batch, index, new) -> torch.Tensor:
    "Decisions of the whole model for each sequence alone: no chance to mix rows up."
    alone = [slice(i, i + 1) for i in range(len(index))]
    return torch.cat([spliced(release, site, batch.take(index[i]), new[i]) for i in alone])


@pytest.mark.parametrize("name", CASES)
def test_prefix_is_the_full_forward(name):
    build, batch, decision, site, mode = CASES[name]
    release = Asked(build(), decision)
    batch = batch()
    site = Site.parse(site)
    prefix = Prefix(release, [site], batch)
    assert prefix.mode[site] == mode
    bare = release.decide(batch.run(release.model), batch)
    assert torch.allclose(prefix.decision, bare, atol=1e-5)

    generator = torch.Generator().manual_seed(4)
    repeated = torch.randint(0, batch.n, (23,), generator=generator)
    as_many_as_the_batch = torch.arange(batch.n).flip(0)
    for index in (repeated, as_many_as_the_batch, torch.tensor([2])):
        acts = prefix.acts[site][index]
        new = acts + torch.randn(acts.shape, generator=generator)
        before = new.clone()
        expected = one_by_one(release, site, batch, index, new)
        assert torch.allclose(prefix.run(site, index, new), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(new, before)
    again = release.decide(batch.run(release.model), batch)
    assert torch.allclose(again, bare)  # nothing is left behind in the model


def test_what_runs_twice_is_not_answered_from_memory():
    release = Asked(Twice(), first)
    batch = numbers()
    site = Site("a")
    prefix = Prefix(release, [site], batch)
    assert prefix.mode[site] == "from site"
    new = torch.randn(B, 1, 4)
    expected = spliced(release, site, batch, new)
    assert torch.allclose(prefix.run(site, torch.arange(B), new), expected, atol=1e-6)


def test_a_module_with_a_memory_of_its_own_falls_back_to_the_full_forward():
    net = seeded(Remembers)
    net.first = Seen(4, 8)
    release = Asked(net, first)
    batch = numbers()
    site = Site("hidden")
    prefix = Prefix(release, [site], batch)
    assert prefix.mode[site] == "full"
    index = torch.arange(B).flip(0)
    new = torch.randn(B, 1, 8)
    expected = spliced(release, site, batch.take(index), new)
    assert torch.allclose(prefix.run(site, index, new), expected, atol=1e-6)


def test_sequences_that_depend_on_each_other_are_refused():
    release = Asked(seeded(Meets), first)
    refused(lambda: Prefix(release, [Site("first")], numbers()), "sequences")


def test_a_forward_set_on_the_instance_survives_a_prefix():
    net = mlp()
    batch = numbers()
    forward = net[0].forward
    net[0].forward = lambda x: forward(x) + 1
    release = Asked(net, first)
    bare = release.decide(batch.run(net), batch)
    site = Site("2")
    prefix = Prefix(release, [site], batch)
    same = prefix.run(site, torch.arange(B), prefix.acts[site])
    assert torch.allclose(same, bare)
    assert torch.equal(release.decide(batch.run(net), batch), bare)
    assert "forward" not in net[1].__dict__


def test_a_batch_of_one_sequence():
    release = Asked(llama(), at_last)
    site = Site("model.layers.1")
    prefix = Prefix(release, [site], tokens(1))
    thrice = torch.zeros(3, dtype=torch.long)
    decisions = prefix.run(site, thrice, prefix.acts[site].expand(3, -1, -1))
    assert torch.allclose(decisions, prefix.decision.expand(3), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [n for n in CASES if "table" not in n and "place" not in n])
def test_cuda_gives_what_the_cpu_gives(name):
    build, batch, decision, site, mode = CASES[name]
    on_cpu = Asked(build(), decision)
    on_gpu = Asked(build().cuda(), decision)
    batch = batch()
    cuda_batch = batch.to("cuda")
    site = Site.parse(site)
    cpu_prefix = Prefix(on_cpu, [site], batch)
    gpu_prefix = Prefix(on_gpu, [site], cuda_batch)
    assert gpu_prefix.mode[site] == mode

    index = torch.randint(0, batch.n, (23,), generator=torch.Generator().manual_seed(0))
    less = cpu_prefix.acts[site][index] * 0.5
    expected = cpu_prefix.run(site, index, less)
    given = gpu_prefix.run(site, index.cuda(), less.cuda()).cpu()
    assert torch.allclose(expected, given, atol=1e-3, rtol=1e-3)
    _, _, on_cpu_grads = grad_at_sites(on_cpu, [site], batch)
    _, _, on_gpu_grads = grad_at_sites(on_gpu, [site], cuda_batch)
    assert torch.allclose(on_cpu_grads[site], on_gpu_grads[site].cpu(), atol=1e-3, rtol=1e-2)
