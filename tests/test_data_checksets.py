"""Broken check sets: each is one clear message with column and row, and exit code 65.

No customer's value is in it, and no row is dropped.
"""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from helpers import refused

from interpkit.core.errors import InterpkitError
from interpkit.data.checksets import KINDS, check_digest, hash_split, order_of, read_check_set
from interpkit.drift.segments import segments_of

SECRET = "Ada-Lovelace-4711"


def tokens() -> pd.DataFrame:
    return pd.DataFrame(
        dict(
            sequence_id=[f"{SECRET}-{i}" for i in range(5)],
            input_ids=[[1, 5, 6], [1, 7], [1], [1, 2, 3, 4], [1, 9]],
            label=[0, 1, 0, np.nan, 1],
            segment=[SECRET, "b", "b", "a", "a"],
            weight=[20.0, 1, 20, 1, 0],
            group_id=[1, 1, 2, 2, 3],
            timestamp=pd.date_range("2024-01-01", periods=5),
            event_ids=[[-1, 0, 1], [-1, 0], [0], [-1, 0, 0, 1], [0, 0]],
            **{"factor:travel": [[0, 1, 1], [0, 0], [0], [0, 0, 0, 1], [0, 1]]},
        )
    )


def columns() -> pd.DataFrame:
    return pd.DataFrame(
        dict(
            sequence_id=range(5),
            amount=[1.0, 2.5, 3.0, 0.0, -1.0],
            merchant=["a", SECRET, "c", "a", "a"],
            count=[1, 2, 3, 4, 5],
            label=[0, 1, 0, 1, 1],
        )
    )


def put(frame, column, row, value):
    x = frame[column].astype(object).copy()
    x[row] = value
    return frame.assign(**{column: x if frame[column].dtype == object else x.infer_objects()})


def refusal(frame, inputs=None) -> InterpkitError:
    "The error of a check set, which shows no value and hides no other error."
    error = refused(lambda: read_check_set(frame, inputs))
    assert SECRET not in str(error)
    assert "4711" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return error


@pytest.mark.parametrize(
    "column,value,said",
    [
        ("input_ids", [], "empty list"),
        ("input_ids", None, "something else"),
        ("input_ids", SECRET, "something else"),
        ("input_ids", [1.5, 2.0], "fractions"),
        ("input_ids", [1, None], "text, nested lists or missing"),
        ("input_ids", [1, np.nan], "fractions or missing"),
        ("input_ids", [[1, 2], [3]], "nested"),
        ("input_ids", [[1, 2]], "nested"),
        ("input_ids", [SECRET], "text"),
        ("input_ids", [1, -2], "negative id"),
        ("input_ids", [True, False], "text, nested"),
        ("factor:travel", [0, 1], "another length"),
        ("factor:travel", [0, np.nan, 1, 0], "NaN"),
        ("factor:travel", [], "empty"),
        ("event_ids", [0, 1], "another length"),
        ("event_ids", [0, 1, 0, 1], "comes back"),
        ("event_ids", [0, -1, 0, 1], "comes back"),
        ("event_ids", [0, 0, 1, -2], "another number"),
        ("event_ids", [-1, -1, -1, -1], "none in row"),
        ("event_ids", [0, 0, 1, 1.5], "another number"),
        ("event_ids", [0, 0, 1, np.nan], "NaN"),
        ("event_ids", [[0, 0], [1, 1]], "nested"),
        ("event_ids", None, "something else"),
        ("weight", -0.5, "negative, infinite or missing"),
        ("weight", np.nan, "negative, infinite or missing"),
        ("weight", np.inf, "negative, infinite or missing"),
        ("label", 2, "another value"),
        ("label", 0.5, "another value"),
        ("segment", None, "none"),
        ("segment", np.nan, "none"),
        ("segment", ["a"], "a list"),
        ("group_id", np.nan, "none"),
        ("sequence_id", None, "none"),
        ("sequence_id", 1.5, "another type"),
        ("sequence_id", f"{SECRET}-0", "one that stood before"),
    ],
)
def test_a_broken_value_of_a_token_set_is_named_by_column_and_row(column, value, said):
    e = refusal(put(tokens(), column, 3, value))
    assert f"column {column!r}" in e.asked
    assert "row 3 (1 of 5 rows)" in e.given
    assert said in e.given


@pytest.mark.parametrize(
    "column,value,said",
    [
        ("amount", np.nan, "NaN or infinity"),
        ("amount", np.inf, "NaN or infinity"),
        ("amount", -np.inf, "NaN or infinity"),
        ("merchant", None, "none"),
    ],
)
def test_a_broken_value_of_a_table_is_named_by_column_and_row(column, value, said):
    e = refusal(put(columns(), column, 2, value))
    assert f"column {column!r}" in e.asked
    assert "row 2" in e.given
    assert said in e.given
    assert "does not read" in e.mend


@pytest.mark.parametrize(
    "frame,said",
    [
        (lambda: columns().head(0), "0 rows"),
        (lambda: tokens().drop(columns="sequence_id"), "columns input_ids"),
        (lambda: put(columns(), "amount", 1, SECRET), "number and str"),
        (lambda: columns().assign(weight=SECRET), "type"),
        (lambda: tokens().drop(columns="input_ids"), "columns sequence_id"),
        (lambda: tokens().assign(event_ids=[[0] * n for n in (3, 2, 1, 4, 2)]), "none"),
        (lambda: columns().assign(label=["0", "1", "0", "1", "1"]), "type"),
        (lambda: columns().assign(weight=0.0), "0 in all rows"),
        (lambda: pd.concat([columns(), columns()[["amount"]]], axis=1), "'amount' twice"),
        (lambda: columns().assign(sequence_id=[1, 2, 3, 4, "1"]), "one that stood before"),
    ],
)
def test_a_broken_table_is_refusal(frame, said):
    assert said in refusal(frame()).given


def test_missing_columns_come_with_the_nearest_name():
    e = refusal(
        columns().rename(columns=dict(amount="amonut", count="cuont")),
        inputs=["amount", "count", "merchant"],
    )
    assert "'amount', 'count'" in e.asked
    assert "'amount': did you mean 'amonut'?" in e.mend
    assert "'count': did you mean 'cuont'?" in e.mend


def test_a_column_that_is_lacking_is_not_taken_for_another_that_is_needed():
    "'delay_1: did you mean delay_3?' was said of two columns that the release reads."
    rows = columns().rename(columns=dict(amount="delay_3", count="sex"))
    e = refusal(rows, inputs=["delay_1", "delay_3"])
    assert e.mend == "add it as the release's own pipeline makes it"
    assert "them" in refusal(rows, inputs=["delay_1", "delay_2"]).mend


@pytest.mark.parametrize(
    "column, values, mend",
    [
        ("label", ["good", "bad", None, "bad", "good"], "(rows['label'] == WORD).astype(float)"),
        ("label", ["0", "1", None, "1", "0"], "rows['label'].astype(float)"),
        ("weight", ["much"] * 5, "the inverse of the sampling probability"),
        ("weight", ["1", "2", "1", "1", "1"], "rows['weight'].astype(float)"),
    ],
)
def test_text_where_numbers_are_wanted_is_mended_by_what_works(column, values, mend):
    e = refusal(columns().assign(**{column: pd.Series(values, dtype=object)}))
    assert mend in e.mend
    assert "good" not in str(e)


def test_a_sound_set_comes_back_whole_and_in_order(tmp_path):
    for frame in (tokens(), columns()):
        frame = frame.sample(frac=1, random_state=1)
        frame.to_parquet(tmp_path / "rows.parquet")
        for source in (frame, tmp_path / "rows.parquet", str(tmp_path / "rows.parquet")):
            rows = read_check_set(source)
            assert rows.sequence_id.tolist() == frame.sequence_id.tolist()
            assert rows.index.tolist() == list(range(5))
            assert check_digest(rows) == check_digest(frame)
    assert "label" in columns()
    assert read_check_set(columns().assign(label=None)).label.isna().all()


def test_columns_that_the_release_does_not_read_may_hold_anything():
    rows = columns().assign(comment=[SECRET, None, 3, [1], np.nan])
    assert "comment" in read_check_set(rows, inputs=["amount", "count"])
    refusal(rows)
    refusal(rows.assign(amount=np.nan), inputs=["amount"])
    assert "label" in refusal(rows.assign(label=7), inputs=["amount"]).asked


def test_an_index_of_sequence_ids_is_taken_as_the_column(tmp_path):
    columns().set_index("sequence_id").to_parquet(tmp_path / "rows.parquet")
    assert read_check_set(tmp_path / "rows.parquet").sequence_id.tolist() == list(range(5))
    assert read_check_set(
        columns().set_index("sequence_id", drop=False)
    ).sequence_id.tolist() == list(range(5))


def test_files_that_are_no_table_are_refusal(tmp_path):
    columns().to_pickle(tmp_path / "rows.pkl")
    columns().to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    (tmp_path / "empty").mkdir()
    for name in ("rows.pkl", "cut.parquet", "nowhere.parquet", "empty"):
        refused(lambda name=name: read_check_set(tmp_path / name))


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean", "category", "string"])
def test_pandas_own_types_are_understood(dtype):
    values = ["a", "b", "a", "b", "a"] if dtype in ("category", "string") else [1, 0, 1, 0, 1]
    rows = columns().assign(extra=pd.array(values, dtype=dtype))
    assert len(read_check_set(rows)) == 5
    assert "'extra'" in refusal(rows.assign(extra=pd.array([*values[:4], None], dtype=dtype))).asked


SEGMENTS = dict(
    cut=lambda: pd.cut(pd.Series([1.0, 2, 3, 4, 5]), [0, 2, 6]),
    intervals=lambda: pd.arrays.IntervalArray.from_breaks(range(6)),
    dates=lambda: pd.date_range("2026-01-01", periods=5),
    decimals=lambda: [Decimal("1.5")] * 5,
    flags=lambda: [True, False, True, False, True],
    periods=lambda: pd.period_range("2026-01", periods=5, freq="M"),
)


@pytest.mark.parametrize("kind", SEGMENTS)
def test_segments_of_any_kind_of_value_are_taken(kind):
    rows = columns().assign(segment=SEGMENTS[kind]())
    assert set(segments_of(read_check_set(rows))) == set(rows.segment.astype(str))


def test_a_segment_outside_of_the_cuts_is_told_with_a_line_that_works():
    rows = columns().assign(segment=pd.cut(pd.Series([1.0, 2, 3, 4, 9]), [0, 2, 6]))
    mend = refusal(rows, ["amount"]).mend
    exec(mend.partition(", or")[0], dict(rows=rows))
    assert read_check_set(rows, ["amount"]).segment.tolist()[-1] == "unknown"


def test_words_of_a_label_are_numbers_by_a_policy():
    rows = columns().assign(label=pd.Categorical(["good", "bad", None, "good", "bad"]))
    read = read_check_set(rows, ["amount"], label=dict(good=0, bad=1))
    assert read.label.tolist()[:2] == [0, 1]
    assert read.label.isna().tolist() == [False, False, True, False, False]
    refused(lambda: read_check_set(rows, ["amount"], label=dict(good=0)), "another value in row 1")
    refused(lambda: read_check_set(rows, ["amount"], label=dict(good=0, bad=2)), code=64)
    flags = columns().assign(label=[True, False] * 2 + [None])  # words of another kind
    assert read_check_set(flags, [], label={"True": 1, "False": 0}).label.tolist()[:2] == [1, 0]
    codes = columns().assign(label=[1, 2, 1, 2, 2])  # German credit: 1 good, 2 bad
    assert read_check_set(codes, [], label={"1": 0, "2": 1}).label.tolist() == [0, 1, 0, 1, 1]
    some = codes.assign(label=[1.0, 2.0, np.nan, 2.0, 2.0])
    assert read_check_set(some, [], label={"1": 0, "2": 1}).label.isna().sum() == 1


UNREAD = dict(
    text=["a"] * 5,
    none=[None] * 5,
    ints=[1] * 5,
    nested=[[[1]]] * 5,
    empty=[[]] * 5,
    dicts=[{}] * 5,
)


@pytest.mark.parametrize("kind", UNREAD)
def test_a_column_of_that_name_that_is_no_ids_and_not_read_is_left_out(kind):
    rows = columns().assign(input_ids=UNREAD[kind])
    assert "input_ids" not in read_check_set(rows, ["amount"])
    assert "input_ids" not in read_check_set(rows, [], ["amount"])
    refused(lambda: read_check_set(rows, []))  # a function may read it


def test_the_order_of_ids_is_that_of_python():
    rng = np.random.default_rng(0)
    ids = pd.Series(["".join(map(chr, rng.integers(32, 0x2FFF, 3))) for _ in range(500)])
    assert order_of(ids).tolist() == np.argsort(ids.to_numpy(object), kind="stable").tolist()
    numbers = pd.Series(rng.permutation(300))
    assert order_of(numbers).tolist() == sorted(range(300), key=lambda i: str(numbers[i]))


def test_reserved_names_are_the_ones_that_models_do_not_read():
    from interpkit.model.column_rows import RESERVED

    assert set(RESERVED) == (set(KINDS) | {"timestamp"}) - {"input_ids"}


def test_a_digest_is_of_the_rows_whatever_their_order_and_of_every_value():
    rows = tokens()
    assert (
        check_digest(rows)
        == check_digest(rows.sample(frac=1, random_state=3))
        == check_digest(rows.assign(_top1=3))
        == check_digest(rows[sorted(rows)])
    )
    for other in (
        put(rows, "input_ids", 0, [1, 5, 7]),
        put(rows, "label", 3, 0.0),
        rows.assign(weight=rows.weight + 1),
        rows.head(4),
        put(rows, "segment", 0, "x"),
    ):
        assert check_digest(other) != check_digest(rows)


def test_a_split_depends_on_the_sequence_alone():
    rows = pd.DataFrame(dict(sequence_id=[f"s{i}" for i in range(3000)]))
    part = hash_split(rows, 0.3, "a")
    assert abs(part.mean() - 0.3) < 0.03
    assert (hash_split(rows.iloc[100:200], 0.3, "a") == part[100:200]).all()
    assert (hash_split(rows, 0.5, "a") >= part).all()
    assert abs(hash_split(rows[part], 0.5, "b").mean() - 0.5) < 0.06
    assert not hash_split(rows, 0.0, "a").any()
    assert hash_split(rows, 1.0, "a").all()
    grouped = rows.assign(group_id=np.arange(3000) // 3)
    assert all(len(set(x)) == 1 for x in hash_split(grouped, 0.3, "a").reshape(-1, 3))
    refused(lambda: hash_split(rows, 30, "a"), code=64)


@pytest.mark.parametrize("kind", ["object", "float64", "Int64", "string", "category"])
def test_a_sequence_without_group_is_split_on_its_own(kind):
    alone = np.arange(3000) >= 1500
    numeric = kind in ("float64", "Int64")
    groups = pd.Series(np.arange(3000) // 3).astype(kind if numeric else str)
    rows = pd.DataFrame(
        dict(sequence_id=[f"s{i}" for i in range(3000)], group_id=groups.astype(kind))
    )
    whole = hash_split(rows, 0.1, "a")
    single = hash_split(rows[["sequence_id"]], 0.1, "a")
    part = hash_split(rows.assign(group_id=rows.group_id.where(~alone)), 0.1, "a")
    assert (part[~alone] == whole[~alone]).all()
    assert (part[alone] == single[alone]).all()
    assert abs(part[alone].mean() - 0.1) < 0.03


def test_a_split_of_groups_is_the_one_that_it_was():
    "Dictionaries were certified on rows that a split held out: no id may ever change sides."
    rows = pd.DataFrame(dict(sequence_id=range(40), group_id=np.arange(40) // 2))
    groups = np.flatnonzero(hash_split(rows, 0.2, "held out"))
    assert groups.tolist() == [12, 13, 16, 17, 30, 31, 32, 33]
    single = np.flatnonzero(hash_split(rows[["sequence_id"]], 0.2, "held out"))
    assert single.tolist() == [6, 8, 15, 16, 20, 21, 22, 34, 38, 39]
