"Jobs, their runner and the command line: results that can be believed, runs that go on, exit codes that schedulers read."

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
from pathlib import Path

import nbformat
import pytest

from interpkit.core.artefacts import read_json, write_json
from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.gate import jobs, runner
from interpkit.gate.cli import run as ipk
from interpkit.gate.parameters import JOBS, Drift, Policy, Preflight, Report


@pytest.fixture
def asked(tiny, tmp_path):
    return Preflight(
        old=tiny.v1,
        new=tiny.v2,
        data=tiny.data,
        dictionary=tiny.dictionary_folder,
        run=str(tmp_path / "run"),
    )


def by_hand(p: Preflight, until="report") -> dict:
    "The jobs in this process, as their notebooks call them."
    for name, job, parameters in (
        ("preflight", jobs.preflight, p),
        ("drift", jobs.drift, Drift(run=p.run)),
        ("report", jobs.report, Report(run=p.run)),
    ):
        result = jobs.finish(parameters, name, job(parameters))
        if name == until:
            return result


def refused(code, fn, *args, **kw) -> InterpkitError:
    with pytest.raises(InterpkitError) as e:
        fn(*args, **kw)
    assert e.value.code == code, e.value
    return e.value


# ---- what a job leaves -------------------------------------------------------------------------------------------------------------


def test_a_run_ends_with_verdict_report_and_evidence(asked):
    result = by_hand(asked)
    run = Path(asked.run)
    assert (result["verdict"], result["exit_code"]) == ("FAIL", 10) and read_json(
        run / "verdict.json"
    )["verdict"] == "FAIL"
    assert (run / "verdict.json").read_bytes() == (
        run / "evidence" / "verdict.json"
    ).read_bytes() and "<script" not in (run / "report.html").read_text()


def test_verdict_json_knows_no_time_host_path_or_cost(asked, tiny):
    by_hand(asked)
    text = (Path(asked.run) / "verdict.json").read_text()
    for word in (str(tiny.at), os.uname().nodename, "seconds", "date", "time", "/"):
        assert word not in text, word
    assert not re.search(r"20\d\d-\d\d", text)


def test_two_runs_with_salts_of_their_own_give_the_same_bytes(asked, tmp_path):
    by_hand(asked)
    other = asked.model_copy(update=dict(run=str(tmp_path / "other")))
    by_hand(other)
    a, b = Path(asked.run), Path(other.run)
    assert (a / "verdict.json").read_bytes() == (b / "verdict.json").read_bytes()
    assert (
        read_json(a / "check.json")["salt"] != read_json(b / "check.json")["salt"]
        and (a / "evidence/table.parquet").read_bytes()
        != (b / "evidence/table.parquet").read_bytes()
    )


def test_the_salt_is_not_in_the_evidence(asked):
    by_hand(asked)
    salt = read_json(Path(asked.run) / "check.json")["salt"]
    assert all(
        salt.encode() not in p.read_bytes() for p in (Path(asked.run) / "evidence").iterdir()
    )


def test_a_job_that_fails_leaves_its_error_and_no_result(asked, tiny, parquet):
    bad = asked.model_copy(update=dict(data=parquet(tiny.rows.drop(columns="x3"))))
    refused(ExitCode.INVALID, jobs.preflight, bad)
    assert (
        read_json(Path(bad.run) / "preflight" / "error.json")["code"] == 65
        and jobs.result_of(bad.run, "preflight") is None
    )


def test_a_job_that_runs_again_has_no_result_until_it_is_done(asked, monkeypatch):
    by_hand(asked)
    monkeypatch.setattr("interpkit.gate.check.score", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        jobs.drift(Drift(run=asked.run))
    assert jobs.result_of(asked.run, "drift") is None


def test_a_full_disk_is_worth_another_try(asked, monkeypatch):
    by_hand(asked, "preflight")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("interpkit.gate.evidence._write_table", full)
    assert "free some space" in refused(ExitCode.RETRY, jobs.drift, Drift(run=asked.run)).mend
    assert not (Path(asked.run) / "evidence").exists() and not list(Path(asked.run).glob(".*aside"))


# ---- what may not change between jobs ----------------------------------------------------------------------------------------------


def test_limits_that_change_after_the_preflight_make_the_run_invalid(asked):
    by_hand(asked, "preflight")
    plan = read_json(Path(asked.run) / "preregistration.json")
    for s in plan["statements"]:
        s["limit"] = 9.0
    write_json(Path(asked.run) / "preregistration.json", plan)
    assert "registered before" in refused(ExitCode.INVALID, jobs.drift, Drift(run=asked.run)).asked


def test_code_that_changes_after_the_preflight_makes_the_run_invalid(asked, monkeypatch):
    by_hand(asked, "preflight")
    monkeypatch.setattr("interpkit.drift.verdict.code_digest", lambda families: "0" * 64)
    assert "code" in refused(ExitCode.INVALID, jobs.drift, Drift(run=asked.run)).asked


@pytest.mark.parametrize("what", ["data", "new", "dictionary"])
def test_inputs_that_change_after_the_preflight_make_the_run_invalid(asked, tiny, tmp_path, what):
    copy = tmp_path / "copy"
    given = getattr(asked, what)
    shutil.copytree(given, copy) if Path(given).is_dir() else shutil.copy(given, copy)
    p = asked.model_copy(update={what: str(copy)})
    by_hand(p, "preflight")
    if copy.is_dir():
        write_json(copy / "manifest.json", read_json(copy / "manifest.json") | {"x": 1})
    else:
        tiny.rows.head(500).to_parquet(copy)
    assert f"{what} changed since" in str(refused(ExitCode.INVALID, jobs.drift, Drift(run=p.run)))


def test_a_folder_of_another_question_is_refused_and_a_moved_release_is_the_same(
    asked, tiny, tmp_path
):
    by_hand(asked, "preflight")
    assert (
        "new is another one"
        in refused(
            ExitCode.BAD_PARAMETERS, jobs.preflight, asked.model_copy(update=dict(new=tiny.v1))
        ).given
    )
    (tmp_path / "p.json").write_text(json.dumps(dict(seed=5)))
    assert (
        "seed of the policy"
        in refused(
            ExitCode.BAD_PARAMETERS,
            jobs.preflight,
            asked.model_copy(update=dict(policy=str(tmp_path / "p.json"))),
        ).given
    )
    shutil.copytree(tiny.v2, tmp_path / "elsewhere")
    jobs.preflight(asked.model_copy(update=dict(new=str(tmp_path / "elsewhere"))))


def test_jobs_out_of_order_say_which_comes_first(asked):
    assert (
        "preflight first" in refused(ExitCode.BAD_PARAMETERS, jobs.drift, Drift(run=asked.run)).mend
    )
    refused(ExitCode.INVALID, jobs.report, Report(run=asked.run))


def test_intact_evidence_of_another_run_is_not_this_runs(asked, tiny, tmp_path):
    same = asked.model_copy(update=dict(new=tiny.v1, run=str(tmp_path / "same")))
    assert by_hand(same)["verdict"] == "PASS"
    by_hand(asked, "drift")
    shutil.rmtree(Path(asked.run) / "evidence")
    shutil.copytree(Path(same.run) / "evidence", Path(asked.run) / "evidence")
    assert "another check" in refused(ExitCode.INVALID, jobs.report, Report(run=asked.run)).mend


def test_an_edited_result_does_not_decide_the_exit_code(asked, capsys):
    by_hand(asked)
    file = Path(asked.run) / "report" / "result.json"
    write_json(file, read_json(file) | dict(verdict="PASS", exit_code=0))
    assert ipk(line(asked)) == 10
    write_json(file, read_json(file) | dict(evidence="0" * 64))
    assert ipk(line(asked)) == 65


# ---- notebooks ---------------------------------------------------------------------------------------------------------------------


def notebook(path, *cells, tags=("parameters",)):
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("run = ''", metadata=dict(tags=list(tags))),
            *map(nbformat.v4.new_code_cell, cells),
        ]
    )
    path.mkdir(exist_ok=True)
    for name in ("preflight", "train_sae", "drift", "report"):
        if not (path / f"{name}.ipynb").exists():
            shutil.copy(runner.job_notebook(name), path)
    nbformat.write(nb, path / "drift.ipynb")
    return path / "drift.ipynb"


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
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a kernel was started"))
    path = notebook(tmp_path / "jobs", cell)
    e = refused(
        ExitCode.BAD_PARAMETERS,
        runner.run_job,
        "drift",
        Drift(run=str(tmp_path / "run")),
        folder=path.parent,
    )
    assert "code cell 2" in e.given and not (tmp_path / "run").exists()


def test_a_notebook_without_its_parameters_cell_is_refused(tmp_path):
    refused(ExitCode.BAD_PARAMETERS, runner.refuse_exits, notebook(tmp_path / "jobs", tags=()))


def test_magics_and_a_name_that_only_looks_like_an_exit_are_no_exits(tmp_path):
    runner.refuse_exits(notebook(tmp_path / "jobs", "%time 1\n!ls", "x.exit = 3\nmy_exit()"))


def test_a_killed_kernel_can_be_tried_again_and_the_run_goes_on(asked, tmp_path):
    path = notebook(
        tmp_path / "jobs",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP - signal.SIGSTOP + 9)",
    ).parent
    by_hand(asked, "preflight")
    source = (path / "drift.ipynb").read_text().replace("os.kill(", "getattr(os, 'kill')(")
    (path / "drift.ipynb").write_text(source)
    e = refused(ExitCode.RETRY, runner.run_check, asked, folder=path)
    assert "died" in e.given
    done = []
    assert runner.run_check(asked, told=lambda job, r: done.append(job))[
        "verdict"
    ] == "FAIL" and done == ["preflight", "drift", "report"]


def test_a_cell_over_its_time_can_be_tried_again(tmp_path):
    path = notebook(tmp_path / "jobs", "import time\ntime.sleep(60)")
    assert (
        "--timeout"
        in refused(
            ExitCode.RETRY,
            runner.run_job,
            "drift",
            Drift(run=str(tmp_path / "run")),
            timeout=2,
            folder=path.parent,
        ).mend
    )


def test_a_notebook_that_ends_without_a_result_is_an_error(tmp_path):
    path = notebook(tmp_path / "jobs", "1 + 1")
    refused(
        ExitCode.ERROR,
        runner.run_job,
        "drift",
        Drift(run=str(tmp_path / "run")),
        folder=path.parent,
    )
    path = notebook(tmp_path / "jobs", "raise ValueError('no such thing')")
    assert (
        "no such thing"
        in refused(
            ExitCode.ERROR,
            runner.run_job,
            "drift",
            Drift(run=str(tmp_path / "run")),
            folder=path.parent,
        ).given
    )


def test_the_kernel_is_the_interpreter_that_runs_ipk_whatever_kernels_a_user_has(
    tmp_path, monkeypatch
):
    spec = tmp_path / "jupyter" / "kernels" / "interpkit-job"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps(dict(argv=["/bin/false"], display_name="no", language="python"))
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = notebook(
        tmp_path / "jobs",
        "import sys, json, pathlib, os\nfolder = pathlib.Path(run) / 'drift'\n(folder / 'result.json').write_text(json.dumps(dict(python=sys.executable)))",
    )
    assert os.path.realpath(
        runner.run_job("drift", Drift(run=str(tmp_path / "run")), folder=path.parent)["python"]
    ) == os.path.realpath(sys.executable)


def test_the_job_notebooks_work_under_bare_papermill_and_refuse_a_misspelt_parameter(
    asked, tmp_path
):
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    def bare(job, **kw):
        execute_notebook(
            runner.job_notebook(job),
            tmp_path / "out.ipynb",
            kw,
            kernel_name="python3",
            progress_bar=False,
        )

    bare("preflight", **asked.model_dump())
    with pytest.raises(PapermillExecutionError, match="did you mean 'run'"):
        bare("drift", run=asked.run, rnu="x")
    bare("drift", run=asked.run)
    with pytest.raises(PapermillExecutionError, match="FAIL, REVIEW"):
        bare("report", run=asked.run)
    assert jobs.result_of(asked.run, "report")["verdict"] == "FAIL"


# ---- the command line --------------------------------------------------------------------------------------------------------------


def line(p: Preflight) -> list[str]:
    return [
        "check",
        "--old",
        p.old,
        "--new",
        p.new,
        "--data",
        p.data,
        "--dictionary",
        p.dictionary,
        "--out",
        p.run,
    ]


def test_a_check_from_the_command_line_and_its_second_start(asked, capsys, monkeypatch):
    assert ipk([*line(asked), "--json"]) == 10
    out = capsys.readouterr()
    assert (
        json.loads(out.out.splitlines()[-1])["verdict"] == "FAIL"
        and "FAIL, REVIEW." in out.out.splitlines()[0]
    )
    assert [l.split()[0] for l in out.err.splitlines() if l.endswith("done")] == [
        "preflight",
        "drift",
        "report",
    ]
    monkeypatch.setattr(runner, "_execute", lambda *_: pytest.fail("a finished job was run again"))
    assert ipk(line(asked)) == 10
    assert ipk(["verify", asked.run]) == 10


def test_executed_notebooks_hold_no_customer(asked, tiny, parquet):
    rows = tiny.rows.assign(
        sequence_id=[f"PLANTED-{i}" for i in range(len(tiny.rows))], note="PLANTED"
    )
    p = asked.model_copy(update=dict(data=parquet(rows)))
    assert ipk(line(p)) == 10
    for f in Path(p.run).rglob("*"):
        if f.is_file() and f.suffix != ".parquet":
            assert b"PLANTED" not in f.read_bytes(), f


@pytest.mark.parametrize(
    "argv, code, said",
    [
        (["check", "--odl", "a"], 64, "--old"),
        (["chek"], 64, "check"),
        (["check", "--old", "a"], 64, "--new"),
        (["check", "--old", "a", "--new", "b", "--data", "c", "--seed", "x"], 64, "--seed"),
        (["check", "--old", "./a", "--new", "./b", "--data", "./c"], 65, "no file"),
        (["verify", "./nowhere"], 65, "no folder"),
        (["verify"], 64, "folder"),
        (
            ["check", "--old", "a", "--new", "b", "--data", "c", "--config", "none.toml"],
            64,
            "ipk init",
        ),
        (["train", "--release", "a", "--data", "b", "--out", "."], 64, "exists"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_in_one_error_with_its_code(
    argv, code, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert ipk(argv) == code
    err = capsys.readouterr().err
    assert (
        said in err
        and "Traceback" not in err
        and err.count("asked:") == 1
        and not list(tmp_path.iterdir())
    )


def test_broken_data_leaves_no_run_folder(asked, tiny, parquet, capsys):
    p = asked.model_copy(update=dict(data=parquet(tiny.rows.assign(x1=float("nan")))))
    assert ipk(line(p)) == 65 and not Path(p.run).exists() and "x1" in capsys.readouterr().err


def test_a_folder_that_holds_other_things_is_left_alone(asked, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert (
        "other things"
        in refused(
            ExitCode.BAD_PARAMETERS,
            runner.run_check,
            asked.model_copy(update=dict(run=str(tmp_path / "mine"))),
        ).given
    )
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_training_that_fails_leaves_nothing_and_training_that_ends_leaves_a_dictionary(
    tiny, tmp_path, monkeypatch, parquet
):
    from interpkit.dictionary.dictionary import Dictionary

    monkeypatch.chdir(tmp_path)
    assert (
        ipk(["train", "--release", tiny.v1, "--data", parquet(tiny.rows.head(40)), "--out", "few"])
        == 65
    )
    assert not (tmp_path / "few").exists() and not (tmp_path / "runs" / "train-few").exists()
    assert (
        ipk(
            [
                "train",
                "--release",
                tiny.v1,
                "--data",
                tiny.data,
                "--out",
                "d",
                "--features",
                "32",
                "--k",
                "8",
                "--tokens",
                "20000",
            ]
        )
        == 0
    )
    made = Dictionary.load(tmp_path / "d")
    assert made.n_features == 32 and made.validity["fingerprint"] == tiny.old.fingerprint


def test_two_commands_on_one_folder_do_not_work_against_each_other(asked):
    with runner.locked(Path(asked.run)):
        assert refused(ExitCode.RETRY, runner.run_check, asked)
    assert (Path(asked.run) / ".lock").exists()


def test_a_policy_is_written_read_and_in_force(asked, tiny, tmp_path, capsys):
    toml = tmp_path / "check.toml"
    assert (
        ipk(
            [
                "init",
                "--new",
                tiny.v2,
                "--data",
                tiny.data,
                "--old",
                tiny.v1,
                "--dictionary",
                tiny.dictionary_folder,
                "--out",
                str(toml),
            ]
        )
        == 0
    )
    assert (
        Policy.read(toml).own.splice_error is not None
        and ipk(["init", "--new", tiny.v2, "--data", tiny.data, "--out", str(toml)]) == 64
    )
    toml.write_text(
        toml.read_text().replace(
            "[limits.effect]  # how much of the explanations may change, measured by ablation\nlimit = 0.25",
            "[limits.effect]\nlimit = 0.95",
        )
    )
    assert ipk([*line(asked), "--config", str(toml), "--watch", "unit 15"]) in (0, 10, 11)
    plan = read_json(Path(asked.run) / "preregistration.json")
    assert [s["limit"] for s in plan["statements"] if s["name"] == "effect"][0] == 0.95 and any(
        s["name"] == "effect: unit 15" for s in plan["statements"]
    )


def test_notebooks_are_listed_and_copied(tmp_path, capsys):
    assert ipk(["jobs"]) == 0 and "train_data" in capsys.readouterr().out
    assert ipk(["jobs", "--copy", str(tmp_path / "mine")]) == 0 and {
        p.stem for p in (tmp_path / "mine").glob("*.ipynb")
    } == set(JOBS)
    assert ipk(["jobs", "--copy", str(tmp_path / "mine")]) == 64


def test_the_doctor_finds_a_package_of_the_same_name(tmp_path, monkeypatch, capsys):
    from interpkit.gate import cli

    assert cli.clash() == ""
    info = tmp_path / "interpkit-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: interpkit\nVersion: 0.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "pip uninstall -y interpkit" in cli.clash()
    monkeypatch.setattr(cli, "_kernel", lambda: "")
    assert ipk(["doctor"]) == 1 and "MEND" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_ten_times_at_random_moments_a_check_ends_with_the_same_bytes(asked, tmp_path):
    by_hand(asked.model_copy(update=dict(run=str(tmp_path / "whole"))))
    rng, command = random.Random(0), [sys.executable, "-m", "interpkit.gate.cli", *line(asked)]
    for _ in range(10):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.5, 12))
        with_kernel = rng.random() < 0.5
        try:
            os.killpg(process.pid, signal.SIGKILL) if with_kernel else process.kill()
        except ProcessLookupError:
            pass
        process.wait()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 10
    assert (Path(asked.run) / "verdict.json").read_bytes() == (
        tmp_path / "whole" / "verdict.json"
    ).read_bytes()
    assert not [p for p in Path(asked.run).rglob("*.aside")]


@pytest.mark.slow
@pytest.mark.parametrize("wiring", ["sae", "clt"])
def test_killed_again_and_again_a_training_job_ends_with_the_same_weights(
    tiny, tmp_path, monkeypatch, wiring
):
    monkeypatch.chdir(tmp_path)
    how = [] if wiring == "sae" else ["--wiring", "clt", "--site", "0:in", "--target", "0:out"]
    command = lambda out: [
        sys.executable,
        "-m",
        "interpkit.gate.cli",
        "train",
        "--release",
        tiny.v1,
        "--data",
        tiny.data,
        "--out",
        out,
        "--features",
        "32",
        "--k",
        "8",
        "--tokens",
        "3000000",
        *how,
    ]
    start = time.monotonic()
    assert subprocess.run(command("whole"), stdout=subprocess.DEVNULL).returncode == 0
    took, rng, cut = time.monotonic() - start, random.Random(0), []
    for _ in range(8):
        process = subprocess.Popen(
            command("cut"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(rng.uniform(0.4, 0.9) * took)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        cut += [
            read_json(p)["taken"]
            for p in tmp_path.glob("runs/*/*/store-*/training-0/checkpoint/state.json")
        ]
        if (tmp_path / "cut").exists():
            break
    assert (
        subprocess.run(command("cut"), stdout=subprocess.DEVNULL).returncode == 0
        or (tmp_path / "cut").exists()
    )
    assert cut and sorted(cut) == cut  # killed in the middle, and each time further on
    for name in ("weights.safetensors", "dictionary.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (
            name
        )
