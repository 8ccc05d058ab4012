"""Jobs, their runner and the command line: results that can be believed, runs that go on,
exit codes that schedulers read."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from helpers import printed_by, refused
from small_runs import asked_of, by_hand, flags, line

from interpkit.core.errors import ExitCode
from interpkit.core.files import read_json, write_json
from interpkit.data.demo import demo_folder, demo_quarter
from interpkit.dictionary.dictionary import Dictionary
from interpkit.gate import jobs, runner
from interpkit.gate.cli import preflight_words
from interpkit.gate.cli import run as ipk
from interpkit.gate.derived import plan_problems
from interpkit.gate.doctor import clash, kernel_problem
from interpkit.gate.evidence import verify
from interpkit.gate.failures import kept_error
from interpkit.gate.forecast import declared_words
from interpkit.gate.kernel import KERNEL, own_kernel
from interpkit.gate.notebooks import job_notebook, refuse_exits
from interpkit.gate.parameters import JOBS, Drift, Preflight, Report, from_cell
from interpkit.gate.policy import Policy
from interpkit.gate.results import Page, result_of
from interpkit.gate.warm import Warm, imports_for, manager_of

IPK = [sys.executable, "-m", "interpkit.gate.cli"]
BAD, RETRY = ExitCode.BAD_PARAMETERS, ExitCode.RETRY


@pytest.fixture
def asked(tiny, tmp_path):
    return asked_of(tiny, tiny.v2, tmp_path / "run")


@pytest.fixture
def done(asked, runs):
    "The same question after its jobs."
    shutil.copytree(runs / "v2", asked.run)
    return asked


@pytest.fixture(scope="module")
def warm():
    "One process that has imported what jobs need: to fork the kernels of this file's tests."
    with Warm(imports_for([])) as warm:
        yield warm


@pytest.fixture
def shared_imports(warm, monkeypatch):
    "Commands fork their kernels from the process of this file, and don't start one each."
    monkeypatch.setattr(runner, "Warm", lambda imports: nullcontext(warm))


def changed(p: Preflight, **places) -> Preflight:
    return p.model_copy(update={name: str(place) for name, place in places.items()})


def drift_of(p):
    "A call of the job drift on a run."
    return lambda: jobs.drift(Drift(run=p.run))


def report_of(p):
    "A call of the job report on a run."
    return lambda: jobs.report(Report(run=p.run))


# What a job leaves


def test_a_run_ends_with_verdict_report_and_evidence(done):
    run = Path(done.run)
    result = result_of(run, "report")
    assert (result["verdict"], result["exit_code"]) == ("FAIL", 10)
    assert read_json(run / "verdict.json")["verdict"] == "FAIL"
    derived = run / "evidence" / "verdict.json"
    assert (run / "verdict.json").read_bytes() == derived.read_bytes()
    assert "<script" not in (run / "report.html").read_text()


def test_verdict_json_knows_no_time_host_path_or_cost(tiny, runs):
    text = (runs / "v2" / "verdict.json").read_text()
    for word in (str(tiny.at), str(runs), os.uname().nodename, "seconds", "date", "time", "/"):
        assert word not in text, word
    assert not re.search(r"20\d\d-\d\d", text)


def test_two_runs_with_salts_of_their_own_give_the_same_bytes(asked, runs):
    by_hand(asked, "drift")
    a, b = Path(asked.run), runs / "v2"
    verdict = "evidence/verdict.json"
    assert (a / verdict).read_bytes() == (b / verdict).read_bytes()
    assert (a / "salt").read_text() != (b / "salt").read_text()
    table = "evidence/table.parquet"
    assert (a / table).read_bytes() != (b / table).read_bytes()


def test_the_salt_lies_apart_from_everything_else(runs):
    salt = (runs / "v2" / "salt").read_bytes()
    for file in (runs / "v2").rglob("*"):
        assert file.is_dir() or file.name == "salt" or salt not in file.read_bytes(), file


def test_a_job_that_fails_leaves_its_error_and_no_result(asked, tiny, parquet):
    bad = changed(asked, data=parquet(tiny.rows.drop(columns="x3")))
    refused(lambda: jobs.preflight(bad))
    assert read_json(Path(bad.run) / "preflight" / "error.json")["code"] == 65
    assert result_of(bad.run, "preflight") is None


def test_a_job_that_runs_again_has_no_result_until_it_is_done(done, monkeypatch):
    monkeypatch.setattr(jobs, "score", lambda *_, **__: 1 / 0)
    refused(drift_of(done), "ZeroDivisionError", code=ExitCode.ERROR)
    assert result_of(done.run, "drift") is None


def test_a_full_disk_is_worth_another_try(asked, monkeypatch):
    by_hand(asked, "preflight")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pandas.DataFrame.to_parquet", full)
    assert "free some space" in refused(drift_of(asked), code=RETRY).mend
    assert not (Path(asked.run) / "evidence").exists()
    assert not list(Path(asked.run).glob(".*aside"))


# What may not change between jobs


def test_limits_that_change_after_the_preflight_make_the_run_invalid(asked):
    by_hand(asked, "preflight")
    plan = read_json(Path(asked.run) / "preregistration.json")
    for s in plan["statements"]:
        s["limit"] = 9.0
    write_json(Path(asked.run) / "preregistration.json", plan)
    assert "registered before" in refused(drift_of(asked)).asked


def test_code_that_changes_after_the_preflight_makes_the_run_invalid(asked, monkeypatch):
    by_hand(asked, "preflight")
    monkeypatch.setattr(jobs, "code_digest", lambda families: "0" * 64)
    assert "code" in refused(drift_of(asked)).asked


@pytest.mark.parametrize("what", ["data", "new", "dictionary"])
def test_inputs_that_change_after_the_preflight_make_the_run_invalid(asked, tiny, tmp_path, what):
    copy, given = tmp_path / "copy", Path(getattr(asked, what))
    if given.is_dir():
        shutil.copytree(given, copy)
    else:
        shutil.copy(given, copy)
    p = changed(asked, **{what: copy})
    by_hand(p, "preflight")
    if copy.is_dir():
        write_json(copy / "manifest.json", read_json(copy / "manifest.json") | {"x": 1})
    else:
        tiny.rows.head(500).to_parquet(copy)
    refused(drift_of(p), f"{what} changed since")


def test_a_folder_of_another_question_is_refused(asked, tiny, tmp_path):
    by_hand(asked, "preflight")
    other = changed(asked, new=tiny.v1)
    assert "new is another one" in refused(lambda: jobs.preflight(other), code=BAD).given
    (tmp_path / "p.json").write_text(json.dumps(dict(seed=5)))
    other = changed(asked, policy=tmp_path / "p.json")
    assert "seed of the policy" in refused(lambda: jobs.preflight(other), code=BAD).given


def test_a_release_that_was_moved_is_the_same(asked, tiny, tmp_path):
    by_hand(asked, "preflight")
    shutil.copytree(tiny.v2, tmp_path / "elsewhere")
    jobs.preflight(changed(asked, new=tmp_path / "elsewhere"))


def test_jobs_out_of_order_say_which_comes_first(asked):
    assert "preflight first" in refused(drift_of(asked), code=BAD).mend
    refused(report_of(asked))


def test_intact_evidence_of_another_run_is_not_this_runs(done, runs):
    assert result_of(runs / "same", "report")["verdict"] == "PASS"
    shutil.rmtree(Path(done.run) / "evidence")
    shutil.copytree(runs / "same" / "evidence", Path(done.run) / "evidence")
    assert "another check" in refused(report_of(done)).mend


def test_an_edited_result_does_not_decide_the_exit_code(done, capsys):
    (Path(done.run) / "report.html").unlink()  # which would be drawn again each time
    file = Path(done.run) / "report" / "result.json"
    intact = read_json(file)
    for edited in (dict(verdict="PASS", exit_code=0), dict(evidence="0" * 64), dict(evidence="")):
        write_json(file, intact | edited)
        assert ipk(line(done)) == 65
    write_json(file, intact)
    assert ipk(line(done)) == 10


@pytest.mark.parametrize("code", [0, 2, 10, 99, -1, "65", None, True, [], 1e9])
def test_the_code_of_an_error_is_an_errors(tmp_path, code):
    error = dict(asked="rows", given="none", mend="give some", code=code)
    (tmp_path / "drift").mkdir()
    write_json(tmp_path / "drift" / "error.json", error)
    assert kept_error(tmp_path, "drift").code == ExitCode.ERROR


def test_an_error_of_another_form_is_an_error(tmp_path):
    (tmp_path / "drift").mkdir()
    for content in ([], {}, 3, None, dict(asked="rows", code=65)):
        write_json(tmp_path / "drift" / "error.json", content)
        assert kept_error(tmp_path, "drift").code == ExitCode.ERROR
    error = dict(asked="rows", given="none", mend="give some", code=65)
    write_json(tmp_path / "drift" / "error.json", error)
    assert kept_error(tmp_path, "drift").code == ExitCode.INVALID


# Notebooks


def notebook(path, *cells, tags=("parameters",)):
    "A folder of job notebooks, of which drift has these cells."
    first = nbformat.v4.new_code_cell("run = ''", metadata=dict(tags=list(tags)))
    path.mkdir(exist_ok=True)
    for name in JOBS:
        shutil.copy(job_notebook(name), path)
    nb = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    nbformat.write(nb, path / "drift.ipynb")
    return path / "drift.ipynb"


def run_drift(path: Path, run: Path, **kw):
    "A call that runs the notebook of the job drift, in a kernel that imports for itself or `warm`."
    return lambda: runner.run_job("drift", Drift(run=str(run)), folder=path.parent, **kw)


@pytest.mark.parametrize(
    "cell",
    [
        "import sys\nsys.exit(0)",
        "exit()",
        "if True:\n    quit()",
        "raise SystemExit",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
    ],
)
def test_a_cell_that_would_end_the_process_is_refused_before_a_kernel_starts(
    tmp_path, cell, monkeypatch
):
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a kernel was started"))
    path = notebook(tmp_path / "jobs", cell)
    error = refused(run_drift(path, tmp_path / "run"), code=BAD)
    assert "code cell 2" in error.given
    assert not (tmp_path / "run").exists()


def test_a_notebook_without_its_parameters_cell_is_refused(tmp_path):
    path = notebook(tmp_path / "jobs", tags=())
    refused(lambda: refuse_exits(path), "tagged 'parameters'", code=BAD)


def test_magics_and_a_name_that_only_looks_like_an_exit_are_no_exits(tmp_path):
    refuse_exits(notebook(tmp_path / "jobs", "%time 1\n!ls", "x.exit = 3\nmy_exit()"))


def test_a_killed_kernel_can_be_tried_again_and_the_run_goes_on(asked, tmp_path, shared_imports):
    path = notebook(tmp_path / "jobs", "import os\ngetattr(os, 'kill')(os.getpid(), 9)")
    by_hand(asked, "preflight")
    error = refused(lambda: runner.run_check(asked, folder=path.parent), code=RETRY)
    assert "died" in error.given
    done = []
    result = runner.run_check(asked, told=lambda job, _: done.append(job))
    assert result["verdict"] == "FAIL"
    assert done == ["preflight", "drift", "report"]


def test_a_cell_over_its_time_can_be_tried_again(tmp_path, warm):
    path = notebook(tmp_path / "jobs", "import time\ntime.sleep(60)")
    error = refused(run_drift(path, tmp_path / "run", timeout=2, warm=warm), code=RETRY)
    assert "--timeout" in error.mend


@pytest.mark.parametrize("code", [ExitCode.INVALID, RETRY])
def test_an_error_of_interpkit_outside_the_job_keeps_its_own_code(tmp_path, warm, code):
    raised = f"raise InterpkitError('rows: all', 'none', 'add one', {int(code)})"
    path = notebook(tmp_path / "jobs", f"from interpkit.core.errors import *\n{raised}")
    error = refused(run_drift(path, tmp_path / "run", warm=warm), code=code)
    assert (error.asked, error.given, error.mend) == ("rows: all", "none", "add one")


def test_a_lack_of_memory_in_a_cell_can_be_tried_again(tmp_path, warm):
    path = notebook(tmp_path / "jobs", "bytearray(1 << 62)")
    refused(run_drift(path, tmp_path / "run", warm=warm), "MemoryError", code=RETRY)


DYING = """
import sys
if "interpkit.gate" in " ".join(sys.orig_argv):
    import os
    {}
"""


@pytest.mark.parametrize(
    "dies",
    [
        "os.kill(os.getpid(), 9)",
        "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (12, 12))",
    ],
)
def test_a_kernel_that_dies_at_its_start_can_be_tried_again(asked, tmp_path, monkeypatch, dies):
    (tmp_path / "sitecustomize.py").write_text(DYING.format(dies))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    refused(lambda: runner.run_check(asked), "same command again", code=RETRY)


def test_a_long_temporary_folder_and_braces_in_names_are_no_obstacle(tmp_path, monkeypatch):
    long = tmp_path / ("x" * (91 - len(str(tmp_path))))
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    path = notebook(tmp_path / "jobs {0}", "open(f'{run}/drift/result.json', 'w').write('{}')")
    assert run_drift(path, tmp_path / "run {1}")() == {}
    assert (tmp_path / "run {1}" / "notebooks" / "drift.ipynb").exists()
    assert not list(long.iterdir())
    assert kernel_problem() == ""


def write_as_result(value: str) -> str:
    "A cell that keeps a value as the result of drift."
    return (
        f"import json\nopen(run + '/drift/result.json', 'w').write(json.dumps(dict(kept={value})))"
    )


def test_no_job_sees_what_another_has_changed(tmp_path):
    "Names, modules, environment, folder and path of the first kernel end with it."
    begin = "import json, os, sys"
    seen = (
        "dict(folder=os.getcwd(), pid=os.getpid(), warm=os.getppid(), "
        "kept=['last' in globals(), hasattr(json, 'mine'), 'MINE' in os.environ, "
        "'mine' in sys.path])"
    )
    change = "last = json.mine = os.environ['MINE'] = '1'; os.chdir('/'); sys.path.append('mine')"
    kernels = []
    with Warm(["json"]) as warm:
        for last in (change, "1 + 1"):
            path = notebook(tmp_path / "jobs", begin, write_as_result(seen), last)
            kernels.append(run_drift(path, tmp_path / "run", warm=warm)()["kept"])
    first, second = kernels
    assert first["kept"] == second["kept"] == [False] * 4
    assert first["warm"] == second["warm"] != os.getpid()
    assert first["pid"] != second["pid"]
    assert second["folder"] == os.getcwd()


def test_where_imports_have_used_the_gpu_a_kernel_imports_for_itself(tmp_path, monkeypatch):
    (tmp_path / "used_gpu.py").write_text("import torch\ntorch.cuda._is_in_bad_fork = lambda: True")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    seen = "dict(shared='used_gpu' in __import__('sys').modules)"
    path = notebook(tmp_path / "jobs", write_as_result(seen))
    with Warm(["used_gpu"]) as warm:
        assert run_drift(path, tmp_path / "run", warm=warm)()["kept"] == dict(shared=False)


def test_a_killed_check_leaves_no_process(asked, tmp_path):
    keep = write_as_result("os.getpid()")
    path = notebook(tmp_path / "jobs", f"import os, time\n{keep}\ntime.sleep(99)")
    by_hand(asked, "preflight")
    process = start([*IPK, *line(asked), "--jobs", str(path.parent)])
    file = Path(asked.run) / "drift" / "result.json"
    while not (file.exists() and file.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    kernel = json.loads(file.read_text())["kept"]
    for _ in range(100):
        if not Path(f"/proc/{kernel}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{kernel}").exists()


def test_a_notebook_that_ends_without_a_result_is_an_error(tmp_path, warm):
    path = notebook(tmp_path / "jobs", "1 + 1")
    refused(run_drift(path, tmp_path / "run", warm=warm), code=ExitCode.ERROR)
    path = notebook(tmp_path / "jobs", "raise ValueError('no such thing')")
    error = refused(run_drift(path, tmp_path / "run", warm=warm), "ValueError", code=ExitCode.ERROR)
    assert "no such thing" not in str(error)
    assert "notebooks/drift.ipynb" in error.mend


def test_the_kernel_is_the_interpreter_that_runs_ipk_whatever_kernels_a_user_has(
    tmp_path, monkeypatch
):
    spec = tmp_path / "jupyter" / "kernels" / "interpkit-job"
    spec.mkdir(parents=True)
    foreign = dict(argv=["/bin/false"], display_name="no", language="python")
    (spec / "kernel.json").write_text(json.dumps(foreign))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = notebook(
        tmp_path / "jobs",
        "import sys, json, pathlib\n"
        "file = pathlib.Path(run) / 'drift' / 'result.json'\n"
        "file.write_text(json.dumps(dict(python=sys.executable)))",
    )
    result = run_drift(path, tmp_path / "run")()
    assert os.path.realpath(result["python"]) == os.path.realpath(sys.executable)


# The five notebooks under bare papermill, on a small world


@pytest.fixture
def bare(tmp_path):
    "Run the notebook of a job by papermill, as somebody without `ipk` would; what it shows."
    from papermill import execute_notebook

    def execute(job: str, **given) -> str:
        out = tmp_path / f"{job}.ipynb"
        kernel = dict(kernel_name="python3", progress_bar=False)
        execute_notebook(job_notebook(job), out, given, **kernel)
        return out.read_text()

    return execute


@pytest.fixture
def forked(tmp_path, warm):
    "The same in a kernel from the process of this file, which has imported what jobs need."
    from papermill import execute_notebook

    def execute(job: str, **given) -> str:
        out = tmp_path / f"{job}.ipynb"
        kernel = dict(kernel_name=KERNEL, kernel_manager_class=manager_of(warm), language="python")
        with own_kernel():
            execute_notebook(job_notebook(job), out, given, **kernel, progress_bar=False)
        return out.read_text()

    return execute


def stopped(call, *parts: str):
    "The notebook of `call()` ends with an error whose text has these parts."
    from papermill.exceptions import PapermillExecutionError

    with pytest.raises(PapermillExecutionError) as caught:
        call()
    assert caught.value.ename == "InterpkitError"
    for part in parts:
        assert part in str(caught.value.evalue), (part, caught.value.evalue)


def test_the_notebooks_of_a_check_run_one_after_another(asked, bare, forked):
    assert "settles" in bare("preflight", **asked.model_dump())
    stopped(lambda: forked("drift", run=asked.run, rnu="x"), "did you mean 'run'")
    assert "<svg" in bare("drift", run=asked.run)
    stopped(lambda: bare("report", run=asked.run), "FAIL, REVIEW")
    assert result_of(asked.run, "report")["verdict"] == "FAIL"


def test_the_notebook_of_the_report_ends_without_an_error_where_the_release_passed(
    runs, tmp_path, forked
):
    run = Path(shutil.copytree(runs / "same", tmp_path / "run"))
    shutil.rmtree(run / "report")
    assert "PASS" in forked("report", run=str(run))
    assert result_of(run, "report")["verdict"] == "PASS"


@pytest.mark.parametrize("job", [pytest.param("train_sae", marks=pytest.mark.slow), "train_clt"])
def test_the_notebooks_that_train_leave_a_dictionary_and_a_result(tiny, forked, tmp_path, job):
    "That of an SAE runs in `test_training_that_ends_leaves_a_dictionary` too."
    policy = dict(training=dict(n_features=32, k=8, tokens=20_000))
    if job == "train_clt":
        policy |= dict(sites=["0:in"], targets=["0:out"])
    shown = forked(
        job,
        release=tiny.v1,
        data=tiny.data,
        out=str(tmp_path / "made"),
        run=str(tmp_path / "run"),
        half=True,
        policy=str(write_json(tmp_path / "policy.json", policy)),
    )
    made = Dictionary.load(tmp_path / "made")
    result = result_of(tmp_path / "run", job)
    assert made.n_features == result["features"] == 32
    assert result["wiring"] == ("sae" if job == "train_sae" else "clt")
    assert result["sequences"] < len(tiny.rows)
    assert "splice_error" in shown


@pytest.mark.parametrize("job", JOBS)
def test_a_notebook_without_parameters_says_which_it_needs_and_shows_a_line_to_paste(job, forked):
    needed = [name for name, field in JOBS[job].model_fields.items() if field.is_required()]
    first = f"asked: {needed[0]}: {JOBS[job].model_fields[needed[0]].description}"
    pasted = f"papermill {job}.ipynb {job}-done.ipynb -p {needed[0]} "
    stopped(lambda: forked(job), first, f"no value for {', '.join(needed)}", pasted)


@pytest.mark.parametrize("name", ["_run", "run_", "__run", "In", "Out", "open", "p"])
def test_a_run_under_another_name_is_no_run(asked, name):
    "What a kernel holds before the cell of parameters, as papermill fills it."
    kernel = dict(In=["run = ''"], Out={}, _i="", _oh={}, quit=quit, get_ipython=len)
    kernel |= dict(_ih=kernel["In"], __name__="__main__", run="")
    assert from_cell(Drift, kernel | dict(run=asked.run)) == Drift(run=asked.run)
    refused(lambda: from_cell(Drift, kernel | {name: asked.run}), code=BAD)
    refused(lambda: from_cell(Drift, kernel | {"run": asked.run, name: "another"}), code=BAD)


def test_no_notebook_passes_for_a_run_that_it_was_not_given(asked, forked):
    stopped(lambda: forked("report", run="", _run=asked.run), "'_run'", "did you mean 'run'")
    stopped(lambda: forked("report", run=""), "no value for run")


def test_no_job_notebook_imports_the_demo():
    for job in JOBS:
        assert "gate.demo" not in job_notebook(job).read_text(), job


# The command line


@pytest.fixture(scope="module")
def command(tiny, runs, tmp_path_factory):
    """A check of rows that name customers, by `ipk check` with a policy in a file.

    With what it printed, and the command that began it."""
    at = tmp_path_factory.mktemp("command")
    planted = [f"PLANTED-{i}" for i in range(len(tiny.rows))]
    tiny.rows.assign(sequence_id=planted, note="PLANTED").to_parquet(at / "rows.parquet")
    p = asked_of(tiny, tiny.v2, at / "run", data=str(at / "rows.parquet"))
    toml = at / "check.toml"
    toml.write_text("[limits.effect]\nlimit = 0.95\n")
    words = [*line(p), *flags(dict(config=toml, watch="unit 15"))]
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = ipk([*words, "--json"])
    return SimpleNamespace(
        code=code, out=out.getvalue(), err=err.getvalue(), words=words, run=Path(p.run)
    )


def test_a_check_from_the_command_line_and_its_second_start(command, monkeypatch):
    assert command.code == 10, command.err
    assert json.loads(command.out.splitlines()[-1])["verdict"] == "FAIL"
    assert "FAIL, REVIEW." in command.out.splitlines()[0]
    done = [text.split()[0] for text in command.err.splitlines() if text.endswith("done")]
    assert done == ["preflight", "drift", "report"]
    monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a finished job was run again"))
    assert ipk(command.words) == 10
    assert ipk(["verify", str(command.run)]) == 10


def test_executed_notebooks_hold_no_customer(command):
    assert command.code == 10
    for f in command.run.rglob("*"):
        if f.is_file() and f.suffix != ".parquet":
            assert b"PLANTED" not in f.read_bytes(), f


def test_a_policy_in_a_file_and_arguments_are_in_force(command):
    plan = read_json(command.run / "preregistration.json")
    assert [s["limit"] for s in plan["statements"] if s["name"] == "effect"][0] == 0.95
    assert "effect: unit 15" in [s["name"] for s in plan["statements"]]


@pytest.mark.parametrize(
    "command, code, part",
    [
        ("check --odl a", 64, "--old"),
        ("chek", 64, "check"),
        ("check --old a", 64, "--new"),
        ("check --old a --new b --data c --seed x", 64, "--seed"),
        ("check --old ./a --new ./b --data ./c", 65, "no file"),
        ("verify ./nowhere", 65, "no folder"),
        ("verify", 64, "folder"),
        ("check --old a --new b --data c --config none.toml", 64, "ipk init"),
        ("train --release a --data b --out .", 64, "exists"),
        ("train --release a --data b --out c --features 8", 64, "'--n-features'"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_in_one_error_with_its_code(
    command, code, part, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert ipk(command.split()) == code
    err = capsys.readouterr().err
    assert part in err
    assert "Traceback" not in err
    assert err.count("asked:") == 1
    assert not list(tmp_path.iterdir())


HEAVY = """
import sys
class No:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers", "sae_lens"):
            raise ImportError(name)
sys.meta_path.insert(0, No())
from interpkit.gate.cli import run
"""


def test_help_and_the_list_of_jobs_need_no_torch():
    commands = (["--help"], ["jobs"], ["check", "--help"])
    codes = [f"assert run({words}) == 0" for words in commands]
    assert all(printed_by(codes, first=HEAVY))


def test_a_check_that_can_settle_nothing_is_not_begun(asked, tiny, parquet, capsys, shared_imports):
    p = changed(asked, data=parquet(tiny.rows.head(49)))
    assert ipk(line(p)) == 11
    assert "49, with which no statement can be settled" in capsys.readouterr().err
    assert not (Path(p.run) / "check.json").exists()


def test_broken_data_leaves_no_run_folder(asked, tiny, parquet, capsys, shared_imports):
    p = changed(asked, data=parquet(tiny.rows.assign(x1=float("nan"))))
    assert ipk(line(p)) == 65
    assert not Path(p.run).exists()
    assert "x1" in capsys.readouterr().err


def test_a_folder_that_holds_other_things_is_left_alone(asked, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    mine = changed(asked, run=tmp_path / "mine")
    assert "other things" in refused(lambda: runner.run_check(mine), code=BAD).given
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_training_that_fails_leaves_nothing(tiny, tmp_path, monkeypatch, parquet):
    monkeypatch.chdir(tmp_path)
    few = dict(release=tiny.v1, data=parquet(tiny.rows.head(40)), out="few")
    assert ipk(["train", *flags(few)]) == 65
    assert not (tmp_path / "few").exists()
    assert not (tmp_path / "runs" / "train-few").exists()


SMALL = {"n-features": 32, "k": 8, "tokens": 20_000}
WIDE = '[limits.splice_error]\nlimit = 0.9\nwhy = "what is trained here is small"\n'


def test_training_that_ends_leaves_a_dictionary(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wide.toml").write_text(WIDE)
    asked = dict(release=tiny.v1, data=tiny.data, out="d", config="wide.toml") | SMALL
    assert ipk(["train", *flags(asked)]) == 0
    made = Dictionary.load(tmp_path / "d")
    assert made.n_features == 32
    assert made.validity["fingerprint"] == tiny.old.fingerprint
    assert made.wiring == "sae"
    [notebook] = (tmp_path / "runs").rglob("train_sae.ipynb")
    assert "splice_error" in notebook.read_text()


def test_training_says_whether_it_is_fit_and_ends_with_the_code_of_a_check(
    tiny, tmp_path, monkeypatch
):
    "An unfit dictionary is kept; sizes that nobody gave have grown."
    monkeypatch.chdir(tmp_path)
    Path("check.toml").write_text(
        "[training]\nattempts = 2\ntokens = 5000\n[limits.splice_error]\nlimit = 1e-9\n"
        'why = "none would do"\n'
    )
    asked = dict(release=tiny.v1, data=tiny.data, out="d", config="check.toml")
    out = StringIO()
    with redirect_stdout(out):
        assert ipk(["train", *flags(asked)]) == 65
    *_, tried, again, made, _, last = out.getvalue().splitlines()
    assert tried.startswith("Training 1: k ") and again.startswith("Training 2: k ")
    assert "features in d" in made
    assert last.startswith("Unfit for a check at its limits: splice error")
    first, second = Dictionary.load(tmp_path / "d").training["attempts"]
    assert second["n_features"] == 2 * first["n_features"] and second["k"] == 2 * first["k"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys, number):
    def absent(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", absent)
    with runner.locked(tmp_path / "run"):
        assert os.strerror(number) in capsys.readouterr().err


def test_two_commands_on_one_folder_do_not_work_against_each_other(asked):
    with runner.locked(Path(asked.run)):
        refused(lambda: runner.run_check(asked), code=RETRY)
    assert (Path(asked.run) / ".lock").exists()


def test_a_policy_is_written_and_read(tiny, tmp_path, capsys):
    toml = tmp_path / "check.toml"
    new = ["init", *flags(dict(new=tiny.v2, data=tiny.data, out=toml))]
    assert ipk([*new, *flags(dict(old=tiny.v1, dictionary=tiny.dictionary_folder))]) == 0
    assert Policy.read(toml).own.splice_error is not None
    assert ipk(new) == 64
    why = "  # how much of what features do to the decision may not be shared by both releases"
    before = f"[limits.effect]{why}\nlimit = 0.15"
    assert before in toml.read_text()
    toml.write_text(toml.read_text().replace(before, "[limits.effect]\nlimit = 0.95"))
    assert Policy.read(toml).limits.effect.limit == 0.95


def test_rare_segments_are_told_before_a_check_and_pooled_in_its_evidence(tiny, tmp_path, parquet):
    segment = ["main"] * 800 + [f"town {i}" for i in range(5) for _ in range(40)]
    data, toml = parquet(tiny.rows.assign(segment=segment)), tmp_path / "check.toml"
    assert ipk(["init", *flags(dict(new=tiny.v1, data=data, out=toml))]) == 0
    written = toml.read_text()
    assert 'pool = "" ' in written and "here under 50: town 0 (40), town 1 (40)" in written
    apart = by_hand(asked_of(tiny, tiny.v1, tmp_path / "apart", data=data), until="preflight")
    assert "they decide nothing, unless `pool`" in declared_words(apart)[0]
    toml.write_text(written.replace('pool = "" ', 'pool = "small towns" '))
    asked = asked_of(tiny, tiny.v1, tmp_path / "run", data=data, policy=str(toml))
    assert by_hand(asked)["action"] == "REUSE"
    told = declared_words(result_of(asked.run, "preflight"))
    assert told == [
        "Segments too rare to be judged alone: "
        + ", ".join(f"'town {i}' (40)" for i in range(5))
        + "; they are asked together, as 'small towns'."
    ]
    found = verify(asked.run)
    assert "5 rare segments are asked together as 'small towns' (apart)" in found.deviations
    assert "Too rare alone, and asked together" in (Path(asked.run) / "report.html").read_text()
    plan = found.plan
    assert plan_problems(plan) == []
    lost = {"small towns": {"town 0": 40}}
    assert "is not the sum" in plan_problems(replace(plan, pooled=lost))[0]
    twice = {"small towns": {"main": 200}}
    assert "pooled and asked apart" in plan_problems(replace(plan, pooled=twice))[0]
    assert plan_problems(replace(plan, pooled=[1])) == ["pooled is no object of objects"]


def test_declared_events_are_the_inputs_of_a_check_from_its_preflight_to_its_evidence(
    tmp_path, parquet
):
    "The ledger's payments, four tokens each, through two releases of the demo."
    demo, rows = demo_folder(), demo_quarter("v2-concept", 60).in_events()
    policy = tmp_path / "check.toml"
    policy.write_text("draws = 2\n")
    places = dict(old=str(demo / "releases" / "v1"), new=str(demo / "releases" / "v2-concept"))
    places |= dict(dictionary=str(demo / "dictionary"), policy=str(policy))
    asked = Preflight(**places, data=parquet(rows), run=str(tmp_path / "run"))
    by_hand(asked)
    each = f"{rows.input_ids.map(lambda x: (len(x) - 2) / 4).mean():.3g} per sequence, of 4 tokens"
    first = result_of(asked.run, "preflight")
    told = preflight_words(first, [], Path(asked.run))
    assert any(f"Inputs are declared events, on average {each} each; " in line for line in told)
    found = verify(asked.run)
    assert "an input is a declared event of 4 tokens (one token)" in found.deviations
    assert f"declared events, on average {each} each" in repr(Page(asked.run))
    assert "moved from one token of an event to another of it" in repr(Page(asked.run))
    printed = read_json(Path(asked.run) / "evidence" / "printed.json")
    names = {x["name"] for x in printed["contributions"]["inputs"][""]}
    assert names and all(name.startswith("event with ") for name in names)
    assert found.verdict.statement("inputs").ratio > 0.3
    broken = rows.assign(event_ids=[[i % 4 for i in range(len(x))] for x in rows.input_ids])
    again = Preflight(**places, data=parquet(broken, "b.parquet"), run=str(tmp_path / "broken"))
    refused(lambda: by_hand(again), "comes back")


def test_limits_are_proposed_from_a_release_that_changes_nothing(tiny, tmp_path, capsys):
    toml = tmp_path / "check.toml"
    new = ["init", *flags(dict(new=tiny.v2, data=tiny.data, out=toml, null=tiny.v2))]
    for lacks in (dict(old=tiny.v1), dict(dictionary=tiny.dictionary_folder), {}):
        assert ipk([*new, *flags(lacks)]) == 64
        told = capsys.readouterr().err
        for name in ("old", "dictionary"):
            assert (f"--{name} DIR" in told) == (name not in lacks)
        assert not toml.exists()
    both = flags(dict(old=tiny.v1, dictionary=tiny.dictionary_folder))
    assert ipk([*new, *both]) == 0
    limits = Policy.read(toml).limits
    assert "v2, a retrain that changes nothing, reaches" in limits.inputs.why
    assert limits.inputs.limit >= 0.15
    assert limits.splice_error == Policy().limits.splice_error
    toml.unlink()
    assert ipk([*new, "--null", str(tiny.v1), *both]) == 64
    assert "which is the old release itself" in capsys.readouterr().err


def test_notebooks_are_listed_and_copied(tmp_path, capsys):
    assert ipk(["jobs"]) == 0
    assert "train_data" in capsys.readouterr().out
    assert ipk(["jobs", "--copy", str(tmp_path / "mine")]) == 0
    assert {p.stem for p in (tmp_path / "mine").glob("*.ipynb")} == set(JOBS)
    assert ipk(["jobs", "--copy", str(tmp_path / "mine")]) == 64


def test_the_doctor_finds_a_package_of_the_same_name(tmp_path, monkeypatch, capsys):
    assert clash() == ""
    info = tmp_path / "interpkit-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: interpkit\nVersion: 0.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "pip uninstall -y interpkit" in clash()
    monkeypatch.setattr("interpkit.gate.doctor.kernel_problem", lambda: "")
    assert ipk(["doctor"]) == 1
    assert "MEND" in capsys.readouterr().out


# Studies that take minutes


def start(command: list[str]) -> subprocess.Popen:
    "A command in a process group of its own, without output."
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen(command, start_new_session=True, **quiet)


def ended(command: list[str]) -> int:
    "The exit code of a command."
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode


@pytest.mark.slow
def test_killed_ten_times_at_random_moments_a_check_ends_with_the_same_bytes(asked, tmp_path):
    by_hand(changed(asked, run=tmp_path / "whole"))
    rng = random.Random(0)
    command = [*IPK, *line(asked)]
    for _ in range(10):
        process = start(command)
        time.sleep(rng.uniform(0.5, 12))
        with_kernel = rng.random() < 0.5
        try:
            if with_kernel:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        except ProcessLookupError:
            pass
        process.wait()
    assert ended(command) == 10
    whole = (tmp_path / "whole" / "verdict.json").read_bytes()
    assert (Path(asked.run) / "verdict.json").read_bytes() == whole
    assert not [p for p in Path(asked.run).rglob("*.aside")]


def taken(folder: Path) -> int:
    "Steps in the checkpoint of a training in `folder`; 0 where there is none, or it is replaced."
    for state in folder.glob("runs/train-cut/*/store-*/training-0/checkpoint/state.json"):
        try:
            return json.loads(state.read_text())["taken"]
        except (OSError, ValueError):
            pass
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("wiring", ["sae", "clt"])
def test_killed_again_and_again_a_training_job_ends_with_the_same_weights(
    tiny, tmp_path, monkeypatch, wiring
):
    monkeypatch.chdir(tmp_path)
    Path("wide.toml").write_text(WIDE)
    how = dict(release=tiny.v1, data=tiny.data, config="wide.toml") | SMALL
    how |= dict(tokens=3_000_000)
    if wiring == "clt":
        how |= dict(wiring="clt", site="0:in", target="0:out")

    def command(out):
        return [*IPK, "train", *flags(how | dict(out=out))]

    assert ended(command("whole")) == 0
    rng = random.Random(0)
    cut = [0]
    for _ in range(8):
        process = start(command("cut"))
        while process.poll() is None and taken(tmp_path) <= cut[-1]:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))  # somewhere between two checkpoints
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        assert not (tmp_path / "cut").exists()  # killed in the middle,
        cut.append(taken(tmp_path))
    assert sorted(set(cut)) == cut  # and each time further on
    assert ended(command("cut")) == 0
    for name in ("weights.safetensors", "dictionary.json"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "cut" / name).read_bytes() == whole, name
