"What the tests of the house share: where things lie, and what settings.ini and the notebooks say."

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE = ROOT / "nbs", ROOT / "interpkit"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def name(path: Path) -> str:
    "A path as it is written from the root of the repository."
    return path.relative_to(ROOT).as_posix()


def settings() -> dict[str, str]:
    "What settings.ini says."
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def python(*args: str) -> str:
    "What a fresh interpreter prints."
    run = subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
