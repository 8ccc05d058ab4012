"One place for package metadata, and nothing that holds on one machine only."

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from house import PACKAGE, ROOT, name, python, settings
from packaging.requirements import Requirement
from setuptools import find_packages


def plain(requirement: str) -> str:
    "The name of a requirement."
    return re.split(r"[<>=!~\[;]", requirement)[0].lower().replace("_", "-")


def lines(file: str) -> list[str]:
    return (ROOT / file).read_text(encoding="utf-8").splitlines()


# settings.ini, setup.py and what is installed


def test_setup_says_what_settings_say():
    told = settings()
    shown = python("setup.py", "--name", "--version").split()[-2:]
    assert shown == [told["lib_name"], told["version"]]


def test_the_installation_is_of_these_settings():
    told, installed = settings(), metadata.metadata("interpkit-notebooks")
    assert installed["Name"] == told["lib_name"]
    assert installed["Version"] == told["version"]
    assert installed["Summary"] == told["description"]
    assert installed["Requires-Python"] == f">={told['min_python']}"
    assert "Apache-2.0" in (installed["License"], installed["License-Expression"])


def test_version_is_one():
    version = settings()["version"]
    text = (PACKAGE / "__init__.py").read_text()
    assert re.search(r'^__version__ = "(.+)"', text, re.M)[1] == version
    changes = "\n".join(lines("CHANGELOG.md"))
    assert re.search(r"^## \[(\d.+?)\]", changes, re.M)[1] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


def installed_requirements(extra: str) -> set[str]:
    "Names of what the installed package asks for, with an extra or ('') without."
    names = set()
    for requirement in metadata.requires("interpkit-notebooks"):
        asked_by = re.search(r'extra == "(\w+)"', requirement)
        if (asked_by[1] if asked_by else "") == extra:
            names.add(plain(requirement))
    return names


def test_requirements_and_extras_are_those_of_settings():
    told = settings()
    extras = {k.removesuffix("_requirements") for k in told if k.endswith("_requirements")}
    provided = metadata.metadata("interpkit-notebooks").get_all("Provides-Extra")
    assert set(provided) == {*extras, "all"}
    assert installed_requirements("") == set(map(plain, told["requirements"].split()))
    asked = {e: set(map(plain, told[f"{e}_requirements"].split())) for e in extras}
    for extra in extras:
        assert installed_requirements(extra) == asked[extra], extra
    assert installed_requirements("all") == set().union(*asked.values())


def test_console_script_leads_to_a_function():
    script, place = settings()["console_scripts"].split("=")
    module, function = place.split(":")
    assert script == "ipk"
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert re.search(rf"^def {function}\(", source, re.M)
    scripts = metadata.entry_points(group="console_scripts", name="ipk")
    assert [s.value for s in scripts] == [place]


def test_pyproject_keeps_what_nbdev_needs():
    nbdev, told = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"], settings()
    assert nbdev["allowed_cell_metadata_keys"] == ["tags"]  # else papermill's tag is deleted
    assert nbdev["strip_libs"] == ["interpkit"]  # else names in backticks lead nowhere
    assert nbdev["custom_sidebar"] is True  # numbered folders break the generated one
    assert nbdev["put_version_in_init"] is False
    for key in ("lib_path", "nbs_path", "doc_path"):
        assert nbdev[key] == told[key]


def test_every_subpackage_is_packed():
    packed = set(find_packages(str(ROOT), include=["interpkit", "interpkit.*"]))
    sources = [p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts]
    assert packed == {".".join(p.parent.relative_to(ROOT).parts) for p in sources}
    manifest = (ROOT / "MANIFEST.in").read_text()
    assert "settings.ini" in manifest
    assert "nbs/jobs" in manifest


def test_every_direct_requirement_is_pinned_and_fits():
    pins = {}
    for line in lines("constraints.txt"):
        package, _, version = line.partition("==")
        pins[plain(package)] = version
    asked = [
        r for k, text in settings().items() if k.endswith("requirements") for r in text.split()
    ]
    assert len(asked) > 20
    for requirement in map(Requirement, asked):
        pin = pins.get(plain(requirement.name))
        assert pin and requirement.specifier.contains(pin), str(requirement)


# The repository


def test_importing_takes_no_torch():
    heavy = {"torch", "jax", "sae_lens", "transformer_lens", "transformers", "pandas", "numpy"}
    code = f"import interpkit, sys; print(sorted({heavy!r} & set(sys.modules)))"
    assert python("-c", code).strip() == "[]"


def test_makefile_has_its_targets_and_their_scripts():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.M))
    wanted = {"demo", "test", "quick", "lab", "docs", "bench", "export", "style", "lessons"}
    assert wanted | {"portable", "slow"} <= targets
    scripts = re.findall(r"(?:bash|python) ((?:tests|tools)/[\w./]+)", text)
    assert scripts
    for script in scripts:
        assert (ROOT / script).exists(), script


def test_workflow_runs_what_continuous_integration_runs_here():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["test"]["steps"]]
    assert any(".ci/run" in command for command in commands)


def test_licence_is_apache():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert settings()["license"] == "apache2"


def listed() -> list[Path]:
    "Files that belong to the repository."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.skip("no git checkout")
    return [ROOT / n for n in run.stdout.split("\0") if n and (ROOT / n).is_file()]


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.<}/])/(?:home|root|Users|work|workspace|mnt|opt)/" + r"\w")
    named = []
    for path in listed():
        if path.suffix in (".png", ".parquet", ".safetensors") or path == Path(__file__):
            continue
        match = place.search(path.read_text(encoding="utf-8", errors="replace"))
        named += [f"{name(path)}: {match[0]}"] if match else []
    assert named == []
