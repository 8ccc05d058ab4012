"Tables in every form in which people have them become one data frame, or one sentence."

import datetime
import gzip
import subprocess
import sys
from collections import UserDict, namedtuple
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from helpers import refused
from sklearn.datasets import load_iris

from interpkit.core.tables import as_frame

COLUMNS = dict(
    sequence_id=["a", "b", "c"],
    amount=[1.5, None, 3.0],
    input_ids=[[1, 5], [1], [1, 7, 8]],
    day=[datetime.date(2026, 1, d) for d in (1, 2, 3)],
)
TABLE = pa.table(COLUMNS)


class ToPandas:
    "A library whose tables become data frames, as those of polars do."

    def to_pandas(self):
        return TABLE.to_pandas()


class Stream:
    "A library that offers Arrow, as duckdb does."

    def __arrow_c_stream__(self, requested_schema=None):
        return TABLE.__arrow_c_stream__(requested_schema)


class Breaks(Stream):
    "A library whose first way fails: the next one will do."

    def to_pandas(self):
        raise ModuleNotFoundError("pandas")


class Protocol:
    "A library that offers its columns one by one."

    def __dataframe__(self, nan_as_null=False, allow_copy=True):
        flat = TABLE.select(["sequence_id", "amount"])
        return flat.__dataframe__(nan_as_null=nan_as_null, allow_copy=allow_copy)


OBJECTS = dict(
    frame=lambda: TABLE.to_pandas(),
    arrow=lambda: TABLE,
    record_batch=lambda: TABLE.to_batches()[0],
    reader=lambda: TABLE.to_reader(),
    to_pandas=ToPandas,
    stream=Stream,
    breaks=Breaks,
    protocol=Protocol,
    datasets=lambda: datasets.Dataset.from_dict(COLUMNS),
    chosen=lambda: datasets.Dataset.from_dict(COLUMNS).select([0, 1, 2]).with_format("torch"),
    rows=lambda: TABLE.to_pylist(),
    tuple_of_rows=lambda: tuple(UserDict(row) for row in TABLE.to_pylist()),
    columns=lambda: COLUMNS,
    arrays=lambda: UserDict({n: pd.Series(x).to_numpy() for n, x in COLUMNS.items()}),
    series=lambda: {n: pd.Series(x) for n, x in COLUMNS.items()},
    records=lambda: TABLE.to_pandas().to_records(index=False),
)


@pytest.mark.parametrize("form", OBJECTS)
def test_objects_of_all_libraries_become_the_same_frame(form):
    made = as_frame(OBJECTS[form]())
    assert made.sequence_id.tolist() == ["a", "b", "c"]
    assert made.amount.isna().tolist() == [False, True, False]
    if "input_ids" in made:
        assert [list(x) for x in made.input_ids] == COLUMNS["input_ids"]


def test_a_frame_is_the_same_object():
    frame = TABLE.to_pandas()
    assert as_frame(frame) is frame


def test_what_a_tokenizer_gives_is_one_list_per_row():
    ids = torch.tensor([[1, 5, 0], [1, 7, 8]])
    made = as_frame(UserDict(sequence_id=["a", "b"], input_ids=ids, attention_mask=(ids > 0)))
    assert [list(x) for x in made.input_ids] == ids.tolist()


Named = namedtuple("Named", "a b")
NO_TABLES = dict(
    array=(lambda: np.zeros((3, 2)), "whose columns have no names", "columns=["),
    tensor=(lambda: torch.zeros(3, 2), "Tensor", "columns=["),
    series=(lambda: pd.Series([1.0]), "Series", "DataFrame"),
    lists=(lambda: [[1, 2], [3, 4]], "list", "DataFrame"),
    named=(lambda: [Named(1, 2)], "list", "DataFrame"),
    iterator=(lambda: iter([{}]), "an iterator", "pass list(data)"),
    number=(lambda: 3, "int", "DataFrame"),
    none=(lambda: None, "NoneType", "DataFrame"),
    module=(lambda: torch.nn.Linear(2, 1), "a module", "behind the releases"),
    splits=(
        lambda: datasets.DatasetDict(train=datasets.Dataset.from_dict(COLUMNS)),
        "train",
        "['train']",
    ),
    uneven=(lambda: dict(a=[1, 2], b=[1]), "lengths", "DataFrame"),
    text=(lambda: dict(a="one", b="two"), "'a' is a str", "DataFrame"),
    scalars=(lambda: dict(a=1, b=2), "'a' is a int", "DataFrame"),
    bunch=(load_iris, "'frame' is a NoneType", "DataFrame"),
    frame_class=(lambda: pd.DataFrame, "type", "DataFrame"),
)


@pytest.mark.parametrize("form", NO_TABLES)
def test_what_is_no_table_is_told_with_what_mends_it(form):
    make, said, mend = NO_TABLES[form]
    error = refused(lambda: as_frame(make()), said, code=64)
    assert mend in error.mend


def written(folder) -> dict:
    "The same table in files of all kinds."
    flat = TABLE.drop_columns("input_ids")
    paths = {
        kind: folder / f"rows.{kind}" for kind in ("parquet", "arrow", "feather", "csv", "tsv")
    }
    pq.write_table(flat, paths["parquet"])
    with pa.ipc.new_stream(paths["arrow"], flat.schema) as stream:
        stream.write_table(flat)
    pa.feather.write_feather(flat, paths["feather"])
    flat.to_pandas().to_csv(paths["csv"], index=False)
    flat.to_pandas().to_csv(paths["tsv"], index=False, sep="\t")
    paths["another name"] = folder / "rows"
    paths["another name"].write_bytes(paths["parquet"].read_bytes())
    (folder / "parts").mkdir()
    pq.write_table(flat.slice(0, 2), folder / "parts" / "0.parquet")
    pq.write_table(flat.slice(2), folder / "parts" / "1.parquet")
    return paths | dict(folder=folder / "parts")


def test_files_of_all_kinds_become_the_same_frame(tmp_path):
    for kind, path in written(tmp_path).items():
        for given in (path, str(path)):
            made = as_frame(given)
            assert made.sequence_id.tolist() == ["a", "b", "c"], kind
            assert made.amount.isna().tolist() == [False, True, False], kind
            assert pd.to_datetime(made.day).dt.day.tolist() == [1, 2, 3], kind


CSV = """sequence_id;customer;country;amount;count;flag;when;note
007;1;NA;1;1;true;2026-01-31;"a; ""b""
c"
008;2;;1.5;;false;2026-02-01;
009;3;DE;NA;3;true;;NA
"""


def test_csv_keeps_ids_countries_and_what_is_missing(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + CSV.encode())
    made = as_frame(tmp_path / "rows.csv")
    assert made.sequence_id.tolist() == ["007", "008", "009"]
    assert made.country.tolist()[::2] == ["NA", "DE"]
    assert made.isna().sum().to_dict() == dict(
        sequence_id=0, customer=0, country=1, amount=1, count=1, flag=0, when=1, note=1
    )
    assert made.amount.tolist()[:2] == [1.0, 1.5]
    assert made["when"].dtype.kind == "M"
    assert made.note[0] == 'a; "b"\nc'
    assert made.note[2] == "NA"


def read(text: str, folder, encoding="utf-8") -> pd.DataFrame:
    (folder / "rows.csv").write_bytes(text.encode(encoding))
    return as_frame(folder / "rows.csv")


def test_csv_as_offices_write_it(tmp_path):
    assert read("id,zip\n1,01067\n2,80331\n", tmp_path).zip.tolist() == ["01067", "80331"]
    assert read("id;a;b\n1;1,5;2\n2;;3\n", tmp_path).a.tolist()[0] == 1.5
    assert list(read('id;"a, b, c, d"\n1;2\n', tmp_path)) == ["id", "a, b, c, d"]
    assert read("id,a\r\n1,2\r\n", tmp_path).a.tolist() == [2]
    assert read("id,a\n1,0\n2,-5\n", tmp_path).a.tolist() == [0, -5]
    assert read("id,a\n1,0.5\n2,00.5\n", tmp_path).a.tolist() == [0.5, 0.5]
    assert read("id,a,a\n1,2,3\n", tmp_path).shape == (1, 3)  # which a check refuses by name
    for encoding in ("latin-1", "utf-16"):
        error = refused(lambda e=encoding: read("id,name\n1,J\xfcrgen\n", tmp_path, e))
        assert "UTF-8" in error.mend
    assert "fields" in refused(lambda: read("id,a\n1,2,3\n", tmp_path)).mend


def test_a_quote_that_nobody_closes_takes_no_row_away(tmp_path):
    for lines in ('1,"a\n2,b\n3,c\n', '1,"a\n2,"b\n3,c\n', '1,"a ""b""\n2,""c""\n'):
        assert "quote closed" in refused(lambda x=lines: read("id,note\n" + x, tmp_path)).mend
    kept = read('id,note\n1,"a\nb"\n2,5" pipe\n3,"c ""d"""\n', tmp_path)
    assert kept.note.tolist() == ["a\nb", '5" pipe', 'c "d"']


def test_a_folder_holds_the_columns_of_all_of_its_files(tmp_path):
    for name, rows in dict(
        a=dict(id=["1"], x=[1], kind=pd.Categorical(["k"])),
        b=dict(id=["2"], x=[1.5], kind=["m"], label=[1]),
    ).items():
        part = tmp_path / f"segment=0{name}" / "year=2026"
        part.mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(part / "rows.parquet")
    (tmp_path / "segment=0a").rename(tmp_path / "segment=007")
    made = as_frame(tmp_path)
    assert made.segment.tolist() == ["007", "0b"]
    assert made.label.tolist()[1] == 1 and made.label.isna().tolist() == [True, False]
    assert made.kind.tolist() == ["k", "m"] and made.year.tolist() == [2026, 2026]
    (tmp_path / "segment=0b").rename(tmp_path / "segment=010")
    assert as_frame(tmp_path).segment.tolist() == ["007", "010"]


def test_series_are_never_put_beside_each_other_in_two_ways():
    shuffled = pd.Series([10, 20, 30], index=[2, 0, 1])
    columns = dict(id=["a", "b", "c"], s=shuffled)
    assert as_frame(columns).s.tolist() == [10, 20, 30]
    error = refused(lambda: as_frame(columns | dict(u=pd.Series([1, 2, 3]))), "indices", code=64)
    assert "to_numpy" in error.mend


def test_types_of_csv_hold_for_all_rows_and_not_for_the_first_ones(tmp_path):
    n = 200_000  # more than a block
    lines = ["sequence_id,count,seldom", *(f"{i},1," for i in range(n)), f"{n},1.5,NA"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    made = as_frame(tmp_path / "rows.csv")
    assert len(made) == n + 1
    assert made["count"].iloc[-1] == 1.5
    assert made.seldom.iloc[-1] == "NA"
    assert made.seldom.isna().sum() == n


def test_files_that_are_no_table_say_what_they_are(tmp_path):
    for name, said in {
        "rows.xlsx": "read_excel",
        "rows.pkl": "a pickle",
        "model.pt": "weights of a model",
        "rows.jsonl": "read_json",
        "rows.npy": "columns have no names",
        "rows.csv.gz": "compressed",
        "rows.sas7bdat": "SAS",
        "rows.what": "another file",
        "cut.parquet": "while it was read",
        "rows.csv": "while it was read",
    }.items():
        content = gzip.compress(b"a,b") if name.endswith("gz") else b"PAR1" * ("cut" in name)
        (tmp_path / name).write_bytes(content + (b"\xff\xfe" if name == "rows.csv" else b""))
        refused(lambda name=name: as_frame(tmp_path / name), said)
    refused(lambda: as_frame(tmp_path / "nowhere.parquet"), "no such file")
    (tmp_path / "empty").mkdir()
    refused(lambda: as_frame(tmp_path / "empty"), "without parquet files")


def test_an_error_of_a_file_holds_nothing_of_a_row(tmp_path):
    secret = "Ada-Lovelace-4711"
    (tmp_path / "rows.csv").write_text(f"sequence_id,amount\n1,2,{secret}\n")
    error = refused(lambda: as_frame(tmp_path / "rows.csv"))
    assert secret not in str(error)
    assert error.__suppress_context__


def test_decimals_and_nullable_types_stay_what_they_are():
    made = as_frame(pa.table(dict(a=[Decimal("1.50"), None], b=pa.array([1, None], pa.int64()))))
    assert made.a[0] == Decimal("1.50")
    nullable = pd.DataFrame(dict(a=pd.array([1, None], "Int64")))
    assert as_frame(nullable).a.dtype == "Int64"
    held = as_frame(dict(a=pd.array([1, None], "Int64"), b=pd.Categorical(["u", None])))
    assert [str(t) for t in held.dtypes] == ["Int64", "category"]


LARGE = """
import numpy as np, pandas as pd, sys
n = 1_000_000
rng = np.random.default_rng(0)
pd.DataFrame(dict(
    sequence_id=np.char.add("loan-", np.arange(n).astype(str)),
    group_id=rng.integers(0, n // 3, n), segment=rng.choice(["retail", "private"], n),
    timestamp=pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 9e6, n), unit="s"),
    amount=rng.lognormal(size=n), country=rng.choice(["DE", "FR"], n),
)).to_parquet(sys.argv[1])
"""
READ = """
import re, sys
from interpkit.data.checksets import read_check_set
rows = read_check_set(sys.argv[1], ["amount", "country"])
most = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())  # of this process alone
print(len(rows), int(most[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its memory")
def test_a_million_rows_fit_into_a_gigabyte(tmp_path):
    place = str(tmp_path / "rows.parquet")
    subprocess.run([sys.executable, "-c", LARGE, place], check=True)
    said = subprocess.run(
        [sys.executable, "-c", READ, place], check=True, capture_output=True, text=True
    )
    rows, megabytes = map(int, said.stdout.split())
    assert rows == 1_000_000
    assert megabytes < 1000
