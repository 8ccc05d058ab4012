"The house: one place for metadata, floors that only look down, notebooks of one shape, and documentation that follows from one list."

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE = ROOT / "nbs", ROOT / "interpkit"
sys.path.insert(0, str(ROOT / "tools" / "docs"))
import floors
import links

NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
JOBS = sorted((NBS / "jobs").glob("*.ipynb"))
name = lambda p: p.relative_to(ROOT).as_posix()
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
each_job = pytest.mark.parametrize("notebook", JOBS, ids=lambda p: p.stem)


def settings() -> dict:
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def python(*args) -> str:
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain(requirement: str) -> str:
    return re.split(r"[<>=!~\[;]", requirement)[0].lower().replace("_", "-")


# One place for package metadata


def test_settings_setup_installation_and_package_agree():
    said, meta = settings(), metadata.metadata("interpkit-notebooks")
    assert python("setup.py", "--name", "--version").split()[-2:] == [
        said["lib_name"],
        said["version"],
    ]
    assert (meta["Name"], meta["Version"], meta["Summary"]) == (
        said["lib_name"],
        said["version"],
        said["description"],
    )
    assert (
        re.search(r'^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(), re.M)[1]
        == said["version"]
    )
    assert meta["Requires-Python"] == f">={said['min_python']}" and "Apache-2.0" in (
        meta["License"],
        meta["License-Expression"],
    )


def test_requirements_and_extras_are_those_of_settings():
    said, found = settings(), metadata.requires("interpkit-notebooks")
    wanted = lambda extra: {
        plain(r)
        for r in (said["requirements"] if not extra else said[f"{extra}_requirements"]).split()
    }
    of = lambda extra: {
        plain(r) for r in found if (re.search(r'extra == "(\w+)"', r) or [None, ""])[1] == extra
    }
    extras = {k.removesuffix("_requirements") for k in said if k.endswith("_requirements")}
    assert {e for e in metadata.metadata("interpkit-notebooks").get_all("Provides-Extra")} == {
        *extras,
        "all",
    }
    for e in ("", *extras):
        assert of(e) == wanted(e), e
    assert of("all") == set().union(*(wanted(e) for e in extras))


def test_console_script_leads_to_a_function():
    script, place = settings()["console_scripts"].split("=")
    module, function = place.split(":")
    assert script == "ipk" and re.search(
        rf"^def {function}\(", (ROOT / f"{module.replace('.', '/')}.py").read_text(), re.M
    )
    assert [e.value for e in metadata.entry_points(group="console_scripts", name="ipk")] == [place]


def test_pyproject_keeps_what_nbdev_needs():
    said, given = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"], settings()
    assert said["allowed_cell_metadata_keys"] == [
        "tags"
    ]  # else nbdev-clean deletes papermill's tag
    assert said["strip_libs"] == ["interpkit"]  # else names in backticks lead nowhere
    assert said["custom_sidebar"] is True  # numbered folders break the generated one
    assert (said["lib_path"], said["nbs_path"], said["doc_path"]) == (
        given["lib_path"],
        given["nbs_path"],
        given["doc_path"],
    )
    assert "put_version_in_init" in said and not said["put_version_in_init"]


def test_every_subpackage_is_packed():
    from setuptools import find_packages

    packed = set(find_packages(str(ROOT), include=["interpkit", "interpkit.*"]))
    assert packed == {
        ".".join(p.parent.relative_to(ROOT).parts)
        for p in PACKAGE.rglob("*.py")
        if "__pycache__" not in p.parts
    }
    manifest = (ROOT / "MANIFEST.in").read_text()
    assert "settings.ini" in manifest and "nbs/jobs" in manifest


def test_every_direct_requirement_is_pinned_and_fits():
    from packaging.requirements import Requirement

    pins = dict(
        l.split("==") for l in (ROOT / "constraints.txt").read_text().splitlines() if "==" in l
    )
    pins = {plain(k): v for k, v in pins.items()}
    asked = [
        Requirement(r)
        for k, v in settings().items()
        if k.endswith("requirements")
        for r in v.split()
    ]
    assert len(asked) > 20
    for r in asked:
        assert plain(r.name) in pins and r.specifier.contains(pins[plain(r.name)]), str(r)


def test_importing_takes_no_torch_and_little_time():
    code = "import time; t = time.time(); import interpkit, sys; print(time.time() - t, sorted({'torch', 'jax', 'sae_lens', 'transformer_lens', 'pandas'} & set(sys.modules)))"
    seconds, heavy = python("-c", code).split(" ", 1)
    assert float(seconds) < 1 and heavy.strip() == "[]"


def test_makefile_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.M))
    assert {"demo", "test", "quick", "lab", "docs", "bench", "export"} <= targets
    for script in re.findall(r"(?:bash|python) ((?:tests|tools)/[\w./]+)", text):
        assert (ROOT / script).exists(), script


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert (
        "Version 2.0, January 2004" in text
        and "END OF TERMS AND CONDITIONS" in text
        and settings()["license"] == "apache2"
    )


def listed() -> list[Path]:
    found = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if found.returncode:
        pytest.skip("no git checkout")
    return [ROOT / n for n in found.stdout.split("\0") if n and (ROOT / n).is_file()]


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.<}/])/(?:home|root|Users|work|workspace|mnt|opt)/" + r"\w")
    found = [
        f"{name(p)}: {m[0]}"
        for p in listed()
        if p.suffix not in (".png", ".parquet", ".safetensors") and p != Path(__file__)
        for m in [place.search(p.read_text(encoding="utf-8", errors="replace"))]
        if m
    ]
    assert found == []


# Floors

RANK = {f.package: i for i, f in enumerate(floors.FLOORS)}


def imported(file: Path) -> set[tuple[str, int]]:
    "Modules of interpkit that a file imports, anywhere in it, with the line."
    inside, found = list(file.relative_to(ROOT).with_suffix("").parts), set()
    for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(n, ast.Import):
            found |= {(a.name, n.lineno) for a in n.names}
        if isinstance(n, ast.ImportFrom):
            base = (
                ".".join(inside[: -n.level] + ([n.module] if n.module else []))
                if n.level
                else n.module
            )
            found |= {(base, n.lineno)} | (
                {(f"{base}.{a.name}", n.lineno) for a in n.names} if base == "interpkit" else set()
            )
        if (
            isinstance(n, ast.Call)
            and ast.unparse(n.func).endswith("import_module")
            and n.args
            and isinstance(n.args[0], ast.Constant)
        ):
            found.add((n.args[0].value, n.lineno))
    return {(m, line) for m, line in found if m == "interpkit" or m.startswith("interpkit.")}


def test_every_floor_is_in_the_list_and_every_folder_of_notebooks():
    assert {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()} <= set(RANK)
    assert {p.parent.name for p in NOTEBOOKS if p.parent != NBS} <= {f.name for f in floors.FOLDERS}
    assert [f.name for f in floors.FLOORS] == sorted(f.name for f in floors.FLOORS)


def test_floors_import_only_floors_below():
    up, seen = [], 0
    for file in sorted(PACKAGE.glob("*/*.py")):
        for module, line in imported(file):
            seen += 1
            floor = module.split(".")[1] if "." in module else ""
            if floor and (floor not in RANK or RANK[floor] > RANK[file.parent.name]):
                up.append(f"{name(file)}:{line} imports {module}")
    assert seen > 50 and up == []


def test_an_import_of_a_floor_above_would_be_found(tmp_path, monkeypatch):
    file = PACKAGE / "core" / "made_up.py"
    text = "def f():\n    from ..drift import verdict\n    import interpkit.gate.check\n    from interpkit import serve\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: text)
    assert {m for m, _ in imported(file)} == {
        "interpkit.drift",
        "interpkit.gate.check",
        "interpkit",
        "interpkit.serve",
    }


def test_modules_lie_on_the_floor_of_their_notebook():
    for f in floors.FLOORS:
        for p in f.notebooks:
            said = re.findall(
                r"^#\|\s*default_exp (\S+)", "\n".join(c["source"] for c in floors.cells(p)), re.M
            )
            assert len(said) == 1 and said[0].startswith(f.package + "."), name(p)
    for f in (f for f in floors.FOLDERS if not f.floor):
        for p in f.notebooks:
            assert "#| default_exp" not in p.read_text(), name(p)


def test_sidebar_follows_from_floors_and_files():
    import yaml

    assert (NBS / "sidebar.yml").read_text() == floors.sidebar(), "run: python tools/docs/floors.py"
    contents = yaml.safe_load(floors.sidebar())["website"]["sidebar"]["contents"]
    pages = [p for c in contents for p in (c["contents"] if isinstance(c, dict) else [c])]
    assert sorted(p for p in pages if p.endswith(".ipynb")) == sorted(
        p.relative_to(NBS).as_posix() for p in NOTEBOOKS
    )
    assert all((NBS / p).exists() for p in pages)


def test_quarto_files_are_as_nbdev_expects():
    import yaml

    included = yaml.safe_load((NBS / "_quarto.yml").read_text())
    assert (
        included["metadata-files"] == ["../_quarto.yml", "nbdev.yml", "sidebar.yml"]
        and len((NBS / "_quarto.yml").read_text().splitlines()) == 3
    )
    for p in included["metadata-files"]:
        yaml.safe_load((NBS / p).read_text())
    assert (
        yaml.safe_load((NBS / "nbdev.yml").read_text())["project"]["output-dir"]
        == settings()["doc_path"]
    )


def test_readme_is_what_the_index_says():
    if not (NBS / "index.ipynb").exists():
        pytest.skip("nbs/index.ipynb is not written yet")
    assert (ROOT / "README.md").read_text() == floors.readme(), "run: python tools/docs/floors.py"


# Notebooks


@each_notebook
def test_a_notebook_begins_with_title_and_subtitle_and_nothing_else(notebook):
    first = floors.cells(notebook)[0]
    assert first["cell_type"] == "markdown" and re.fullmatch(
        r"# \S[^\n]*\n\n> \S[^\n]*\n?", first["source"]
    ), first["source"]


@each_notebook
def test_a_notebook_is_small_clean_and_whole(notebook):
    import nbformat

    nb = nbformat.read(notebook, 4)
    nbformat.validate(nb)
    code = [c for c in nb.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code) and set(nb.metadata) <= {
        "kernelspec",
        "language_info",
    }
    assert all(set(c.metadata) <= {"tags"} for c in nb.cells)
    exported = sum(len(c.source.splitlines()) for c in code if re.match(r"#\|\s*export", c.source))
    assert len(nb.cells) <= 60 and exported <= 400


@each_notebook
def test_imports_have_cells_of_their_own(notebook):
    for c in floors.cells(notebook):
        if c["cell_type"] != "code" or not re.match(r"#\|\s*export", c["source"]):
            continue
        kinds = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(c["source"]).body]
        assert all(kinds) or not any(kinds), c["source"][:200]


# Jobs


def parameters(notebook: Path) -> tuple[dict, list[str]]:
    "Names and values of a job's parameters cell, and its lines."
    found = [c for c in floors.cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(found) == 1 and found[0]["cell_type"] == "code", "exactly one parameters cell"
    body = ast.parse(found[0]["source"]).body
    assert all(isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name) for n in body), (
        "plain assignments"
    )
    return {n.targets[0].id: ast.literal_eval(n.value) for n in body}, found[0][
        "source"
    ].splitlines()


@each_job
def test_parameters_are_few_literals_with_a_comment_each(notebook):
    given, lines = parameters(notebook)
    assert 1 <= len(given) <= 10 and len(lines) == len(given)
    for line in lines:
        assert re.search(r"  # \S", line), line


@each_job
def test_parameters_are_those_of_the_jobs_model(notebook):
    from interpkit.gate.parameters import JOBS as MODELS

    given, _ = parameters(notebook)
    fields = MODELS[notebook.stem].model_fields
    assert list(given) == list(fields)
    for n, f in fields.items():
        assert given[n] == ("" if f.is_required() else f.get_default(call_default_factory=True)), (
            n
        )  # what has to be given is empty in the notebook
        assert isinstance(given[n], f.annotation), n


def test_every_job_has_a_notebook():
    from interpkit.gate.parameters import JOBS as MODELS

    assert {p.stem for p in JOBS} == set(MODELS)


# Documentation


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h2 id="here">x</h2><a href="b.html#there">1</a><a href="#here">2</a><a href="b.html#nowhere">3</a><a href="c.html">4</a><a href="../x.html">5</a><img src="no.svg">'
        '<a href="https://example.org">6</a><script src="https://example.org/x.js"></script><link rel="stylesheet" href="https://example.org/font.css">'
    )
    (tmp_path / "b.html").write_text('<p id="there"><a href="/a.html">1</a></p>')
    found = [l.split(": ", 1)[1] for l in links.broken(tmp_path)]
    assert found == [
        "'b.html#nowhere' no such anchor",
        "'c.html' no such page",
        "'../x.html' leaves the site",
        "'no.svg' no such page",
        "'https://example.org/x.js' is fetched from the network",
        "'https://example.org/font.css' is fetched from the network",
    ]
    assert links.report(tmp_path) == 6


def test_names_in_backticks_lead_to_their_page(tmp_path):
    import docs

    known = docs.names() | {"Dictionary.load": "04_dictionary/sparse.html#dictionary.load"}
    anchors = {
        ("08_drift/contract.md", "decide"),
        ("04_dictionary/sparse.md", "dictionary.load"),
        ("09_gate/check.md", "check"),
    }
    text = docs.Text(NBS / "09_gate" / "01_report.ipynb", "09_gate/report.md", known, anchors)
    assert (
        text.finished("see `decide(table, plan)` and `Dictionary.load`")
        == "see [`decide(table, plan)`](../08_drift/contract.md#decide) and [`Dictionary.load`](../04_dictionary/sparse.md#dictionary.load)"
    )
    assert (
        text.finished("a `check` of `rows`, `no_such_name`")
        == "a `check` of `rows`, `no_such_name`"
    )  # words, not calls
    assert (
        text.finished("[core](../00_core/01_artefacts.ipynb), [x](../../setup.py)")
        == "[core](../00_core/artefacts.md), x"
    )
    assert text.finished("```python\n`decide(x)`\n```") == "```python\n`decide(x)`\n```"


def test_exported_cells_are_documented_from_their_source():
    import api

    text = api.documented(
        "def load(path,  # a folder\n         strict: bool = True  # raise where a file was changed\n         ) -> dict:\n    'Read it.'\n\ndef _hidden(): pass\nFolder.load = load"
    )
    assert (
        "### `Folder.load` {#folder.load .api}" in text
        and "Folder.load(strict: bool = True) -> dict" in text
        and "_hidden" not in text.split("??? quote")[0]
    )
    assert "| `strict` | `True` | raise where a file was changed |" in text and "Read it." in text
    assert api.documented("import os") == ""


def test_the_family_of_contributing_works(tmp_path, monkeypatch):
    from interpkit.drift.simulate import check_family, small_world
    from interpkit.gate.parameters import Policy

    text = (ROOT / "CONTRIBUTING.md").read_text()
    (tmp_path / "fraud_families.py").write_text(
        re.search(r"```python\n(import numpy.*?)```", text, re.S)[1]
    )
    (tmp_path / "check.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    found = check_family(
        *Policy.read(tmp_path / "check.toml").families,
        comparison=small_world(n=300),
        checks=200,
        most=0.05,
    )
    assert list(found.statement.unique()) == ["decision moved"] and list(found.n) == [200, 1000]
    assert len(re.findall(r"^\*\*[1-5]\.", text, re.M)) == 5


@pytest.mark.skipif(shutil.which("quarto") is not None, reason="quarto builds the site here")
def test_the_documentation_builds_without_a_broken_link(tmp_path, monkeypatch):
    import docs

    monkeypatch.setattr(docs, "PAGES", tmp_path / "src")
    monkeypatch.setattr(docs, "SITE", tmp_path / "site")
    docs.with_mkdocs(execute=False)
    assert links.broken(tmp_path / "site") == []
    made = {
        p.relative_to(tmp_path / "site").as_posix() for p in (tmp_path / "site").rglob("*.html")
    }
    assert {docs.page_of(p).replace(".md", ".html") for p in docs.sources()} <= made and len(
        made
    ) > 50
    page = (tmp_path / "site" / "08_drift" / "contract.html").read_text()
    assert 'id="decide"' in page and "#| export" not in page
    for result in (NBS / "benchmarks" / "results").glob("*.json"):
        shown = (tmp_path / "site" / "benchmarks" / "results.html").read_text()
        assert shown.count("does not hold</span>") >= sum(
            not b["holds"] for b in json.loads(result.read_text())["bars"]
        )
