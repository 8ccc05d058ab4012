"Sites: how they are written, found in a model, and suggested for one."

import pytest
from helpers import refused
from torch import nn

from interpkit.model.releases import Release
from interpkit.model.sites import Site, suggest_sites


class UsedTwice(nn.Module):
    "One activation module, used twice."

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.a = nn.Linear(2, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 1)

    def forward(self, x):
        return self.c(self.act(self.b(self.act(self.a(x)))))


class Entities(nn.Module):
    "A list of tables, which are no blocks, and a plain network."

    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(50, 30), nn.Embedding(50, 30)])
        self.net = nn.Sequential(
            nn.Linear(2, 4),
            nn.GELU(),
            nn.Linear(4, 4),
            nn.GELU(),
            nn.Linear(4, 4),
            nn.GELU(),
            nn.Linear(4, 1),
        )


def test_a_text_that_is_no_site_is_refused():
    refused(lambda: Site.parse("model.layers.1:above"), "model.layers.1:above", code=64)
    refused(lambda: Site.parse(""), code=64)


def test_the_suggested_site_of_a_plain_network():
    assert suggest_sites(UsedTwice()) == (Site("b", "in"),)
    assert suggest_sites(Entities()) == (Site("net.3"),)
    refused(lambda: suggest_sites(nn.Linear(2, 1)), "sites=")


@pytest.mark.parametrize("n, middle", [(2, 0), (3, 0), (4, 1), (5, 2), (6, 2), (9, 4)])
def test_the_suggested_site_of_a_transformer_has_two_blocks_after_it(n, middle):
    layers = nn.ModuleList([nn.TransformerEncoderLayer(4, 1, 8) for _ in range(n)])
    assert suggest_sites(nn.ModuleDict(dict(layers=layers))) == (Site(f"layers.{middle}"),)


def test_a_release_refuses_sites_that_its_model_does_not_have():
    model = UsedTwice()
    refused(
        lambda: Release.from_module(model, sites=["bb:out"], device="cpu"),
        "bb",
        "nearest",
    )
    refused(lambda: Release.from_module(model, sites=["b:left"], device="cpu"), code=64)
