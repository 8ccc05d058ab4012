"Reason codes: which inputs a feature rests on, what may be said, and what is true of it."

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from torch import nn

from interpkit.core.statistics import clopper_pearson
from interpkit.data.behind import events_behind
from interpkit.data.demo import demo_folder, demo_quarter, demo_rows
from interpkit.data.ledger import generate
from interpkit.data.world import RULE
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.validity import certify
from interpkit.dictionary.weights import SiteWeights
from interpkit.explain.inputs import input_units
from interpkit.model.releases import Release
from interpkit.model.sites import Site
from interpkit.serve.reason_codes import Coding, ReasonCodes, grouped, reason_codes
from interpkit.serve.reason_inputs import added_by_inputs, drawn_gone, pushes_of
from interpkit.serve.reason_truth import adverse_causes, by_chance, reasons_on_truth, truth_figures
from interpkit.serve.reason_words import said_input, said_label, said_statement, said_value
from interpkit.serve.trust import TrustLimits

# A score with reasons that can be worked out: late and debt speak against, years for


class Score(nn.Module):
    "Two units: any of late and debt is enough for the first; years for the second."

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 2)
        self.act = nn.ReLU()
        self.out = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
            self.hidden.bias.zero_()
            self.out.weight.copy_(torch.tensor([[2.0, -1.0]]))

    def forward(self, x):
        return self.out(self.act(self.hidden(x)))


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        dict(late=rng.random(200), debt=rng.random(200), years=rng.random(200))
    ).astype("float32")
    rows = rows.assign(sequence_id=[f"s{i}" for i in range(200)])
    inputs = dict(kind="columns", columns=["late", "debt", "years"])
    release = Release.from_module(Score(), inputs, sites=["act:out"], device="cpu")
    eye, zero = torch.eye(2), torch.zeros(2)
    labels = ("late >= 2", "years >= 0.5")
    worth = dict(precision=0.9, recall=0.9, inputs=[], fires_on=1.0)
    figures = [dict(worth, label=label) for label in labels]
    units = Dictionary(
        (Site("act"),),
        (SiteWeights(eye, zero, zero, eye, zero),),
        labels,
        figures=tuple(figures),
    )
    asked = pd.DataFrame(dict(late=[4.0, 0.1], debt=[0.2, 0.3], years=[0.3, 5.0]))
    asked = asked.astype("float32").assign(sequence_id=["bad", "good"])
    return release, certify(release, units, rows), rows, asked


LIMITS = TrustLimits(spread=0.5, joint=0.5)  # two units: as many random ones are the same ones


def test_a_reason_names_the_input_that_it_rests_on_with_its_value(scored):
    release, units, rows, asked = scored
    bad, good = reason_codes(release, units, asked, rows, limits=LIMITS)
    assert [x.input for x in bad.codes[0].said] == ["late"]
    assert bad.codes[0].said[0].value == "4"
    assert bad.codes[0].says == "late >= 2"
    assert bad.codes[0].effect == pytest.approx(2 * 4.2, abs=1e-4)
    assert bad.codes[0].feature == (0,)
    assert bad.text == "1. late: 4 (late >= 2)"
    lent = bad.codes[0].input_effect / 2  # 4 less what another row lends
    assert 3 <= lent <= 4
    assert all(c.says != "late >= 2" for c in good.codes)  # which is false of 0.1


def test_low_decisions_may_be_the_adverse_ones(scored):
    release, units, rows, asked = scored
    good = reason_codes(release, units, asked, rows, adverse="low", limits=LIMITS)[1]
    assert [x.input for x in good.codes[0].said] == ["years"]
    assert good.codes[0].effect == pytest.approx(-5, abs=1e-4)  # the decision loses -5
    assert 0 < good.covered <= 1


def test_nothing_is_said_where_it_may_not_be(scored):
    release, units, rows, asked = scored
    strict = TrustLimits(spread=0.5, joint=1e6)
    for told in reason_codes(release, units, asked, rows, limits=strict):
        assert not told.codes and told.withheld.startswith("ABSTAIN(unexplained)")
        assert told.table.empty and "Withheld" in told.text and "withheld" in told._repr_html_()
    bad, good = reason_codes(release, units, asked, rows, cut_off=1.0, limits=LIMITS)
    assert bad.codes and not good.codes and "is not adverse" in good.withheld
    refused(lambda: reason_codes(release, units, asked, rows, cut_off=float("nan")), "nan", code=64)
    louder = Score()
    louder.out.weight.data *= 3
    foreign = Release.from_module(louder, release.inputs.spec(), sites=["act:out"], device="cpu")
    (told,) = reason_codes(foreign, units, asked.head(1), rows, limits=LIMITS)
    assert told.withheld.startswith("INVALID(another release)") and not told.codes
    assert json.loads(json.dumps(told.json()))["reasons"] == []


def test_what_is_asked_wrongly_is_refused(scored):
    release, units, rows, asked = scored
    refused(lambda: reason_codes(release, units, asked, rows.head(5)), "like=", code=64)
    refused(lambda: reason_codes(release, units, asked, rows, adverse="up"), "'high'", code=64)
    refused(lambda: reason_codes(release, units, asked, rows, most=0), "most=4", code=64)
    refused(lambda: reason_codes(release, units, asked, rows, mots=2), "most", code=64)


def test_at_most_four_the_same_alone_and_in_a_batch_and_plain_values_come_out(scored):
    release, units, rows, asked = scored
    many = pd.concat([asked, rows.head(70)], ignore_index=True)  # over one part of 64
    together = reason_codes(release, units, many, rows, limits=LIMITS)
    assert len(together) == 72 and all(len(t.codes) <= 4 for t in together)
    alone = reason_codes(release, units, asked.head(1), rows, limits=LIMITS)[0]
    one = together[0]
    assert [c.said for c in one.codes] == [c.said for c in alone.codes]
    assert one.codes[0].effect == pytest.approx(alone.codes[0].effect, abs=1e-4)
    plain = json.loads(json.dumps(one.json()))
    assert plain["format"] == 1 and plain["withheld"] is None
    assert plain["reasons"][0]["inputs"] == ["late"]
    for t in together:
        shares = [c.share for c in t.codes]
        assert t.covered == pytest.approx(sum(shares)) and t.covered <= 1 + 1e-9
        assert shares == sorted(shares, reverse=True)


# Which inputs: several that are enough each


class Any(nn.Module):
    "At least two of six columns: no single one of four can be missed."

    def forward(self, x):
        return torch.relu(torch.clamp(x.sum(1, keepdim=True), max=2) - 1)


class AnyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.any, self.act, self.out = Any(), nn.Identity(), nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.out.weight, 3.0)

    def forward(self, x):
        return self.out(self.act(self.any(x)))


def test_inputs_of_which_no_single_one_can_be_missed_are_found():
    names = list("abcdef")
    rows = pd.DataFrame(np.zeros((40, 6), "float32"), columns=names)
    rows.loc[0, ["a", "c", "d", "f"]] = 1.0
    rows = rows.assign(sequence_id=range(40))
    release = Release.from_module(AnyNet(), dict(kind="columns", columns=names), sites=["act:out"])
    one, zero = torch.ones(1, 1), torch.zeros(1)
    units = Dictionary((Site("act"),), (SiteWeights(one, zero, zero, one, zero),), ("any two",))
    inputs = input_units([release], rows)
    inputs.lends[:] = 39  # a row of zeros
    bare = release.run(rows).numpy()
    each = np.arange(6)
    assert not inputs.effects(release, bare, np.zeros(6, int), each).any()  # one at a time: nothing
    pushes = pushes_of(release, units, rows.head(1), np.array([[0]]))
    (added,) = added_by_inputs(release, units, inputs, pushes, ["0"], [each])
    four = added.push[[0, 2, 3, 5], 0]
    assert four.min() > 0.3 and np.abs(added.push[[1, 4], 0]).max() < 0.15
    assert set(added.evidence(0, 1).tolist()) <= {0, 2, 3, 5}


def test_random_halves_are_even_and_belong_to_the_name():
    gone = drawn_gone("a", np.array([0, 2, 5]), 7)
    assert (gone[:, [0, 2, 5]].mean(0) == 0.5).all() and not gone[:, [1, 3, 4, 6]].any()
    assert np.array_equal(gone, drawn_gone("a", np.array([0, 2, 5]), 7))
    assert not np.array_equal(gone, drawn_gone("b", np.array([0, 2, 5]), 7))
    assert len(drawn_gone("a", np.arange(48), 48)) == 192


def test_features_that_rest_on_the_same_inputs_are_one_reason():
    rests = [np.array(x, int) for x in ([3, 1, 2], [1, 3], [7], [], [3, 8, 9])]
    groups = grouped(np.array([2.0, 1.0, 0.5, 9.0, 0.2]), rests, 0.01)
    assert [np.flatnonzero(g.of).tolist() for g in groups] == [[0, 1], [2], [4]]
    assert grouped(np.array([-1.0, 0.001]), rests[:2], 0.01) == []


# Words


def test_no_tokens_name_stands_alone():
    names = {"amount=huge", "␣the", "a", "so far", "x after y", "y"}
    told = [said_statement(n, names) for n in sorted(names)]
    assert not set(told) & names
    assert said_statement("token 2009", names) == "the token “token 2009”"
    assert said_label("no amount=huge so far, at the last token (3)", names) == (
        "no amount huge so far, at the end"
    )
    assert said_label("amount=huge or small", names | {"amount=small"}) == (
        "amount is huge or amount is small"
    )
    assert said_statement("late >= 2", names) == "late >= 2"
    assert [said_value(x) for x in (None, np.nan, pd.NaT, 7, 0.5, "car")][:3] == ["missing"] * 3


def test_inputs_are_told_by_place_and_value():
    rows = demo_quarter("v1", 40, seed=3).in_events()
    release = demo()[0]
    words = {i: n for n, i in token_ids().items()}
    units = input_units([release], rows, words=words)
    first = units.units(0)[0]
    said = said_input(units, 0, int(first), "payment")
    assert said.input == f"payment 1 of {len(units.units(0))}"
    assert said.value.startswith("amount ") and ", merchant " in said.value
    alone = input_units([release], rows.drop(columns="event_ids"), words=words)
    token = said_input(alone, 0, int(alone.units(0)[5]))
    assert token.input.startswith("token 6 of ") and ", in: " in token.value


def token_ids():
    return json.loads((demo_folder() / "releases" / "v1" / "vocab.json").read_text())


def demo():
    home = demo_folder()
    release = Release.load(home / "releases" / "v1", device="cpu")
    return release, Dictionary.load(home / "dictionary", release)


# The truth of the ledger


def test_events_behind_a_cause_are_there_where_the_cause_is():
    quarter = generate(2000, seed=4)
    behind = events_behind(quarter)
    assert set(RULE) <= set(behind)
    for name, x in quarter.causes.items():
        assert ((behind[name] & quarter.real).any(1) == (x > 0)).all(), name
        assert not (behind[name] & ~quarter.real).any()
    takeover = behind["takeover_at_home"]
    assert (takeover <= quarter.on["takeover"]).all()
    adverse = adverse_causes(quarter)
    assert set(adverse) == {c for c, w in RULE.items() if w > 0}


def test_chance_is_that_of_events_drawn_without_putting_back():
    rng = np.random.default_rng(0)
    hits = [(rng.permutation(10)[:3] < 4).any() for _ in range(4000)]
    low, high = clopper_pearson(int(np.sum(hits)), 4000, 0.99)
    assert low <= by_chance(10, 4, 3) <= high


def test_first_reasons_of_trusted_alerts_are_true_far_oftener_than_chance():
    release, dictionary = demo()
    quarter = demo_quarter("v1", 400, seed=21)
    alerts = np.argsort(-release.run(quarter.rows).numpy())[:24]
    marks = reasons_on_truth(
        release, dictionary, quarter, alerts, demo_rows("v1", 100, seed=6), event="payment"
    )
    figures = truth_figures(marks)
    assert figures["trusted"] > 0.8 and figures["told"] >= 20
    caused = marks[marks.told & (marks.causes > 0)]
    low, _ = clopper_pearson(int(caused.top.sum()), len(caused), 0.9)
    assert low > caused.top_by_chance.mean()
    assert figures["held"] > figures["held_by_chance"] - 0.05


def test_codes_hold_what_a_letter_needs():
    release, dictionary = demo()
    rows = demo_quarter("v1", 60, seed=22).in_events()
    top = rows.iloc[release.run(rows).argsort(descending=True)[:2].numpy()]
    coding = Coding(release, dictionary, demo_rows("v1", 60, seed=6), most=2, event="payment")
    for told in coding.codes(top):
        assert isinstance(told, ReasonCodes) and 1 <= len(told.codes) <= 2
        for code in told.codes:
            assert all(x.input.startswith("payment ") for x in code.said)
            assert 1 <= len(code.said) <= 3 and code.feature
            assert code.text.startswith("payment ")
        assert "<script" not in told._repr_html_()
