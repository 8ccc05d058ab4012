"""How the house is written, in one table: `make style`. Exits with 1 where a bar does not hold.

Every figure is read from the sources alone: notebooks, the package that they export, tests and
tools. Limits are those of CONTRIBUTING.md; `LONG` names the functions that may be longer, and why.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).resolve().parents[1]
NBS, PACKAGE = ROOT / "nbs", ROOT / "interpkit"
sys.path.insert(0, str(ROOT / "tools" / "docs"))
from floors import FLOORS, FOLDERS, cells  # noqa: E402

WIDTH, LONGEST = 100, 40
TYPED = ("core", "drift", "gate")  # floors that mypy checks
LONG = {  # functions that may pass LONGEST lines, and why
    "training.train.train_dictionary": "17 documented parameters; one call per room below them",
    "drift.plan.plan_check": "17 documented parameters, and one line per field of the plan",
}


@dataclass(frozen=True)
class Bar:
    "One line of the table."

    what: str
    goal: str
    before: str  # version 0.1.0 by this script; lengths after formatting it at WIDTH
    value: float
    holds: bool
    where: tuple[str, ...] = ()  # the places that break it

    @property
    def shown(self) -> str:
        return f"{self.value:.0f}" if self.value == int(self.value) else f"{self.value:.1f}"


# What is read


@cache
def notebooks() -> list[Path]:
    "All notebooks of the house."
    return sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@cache
def code_cells(notebook: Path) -> list[dict]:
    "The code cells of a notebook."
    return [c for c in cells(notebook) if c["cell_type"] == "code"]


def lessons() -> list[Path]:
    "Notebooks that are read as lessons: those of floors, and tutorials."
    return [p for f in FOLDERS if f.floor or f.name == "tutorials" for p in f.notebooks]


@cache
def modules() -> dict[str, ast.Module]:
    "Syntax trees of the package, by dotted name without `interpkit.`."
    files = sorted(p for p in PACKAGE.glob("*/*.py") if p.stem != "__init__")
    return {f"{p.parent.name}.{p.stem}": ast.parse(p.read_text(encoding="utf-8")) for p in files}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Lines and functions


def scripts() -> list[Path]:
    "Python files that people write."
    return [*sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]


def long_lines() -> list[str]:
    "Lines of code over WIDTH columns."
    texts = [(named(p), p.read_text(encoding="utf-8")) for p in scripts()]
    for notebook in notebooks():
        texts += [(f"{named(notebook)} {c['id']}", c["source"]) for c in code_cells(notebook)]
    return [name for name, text in texts for line in text.splitlines() if len(line) > WIDTH]


def nodes_per_line() -> float:
    "Syntax nodes per line that holds code, over the whole package."
    nodes = lines = 0
    for tree in modules().values():
        nodes += sum(1 for _ in ast.walk(tree))
    for p in PACKAGE.glob("*/*.py"):
        text = p.read_text(encoding="utf-8").splitlines()
        lines += sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text)
    return nodes / lines


def functions() -> Iterator[tuple[str, int]]:
    "Every function of the package with its length in lines."
    for module, tree in modules().items():
        for n in ast.walk(tree):
            if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module}.{n.name}", n.end_lineno - n.lineno + 1


# Cells


def is_exported(cell: dict) -> bool:
    return bool(re.match(r"#\|\s*export", cell["source"]))


def is_import(statement: ast.stmt) -> bool:
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def body(cell: dict) -> list[ast.stmt]:
    "Statements of a cell, without magics."
    kept = [line for line in cell["source"].splitlines() if not re.match(r"\s*[%!]", line)]
    return ast.parse("\n".join(kept)).body


def defining(notebook: Path) -> list[tuple[dict, bool]]:
    "Exported cells that define something, each with whether a cell shows it before the next."
    code, found = code_cells(notebook), []
    for i, cell in enumerate(code):
        if not is_exported(cell) or all(map(is_import, body(cell))):
            continue
        after = code[i + 1] if i + 1 < len(code) else None
        shown = after is not None and not is_exported(after) and not _is_plumbing(after)
        found.append((cell, shown))
    return found


def _is_plumbing(cell: dict) -> bool:
    "Whether a cell runs nothing that a reader would look at."
    if re.search(r"^#\|\s*(hide|eval:\s*false)", cell["source"], re.M):
        return True
    return all(map(is_import, body(cell)))


def definitions(cell: dict) -> int:
    return sum(isinstance(n, (ast.FunctionDef, ast.ClassDef)) for n in body(cell))


def showing(notebook: Path) -> list[dict]:
    "Cells that run something to look at: neither exported, nor imports, nor hidden."
    return [c for c in code_cells(notebook) if not is_exported(c) and not _is_plumbing(c)]


# Imports


def imports(module: str) -> Iterator[tuple[str, str, bool]]:
    "(module, name, whether inside a function) of what a module takes from the package."
    package = ("interpkit", *module.split("."))

    def walk(node: ast.AST, lazy: bool):
        for n in ast.iter_child_nodes(node):
            for base, name in _taken(n, package):
                if base.split(".")[0] == "interpkit":
                    yield base.removeprefix("interpkit").lstrip("."), name, lazy
            yield from walk(n, lazy or isinstance(n, (ast.FunctionDef, ast.Lambda)))

    yield from walk(modules()[module], False)


def _taken(n: ast.AST, package: tuple[str, ...]) -> list[tuple[str, str]]:
    "(module, name) of what one statement imports; the name is empty for a whole module."
    if isinstance(n, ast.Import):
        return [(alias.name, "") for alias in n.names]
    if isinstance(n, ast.ImportFrom):
        parts = [*package[: -n.level], *filter(None, [n.module])] if n.level else [n.module]
        return [(".".join(parts), alias.name) for alias in n.names]
    if isinstance(n, ast.Call) and ast.unparse(n.func).endswith("import_module"):
        return [(a.value, "") for a in n.args[:1] if isinstance(a, ast.Constant)]
    return []


def graph() -> dict[str, set[str]]:
    "Which modules a module takes something from, also inside functions."
    known = modules()
    arrows: dict[str, set[str]] = {m: set() for m in known}
    for m in known:
        for base, name, _ in imports(m):
            target = base if base in known else f"{base}.{name}".strip(".")
            if target in known:
                arrows[m].add(target)
    return arrows


def circles() -> list[str]:
    "Modules that lead back to themselves."
    arrows = graph()

    def reached(start: str) -> set[str]:
        seen, todo = set(), list(arrows[start])
        while todo:
            m = todo.pop()
            if m not in seen:
                seen.add(m)
                todo += arrows[m]
        return seen

    return [m for m in arrows if m in reached(m)]


def looking_up() -> list[str]:
    "Imports of a floor above."
    rank = {f.package: i for i, f in enumerate(FLOORS)}
    floor = lambda m: rank[m.split(".")[0]]  # noqa: E731
    return [f"{m} takes {t}" for m, to in graph().items() for t in to if floor(t) > floor(m)]


def lazy_imports() -> list[str]:
    "What is imported inside functions: a module counts once for each that takes from it."
    found = [(m, base) for m in modules() for base, _, lazy in imports(m) if lazy]
    return [f"{m}: {base or 'interpkit'}" for m, base in dict.fromkeys(found)]


def private_imports() -> list[str]:
    return [f"{m}: {b}.{n}" for m in modules() for b, n, _ in imports(m) if n.startswith("_")]


# Other tools


def tool(*command: str) -> list[str]:
    "Complaints of a tool, a line each."
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    if run.returncode > 1:
        raise SystemExit(run.stderr)
    return [
        line for line in run.stdout.splitlines() if re.search(r": (error|\w\d+)\b|:\d+: ", line)
    ]


def type_errors() -> list[str]:
    return tool("mypy", *(f"interpkit/{floor}" for floor in TYPED))


def complaints() -> list[str]:
    return tool("ruff", "check", "--output-format=concise", ".")


# The table


def share(part: int, whole: int) -> float:
    return 100 * part / max(whole, 1)


def bars() -> list[Bar]:
    "All bars, in the order of CONTRIBUTING.md."
    found = [x for p in lessons() for x in defining(p)]
    lengths = [len(c["source"].splitlines()) - 1 for c, _ in found]
    single = sum(definitions(c) == 1 for c, _ in found)
    shown = sum(s for _, s in found)
    seen = [c for p in lessons() for c in showing(p)]
    kept = sum(bool(c["outputs"]) for c in seen)
    wide = [f"{n} ({k})" for n, k in functions() if k > LONGEST and n not in LONG]
    density, long = nodes_per_line(), long_lines()
    p90 = quantiles(lengths, n=10)[8]
    one, told, pictured = (
        share(x, len(y)) for x, y in ((single, found), (shown, found), (kept, seen))
    )

    def none(what: str, before: str, where: list[str]) -> Bar:
        return Bar(what, "0", before, len(where), not where, tuple(where))

    lazy = lazy_imports()
    return [
        none(f"lines over {WIDTH} columns", "4355", long),
        Bar("syntax nodes per line", "<= 10", "16.6", density, density <= 10),
        none(f"functions over {LONGEST} lines", "18", wide),
        none("complaints of ruff (complexity over 10 among them)", "6743", complaints()),
        Bar("exported cells with one definition, %", ">= 70", "24.5", one, one >= 70),
        Bar("exported cells that are shown, %", ">= 65", "27.9", told, told >= 65),
        Bar("lines of an exported cell, p90", "<= 30", "93.9", p90, p90 <= 30),
        none("private names imported", "20", private_imports()),
        none("modules in an import circle", "2", circles()),
        none("imports of a floor above", "0", looking_up()),
        Bar("imports inside functions", "<= 12", "27", len(lazy), len(lazy) <= 12, tuple(lazy)),
        Bar("showing cells with a stored output, %", ">= 60", "0", pictured, pictured >= 60),
        none(f"type errors in {', '.join(TYPED)}", "189", type_errors()),
    ]


def main() -> int:
    "Print the table and what breaks it."
    table = bars()
    width = max(len(b.what) for b in table)
    print(f"{'':{width}}  {'goal':>6}  {'0.1.0':>7}  {'now':>7}")
    for b in table:
        print(
            f"{b.what:{width}}  {b.goal:>6}  {b.before:>7}  {b.shown:>7}  {'' if b.holds else '<-'}"
        )
    for b in table:
        if not b.holds and b.where:
            print(f"\n{b.what}:\n  " + "\n  ".join(b.where[:60]))
    return 0 if all(b.holds for b in table) else 1


if __name__ == "__main__":
    sys.exit(main())
