"What is printed beside a verdict, by hand."

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from small_checks import checked

from interpkit.drift.comparison import Comparison
from interpkit.drift.behaviour import auc
from interpkit.drift.printed import printed


def test_auc_counts_pairs():
    label = np.array([1, 0, 1, 0, np.nan, 0])
    score = np.array([0.9, 0.1, 0.5, 0.5, 7.0, 0.6])
    pairs = [(0.9 > b) + 0.5 * (0.9 == b) for b in (0.1, 0.5, 0.6)]
    pairs += [(0.5 > b) + 0.5 * (0.5 == b) for b in (0.1, 0.5, 0.6)]
    assert auc(label, score) == pytest.approx(np.mean(pairs))
    assert auc(np.ones(3), np.arange(3)) is None
    assert auc(np.full(3, np.nan), np.arange(3)) is None


def numbers(rows):
    c = checked()
    w = c.world
    return printed(Comparison(w.old, w.new, w.dictionary, rows, c.plan), most=40)


def test_printed_behaviour_by_hand():
    c = checked()
    rows = c.rows.assign(label=pd.array([None, 1, 0, 0] * 100, dtype="Int64"))
    label = np.array([np.nan, 1, 0, 0] * 100)
    old, new = (r.run(rows).numpy() for r in (c.world.old, c.world.new))
    highest_old, highest_new = (set(np.argsort(-x)[:20]) for x in (old, new))
    b = numbers(rows)["behaviour"]
    assert b["labelled"] == 300
    assert b["auc_old"] == pytest.approx(auc(label, old))
    assert b["auc_new"] == pytest.approx(auc(label, new))
    assert b["rank_correlation"] == pytest.approx(stats.spearmanr(old, new).statistic, abs=1e-5)
    assert b["flipped"] == pytest.approx(((old > 0) != (new > 0)).mean())
    assert b["top_replaced"] == pytest.approx(len(highest_old - highest_new) / 20)


def test_printed_behaviour_without_labels():
    rows = checked().rows
    labelled = numbers(rows)["behaviour"]
    nobody = numbers(rows.drop(columns="label"))["behaviour"]
    assert nobody["labelled"] == 0
    assert nobody["auc_old"] is None
    assert nobody["flipped"] == labelled["flipped"]


def test_printed_reconstruction_by_hand():
    c = checked()
    found = numbers(c.rows)
    site = found["reconstruction"]["sites"]["1:out"]
    values = torch.tensor(c.rows[[f"x{i}" for i in range(6)]].to_numpy())
    active = (c.world.old.model[:2](values) > 0).sum(1).float().mean()
    assert site["fvu_old"] < 1e-9
    assert site["l0_old"] == pytest.approx(float(active), rel=1e-4)
    json.dumps(found, allow_nan=False)
