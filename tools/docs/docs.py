"""The documentation site: every notebook as a page, in the order of floors.py.

`python tools/docs/docs.py` builds it in _docs, with nbdev and quarto where quarto is installed,
else with mkdocs. Notebooks are shown with the outputs that are stored in them (`make lessons`).
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from floors import AFTER, BEFORE, FLOORS, FOLDERS, NBS, ROOT, Folder, title, write
from pages import Text, markdown, page_of, places

HERE = Path(__file__).resolve().parent
PAGES, SITE = ROOT / "_docs_src", ROOT / "_docs"


# Pages that no notebook holds


def folder_page(folder: Folder) -> str:
    "What is in a folder, in the order in which it is read."
    lines = [f"# {folder.heading}", "", f"> {folder.about}", ""]
    for notebook in folder.notebooks:
        name, about = title(notebook)
        lines.append(f"- [{name}]({Path(page_of(notebook)).name}){f': {about}' if about else ''}")
    if folder in FLOORS[1:]:
        below = ", ".join(f"`interpkit.{f.package}`" for f in FLOORS[: FLOORS.index(folder)])
        lines += ["", f"It may import {below}, and nothing above."]
    ring = f"[{folder.ring} ring](../words.md#{folder.ring.lower()}-ring)"
    return "\n".join([*lines, "", f"Its words: {ring}, and the rings before it."]) + "\n"


def _value(x) -> str:
    "A value in a table."
    if x is None:
        return "-"
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, float):
        return f"{x:.3g}" if abs(x) < 1e4 else f"{x:,.0f}"
    return f"{x:,}" if isinstance(x, int) else str(x)


def table(rows: list[dict]) -> str:
    "Rows as a Markdown table."

    def line(values) -> str:
        safe = (str(v).replace("|", "\\|").replace("\n", " ") for v in values)
        return "| " + " | ".join(safe) + " |"

    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = [line(c.replace("_", " ") for c in columns), line("---" for _ in columns)]
    return "\n".join([*head, *(line(_value(row.get(c)) for c in columns) for row in rows)])


def _promise(bar: dict) -> dict:
    "One promise as a row of the table."
    holds = '<span class="holds">● holds</span>'
    fails = '<span class="fails">■ does not hold</span>'
    return {
        "promise": bar["what"],
        "goal": bar["goal"],
        "measured": bar["measured"],
        "holds": holds if bar["holds"] else fails,
    }


def result_section(file: Path) -> str:
    "One benchmark: its promises, where it was measured, and all its rows."
    result = json.loads(file.read_text(encoding="utf-8"))
    notebook, env = NBS / "benchmarks" / f"{file.stem}.ipynb", result["environment"]
    name, about = title(notebook) if notebook.exists() else (file.stem, "")
    kept = sum(bar["holds"] for bar in result["bars"])
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items())
    link = f" [The notebook]({Path(page_of(notebook)).name})." if notebook.exists() else ""
    rows = "\n".join(f"    {line}" for line in table(result["rows"]).splitlines())
    return "\n\n".join(
        [
            f"## {name} {{#{file.stem}}}",
            about + link,
            f"**{kept} of {len(result['bars'])} promises hold.** Measured {result['date']} at "
            f"commit `{result['commit']}`, {env['system']} {env['machine']}, {env['cores']} cores, "
            f"Python {env['python']}; {packages}.",
            table([_promise(bar) for bar in result["bars"]]),
            f'??? quote "All {len(result["rows"])} rows"\n\n{rows}',
        ]
    )


def results_page() -> str:
    "Every promise that was measured: its goal, what was measured, and whether it holds."
    files = sorted((NBS / "benchmarks" / "results").glob("*.json"))
    head = (
        "# Results\n\n> What interpkit promises in numbers: what was measured, when, where and at "
        "which commit. A promise that does not hold stays in its table."
    )
    return "\n\n".join([head, *map(result_section, files)]) + "\n"


# The site


def sources() -> list[Path]:
    "All files that become pages, in the order in which they are read."
    inside = [p for folder in FOLDERS for p in folder.notebooks]
    around = [NBS / name for name in BEFORE], [NBS / name for name in AFTER]
    return [*around[0], *inside, *around[1], ROOT / "CONTRIBUTING.md"]


def navigation() -> list[dict]:
    "The menu of the site."

    def entry(source: Path) -> dict:
        return {title(source)[0]: page_of(source)}

    menu = [{"Home": "index.md"}, *(entry(NBS / n) for n in BEFORE if n != "index.ipynb")]
    for folder in FOLDERS:
        inside = [f"{folder.name}/index.md", *map(entry, folder.notebooks)]
        if folder.name == "benchmarks":
            inside.insert(1, {"Results": "benchmarks/results.md"})
        menu.append({folder.heading: inside})
    return [*menu, *(entry(NBS / n) for n in AFTER), {"Contributing": "contributing.md"}]


def write_pages(pages: Path):
    "Write every page of the site as Markdown, with its images."
    texts, files = {}, {}
    for source in sources():
        page = page_of(source)
        if source.suffix == ".ipynb":
            texts[page], images = markdown(source)
            files |= {(pages / page).parent / name: data for name, data in images.items()}
        else:
            texts[page] = source.read_text(encoding="utf-8")
    known = places(texts)
    for source in sources():
        text = Text(source, known).finished(texts[page_of(source)])
        files[pages / page_of(source)] = text.encode()
    for folder in FOLDERS:
        files[pages / folder.name / "index.md"] = folder_page(folder).encode()
    files[pages / "benchmarks" / "results.md"] = results_page().encode()
    for path, data in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for copied in ("images", "example"):
        shutil.copytree(NBS / copied, pages / copied, dirs_exist_ok=True)
    shutil.copy(HERE / "style.css", pages)


def with_mkdocs(searched: bool = True):
    """Build the site; raises where a link leads nowhere.

    Without `searched` it has neither the index of its words nor colours in code: the same pages and
    links in a third of the time.
    """
    shutil.rmtree(PAGES, ignore_errors=True)
    write_pages(PAGES / "pages")
    told = yaml.safe_load((HERE / "mkdocs.yml").read_text(encoding="utf-8"))
    told |= dict(docs_dir="pages", site_dir=str(SITE), nav=navigation())
    if not searched:
        told["plugins"] = []
        told["markdown_extensions"].append({"pymdownx.highlight": {"use_pygments": False}})
    (PAGES / "mkdocs.yml").write_text(json.dumps(told, indent=1), encoding="utf-8")
    # not --quiet: then mkdocs would count no warnings, and --strict would let every link pass
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file"]
    run = subprocess.run(
        [*build, PAGES / "mkdocs.yml"],
        cwd=ROOT,
        env=os.environ | dict(NO_MKDOCS_2_WARNING="1"),
        capture_output=True,
        text=True,
    )
    if run.returncode:
        print(run.stderr, file=sys.stderr)
    run.check_returncode()


def main():
    "Build the site with what is installed."
    write()
    if shutil.which("quarto"):  # without quarto, nbdev would try to install it with sudo
        subprocess.run(["nbdev-docs"], check=True, cwd=ROOT)
    else:
        with_mkdocs()
    print(f"{len(list(SITE.rglob('*.html')))} pages in {SITE.name}")
    print(f"its search works over HTTP: python -m http.server -d {SITE.name}")


if __name__ == "__main__":
    main()
