"""The one list of floors. Folders with a number are floors, from the ground up: each imports only from floors above it in this list.

`python tools/docs/floors.py` writes what follows from it: the sidebar of a quarto site, and README.md from index.ipynb. A test compares both.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NBS = ROOT / "nbs"


@dataclass(frozen=True)
class Folder:
    "One folder of notebooks: a floor, or what stands around the floors."

    name: str
    title: str
    ring: str  # whose words its pages may use without a link; see words.md
    about: str  # one sentence, for a reader who decides whether to go in
    order: tuple[str, ...] = ()  # notebooks that are read in another order than that of their names

    @property
    def floor(self) -> bool:
        return self.name[0].isdigit()

    @property
    def package(self) -> str:
        return re.sub(r"^\d+_", "", self.name)

    @property
    def heading(self) -> str:
        return f"{int(self.name[:2])} {self.title}" if self.floor else self.title

    @property
    def notebooks(self) -> list[Path]:
        place = lambda p: (
            self.order.index(p.stem) if p.stem in self.order else len(self.order),
            p.name,
        )
        return sorted((NBS / self.name).glob("[!.]*.ipynb"), key=place)


FOLDERS = (  # in the order in which they are read
    Folder(
        "tutorials",
        "Tutorials",
        "README",
        "What a person does, from start to end. Each tutorial ends by testing its own story.",
    ),
    Folder(
        "jobs",
        "Jobs",
        "README",
        "The notebooks that run on every model release, one a stage of a check.",
        ("preflight", "train_sae", "train_clt", "drift", "adapt", "profile", "calibrate", "report"),
    ),
    Folder(
        "00_core",
        "Core",
        "lab",
        "Errors and exit codes, folders that are whole or absent, shares and their intervals. No model, no torch.",
    ),
    Folder(
        "01_model",
        "Model",
        "lab",
        "What a release is: where it can be read, what goes into it, what it decides, and its fingerprint.",
    ),
    Folder(
        "02_data",
        "Data",
        "lab",
        "Check sets, activations on disk, and a world of transactions whose truth is known.",
    ),
    Folder(
        "03_sparse",
        "Sparse arithmetic",
        "lab",
        "How codes that are mostly zero are found, held and multiplied fast. Skip on first reading.",
    ),
    Folder(
        "04_dictionary",
        "Dictionary",
        "lab",
        "What a dictionary is, how it is kept, what it is worth, and which release it belongs to.",
    ),
    Folder(
        "05_training",
        "Training",
        "lab",
        "From a release and rows of data to a dictionary: recipe, gradients, trainer, finish.",
    ),
    Folder(
        "06_bridges",
        "Bridges",
        "lab",
        "The same dictionaries in SAELens, circuit-tracer and JAX, there and back.",
    ),
    Folder(
        "07_explain",
        "Explain",
        "lab",
        "What each feature did to a decision: attribution with its error node, and ablation.",
    ),
    Folder(
        "08_drift",
        "Drift",
        "validation",
        "Statements, families of evidence and the verdict: do the old explanations hold?",
    ),
    Folder(
        "09_gate",
        "Gate",
        "validation",
        "A whole release check: parameters, jobs, evidence, report, and the command line.",
    ),
    Folder(
        "benchmarks",
        "Benchmarks",
        "validation",
        "What interpkit promises in numbers, measured; what does not hold stays in the table.",
    ),
)
FLOORS = tuple(f for f in FOLDERS if f.floor)
BEFORE, AFTER = (
    ("index.ipynb", "words.md"),
    ("formats.md",),
)  # single pages before and after the folders


def cells(notebook: Path) -> list[dict]:
    "The cells of a notebook, each with its source as one text."
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [c | dict(source="".join(c["source"])) for c in found]


def title(page: Path) -> tuple[str, str]:
    "Title and subtitle of a notebook or a Markdown page."
    text = cells(page)[0]["source"] if page.suffix == ".ipynb" else page.read_text(encoding="utf-8")
    found = re.match(r"#\s+(.+?)\s*(?:\{.*\})?\n*(?:\n>\s+(.+)|$|\n)", text)
    if not found:
        raise ValueError(f"{page.name} has to begin with '# Title', then '> what it is about'")
    return found[1], found[2] or ""


def sidebar() -> str:
    "The sidebar of the quarto site, as YAML."
    pages = lambda names: [f"      - {n}\n" for n in names if (NBS / n).exists()]
    out = [
        "# Written by tools/docs/floors.py from its list of floors.\n",
        "website:\n",
        "  sidebar:\n",
        "    contents:\n",
        *pages(BEFORE),
    ]
    for f in FOLDERS:
        if not f.notebooks:
            continue
        out += [
            f'      - section: "{f.heading}"\n',
            "        contents:\n",
            *[f"          - {f.name}/{p.name}\n" for p in f.notebooks],
        ]
    return "".join([*out, *pages(AFTER)])


LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s]+)(\))|(src=\")(?![a-z]+:|/)([^\"]+)(\")")


def readme() -> str:
    "index.ipynb as Markdown for the top of the repository: text as it is, code as blocks, links as seen from there; hidden cells are left out."
    parts = []
    for c in cells(NBS / "index.ipynb"):
        kept = "\n".join(l for l in c["source"].splitlines() if not re.match(r"#\|", l)).strip()
        if re.search(r"^#\|\s*hide\s*$", c["source"], re.M) or not kept:
            continue
        parts.append(
            f"```python\n{kept}\n```" if c["cell_type"] == "code" else LINK.sub(_from_root, kept)
        )
    return (
        "<!-- Written by tools/docs/floors.py from nbs/index.ipynb. -->\n\n"
        + "\n\n".join(parts)
        + "\n"
    )


def _from_root(found: re.Match) -> str:
    before, target, after = [x for x in found.groups() if x is not None]
    return before + (target[3:] if target.startswith("../") else f"nbs/{target}") + after


def write() -> list[str]:
    "Write sidebar and README; the names of what changed."
    made = {NBS / "sidebar.yml": sidebar()} | (
        {ROOT / "README.md": readme()} if (NBS / "index.ipynb").exists() else {}
    )
    changed = [
        p for p, text in made.items() if not p.exists() or p.read_text(encoding="utf-8") != text
    ]
    for p in changed:
        p.write_text(made[p], encoding="utf-8")
    return [p.relative_to(ROOT).as_posix() for p in changed]


if __name__ == "__main__":
    print(
        "wrote " + ", ".join(found) if (found := write()) else "sidebar and README are up to date"
    )
