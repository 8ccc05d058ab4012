"""Names for features.

What may be said of inputs, which of it is chosen, what held-out sequences say of it, and where the
figures stand. Models are hand-made, so that the cause of each feature is known."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import refused
from scipy.stats import beta
from torch import nn

from interpkit.core.files import read_json
from interpkit.data.checksets import hash_split
from interpkit.data.demo import demo_folder, demo_rows
from interpkit.dictionary.dictionary import Dictionary
from interpkit.dictionary.firings import Firings
from interpkit.dictionary.labels import choose, figures_of, halves, label_dictionary, terms_at
from interpkit.dictionary.predicates import FIRINGS, Evidence, chosen, measured, names, packed
from interpkit.dictionary.reads import moved_by
from interpkit.dictionary.terms import Term, column_terms
from interpkit.dictionary.weights import SiteWeights
from interpkit.model.releases import Release


def units(d):
    "A dictionary whose features are the units of a layer."
    weights = SiteWeights(
        torch.eye(d), torch.zeros(d), torch.zeros(d), torch.eye(d), torch.zeros(d)
    )
    return Dictionary(("1:out",), (weights,))


def release_of(weight, bias, columns):
    "One hidden layer of known weights, on columns that a function picks from the rows."
    net = nn.Sequential(nn.Linear(len(columns), len(weight)), nn.ReLU(), nn.Linear(len(weight), 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(weight))
        net[0].bias.copy_(torch.tensor(bias))

    def collate(rows):
        return torch.tensor(rows[columns].to_numpy("float32"))

    return Release.from_module(net, collate, lambda out: out[:, 0], sites=["1:out"], device="cpu")


def credit(n=4000, seed=0):
    "A credit table in which most columns go together, and ETHNICITY goes with late payment."
    rng = np.random.default_rng(seed)
    late = np.clip(np.round(rng.normal(size=n) * 1.3), -2, 4)
    bill = late + rng.normal(size=n) * 0.3
    return pd.DataFrame(
        dict(
            sequence_id=[f"s{i}" for i in range(n)],
            PAY_0=late,
            BILL=bill,
            AGE=rng.integers(20, 70, n) * 1.0,
            ABROAD=(rng.random(n) < 0.4) * 1.0,
            ETHNICITY=(late >= 2) * 1,  # equal to the rule that the first unit reads
        )
    )


@lru_cache
def labelled():
    "Units: PAY_0 >= 2; young and abroad; a tenth by BILL; almost always on; never on."
    weight = [
        [1.0, 0, 0, 0],
        [0, 0, -1.0, 1000.0],
        [0, 1.0, 0, 0],
        [0.1, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    bias = [-1.5, -960.0, -1.7, 0.35, -1.0]
    columns = ["PAY_0", "BILL", "AGE", "ABROAD"]
    release = release_of(weight, bias, columns)
    return release, label_dictionary(release, units(5), credit())


# What may give a name


def test_a_column_that_the_model_never_reads_names_nothing_however_well_it_fits():
    release, dictionary = labelled()
    assert list(moved_by(release, units(5), credit())) == ["PAY_0", "BILL", "AGE", "ABROAD"]
    assert not any("ETHNICITY" in label for label in dictionary.labels)
    assert not any("ETHNICITY" in x["text"] for f in dictionary.figures for x in f["inputs"])
    assert dictionary.labels[0] == "PAY_0 >= 2"
    assert dictionary.figures[0]["precision"] == dictionary.figures[0]["recall"] == 1


def test_other_columns_name_on_request_and_say_that_they_are_no_inputs():
    release, _ = labelled()
    alone = credit().drop(columns="ETHNICITY").assign(REGION=lambda r: (r.BILL >= 1.7).map(str))
    asked = label_dictionary(release, units(5), alone, also=["REGION"])
    assert asked.labels[2] == "REGION = True (goes with, not an input)"
    assert label_dictionary(release, units(5), alone).labels[2].startswith("BILL >= 1.")
    refused(lambda: label_dictionary(release, units(5), alone, also="REGOIN"), "REGION", code=64)


def test_the_cause_names_and_not_what_goes_with_it():
    "BILL correlates with PAY_0 at 0.97, and the model reads both, each by a unit of its own."
    _, dictionary = labelled()
    assert np.corrcoef(credit().PAY_0, credit().BILL)[0, 1] > 0.96
    assert dictionary.labels[2].startswith("BILL >= ")


def test_a_rare_value_counts_as_read():
    rows = credit().assign(flag=lambda r: (r.index == 3999) * 1.0)
    release = release_of([[5.0]], [0.0], ["flag"])
    assert list(moved_by(release, units(1), rows)) == ["flag"]


def test_two_statements_name_what_needs_both():
    _, dictionary = labelled()
    assert set(dictionary.labels[1].split(" and ")) == {"ABROAD = 1", "AGE < 40"}
    assert dictionary.figures[1]["precision"] > 0.9 < dictionary.figures[1]["recall"]


def test_a_feature_that_nearly_always_fires_gets_no_empty_name():
    _, dictionary = labelled()
    fires = credit().PAY_0 * 0.1 + 0.35 > 0
    assert fires.all()
    assert dictionary.labels[3] == "unnamed feature 3, fires on 100 % of sequences"
    assert dictionary.labels[4] == "unnamed feature 4, fires on no sequence"


def test_columns_of_any_kind_are_read_or_left_alone():
    rows = pd.DataFrame(
        dict(
            nothing=[np.nan] * 30,
            some=[np.nan, *range(29)],
            text=["a", None, "b"] * 10,
            when=pd.date_range("2026-01-01", periods=30, freq="h", tz="UTC"),
            flag=[True, False, True] * 10,
            spent=[[1.0, 2.0], [], [3.0]] * 10,
            words=[["a"], ["b", "c"], ["d"]] * 10,
            huge=np.linspace(-1e18, 1e18, 30),
            kind=pd.Categorical(["x", "y", "x"] * 10),
        )
    )
    told = column_terms(rows, rows.columns)
    by_column = {}
    for term, holds in told.items():
        assert holds.shape == (30,) and holds.dtype == bool, term
        by_column.setdefault(term.about, []).append(term.text)
    assert set(by_column) == set(rows.columns)
    assert by_column["nothing"] == ["nothing is missing"]
    assert "kind = x" in by_column["kind"] and "length of words = 2" in by_column["words"]
    assert told[Term("sum of spent = 3", "spent")].tolist() == [True, False, True] * 10


# What is chosen, and what it is worth


def both_halves(columns, fires):
    n = len(fires[0]) // 2
    terms = tuple(Term(f"t{i}", f"c{i}") for i in range(len(columns)))
    return [
        Evidence(
            terms,
            packed([c[part] for c in columns]),
            packed([f[part] for f in fires]),
            n,
            np.array([f[part].sum() for f in fires]),
        )
        for part in (slice(0, n), slice(n, 2 * n))
    ]


def test_the_search_finds_the_best_pair_of_all():
    rng = np.random.default_rng(1)
    columns = [rng.random(3000) < p for p in rng.uniform(0.05, 0.9, 24)]
    pairs = [(0, 1), (5, 9), (20, 3), (11, 17)]
    fires = [columns[a] & columns[b] & (rng.random(3000) < 0.9) for a, b in pairs]
    learn, _ = both_halves(columns, fires)
    for f, pair in enumerate(pairs):
        first = chosen(learn, f, np.ones(24, bool))[0]
        every = [measured(learn, f, (i, j)).tells for i in range(24) for j in range(i)]
        assert set(first.terms) == set(pair)
        assert first.tells == pytest.approx(max(every))


def test_counts_are_those_of_numpy():
    rng = np.random.default_rng(2)
    columns = [rng.random(1234) < 0.3 for _ in range(5)]
    fires = [rng.random(1234) < 0.2]
    learn, held = both_halves(columns, fires)
    p = measured(held, 0, (1, 3))
    holds = columns[1][617:] & columns[3][617:]
    assert (p.holds, p.both, p.fires, p.n) == (
        holds.sum(),
        (holds & fires[0][617:]).sum(),
        fires[0][617:].sum(),
        617,
    )
    assert learn.holding.tolist() == [c[:617].sum() for c in columns]


def test_chance_gives_no_names():
    "1,000 features that fire by chance, 200 statements: under 0.5 % named, at 95 % confidence."
    rng = np.random.default_rng(3)
    columns = [rng.random(1200) < p for p in rng.uniform(0.005, 0.6, 200)]
    named, n = 0, 1000
    for rate in (0.02, 0.1, 0.5, 0.9):
        fires = [rng.random(1200) < rate for _ in range(n // 4)]
        learn, held = both_halves(columns, fires)
        for f in range(n // 4):
            first = chosen(learn, f, np.ones(200, bool))[0]
            named += names(measured(held, f, first.terms))
    assert beta.ppf(0.95, named + 1, n - named) < 0.005, named


def test_a_pair_that_says_less_than_nothing_is_left_out():
    "One statement barely goes with the feature, the other never does: no pair of them is offered."
    at = np.arange(240)
    sometimes, never = at % 2 == 0, at % 3 == 0
    fires = ~never & (sometimes | (at % 5 == 0))
    learn, _ = both_halves([sometimes, never], [fires])
    assert measured(learn, 0, (0, 1)).tells < 0
    assert [p.terms for p in chosen(learn, 0, np.ones(2, bool))][0] == (0,)


def one_of_several(n, purposes, rng):
    "Terms of a column of several values, and which row has which."
    value = rng.integers(0, len(purposes), n)
    terms = tuple(Term(f"Purpose = {x}", "Purpose", stem="Purpose = ") for x in purposes)
    return terms, [value == i for i in range(len(purposes))]


def evidence_of(terms, columns, fires):
    "Both halves, as `both_halves` makes them."
    return [replace(half, terms=terms) for half in both_halves(columns, fires)]


def test_one_value_or_another_is_found_and_counted_as_it_is():
    rng = np.random.default_rng(5)
    terms, columns = one_of_several(3000, list("abcdefgh"), rng)
    planted = [(0, 3), (6, 2), (5, 7)]
    fires = [(columns[i] | columns[j]) & (rng.random(3000) < 0.95) for i, j in planted]
    learn, held = evidence_of(terms, columns, fires)
    for f, pair in enumerate(planted):
        first = chosen(learn, f, np.ones(8, bool))[0]
        assert first.either and set(first.terms) == set(pair)
        assert first == measured(learn, f, first.terms, either=True)
        found = measured(held, f, first.terms, either=True)
        holds = (columns[pair[0]] | columns[pair[1]])[1500:]
        assert found.holds == holds.sum() and found.both == (holds & fires[f][1500:]).sum()
        assert names(found) and found.recall == 1
        first_value, second = sorted("abcdefgh"[i] for i in pair)
        assert found.text(terms) == f"Purpose = {first_value} or {second}"
    alone = chosen(learn, 0, np.arange(8) == 0)[0]  # where only one of them may name
    assert alone.terms == (0,) and not alone.either


def test_values_of_two_inputs_are_not_said_in_one_breath():
    "The truth is a purpose or a town: no name of one input says it, so none does."
    rng = np.random.default_rng(6)
    purpose, of_purpose = one_of_several(3000, list("abcde"), rng)
    town, of_town = one_of_several(3000, list("vwxyz"), rng)
    town = tuple(Term(f"Town = {t.text[-1]}", "Town", stem="Town = ") for t in town)
    learn, held = evidence_of(purpose + town, of_purpose + of_town, [of_purpose[0] | of_town[1]])
    first = chosen(learn, 0, np.ones(10, bool))[0]
    assert not first.either
    assert measured(held, 0, first.terms).precision == 1  # each is right, and misses the other
    one, _ = evidence_of(purpose, of_purpose, [of_purpose[0]])
    assert chosen(one, 0, np.ones(5, bool))[0].terms == (0,)  # a second value would add nothing


def test_pairs_of_values_that_fit_by_chance_give_no_names():
    """Features that fire by chance, over six columns of 12 values: 396 pairs of values for each.

    The best pair of the half to choose on flatters itself; the held-out half does not, and under
    0.5 % of such features get a name, at 95 % confidence.
    """
    rng = np.random.default_rng(7)
    every = [one_of_several(1200, [f"{c}{i}" for i in range(12)], rng) for c in "abcdef"]
    terms = tuple(
        replace(t, stem=f"{c} = ") for c, (ts, _) in zip("abcdef", every, strict=True) for t in ts
    )
    columns = [x for _, of_column in every for x in of_column]
    named, n, flattered, either = 0, 1000, [], 0
    for rate in (0.05, 0.3, 0.6, 0.75):
        fires = [rng.random(1200) < rate for _ in range(n // 4)]
        learn, held = evidence_of(terms, columns, fires)
        for f in range(n // 4):
            first = chosen(learn, f, np.ones(72, bool))[0]
            found = measured(held, f, first.terms, first.either)
            named += names(found)
            either += first.either
            if first.either:
                flattered.append(first.precision - found.precision)
    assert either > 100 and np.mean(flattered) > 0.03
    assert beta.ppf(0.95, named + 1, n - named) < 0.005, named


def test_a_feature_over_a_category_is_named_by_the_two_values_that_it_reads():
    rng = np.random.default_rng(8)
    purpose = rng.choice(["boat", "car", "radio", "repairs", "school"], 3000)
    rows = pd.DataFrame(dict(sequence_id=range(3000), Purpose=purpose, AGE=rng.normal(size=3000)))
    net = nn.Sequential(nn.Linear(6, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0]]))
        net[0].bias.fill_(-0.5)

    def collate(r):
        known = ["boat", "car", "radio", "repairs", "school"]
        hot = np.stack([r.Purpose == x for x in known] + [r.AGE], 1)
        return torch.tensor(hot.astype("float32"))

    release = Release.from_module(net, collate, lambda o: o[:, 0], sites=["1:out"], device="cpu")
    named = label_dictionary(release, units(2), rows)
    assert set(named.labels[0].removeprefix("Purpose = ").split(" or ")) == {"boat", "car"}
    assert named.figures[0]["precision"] == named.figures[0]["recall"] == 1
    assert named.labels[1] == "Purpose = radio"


def test_precision_is_that_of_the_traffic_where_rows_have_weights():
    """Half of the rows are frauds, which are one in fifty-one of the traffic.

    `flag` fires the feature at every fraud and hardly elsewhere: among these rows it seems right
    in 95 %, and of the traffic that it flags, two thirds are others.
    """
    rng = np.random.default_rng(9)
    n = 8000
    fraud, weight = np.arange(n) % 2 == 0, np.where(np.arange(n) % 2 == 0, 1.0, 50.0)
    flag = rng.random(n) < np.where(fraud, 0.9, 0.05)
    fires = flag & (fraud | (rng.random(n) < 0.1))
    terms = {Term("flag = 1", "flag"): flag}
    firings = Firings(
        np.arange(n), np.zeros(n, int), 1, np.flatnonzero(fires), np.zeros(fires.sum(), int), 1
    )

    def figures(weight):
        sides = halves(replace(firings, weight=weight), terms, rng.random(n) < 0.5, False)
        return figures_of(0, *choose(0, sides, np.ones(1, bool)))

    blind, seen = figures(None), figures(weight)
    assert blind["text"] == "flag = 1" and blind["precision"] > 0.9
    assert seen["text"] == ""
    of_traffic = (0.9 + 0.05 * 0.1 * 50) / (0.9 + 0.05 * 50)
    assert seen["inputs"][0]["precision"] == pytest.approx(of_traffic, abs=0.08)
    assert seen["inputs"][0]["recall"] == 1
    share = replace(firings, weight=weight).share(n)[0]
    assert share == pytest.approx((0.9 + 0.05 * 0.1 * 50) / 51, rel=0.1)


def test_weights_count_exactly_and_few_heavy_rows_carry_no_name():
    rng = np.random.default_rng(10)
    n = 1300
    weight = rng.lognormal(0, 1.5, n)
    columns = {Term(f"t{i}", f"c{i}"): rng.random(n) < 0.4 for i in range(3)}
    fires = rng.random(n) < 0.3
    firings = Firings(
        np.arange(n),
        np.zeros(n, int),
        1,
        np.flatnonzero(fires),
        np.zeros(fires.sum(), int),
        1,
        weight,
    )
    where = rng.random(n) < 0.5
    seen = firings.evidence(columns, where)
    both, either = (measured(seen, 0, (0, 2), either) for either in (False, True))
    first, third = list(columns.values())[::2]
    for p, holds in ((both, first & third), (either, first | third)):
        assert p.precision == pytest.approx(
            weight[where & holds & fires].sum() / weight[where & holds].sum()
        )
        assert p.recall == pytest.approx(
            weight[where & holds & fires].sum() / weight[where & fires].sum()
        )
    exact = [weight[where & x].sum() / weight[where].mean() for x in columns.values()]
    assert seen.holding == pytest.approx(exact, rel=0.1)  # the search counts each 64 by their mean
    alike = replace(firings, weight=np.full(n, 7.0)).evidence(columns, where)
    plain = replace(firings, weight=None).evidence(columns, where)
    assert alike.holding == pytest.approx(plain.holding)
    assert alike.sequences == pytest.approx(plain.sequences)


def test_chance_gives_no_names_where_few_rows_weigh_most():
    """600 features that fire by chance on 1,200 rows of which an eighth holds the weight.

    A share of so few is often far from the truth: where 0.8 was enough, 14 of 250 had a name.
    """
    rng, n, each = np.random.default_rng(11), 1200, 300
    terms = {}
    for c in "abcdef":
        names_of, columns = one_of_several(n, [f"{c}{i}" for i in range(12)], rng)
        given = (replace(t, about=c, stem=f"{c} = ", text=f"{c} = {t.text}") for t in names_of)
        terms |= dict(zip(given, columns, strict=True))
    named = 0
    for rate in (0.6, 0.75):
        position, feature = np.nonzero(rng.random((n, each)) < rate)
        weight = rng.lognormal(0, 1.5, n)
        firings = Firings(np.arange(n), np.zeros(n, int), 1, position, feature, each, weight)
        sides = halves(firings, terms, rng.random(n) < 0.5, False)
        for f in range(each):
            choice = choose(f, sides, np.ones(len(terms), bool))
            named += choice is not None and bool(figures_of(f, *choice)["text"])
    assert beta.ppf(0.95, named + 1, 2 * each - named) < 0.005, named


def test_a_name_that_few_heavy_rows_carry_is_none():
    rows = credit()
    late = (rows.PAY_0 >= 2).to_numpy()
    release, _ = labelled()
    few = np.flatnonzero(late)[::60]
    heavy = np.where(np.isin(np.arange(4000), few), 1e4, 1.0)
    assert label_dictionary(release, units(5), rows).labels[0] == "PAY_0 >= 2"
    named = label_dictionary(release, units(5), rows.assign(weight=heavy))
    assert named.labels[0].startswith("unnamed feature 0")


def test_precision_on_the_held_out_half_is_no_flattery():
    "Chosen among 300 of which the best is right in 70 %: what is printed is right on average."
    rng = np.random.default_rng(4)
    said, true = [], []
    for _ in range(40):
        columns = [rng.random(1600) < 0.05 for _ in range(300)]
        fires = [columns[0] & (rng.random(1600) < 0.7) | (rng.random(1600) < 0.01)]
        learn, held = both_halves(columns, fires)
        first = chosen(learn, 0, np.ones(300, bool))[0]
        if first.terms == (0,):
            said.append(measured(held, 0, first.terms).precision)
            true.append(0.7 + 0.3 * 0.01)
    assert len(said) > 20
    assert abs(np.mean(said) - np.mean(true)) < 4 * np.std(said) / np.sqrt(len(said))


def test_few_firings_give_no_name():
    rows = credit(400)
    release = release_of([[1.0, 0, 0, 0]], [-2.5], ["PAY_0", "BILL", "AGE", "ABROAD"])
    fires = (rows.PAY_0 >= 3).to_numpy()
    assert 0 < fires[hash_split(rows, 0.5, "labels")].sum() < FIRINGS
    assert label_dictionary(release, units(1), rows).labels[0].startswith("unnamed feature 0, ")


# Sequences


WORDS = {5: "password", 6: "home", 7: "abroad", 8: "cash", 2: "<decide>"}


def payments(n=600, seed=0):
    "Sequences of four to twelve events, with the same token at the end of each."
    rng = np.random.default_rng(seed)
    chance = [0.1, 0.5, 0.2, 0.2]
    ids = [[*rng.choice([5, 6, 7, 8], rng.integers(4, 13), p=chance), 2] for _ in range(n)]
    return pd.DataFrame(dict(sequence_id=range(n), input_ids=ids))


def named_where(rule, rows=None):
    "The label of a feature that fires where `rule(ids, t)` says, with its figures."
    rows = payments() if rows is None else rows
    at = [(i, t) for i, ids in enumerate(rows.input_ids) for t in range(len(ids))]
    fires = [k for k, (i, t) in enumerate(at) if rule(list(rows.input_ids[i]), t)]
    sequence, token = np.array(at).T
    firings = Firings(sequence, token, 13, np.array(fires), np.zeros(len(fires), int), 1)
    learn = hash_split(rows, 0.5, "labels")
    terms = terms_at(firings, rows, ["input_ids"], WORDS, learn)
    choice = choose(0, halves(firings, terms, learn, True), np.ones(len(terms), bool))
    return figures_of(0, *choice)


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        (lambda ids, t: ids[t] == 7, "abroad"),
        (lambda ids, t: t > 1 and ids[t - 2] == 5, "password 2 tokens before"),
        (lambda ids, t: 5 in ids[max(t - 3, 0) : t + 1], "password within 4 tokens"),
        (lambda ids, t: ids[: t + 1].count(8) >= 3, "cash at least 3 times"),
        (lambda ids, t: 5 not in ids[: t + 1], "no password so far"),
        (lambda ids, t: ids[t] == 7 and 5 in ids[:t], "abroad and password so far"),
    ],
)
def test_a_rule_of_tokens_is_named_as_it_is(rule, label):
    figures = named_where(rule)
    assert sorted(figures["text"].split(" and ")) == sorted(label.split(" and "))
    assert figures["precision"] == figures["recall"] == 1


def test_the_order_of_events_names_a_feature_of_the_last_token():
    def rule(ids, t):
        return ids[t] == 2 and 5 in ids and 7 in ids[ids.index(5) :]

    figures = named_where(rule)
    assert figures["text"] == "abroad after password, at the last token"
    assert figures["precision"] == figures["recall"] == 1


def test_a_token_that_every_sequence_ends_with_names_nothing():
    figures = named_where(lambda ids, t: ids[t] == 2)
    assert not figures["text"]
    assert not any("<decide>" in x["text"] for x in figures["inputs"])


def test_where_one_is_names_nothing_alone():
    figures = named_where(lambda ids, t: t < 4)
    assert not figures["text"]


def test_a_pooled_site_is_named_by_what_stood_in_the_sequence():
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.pooled, self.head = nn.Embedding(9, 9), nn.Identity(), nn.Linear(9, 1)

        def forward(self, input_ids, attention_mask):
            seen = self.embed(input_ids) * attention_mask[..., None]
            return self.head(self.pooled(seen.sum(1)))

    model = Pools()
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(9))
    release = Release.from_module(
        model,
        inputs=dict(kind="tokens", pad=0),
        decision=lambda out: out[:, 0],
        sites=["pooled:out"],
        device="cpu",
    )
    weights = SiteWeights(
        torch.eye(9), torch.zeros(9), torch.full((9,), 1.5), torch.eye(9), torch.zeros(9)
    )
    named = label_dictionary(release, Dictionary(("pooled:out",), (weights,)), payments())
    assert named.labels[7] == "token 7 at least 2 times"
    assert named.figures[7]["precision"] == named.figures[7]["recall"] == 1


def test_the_demo_is_named_by_more_than_where_one_stands():
    "8 of 12 features of 2 % attribution, 123 of 512, where the names before reached 0 of 12."
    folder = demo_folder()
    v1 = Release.load(folder / "releases" / "v1", device="cpu")
    dictionary = Dictionary.load(folder / "dictionary")
    named = label_dictionary(v1, dictionary, demo_rows("v1", 800, "train"))
    good = named.label_table()["precision"].notna()
    assert 60 < good.sum() < 250
    assert not any("<decide>" in label for label in named.labels)
    assert (named.label_table().loc[good, "precision"] >= 0.8).all()
    assert len(set(named.labels)) == 512


# Where the figures stand


def test_figures_are_kept_and_are_no_part_of_the_fingerprint(tmp_path):
    _, d = labelled()
    assert d.fingerprint == units(5).fingerprint
    again = Dictionary.load(d.save(tmp_path / "d"))
    assert again.figures == d.figures and again.labels == d.labels
    pd.testing.assert_frame_equal(again.label_table(), d.label_table())
    assert d.subset([2, 0]).figures == (d.figures[0], d.figures[2])
    plain = units(5).save(tmp_path / "plain")
    assert "figures" not in read_json(plain / "dictionary.json")
    assert Dictionary.load(plain).label_table()["precision"].isna().all()


def test_a_label_that_a_person_wrote_has_no_figures():
    _, d = labelled()
    renamed = replace(d, labels=("late payers", *d.labels[1:])).label_table()
    assert np.isnan(renamed.precision[0]) and renamed.precision[1] > 0.9
    assert renamed.fires_on[0] == d.figures[0]["fires_on"]


def test_figures_of_another_number_are_refused():
    _, d = labelled()
    refused(lambda: replace(d, figures=d.figures[:2]), "2 labels for 5 features")
