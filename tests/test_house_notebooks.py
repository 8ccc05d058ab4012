"Notebooks of one shape: a lesson has a title, small cells and its outputs; a job has parameters."

import ast
import re

import floors
import nbformat
import pytest
from house import NBS, NOTEBOOKS, ROOT, name

JOBS = sorted((NBS / "jobs").glob("*.ipynb"))
SHOWN = {f.name for f in floors.FOLDERS if f.floor} | {"tutorials", "nbs"}  # with their outputs
each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
each_job = pytest.mark.parametrize("notebook", JOBS, ids=lambda p: p.stem)


def code(notebook):
    return [c for c in floors.cells(notebook) if c["cell_type"] == "code"]


def is_exported(cell) -> bool:
    return bool(re.match(r"#\|\s*export", cell["source"]))


@each_notebook
def test_begins_with_title_and_subtitle_and_nothing_else(notebook):
    first = floors.cells(notebook)[0]
    assert first["cell_type"] == "markdown"
    assert re.fullmatch(r"# \S[^\n]*\n\n> \S[^\n]*\n?", first["source"]), first["source"]


@each_notebook
def test_is_a_notebook_without_noise(notebook):
    nb = nbformat.read(notebook, 4)
    nbformat.validate(nb)
    assert set(nb.metadata) <= {"kernelspec", "language_info"}
    for cell in nb.cells:
        assert set(cell.metadata) <= {"tags"}
        assert cell.get("execution_count") is None


@each_notebook
def test_is_small(notebook):
    exported = sum(len(c["source"].splitlines()) for c in code(notebook) if is_exported(c))
    assert len(floors.cells(notebook)) <= 60
    assert exported <= 400


@each_notebook
def test_shows_outputs_where_it_is_read_and_none_where_it_is_run(notebook):
    for cell in code(notebook):
        if notebook.parent.name not in SHOWN:
            assert not cell["outputs"], cell["id"]
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            assert len(str(output)) < 200_000, f"{cell['id']} is too large to be kept"


@each_notebook
def test_imports_have_cells_of_their_own(notebook):
    for cell in filter(is_exported, code(notebook)):
        body = ast.parse(cell["source"]).body
        kinds = {isinstance(n, (ast.Import, ast.ImportFrom)) for n in body}
        assert len(kinds) <= 1, cell["source"][:200]


def test_readme_is_what_the_index_says():
    assert (ROOT / "README.md").read_text() == floors.readme(), "run: make export"


# Jobs


def parameters(notebook) -> tuple[dict, list[str]]:
    "Names and values of a job's parameters cell, and its lines."
    tagged = [c for c in code(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one parameters cell"
    values = {}
    for statement in ast.parse(tagged[0]["source"]).body:
        assert isinstance(statement, ast.Assign), "plain assignments"
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    return values, tagged[0]["source"].splitlines()


@each_job
def test_parameters_are_few_literals_with_a_comment_each(notebook):
    values, lines = parameters(notebook)
    assert 1 <= len(values) <= 10
    assert len(lines) == len(values)
    for line in lines:
        assert re.search(r"  # \S", line), line


@each_job
def test_parameters_are_those_of_the_jobs_model(notebook):
    from interpkit.gate.parameters import JOBS as MODELS

    values, _ = parameters(notebook)
    fields = MODELS[notebook.stem].model_fields
    assert list(values) == list(fields)
    for field, told in fields.items():
        empty = "" if told.is_required() else told.get_default(call_default_factory=True)
        assert values[field] == empty, field  # what has to be given is empty in the notebook
        assert isinstance(values[field], told.annotation), field


@each_job
def test_a_job_knows_no_demo(notebook):
    assert "demo" not in notebook.read_text()


def test_every_job_has_a_notebook():
    from interpkit.gate.parameters import JOBS as MODELS

    assert {p.stem for p in JOBS} == set(MODELS)
