"What several test files share: a tiny fraud model in folders, with its dictionary and its rows."

import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when triton is imported

LONGEST = (  # in seconds of one core, longest first
    *("gate_jobs", "gate_follow", "training_objectives", "gate_attacks", "training_fit"),
    *("gate_evidence", "bridges_jax", "training_finish", "core_statistics", "gate_check"),
    *("sparse_triton_kernels", "gate_exits", "gate_privacy"),
    *("demo_releases", "house_docs", "training_trainer", "drift_simulate", "packaging"),
)
COLUMNS = [f"x{i}" for i in range(6)]
FACTORY = """from torch import nn
def build(width=16): return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 1))
"""


def pytest_collection_modifyitems(items):
    """The longest files first.

    A worker takes a file as a whole, and none should begin a long one when the others are done.
    """
    place = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Two releases `v1` and `v2` of a small network, and two of another width.

    `wide` is the function of v1 with eight more units that do nothing, `other` is another one.

    With them v1's dictionary and 1,000 rows, all as files in one folder.
    """
    from interpkit.dictionary.validity import certify
    from interpkit.drift.simulate import small_world
    from interpkit.model.releases import Release

    at = tmp_path_factory.mktemp("tiny")
    (at / "tiny_fraud.py").write_text(FACTORY)
    sys.path.insert(0, str(at))
    import tiny_fraud

    world = small_world(n=1000)
    torch.manual_seed(0)
    wide, other = tiny_fraud.build(24), tiny_fraud.build(24)
    with torch.no_grad():
        for layer, before in zip(wide[::2], world.old.model[::2], strict=True):
            for p, was in zip(layer.parameters(), before.parameters(), strict=True):
                p.zero_()[tuple(slice(n) for n in was.shape)] = was
    models = {"v1": world.old.model, "v2": world.new.model, "wide": wide, "other": other}
    for name, model in models.items():
        release = Release.from_module(
            model,
            inputs=dict(kind="columns", columns=COLUMNS),
            decision=dict(kind="scalar"),
            sites=["1:out"],
            name=name,
        )
        release.save(
            at / name,
            factory=tiny_fraud.build,
            factory_args=dict(width=24) if name in ("wide", "other") else {},
        )
    world.rows.to_parquet(at / "rows.parquet")
    old = Release.load(at / "v1")
    dictionary = certify(old, replace(world.dictionary, validity={}, canary={}), world.rows)
    dictionary.save(at / "dictionary")
    yield SimpleNamespace(
        at=at,
        old=old,
        rows=world.rows,
        dictionary=dictionary,
        releases={n: str(at / n) for n in models},
        v1=str(at / "v1"),
        v2=str(at / "v2"),
        wide=str(at / "wide"),
        other=str(at / "other"),
        data=str(at / "rows.parquet"),
        dictionary_folder=str(at / "dictionary"),
    )
    sys.path.remove(str(at))


@pytest.fixture(scope="session")
def runs(tiny, tmp_path_factory):
    "A run of v2, which FAILs, and one of v1 against itself, which PASSes: to be copied."
    from small_runs import asked_of, by_hand

    at = tmp_path_factory.mktemp("runs")
    for name, new in (("v2", tiny.v2), ("same", tiny.v1)):
        by_hand(asked_of(tiny, new, at / name))
    return at


@pytest.fixture
def parquet(tmp_path):
    "Write rows as a parquet file of this test; its path."

    def write(rows, name="rows.parquet"):
        rows.to_parquet(tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.fixture(params=["torch", "triton"])
def kernels(request, monkeypatch):
    """Runs a test by torch's operators and by the Triton kernels, interpreted.

    Where there is a GPU, test_sparse_cuda.py runs them compiled.
    """
    if request.param == "triton":
        pytest.importorskip(
            "triton", minversion="3.7"
        )  # older ones interpret nothing with numpy 2.4
        if torch.cuda.is_available():
            pytest.skip("Triton interprets nothing in a process that compiles")
    monkeypatch.setenv("INTERPKIT_KERNELS", request.param)
    return request.param
