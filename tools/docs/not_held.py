"The page of every bar that a benchmark missed, read from the files that benchmarks wrote."

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "nbs" / "not_held.md"
RESULTS = ROOT / "nbs" / "benchmarks" / "results"
HEAD = """# What we could not beat

> Every bar that a benchmark set and missed, read from the files that it wrote.

A benchmark says beforehand what it has to reach. What it missed stays in its file, and all
of that is listed here by the command that writes the sidebar, so nothing can be forgotten.
What *holds* is in the benchmarks.
"""


def notebook(name: str) -> str:
    "The notebook that writes a file: of 'sae_training_prose' the one of 'sae_training'."
    folder = RESULTS.parent
    while not (folder / f"{name}.ipynb").exists() and "_" in name:
        name = name.rpartition("_")[0]
    return name


def figure(x) -> str:
    "A measurement in three digits that count, or as it is told."
    return f"{x:.3g}" if isinstance(x, float) else str(x)


def section(file: Path) -> list[str]:
    "The lines of one file; none where all its bars hold."
    result = json.loads(file.read_text(encoding="utf-8"))
    missed = [bar for bar in result["bars"] if not bar["holds"]]
    if not missed:
        return []
    of_all = f"{len(missed)} of {len(result['bars'])} bars missed, {result['date']}"
    lines = [f"## [{result['name']}](benchmarks/{notebook(result['name'])}.ipynb)", "", of_all, ""]
    lines += ["| what | asked | measured |", "|---|---|---|"]
    for bar in missed:
        cells = (str(bar["what"]), str(bar["goal"]), figure(bar["measured"]))
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return [*lines, ""]


def page() -> str:
    "The page as Markdown."
    lines = [line for file in sorted(RESULTS.glob("*.json")) for line in section(file)]
    return HEAD + "\n" + "\n".join(lines)
