"""Inputs of every kind of release, against brute force: a reason that moved between inputs is seen.

In each world two inputs go together, so that decisions hardly change when a release leans on the
other one. A check that asks about too few, or too coarse, inputs passes such a release.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from interpkit.data.checksets import read_check_set
from interpkit.explain.columns import Columns
from interpkit.explain.events import Tokens
from interpkit.explain.inputs import SwappedTokens, Together, input_units
from interpkit.model.releases import Release

N, T, V = 300, 6, 12


class Reader(nn.Module):
    "Decides by how often `by` stands among the tokens, and by a column beside them."

    def __init__(self, by, lookup="once", column=0):
        super().__init__()
        worth = torch.zeros(V, 1)
        worth[by] = 1.0
        self.table = nn.Embedding.from_pretrained(worth)
        self.other = nn.Embedding.from_pretrained(worth)
        self.worth = nn.Parameter(worth)
        self.lookup, self.column = lookup, column

    def vectors(self, ids):
        if self.lookup == "parameter":
            return self.worth[ids]
        if self.lookup == "by name":
            return self.table(input=ids)
        if self.lookup == "in two tables":
            return self.table(ids) + self.other(ids)
        if self.lookup == "twice":
            return self.table(ids) + self.table(ids)
        return self.table(ids)

    def forward(self, input_ids, columns=None):
        out = self.vectors(input_ids).sum(1)
        return out if columns is None else out + columns[:, [self.column]]


def rows_of(seed=0):
    "Tokens 3 and 4 stand in the same sequences, as often; columns a and b are nearly alike."
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, V, (N, T))
    pairs = rng.integers(0, 3, N)
    for i, k in enumerate(pairs):
        ids[i, : 2 * k] = [3, 4] * k
        ids[i] = rng.permutation(ids[i])
    a = rng.normal(size=N).astype("float32")
    table = dict(sequence_id=np.arange(N), input_ids=ids.tolist(), a=a, b=a)
    return pd.DataFrame(table)


def collate(rows):
    columns = torch.tensor(rows[["a", "b"]].to_numpy("float32"))
    return dict(input_ids=torch.tensor(rows["input_ids"].tolist()), columns=columns)


def release(by, lookup="once", inputs=None, column=0):
    model = Reader(by, lookup, column)
    return Release.from_module(
        model, inputs or dict(kind="tokens"), dict(kind="scalar"), sites=["table:out"]
    )


def lost(old, new, rows):
    "Overlap lost over every input of every row, none drawn."
    units = input_units([old, new], rows)
    pairs = [(row, u) for row in range(len(rows)) for u in units.units(row)]
    sequence, unit = (np.array(x) for x in zip(*pairs, strict=True))
    was, now = (units.effects(r, r.run(rows).double().numpy(), sequence, unit) for r in (old, new))
    return units, np.abs(now - was).sum() / (np.abs(now) + np.abs(was)).sum()


LOOKUPS = ["once", "parameter", "by name", "in two tables", "twice"]


@pytest.mark.parametrize("lookup", LOOKUPS)
def test_a_reason_that_moved_to_another_token_is_seen_however_tokens_are_looked_up(lookup):
    rows = rows_of()[["sequence_id", "input_ids"]]
    old, new = release(3, lookup), release(4, lookup)
    assert torch.equal(old.run(rows), new.run(rows))  # decisions can't tell them apart
    units, share = lost(old, new, rows)
    assert share > 0.5
    assert isinstance(units, Tokens if lookup == "once" else SwappedTokens)
    assert lost(old, old, rows)[1] == 0


def test_one_release_that_looks_up_otherwise_is_enough():
    rows = rows_of()[["sequence_id", "input_ids"]]
    units, share = lost(release(3), release(4, "parameter"), rows)
    assert isinstance(units, SwappedTokens)
    assert share > 0.5


def test_a_reason_that_moved_to_another_column_beside_the_tokens_is_seen():
    rows = rows_of()
    old, new = (release(3, inputs=collate, column=c) for c in (0, 1))
    assert torch.equal(old.run(rows), new.run(rows))
    units, share = lost(old, new, rows)
    assert isinstance(units, Together)
    names = units.unit_name(np.zeros(len(units.units(0)), int), units.units(0))
    assert {"a", "b"} <= set(names)
    assert share > 0.2


def test_a_swapped_token_is_the_only_change():
    rows = rows_of()[["sequence_id", "input_ids"]]
    old = release(3, "parameter")
    units = input_units([old], rows)
    bare = old.run(rows).double().numpy()
    for row, at in ((0, 0), (7, 3)):
        other = [*rows.input_ids[row]]
        other[at] = rows.input_ids[units.lends[row, at]][at]
        after = float(old.run(rows.iloc[[row]].assign(input_ids=[other]))[0])
        effect = units.effects(old, bare, np.array([row]), np.array([at]))[0]
        assert effect == pytest.approx(bare[row] - after, abs=1e-6)


EVENTS = [-1, 0, 0, 1, 1, 1]


def in_events(rows):
    return rows.assign(event_ids=[EVENTS] * len(rows))


@pytest.mark.parametrize("lookup", ["once", "parameter"])
def test_a_declared_event_is_one_input_and_goes_as_a_whole(lookup):
    rows = in_events(rows_of()[["sequence_id", "input_ids"]])
    old = release(3, lookup)
    units = input_units([old], rows)
    assert units.units(0).tolist() == [1, 3]
    bare = old.run(rows).double().numpy()
    worth = old.model.worth.detach().numpy()[:, 0]
    ordinary = worth[np.array(rows.input_ids.tolist())].mean()
    for row in (0, 5, 9):
        for start, tokens in ((1, [1, 2]), (3, [3, 4, 5])):
            effect = units.effects(old, bare, np.array([row]), np.array([start]))[0]
            was = worth[[rows.input_ids[row][t] for t in tokens]].sum()
            now = len(tokens) * ordinary
            if lookup == "parameter":  # the same event of another sequence
                other = rows.input_ids[units.lends[row, start]]
                now = worth[[other[t] for t in tokens]].sum()
            assert effect == pytest.approx(was - now, abs=1e-5)


def test_where_to_look_first_is_a_sum_over_the_tokens_of_an_event():
    rows = in_events(rows_of()[["sequence_id", "input_ids"]])
    old = release(3)
    bare = old.run(rows).double().numpy()
    by_event = input_units([old], rows)
    guess = by_event.guess(old, bare)
    effects = by_event.effects(old, bare, np.repeat(np.arange(N), 2), np.tile([1, 3], N))
    assert guess[:, [1, 3]].ravel() == pytest.approx(np.abs(effects), abs=1e-5)  # it is linear
    assert not guess[:, [0, 2, 4, 5]].any()


def test_a_reason_that_stays_in_its_event_is_the_same_and_one_that_leaves_it_is_not():
    "Tokens 3 and 4 always stand in one event, 3 first. A release reads the one or the other."
    rng = np.random.default_rng(1)
    ids = rng.integers(5, V, (N, T))
    ids[rng.random(N) < 0.5, 1:3] = [3, 4]
    ids[rng.random(N) < 0.5, 3:5] = [3, 4]
    rows = pd.DataFrame(dict(sequence_id=np.arange(N), input_ids=ids.tolist()))
    old, new = release(3), release(4)
    assert lost(old, new, rows)[1] > 0.5  # token by token
    declared = rows.assign(event_ids=[[-1, 0, 0, 1, 1, 2]] * N)
    units, share = lost(old, new, declared)
    assert share < 1e-6
    names = set(units.unit_name(np.repeat(np.arange(N), 3), np.tile([1, 3, 5], N)))
    assert "event with token 3" in names or "event with token 4" in names
    across = rows.assign(event_ids=[[-1, 0, 1, 1, 2, 2]] * N)
    assert lost(old, new, across)[1] > 0.5


def test_events_of_other_lengths_lend_what_fits():
    rows = pd.DataFrame(
        dict(
            sequence_id=range(3),
            input_ids=[[3, 4, 5, 6], [7, 8], [9, 10, 11]],
            event_ids=[[0, 0, 0, 1], [0, 1], [-1, -1, -1]],
        )
    )
    old = release(3, "parameter")
    units, one = input_units([old], rows), np.eye(4, dtype=bool)
    units.lends[:] = [[1] * 4, [0] * 4, [0] * 4]
    assert units.swapped(0, one[0]) == [7, 7, 7, 6]
    assert units.swapped(0, one[3]) == [3, 4, 5, 8]
    assert units.swapped(1, one[1]) == [7, 6]
    assert units.units(2).tolist() == []
    units.lends[:] = 2
    assert units.swapped(0, one[0])[0] in (9, 10, 11)


def test_a_function_that_looks_rows_up_by_their_index_moves_nothing():
    "It ignores what is replaced, so its effects are 0 and nothing passes; not those of strangers."
    rows = rows_of()[["sequence_id", "a", "b"]]
    cache = torch.tensor(rows[["a", "b"]].to_numpy("float32"))
    old = Release.from_module(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), lambda r: cache[r.index]
    )
    units = input_units([old], rows)
    bare = old.run(rows).double().numpy()
    effects = units.effects(old, bare, np.arange(N), np.zeros(N, int))
    assert np.abs(effects).max() < 1e-6


def test_columns_that_a_function_does_not_declare_are_asked_about():
    rows = rows_of()[["sequence_id", "a", "b"]]
    old = Release.from_module(
        nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)),
        lambda r: torch.tensor(r[["a", "b"]].to_numpy("float32")),
    )
    old = replace(old, inputs=replace(old.inputs, columns=["a"]))
    assert Columns([old], rows).names == ["a", "b"]


def test_what_another_release_wrote_into_the_rows_is_not_read():
    rows = rows_of().assign(_top1=2, _top2=3)
    assert not [c for c in read_check_set(rows) if c.startswith("_")]
