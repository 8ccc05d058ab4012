"Canaries: that they hold no customer, and see a model that computes something else."

import decimal

import numpy as np
import pandas as pd
import pytest
import torch
from small_releases import saved_llama

from interpkit.model.canaries import canary, canary_rows, compare_canary, related_rows
from interpkit.model.releases import Release


def planted(n: int = 300) -> pd.DataFrame:
    "Rows with values that fewer than twenty rows have, in columns of all types."
    rng = np.random.default_rng(0)
    number = np.arange(n)
    rows = pd.DataFrame(
        dict(
            sequence_id=[f"PLANTED-{i}" for i in range(n)],
            name=[f"PLANTED {i}" for i in range(n)],
            city=np.where(number < 19, "PLANTED", "Rome"),
            cat=pd.Categorical(["PLANTED"] + ["x"] * (n - 1)),
            flag=number % 2 == 0,
            account=rng.integers(10**6, 10**7, n),
            code=np.where(number < 19, 9, number % 3),
            amount=rng.normal(size=n).round(2),
            segment="retail",
            label=1,
            input_ids=[[1, 5 + i % 3, 40 + i] + [6] * (i % 9) + [2] for i in range(n)],
        )
    )
    rows["factor:x"] = [[0] * len(ids) for ids in rows["input_ids"]]
    rows["_top1"] = rows["account"]
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_no_value_of_fewer_than_twenty_rows_gets_into_a_canary(seed):
    rows = planted()
    made = canary_rows(rows, n=40, seed=seed)
    assert len(made) == 40
    assert "PLANTED" not in made.to_json()
    assert "PLANTED" not in str(getattr(made["cat"].dtype, "categories", ""))
    for column in ("city", "code", "account", "amount", "flag"):
        counts = rows[column].value_counts()
        assert not set(made[column]) & set(counts.index[counts < 20]), column
        assert made[column].dtype.kind == rows[column].dtype.kind
    assert not {"_top1", "factor:x"} & set(made)


def rounded(n: int = 1000) -> pd.DataFrame:
    "Rows whose means, rounded as their columns are, often are what one row has."
    rng = np.random.default_rng(0)
    days = pd.Timestamp("1950-01-01") + pd.to_timedelta(rng.integers(0, 5000, n), unit="D")
    cents = rng.integers(0, 20_000, n)
    return pd.DataFrame(
        dict(
            sequence_id=range(n),
            born=days,
            born_object=[day.date() for day in days],
            born_text=days.strftime("%Y-%m-%d"),
            span=pd.to_timedelta(cents, unit="s"),
            paid=[decimal.Decimal(int(x)).scaleb(-2) for x in cents],
            account=[str(x) for x in cents],
            half=rng.normal(size=n).astype("float16"),
        )
    )


@pytest.mark.parametrize("seed", range(3))
def test_no_mean_that_is_rounded_is_what_one_customer_has(seed):
    rows = rounded()
    made = canary_rows(rows, n=40, seed=seed)
    related = related_rows(made, rows.assign(half=rows.half.astype(float)), seed)
    assert not related["born"].equals(made["born"])
    for column in [c for c in rows if c != "sequence_id"]:
        counts = rows[column].value_counts()
        for drawn in (made, related):
            assert not set(drawn[column]) & set(counts.index[counts < 20]), column


def test_a_name_inside_a_record_may_be_a_customers():
    records = [{"city": "Rome", f"PLANTED {i}": 1} for i in range(40)]
    made = canary_rows(pd.DataFrame(dict(sequence_id=range(40), record=records)))
    assert set(map(tuple, made["record"])) == {("city",)}


@pytest.mark.parametrize("seed", range(5))
def test_lists_hold_common_tokens_between_the_ends_of_all(seed):
    made = canary_rows(planted(), n=40, seed=seed)
    assert set(made["input_ids"].explode()) <= {1, 2, 5, 6, 7}
    for ids in made["input_ids"]:
        assert ids[0] == 1
        assert ids[-1] == 2


def test_a_canary_is_the_same_for_the_same_seed():
    rows = planted()
    assert canary_rows(rows, seed=3).equals(canary_rows(rows, seed=3))
    assert not canary_rows(rows, seed=3).equals(canary_rows(rows, seed=4))


@pytest.mark.parametrize("n", [1, 5, 19])
def test_a_canary_of_too_few_rows_holds_nothing_of_them(n):
    rows = pd.DataFrame(
        dict(
            sequence_id=range(n),
            amount=np.arange(n) + 1e6 + 0.5,
            age=np.arange(n) + 30,
            name=["P"] * n,
            on=[True] * n,
            input_ids=[[11, 12, 13]] * n,
        )
    )
    made = canary_rows(rows)
    assert made["amount"].abs().max() < 10
    assert not set(made["age"]) & set(rows["age"])
    assert "P" not in set(made["name"])
    assert not made["on"].any()
    assert set(made["input_ids"].explode()) == {0}


@pytest.fixture
def release(tmp_path):
    saved_llama(tmp_path / "llama")
    return Release.load(tmp_path / "llama", device="cpu")


@pytest.fixture
def rows():
    ids = [[1, 5 + i % 4, 9, *[7] * (i % 3)] for i in range(80)]
    return canary_rows(pd.DataFrame(dict(sequence_id=range(80), input_ids=ids)))


def test_a_release_that_is_loaded_again_gives_the_same(release, rows):
    sites = release.default_sites
    expected = canary(release, rows, sites)
    again = Release.load(release.folder, device="cpu")
    same, _ = compare_canary(expected, canary(again, rows, sites))
    assert same


def test_the_start_token_does_not_count(release, rows):
    acts = canary(release, rows, release.default_sites)["model.layers.2:out"]
    assert acts.shape[0] == 16
    assert (acts[:, 0] == 0).all()
    assert np.abs(acts[:, 1]).min() > 0


@pytest.mark.parametrize("share, expected", [(1e-6, True), (1e-1, False)])
def test_a_canary_sees_a_changed_weight_and_no_rounding(release, rows, share, expected):
    recorded = canary(release, rows, release.default_sites)
    with torch.no_grad():
        release.model.model.layers[1].mlp.down_proj.weight.mul_(1 + share)
    same, message = compare_canary(recorded, canary(release, rows, release.default_sites))
    assert same == expected
    assert "relative" in message
