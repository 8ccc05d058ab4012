"Rows that become forward arguments: by a function, from columns, from token ids."

import pytest
import torch
from helpers import refused
from small_releases import fraud, fraud_rows, module_writer, saved_llama, scorer, sequences
from torch import nn

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


def test_padded_rows_decide_as_unpadded_ones(release):
    rows = release.pin(sequences())
    padded = rows.assign(input_ids=[[*ids, *[0] * 5] for ids in rows["input_ids"]])
    assert torch.allclose(release.run(padded), release.run(rows), atol=1e-4)
    assert release.batch(padded).mask.sum() == release.batch(rows).mask.sum()
