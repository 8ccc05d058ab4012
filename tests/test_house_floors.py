"Floors that only look down, and a measuring script that finds what it is there to find."

import ast
import json
import re

import floors
import not_held
import pytest
import style
import yaml
from house import NBS, NOTEBOOKS, PACKAGE, name, settings

# the house as it stands


def test_every_folder_is_in_the_list():
    packages = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()}
    assert packages == {f.package for f in floors.FLOORS}
    folders = {p.parent.name for p in NOTEBOOKS if p.parent != NBS}
    assert folders == {f.name for f in floors.FOLDERS}


def test_the_order_of_reading_is_that_of_the_numbers():
    names = [f.name for f in floors.FLOORS]
    assert names == sorted(names)


def test_floors_import_only_floors_below():
    assert sum(map(len, style.graph().values())) > 100
    assert style.looking_up() == []


def test_no_module_leads_back_to_itself():
    assert style.circles() == []


def test_no_module_takes_a_private_name_of_another():
    assert style.private_imports() == []


@pytest.mark.parametrize("floor", floors.FLOORS, ids=lambda f: f.name)
def test_modules_lie_on_the_floor_of_their_notebook(floor):
    for notebook in floor.notebooks:
        source = "\n".join(c["source"] for c in floors.cells(notebook))
        exports = re.findall(r"^#\|\s*default_exp (\S+)", source, re.M)
        assert len(exports) == 1, name(notebook)
        assert exports[0].startswith(floor.package + "."), name(notebook)


def test_nothing_is_exported_beside_the_floors():
    for folder in floors.FOLDERS:
        for notebook in [] if folder.floor else folder.notebooks:
            assert "#| default_exp" not in notebook.read_text(), name(notebook)


# what follows from the list


def test_sidebar_follows_from_floors_and_files():
    assert (NBS / "sidebar.yml").read_text() == floors.sidebar(), "run: make export"
    contents = yaml.safe_load(floors.sidebar())["website"]["sidebar"]["contents"]
    pages = []
    for entry in contents:
        pages += entry["contents"] if isinstance(entry, dict) else [entry]
    notebooks = sorted(p for p in pages if p.endswith(".ipynb"))
    assert notebooks == sorted(p.relative_to(NBS).as_posix() for p in NOTEBOOKS)
    for page in pages:
        assert (NBS / page).exists(), page


def test_what_did_not_hold_is_told_whole():
    page = not_held.PAGE.read_text()
    assert page == not_held.page(), "run: make export"
    for file in not_held.RESULTS.glob("*.json"):
        result = json.loads(file.read_text())
        notebook = not_held.notebook(result["name"])
        assert (not_held.RESULTS.parent / f"{notebook}.ipynb").exists(), file.name
        missed = [bar for bar in result["bars"] if not bar["holds"]]
        head = f"## [{result['name']}](benchmarks/{notebook}.ipynb)\n"
        told = page.partition(head)[2].partition("\n## ")[0]
        assert told.count("\n|") - 2 * bool(missed) == len(missed), file.name


def test_quarto_files_are_as_nbdev_expects():
    text = (NBS / "_quarto.yml").read_text()
    included = yaml.safe_load(text)["metadata-files"]
    assert included == ["../_quarto.yml", "nbdev.yml", "sidebar.yml"]
    assert len(text.splitlines()) == 3
    told = [yaml.safe_load((NBS / p).read_text()) for p in included]
    assert told[1]["project"]["output-dir"] == settings()["doc_path"]


# the measuring script finds what is planted

PLANTED = """
def f():
    from ..drift import verdict
    import interpkit.gate.check
    from ..data.store import _hidden
    return import_module("interpkit.model.releases")
"""


@pytest.fixture
def planted(monkeypatch):
    "The package with one more module of the core, which takes what it must not."
    modules = dict(style.modules()) | {"core.planted": ast.parse(PLANTED)}
    monkeypatch.setattr(style, "modules", lambda: modules)


def test_an_import_of_a_floor_above_is_found(planted):
    taken = {line.split()[-1] for line in style.looking_up()}
    assert taken == {"drift.verdict", "gate.check", "data.store", "model.releases"}


def test_a_private_import_is_found(planted):
    assert style.private_imports() == ["core.planted: data.store._hidden"]


def test_an_import_inside_a_function_is_counted(planted):
    lazy = [line for line in style.lazy_imports() if line.startswith("core.planted")]
    assert len(lazy) == 4


def test_a_circle_is_found(monkeypatch):
    a, b = ast.parse("from .b import x"), ast.parse("from .a import y")
    monkeypatch.setattr(style, "modules", lambda: {"core.a": a, "core.b": b})
    assert style.circles() == ["core.a", "core.b"]


def cell(source: str, outputs=()) -> dict:
    return dict(cell_type="code", source=source, outputs=list(outputs), id="x")


def test_cells_are_counted_as_a_reader_would(monkeypatch):
    code = [
        cell("#| export\nimport os"),
        cell("#| export\ndef f(): ..."),
        cell("f()", outputs=["shown"]),
        cell("#| export\ndef g(): ...\ndef h(): ..."),
        cell("from x import y"),
        cell("#| hide\ng()"),
        cell("g()"),
    ]
    monkeypatch.setattr(style, "code_cells", lambda notebook: code)
    defining = style.defining(NBS)
    assert [style.definitions(c) for c, _ in defining] == [1, 2]
    assert [shown for _, shown in defining] == [True, False]
    assert [bool(c["outputs"]) for c in style.showing(NBS)] == [True, False]
