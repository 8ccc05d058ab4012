"The wheel alone, in a venv that sees the dependencies and not the checkout."

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The built wheel; from a copy, so that the checkout stays as it is."
    at = tmp_path_factory.mktemp("wheel")
    tracked = (
        subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, tracked):
        if name.startswith(("interpkit/", "nbs/jobs/")) or "/" not in name:
            if not (ROOT / name).is_file():
                continue
            (at / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, at / "src" / name)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(at),
            str(at / "src"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(at.glob("*.whl"))


@pytest.fixture(scope="module")
def venv(wheel, tmp_path_factory):
    "A fresh venv with the wheel alone; dependencies are seen through a path, the checkout is not."
    at = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(at)], check=True)
    site = next(at.glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as z:
        z.extractall(site)
    (site / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # a plain path: the editable install of the checkout is not followed
    return at / "bin" / "python"


def python(venv, *args, cwd, **kw):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JUPYTER"))} | dict(
        HF_HUB_OFFLINE="1", PATH=f"{venv.parent}:/usr/bin:/bin"
    )
    return subprocess.run(
        [venv, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, **kw
    )


def test_the_wheel_holds_package_and_job_notebooks_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
    tops = {n.split("/")[0] for n in names}
    tops.remove("interpkit")
    assert len(tops) == 1 and tops.pop().startswith("interpkit_notebooks-")
    names_of_jobs = ("preflight", "train_sae", "train_clt", "drift", "report")
    jobs = {f"interpkit/jobs/{j}.ipynb" for j in names_of_jobs}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "interpkit").rglob("*.py")}
    assert jobs <= set(names)
    assert sources <= set(names)
    static = (ROOT / "interpkit" / "lab" / "static").iterdir()
    assert {p.relative_to(ROOT).as_posix() for p in static} <= set(names)
    assert "interpkit/py.typed" in names
    assert wheel.stat().st_size < 2**20


def test_the_installed_wheel_is_what_is_imported(venv, tmp_path):
    done = python(
        venv,
        "-c",
        "import interpkit; print(interpkit.__file__, interpkit.__version__)",
        cwd=tmp_path,
    )
    assert str(venv.parent.parent) in done.stdout, done.stdout + done.stderr


def test_a_check_runs_from_the_wheel_outside_of_the_checkout(venv, tiny, tmp_path):
    releases = ["--old", tiny.v1, "--new", tiny.v2]
    given = ["--data", tiny.data, "--dictionary", tiny.dictionary_folder]
    done = python(venv, "-m", "interpkit.gate.cli", "check", *releases, *given, cwd=tmp_path)
    assert done.returncode == 10, done.stdout + done.stderr
    assert (tmp_path / "runs" / "v1--v2" / "report.html").exists()
    assert "FAIL, REVIEW" in done.stdout
    done = python(venv, "-m", "interpkit.gate.cli", "jobs", cwd=tmp_path)
    assert str(venv.parent.parent) in done.stdout


def test_importing_the_package_takes_nothing_heavy(venv, tmp_path):
    heavy = {"torch", "jax", "sae_lens", "transformer_lens", "transformers", "pandas"}
    code = f"import sys, interpkit; print({heavy!r} & set(sys.modules))"
    done = python(venv, "-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
