"""Run lessons and tutorials, and keep in them what they show: `make lessons`.

Each notebook runs twice, in fresh kernels. What both runs show alike is stored; what differs (a
time, a temporary folder) is not, and is named. Nothing in the tests compares these outputs: they
are for people who read notebooks on the web.
"""

import argparse
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "docs"))
from floors import FOLDERS, NBS  # noqa: E402

LARGEST = 100_000  # characters of one output


def lessons() -> list[Path]:
    "Every notebook that people read: the front page, tutorials and floors."
    read = [f for f in FOLDERS if f.floor or f.name == "tutorials"]
    return [NBS / "index.ipynb", *(p for f in read for p in f.notebooks)]


def executed(notebook: Path):
    "A copy of the notebook after a run in a fresh kernel."
    nb = nbformat.read(notebook, 4)
    for cell in nb.cells:
        if cell.cell_type == "code" and "#| eval: false" in cell.source:
            cell.cell_type = "raw"  # shown, not run
    place = dict(metadata=dict(path=str(notebook.parent)))
    NotebookClient(nb, timeout=900, kernel_name="python3", resources=place).execute()
    return nb


def shown(cell) -> list[dict]:
    "What a cell shows a reader: no warnings, no counters, no places on this machine."
    outputs = []
    for output in cell.get("outputs", []):
        text = str(output)
        local = str(ROOT) in text or tempfile.gettempdir() in text
        if output.get("name") == "stderr" or local or len(text) > LARGEST:
            continue
        if output.output_type == "execute_result":
            output.execution_count = None
        if "metadata" in output:
            output.metadata = {}
        data = output.get("data", {})
        if len(data) > 1 and re.search(r" at 0x[0-9a-f]+>", data.get("text/plain", "")):
            del data["text/plain"]  # an address; the richer form stays
        outputs.append(output)
    return outputs


def refresh(notebook: Path) -> list[str]:
    "Store what two runs of a notebook show alike; the cells whose outputs differ."
    first, second, kept = executed(notebook), executed(notebook), nbformat.read(notebook, 4)
    differ = []
    for cell, a, b in zip(kept.cells, first.cells, second.cells, strict=True):
        if cell.cell_type != "code":
            continue
        outputs = shown(a)
        if outputs != shown(b):
            differ.append(cell.id)
            outputs = []
        cell.outputs = outputs
    nbformat.write(kept, notebook)
    return differ


def told_of(notebook: Path) -> bool:
    "Refresh a notebook and say what came of it; whether it failed."
    name = notebook.relative_to(ROOT).as_posix()
    try:
        differ = refresh(notebook)
    except CellExecutionError as error:
        print(f"{name}: {error}", flush=True)
        return True
    print(f"{name}: differs from run to run in {', '.join(differ)}" if differ else name, flush=True)
    return False


def main():
    "Refresh all lessons, or those that are named."
    parser = argparse.ArgumentParser(description="Store what lessons and tutorials show.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all")
    parser.add_argument("--workers", type=int, default=2)
    told = parser.parse_args()
    os.environ["IPK_PROGRESS"] = os.devnull  # progress bars are for a person who waits
    os.environ["SOURCE_DATE_EPOCH"] = "0"  # pictures without the hour at which they were drawn
    settings = Path(tempfile.mkdtemp()) / "matplotlibrc"
    settings.write_text("svg.hashsalt: interpkit\n")  # and with the same names inside
    os.environ["MATPLOTLIBRC"] = str(settings)
    notebooks = [p.resolve() for p in told.notebooks] or lessons()
    with ThreadPoolExecutor(told.workers) as pool:
        failed = [
            p for p, fails in zip(notebooks, pool.map(told_of, notebooks), strict=True) if fails
        ]
    if failed:
        sys.exit(f"left as they were: {', '.join(p.relative_to(ROOT).as_posix() for p in failed)}")


if __name__ == "__main__":
    main()
