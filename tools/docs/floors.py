"""The one list of floors, in the order in which they are read and in which they depend.

A folder with a number is a floor: it imports only from floors before it in this list.
`python tools/docs/floors.py` writes what follows from the list: the sidebar of a quarto site,
README.md from index.ipynb, and the page of what benchmarks missed. Tests compare all three.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import not_held

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
        return re.sub(r"^\d+[a-z]?_", "", self.name)

    @property
    def heading(self) -> str:
        number = self.name.partition("_")[0].lstrip("0") or "0"
        return f"{number} {self.title}" if self.floor else self.title

    @property
    def notebooks(self) -> list[Path]:
        return sorted((NBS / self.name).glob("[!.]*.ipynb"), key=self._place)

    def _place(self, notebook: Path) -> tuple[int, str]:
        named = notebook.stem in self.order
        return (self.order.index(notebook.stem) if named else len(self.order), notebook.name)


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
        "The notebooks that run on every model release, one for each stage of a check.",
        ("preflight", "train_sae", "train_clt", "drift", "adapt", "report", "profile", "calibrate"),
    ),
    Folder(
        "00_core",
        "Core",
        "lab",
        "Errors and exit codes, folders that are whole or absent, shares and their intervals.",
    ),
    Folder(
        "01_model",
        "Model",
        "lab",
        "What a release is: where it can be read, what goes in, what it decides, its fingerprint.",
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
        "How codes that are mostly zero are found, held and multiplied fast. "
        "Skip on first reading.",
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
        "08a_adapt",
        "Adapt",
        "validation",
        "A dictionary follows its model to the next release, and its features stay who they are.",
    ),
    Folder(
        "08b_serve",
        "Serve",
        "serving",
        "Interpretation in production: under a budget, and with a trust label on every answer.",
    ),
    Folder(
        "09_gate",
        "Gate",
        "validation",
        "A whole release check: parameters, jobs, evidence, report, and the command line.",
    ),
    Folder(
        "10_lab",
        "Lab",
        "lab",
        "Boards for JupyterLab: features to browse, a circuit to move, a verdict to follow.",
    ),
    Folder(
        "benchmarks",
        "Benchmarks",
        "validation",
        "What interpkit promises in numbers, measured; what does not hold stays in the table.",
    ),
)
FLOORS = tuple(f for f in FOLDERS if f.floor)
BEFORE = ("index.ipynb", "guide.md", "threat_model.md", "words.md")  # pages before the folders
AFTER = ("gallery.md", "instead_of.md", "not_for.md", "not_held.md", "formats.md")  # and after them


def cells(notebook: Path) -> list[dict]:
    "The cells of a notebook, each with its source as one text."
    kept = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell | dict(source="".join(cell["source"])) for cell in kept]


def title(page: Path) -> tuple[str, str]:
    "Title and subtitle of a notebook or a Markdown page."
    if page.suffix == ".ipynb":
        text = cells(page)[0]["source"]
    else:
        text = page.read_text(encoding="utf-8")
    head = re.match(r"#\s+(.+?)\s*(?:\{.*\})?\n*(?:\n>\s+(.+)|$|\n)", text)
    if not head:
        raise ValueError(f"{page.name} has to begin with '# Title', then '> what it is about'")
    return head[1], head[2] or ""


# The sidebar of a quarto site


def sidebar() -> str:
    "The sidebar as YAML."
    lines = [
        "# Written by tools/docs/floors.py from its list of floors.",
        "website:",
        "  sidebar:",
        "    contents:",
        *(f"      - {page}" for page in BEFORE),
    ]
    for folder in FOLDERS:
        lines += [f'      - section: "{folder.heading}"', "        contents:"]
        lines += [f"          - {folder.name}/{p.name}" for p in folder.notebooks]
    lines += [f"      - {page}" for page in AFTER]
    return "\n".join(lines) + "\n"


# README.md

LINK = re.compile(r"(\]\()(?![a-z]+:|#|/)([^)\s]+)(\))|(src(?:set)?=\")(?![a-z]+:|/)([^\"]+)(\")")


def readme() -> str:
    "index.ipynb as Markdown for the top of the repository: text, code and what the code shows."
    parts = ["<!-- Written by tools/docs/floors.py from nbs/index.ipynb. -->"]
    for cell in cells(NBS / "index.ipynb"):
        parts += _of_readme(cell)
    return "\n\n".join(parts) + "\n"


def _of_readme(cell: dict) -> list[str]:
    "What a cell adds to README.md; nothing where it is hidden or empty."
    lines = cell["source"].splitlines()
    kept = "\n".join(line for line in lines if not line.startswith("#|")).strip()
    if re.search(r"^#\|\s*hide\s*$", cell["source"], re.M) or not kept:
        return []
    if cell["cell_type"] != "code":
        return [LINK.sub(_from_root, kept)]
    shown = [text for output in cell["outputs"] if (text := printed(output))]
    return [f"```python\n{kept}\n```", *(f"```\n{text}\n```" for text in shown)]


def printed(output: dict) -> str:
    "An output of a cell as plain text, '' for errors."
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    return "".join(text).rstrip()


def _from_root(link: re.Match) -> str:
    before, target, after = (part for part in link.groups() if part is not None)
    return before + (target[3:] if target.startswith("../") else f"nbs/{target}") + after


# Writing both


def write() -> list[str]:
    "Write sidebar, README and the page of what did not hold; the names of what changed."
    texts = {
        NBS / "sidebar.yml": sidebar(),
        ROOT / "README.md": readme(),
        not_held.PAGE: not_held.page(),
    }
    changed = []
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path.relative_to(ROOT).as_posix())
    return changed


if __name__ == "__main__":
    changed = write()
    print(
        f"wrote {', '.join(changed)}"
        if changed
        else "sidebar, README and what did not hold are up to date"
    )
