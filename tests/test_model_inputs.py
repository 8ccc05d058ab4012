"Rows that become forward arguments: by a function, from columns, from token ids."

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from helpers import refused
from small_releases import fraud, fraud_rows, module_writer, saved_llama, scorer, sequences
from torch import nn

from interpkit.gate.check import read_for
from interpkit.model.releases import Release


@pytest.fixture(scope="module")
def rows():
    return fraud_rows()


@pytest.fixture
def code(tmp_path, monkeypatch):
    yield from module_writer(tmp_path, monkeypatch)


# A function of the user's


def test_a_function_may_return_numpy_doubles_and_dicts(code, rows):
    _, release = fraud(code)
    x = torch.tensor(rows[["amount", "age"]].to_numpy("float32"))
    out = release.model(x, torch.tensor(rows["country"].to_numpy()))
    expected = out[:, 1] - 0.5 * out[:, 0]
    assert torch.allclose(release.run(rows), expected, atol=1e-6)


def test_a_function_may_return_a_tuple(code, rows):
    _, release = fraud(code)

    def both(rows):
        return rows[["amount", "age"]].to_numpy(), torch.tensor(rows["country"].to_numpy())

    as_tuple = Release.from_module(
        release.model,
        inputs=both,
        decision=lambda out: out[:, 1],
        device="cpu",
    )
    x = torch.tensor(rows[["amount", "age"]].to_numpy("float32"))
    out = release.model(x, torch.tensor(rows["country"].to_numpy()))
    assert torch.allclose(as_tuple.run(rows), out[:, 1], atol=1e-6)


def test_a_function_may_return_a_mask_that_the_forward_does_not_take(rows):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 4)
            self.act = nn.ReLU()
            self.b = nn.Linear(4, 1)

        def forward(self, x):
            return self.b(self.act(self.a(x)))

    def with_mask(rows):
        return dict(
            x=torch.ones(len(rows), 3, 2),
            mask=torch.tensor([[1, 1, 0]] * len(rows)),
        )

    pooled = Release.from_module(
        Pooled(),
        inputs=with_mask,
        decision=lambda out, batch: out[range(len(out)), batch.last, 0],
        device="cpu",
    )
    batch = pooled.batch(rows)
    assert batch.mask.tolist()[0] == [True, True, False]
    assert batch.last.tolist() == [1] * 60
    assert "mask" not in batch.kwargs
    assert pooled.run(rows).shape == (60,)


def test_an_argument_for_all_sequences_is_not_taken_apart(rows):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(1, 4)
            self.act = nn.ReLU()
            self.b = nn.Linear(4, 1)

        def forward(self, x, positions):
            return self.b(self.act(self.a(x + positions[:, None]))).mean(1)

    def with_positions(rows):
        amounts = torch.tensor(rows["amount"].to_numpy("float32"))
        return amounts[:, None, None].expand(-1, 6, -1).clone(), torch.arange(6.0) / 3

    torch.manual_seed(0)
    release = Release.from_module(Positions(), inputs=with_positions, device="cpu")
    six = release.batch(rows.head(6))  # as many sequences as positions
    last_and_first = six.take(torch.tensor([5, 0]))
    assert torch.allclose(release.run(last_and_first), release.run(six)[[5, 0]])
    last = six.take(torch.tensor([5]))
    assert last.args[1].tolist() == six.args[1].tolist()


def test_an_inputs_function_that_loses_rows_is_refused(rows):
    def lossy(rows):
        kept = rows.drop_duplicates("country")
        return torch.tensor(kept["amount"].to_numpy("float32"))[:, None]

    release = Release.from_module(scorer(1, 2, 1), inputs=lossy, device="cpu")
    refused(lambda: release.run(rows), "must keep all rows")


def test_an_inputs_function_that_stops_is_named(rows):
    release = Release.from_module(
        scorer(1, 2, 1),
        inputs=lambda rows: rows["amonut"],
        device="cpu",
    )
    refused(lambda: release.run(rows), "KeyError", "amount")


# Columns


def test_columns_that_the_model_could_not_read_are_not_remembered(rows):
    release = Release.from_module(scorer(), device="cpu")
    refused(lambda: release.run(rows), "[60, 3]")
    assert release.inputs_columns is None
    assert release.run(rows[["age", "amount"]]).shape == (60,)
    assert release.inputs_columns == ["age", "amount"]


# Token ids


@pytest.fixture
def release(tmp_path):
    saved_llama(tmp_path / "llama")
    return Release.load(tmp_path / "llama", device="cpu")


def with_row_four(ids):
    rows = sequences()
    lists = rows["input_ids"]
    return rows.assign(input_ids=[*lists[:4], ids, lists[5]])


def test_token_ids_out_of_the_vocabulary_name_the_row_and_nothing_of_it(release):
    planted = with_row_four([1, 777, 13, 14])
    error = refused(lambda: release.pin(planted), "'input_ids'", "row 4", "0 to 19")
    assert "777" not in str(error)
    assert "13" not in str(error)


@pytest.mark.parametrize(
    "ids, part",
    [
        ([1, -3], "0 to 19"),
        ([1, 2.5], "row 4"),
        ([], "row 4"),
        (None, "row 4"),
        ([0, 0], "row 4"),
        ("abc", "row 4"),
    ],
    ids=["negative", "fraction", "empty", "none", "padding", "text"],
)
def test_what_is_no_list_of_token_ids_is_named_by_its_row(release, ids, part):
    refused(lambda: release.pin(with_row_four(ids)), part)


def test_a_missing_column_of_token_ids_is_named(release):
    renamed = sequences().rename(columns=dict(input_ids="tokens"))
    refused(lambda: release.pin(renamed), "input_ids")
    worded = sequences().drop(columns="input_ids").assign(prompt="How much?")
    refused(lambda: release.pin(worded), "'prompt'", "tokenizer(t)['input_ids']")


def test_padded_rows_decide_as_unpadded_ones(release):
    rows = release.pin(sequences())
    padded = rows.assign(input_ids=[[*ids, *[0] * 5] for ids in rows["input_ids"]])
    assert torch.allclose(release.run(padded), release.run(rows), atol=1e-4)
    assert release.batch(padded).mask.sum() == release.batch(rows).mask.sum()


# Columns of any type, and what a function reads


NUMBERS = dict(
    nullable=lambda: pd.array([1, 2, 3], "Int64"),
    nullable_float=lambda: pd.array([1, 2, 3], "Float32"),
    boolean=lambda: pd.array([True, False, True], "boolean"),
    flag=lambda: [True, False, True],
    decimal=lambda: [Decimal("1.5"), Decimal("2"), Decimal("-3")],
    category=lambda: pd.Categorical([3, 1, 3]),
    ordered=lambda: pd.Categorical([0.5, 1.5, 0.5], ordered=True),
    sparse=lambda: pd.arrays.SparseArray([0.0, 1.0, 0.0]),
    arrow=lambda: pd.array([1, 2, 3], pd.ArrowDtype(pa.int32())),
    small=lambda: np.array([1, 2, 3], np.int8),
)


def one_column(columns=("a",)) -> Release:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    return Release.from_module(net, columns=list(columns), name="one")


@pytest.mark.parametrize("kind", NUMBERS)
def test_columns_that_hold_numbers_are_numbers(kind):
    rows = pd.DataFrame(dict(a=NUMBERS[kind](), other=["x", None, "y"]))
    release = one_column()
    plain = rows.assign(a=[float(x) for x in rows.a])
    assert torch.equal(release.run(rows), release.run(plain))


MISSING = dict(
    nullable=lambda: pd.array([1, None, 3], "Int64"),
    decimal=lambda: [Decimal("1.5"), None, Decimal("-3")],
    category=lambda: pd.Categorical([3, None, 3]),
    flag=lambda: pd.array([True, None, True], "boolean"),
    infinite=lambda: [1.0, np.inf, 2.0],
    overflow=lambda: [1.0, 1e300, 2.0],
)


@pytest.mark.parametrize("kind", MISSING)
def test_a_number_that_is_missing_is_named_by_its_row(kind):
    rows = pd.DataFrame(dict(a=MISSING[kind]()))
    refused(lambda: one_column().run(rows), "column 'a', row 1")


NO_NUMBERS = dict(
    text=lambda: ["1", "2"],
    dates=lambda: pd.date_range("2026", periods=2),
    words=lambda: pd.Categorical(["u", "v"]),
    complex=lambda: [1j, 2j],
    mixed=lambda: [Decimal(1), "2"],
    cut=lambda: pd.cut(pd.Series([1, 2]), [0, 1, 2]),
)


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_columns_that_hold_none_are_refused(kind):
    refused(lambda: one_column().run(pd.DataFrame(dict(a=NO_NUMBERS[kind]()))), "numeric columns")


def test_what_a_function_reads_is_said_and_has_to_be_there():
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))

    def inputs(rows):
        return torch.tensor(rows["a"].to_numpy("float32"))[:, None].nan_to_num(0)

    release = Release.from_module(net, inputs, columns=["a"])
    assert release.inputs_columns == ["a"]
    rows = pd.DataFrame(dict(sequence_id=[1, 2], a=[1.0, np.nan], b=[None, object()]))
    assert len(read_for(release, rows)) == 2  # what is missing is the function's own business
    refused(lambda: read_for(release, rows.rename(columns=dict(a="A"))), "the column 'a'")
    named = dict(kind="columns", columns=["a"])
    refused(lambda: Release.from_module(net, named, columns=["a"]), "inputs=", code=64)


def test_a_release_runs_rows_in_any_form():
    release = one_column()
    frame = pd.DataFrame(dict(a=[1.0, 2.0]))
    for rows in (dict(a=[1.0, 2.0]), frame.to_dict("records"), pa.table(dict(a=[1.0, 2.0]))):
        assert torch.equal(release.run(rows), release.run(frame))
    assert len(release.sites(dict(a=[1.0, 2.0]))) == 3
