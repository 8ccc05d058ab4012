"""The documentation site: every notebook as a page, in the order of tools/docs/floors.py, with nothing fetched from the network.

`python tools/docs/docs.py` builds it in _docs: with nbdev and quarto where quarto is installed, else with mkdocs. Notebooks are shown as they were
committed; `--execute` runs home page and tutorials first, on copies, so that their results are seen.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import api
import links
from floors import AFTER, BEFORE, FLOORS, FOLDERS, NBS, ROOT, Folder, title, write
from nbdev.config import nbpath2html

PAGES, SITE = ROOT / "_docs_src", ROOT / "_docs"


# From a notebook's cells to Markdown


def directives(source: str) -> tuple[dict, str]:
    "The `#| name: value` lines of a cell, and the cell without them."
    lines = source.splitlines()
    found = dict((m[1], m[2].strip()) for l in lines if (m := re.match(r"#\|\s*([\w-]+):?(.*)", l)))
    return found, "\n".join(l for l in lines if not l.startswith("#|")).strip("\n")


def prepared(notebook: Path, nb):
    "The notebook as a reader should see it: no directives, no hidden cells, and its public names documented where they are exported."
    from nbformat.v4 import new_markdown_cell

    kept = []
    for c in nb.cells:
        said, source = directives(c.source)
        if "hide" in said or not source.strip():
            continue
        if c.cell_type == "code" and {"export", "exporti", "exports"} & set(said):
            if text := api.documented(source):
                kept.append(new_markdown_cell(text))
            continue
        if "hide_output" in said and c.cell_type == "code":
            c.outputs = []
        if "hide_input" in said or said.get("echo") == "false":
            c.metadata.transient = dict(remove_source=True)
        c.source = source
        kept.append(c)
    nb.cells = kept
    return nb


def executed(notebook: Path, nb):
    "A copy of the notebook with what its cells print and show."
    from nbclient import NotebookClient

    print(f"running {notebook.relative_to(NBS)}", flush=True)
    os.environ["IPK_PROGRESS"] = os.devnull  # progress bars are for a person who waits
    return NotebookClient(
        nb,
        timeout=900,
        kernel_name="python3",
        resources=dict(metadata=dict(path=str(notebook.parent))),
    ).execute()


def notebook_markdown(notebook: Path, execute: bool) -> tuple[str, dict]:
    "A notebook as Markdown, and the images that belong to it."
    import nbformat
    from nbconvert import MarkdownExporter

    nb = nbformat.read(notebook, 4)
    if execute:
        nb = executed(notebook, nb)
    stem, nb.metadata.language_info = Path(page_of(notebook)).stem, dict(name="python")
    text, resources = MarkdownExporter().from_notebook_node(
        prepared(notebook, nb), dict(unique_key=stem, output_files_dir=f"{stem}_files")
    )
    return text, resources.get("outputs", {})


# Links, names and formulas in the text of a page


def page_of(source: Path) -> str:
    "The page of a notebook or a Markdown file, from the root of the site; as nbdev names it."
    if source == ROOT / "CONTRIBUTING.md":
        return "contributing.md"
    return nbpath2html(source.relative_to(NBS)).with_suffix(".md").as_posix()


def names() -> dict[str, str]:
    "Where each public name is documented, by its full name and by all shorter ones that mean nothing else: 'Release.load' -> '01_model/releases.html#release.load'."
    index = {}
    exec((ROOT / "interpkit" / "_modidx.py").read_text(encoding="utf-8"), index)
    found, shorter = {}, {}
    for module, symbols in index["d"]["syms"].items():
        symbols = {s: page for s, (page, _) in symbols.items() if not re.search(r"(^|\.)_", s)}
        if symbols:
            found[module] = next(iter(symbols.values())).split("#")[0]
        found |= symbols
        for s in symbols:
            for short in {
                s.removeprefix("interpkit."),
                s.removeprefix(module + "."),
                "interpkit." + s.removeprefix(module + "."),
            }:
                shorter.setdefault(short, set()).add(s)
    return {
        short: found[next(iter(full))] for short, full in shorter.items() if len(full) == 1
    } | found


class Text:
    "The Markdown of one page, with its links led to pages of the site."

    def __init__(self, source: Path, page: str, known: dict, anchors: set):
        self.source, self.page, self.known, self.anchors = source, page, known, anchors

    def finished(self, text: str) -> str:
        blocks = re.split(r"(^ *```.*?^ *```[^\n]*$)", spaced(text), flags=re.M | re.S)
        return "".join(
            b if i % 2 else "\n".join(self._line(l) for l in b.split("\n"))
            for i, b in enumerate(blocks)
        )

    def _line(self, line: str) -> str:
        if line.startswith("    ") or line.lstrip().startswith(("<", "- <a id")):
            return line
        line = re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", self._link, line)
        if line.startswith("#"):
            return line
        parts = re.split(r"(`[^`]+`(?:\]\([^)]*\))?)", line)
        return "".join(
            self._name(p, parts[i - 1]) if i % 2 else formulas(p) for i, p in enumerate(parts)
        )

    def _link(self, found: re.Match) -> str:
        text, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        path, _, anchor = target.partition("#")
        source = (self.source.parent / path).resolve()
        if source.is_relative_to(NBS / "example") and source.is_file():
            return f"[{text}]({self._to(source.relative_to(NBS).as_posix())})"  # copied as it is
        if source.suffix not in (".ipynb", ".md") or not source.is_relative_to(ROOT):
            return text  # a file that is no page: said, not linked
        if source == ROOT / "README.md":
            source = NBS / "index.ipynb"
        if not source.exists() or not (
            source.is_relative_to(NBS) or source.name == "CONTRIBUTING.md"
        ):
            return text
        return f"[{text}]({self._to(page_of(source))}{'#' + anchor if anchor else ''})"

    def _name(self, code: str, before: str) -> str:
        "A name in backticks leads to where it is documented; a plain lower-case word only where it is called, or defined on this page."
        if code.endswith(")") and not code.endswith("`") or before.endswith("["):
            return code
        found = re.fullmatch(r"`(?:from |import )?([A-Za-z_][\w.]*)(\(.*\))?`", code)
        place = self.known.get(found[1]) if found else None
        if not place:
            return code
        page, _, anchor = place.partition("#")
        page = page.removesuffix(".html") + ".md"
        plain = re.fullmatch(r"[a-z]+", found[1]) and not found[2] and page != self.page
        if plain or (anchor and (page, anchor) not in self.anchors):
            return code
        return f"[{code}]({self._to(page)}{'#' + anchor if anchor else ''})"

    def _to(self, page: str) -> str:
        return os.path.relpath(page, Path(self.page).parent)


def spaced(text: str) -> str:
    "With the empty line before lists and tables that Python's Markdown needs, and lists inside of lists moved in by four."
    out, fenced = [], False
    for line in text.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        begins = re.match(r"(\s*)([-*]|\d+\.) |(\|)", line)
        last = out[-1] if out else ""
        if (
            begins
            and not fenced
            and last.strip()
            and not re.match(r"\s*([-*]|\d+\.) |\||\s+\S", last)
        ):
            out.append("")
        out.append("  " + line if re.match(r"  ([-*]|\d+\.) ", line) and not fenced else line)
    return "\n".join(out)


def formulas(text: str) -> str:
    "Formulas as small drawings: no script, no network. What can't be drawn stays as text."
    text = re.sub(r"\$\$(.+?)\$\$", lambda m: f'<span class="display">{_drawn(m[1])}</span>', text)
    return re.sub(r"(?<![\\\w$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", lambda m: _drawn(m[1]), text)


def _drawn(formula: str, seen={}) -> str:
    if formula in seen:
        return seen[formula]
    from io import BytesIO

    from matplotlib import mathtext, rc_context

    image = BytesIO()
    try:
        with rc_context(
            {"mathtext.fontset": "cm", "svg.hashsalt": formula, "svg.fonttype": "path"}
        ):
            depth = mathtext.math_to_image(f"${formula}$", image, format="svg", dpi=72)
    except ValueError:
        return f"`{formula}`"
    svg = re.sub(
        r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->",
        "",
        image.getvalue().decode(),
        flags=re.S,
    )
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, flags=re.S)
    width, height = (
        float(re.search(rf'{side}="([\d.]+)pt"', svg)[1]) / 10 for side in ("width", "height")
    )
    ids = f"f{len(seen)}-"
    svg = re.sub(
        r'id="([^"]+)"', rf'id="{ids}\1"', re.sub(r'href="#([^"]+)"', rf'href="#{ids}\1"', svg)
    )
    style = f'class="formula" role="img" aria-label="{api.escape(formula)}" style="width:{width:.2f}em;height:{height:.2f}em;vertical-align:-{depth / 10:.2f}em"'
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: style, svg, count=1)
    seen[formula] = re.sub(r"\s*\n\s*", " ", svg).strip()
    return seen[formula]


# Pages that no notebook holds


def folder_page(f: Folder) -> str:
    "What is in a folder, in the order in which it is read."
    rows = [(page_of(p), *title(p)) for p in f.notebooks]
    below = (
        f"\n\nIt may import {', '.join(f'`interpkit.{b.package}`' for b in FLOORS[: FLOORS.index(f)])}, and nothing above."
        if f in FLOORS[1:]
        else ""
    )
    ring = (
        f"\n\nIts words: [{f.ring} ring](../words.md#{f.ring.lower()}-ring), and the rings before it."
        if (NBS / "words.md").exists()
        else ""
    )
    return (
        f"# {f.heading}\n\n> {f.about}\n\n"
        + "\n".join(
            f"- [{name}]({Path(page).name}){': ' + about if about else ''}"
            for page, name, about in rows
        )
        + below
        + ring
        + "\n"
    )


def home_page() -> str:
    "A home page for as long as index.ipynb does not exist."
    from configparser import ConfigParser

    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return (
        f"# interpkit\n\n> {config['DEFAULT']['description']}.\n\n"
        + "\n".join(
            f"- [{f.heading}]({f.name}/index.md): {f.about}" for f in FOLDERS if f.notebooks
        )
        + "\n"
    )


def _value(x) -> str:
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, float):
        return f"{x:.3g}" if abs(x) < 1e4 else f"{x:,.0f}"
    return "-" if x is None else f"{x:,}" if isinstance(x, int) else str(x)


def table(rows: list[dict], columns=None) -> str:
    "Rows as a Markdown table."
    columns = columns or list(dict.fromkeys(k for r in rows for k in r))
    line = lambda values: (
        "| " + " | ".join(str(v).replace("|", "\\|").replace("\n", " ") for v in values) + " |"
    )
    return "\n".join(
        [
            line(c.replace("_", " ") for c in columns),
            line("---" for _ in columns),
            *(line(_value(r.get(c)) for c in columns) for r in rows),
        ]
    )


def results_page(files: list[Path]) -> str:
    "Every promise that was measured: with its goal, what was measured, and whether it holds."
    out = [
        "# Results\n\n> What interpkit promises in numbers, with what was measured, when, where and at which commit. A promise that does not hold stays in its table."
    ]
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        notebook, env = NBS / "benchmarks" / f"{file.stem}.ipynb", found["environment"]
        name, about = title(notebook) if notebook.exists() else (file.stem, "")
        kept = sum(b["holds"] for b in found["bars"])
        out.append(
            f"## {name} {{#{file.stem}}}\n\n{about}"
            + (f" [The notebook]({page_of(notebook).split('/')[-1]})." if notebook.exists() else "")
        )
        out.append(
            f"**{kept} of {len(found['bars'])} promises hold.** Measured {found['date']} at commit `{found['commit']}`, {env['system']} {env['machine']}, {env['cores']} cores, Python {env['python']}; "
            + ", ".join(f"{k} {v}" for k, v in env["packages"].items())
            + "."
        )
        out.append(
            table(
                [
                    {
                        "promise": b["what"],
                        "goal": b["goal"],
                        "measured": b["measured"],
                        "holds": '<span class="holds">● holds</span>'
                        if b["holds"]
                        else '<span class="fails">■ does not hold</span>',
                    }
                    for b in found["bars"]
                ]
            )
        )
        out.append(
            f'??? quote "All {len(found["rows"])} rows"\n\n'
            + "\n".join("    " + l for l in table(found["rows"]).splitlines())
        )
    return "\n\n".join(out) + "\n"


# The site

STYLE = """
.md-grid { max-width: 84rem } .md-typeset pre > code { font-size: .78em }
@media (min-width: 76.25em) { .md-sidebar { width: 11rem } }
.md-typeset .display { display: block; margin: 1em 2em }
.md-typeset blockquote { border-left: .2rem solid var(--md-primary-fg-color); color: inherit; font-size: 1.05em }
.md-typeset table:not([class]) { font-size: .68rem } .md-typeset table:not([class]) th { min-width: 3.5rem }
.md-typeset h3 code { font-size: .95em } .md-typeset .api + .highlight { margin-top: 0 }
.md-typeset .holds { color: #00598c; white-space: nowrap } .md-typeset .fails { color: #a04000; white-space: nowrap; font-weight: 700 }
[data-md-color-scheme=slate] .holds { color: #6bb8ea } [data-md-color-scheme=slate] .fails { color: #f0935a }
.md-typeset svg.formula { fill: currentColor } .md-typeset svg.formula g { fill: inherit }
.md-typeset .output > pre { border-left: .15rem solid var(--md-default-fg-color--lightest); margin-top: -.6em }
.md-typeset td:first-child code { white-space: nowrap }
.md-nav__title { font-weight: 700 }
"""


def configuration(nav: list) -> str:
    return json.dumps(
        dict(  # JSON is YAML
            site_name="interpkit",
            docs_dir="pages",
            site_dir=str(SITE),
            use_directory_urls=False,
            nav=nav,
            extra_css=["style.css"],
            plugins=["search"],
            extra=dict(generator=False),
            theme=dict(
                name="material",
                font=False,
                palette=[
                    dict(
                        media="(prefers-color-scheme: light)",
                        scheme="default",
                        primary="indigo",
                        toggle=dict(icon="material/weather-night", name="Dark"),
                    ),
                    dict(
                        media="(prefers-color-scheme: dark)",
                        scheme="slate",
                        primary="indigo",
                        toggle=dict(icon="material/weather-sunny", name="Light"),
                    ),
                ],
                features=[
                    "navigation.indexes",
                    "navigation.footer",
                    "navigation.top",
                    "navigation.prune",
                    "toc.follow",
                    "content.code.copy",
                    "search.highlight",
                ],
            ),
            markdown_extensions=[
                "admonition",
                "attr_list",
                "def_list",
                "tables",
                "md_in_html",
                "pymdownx.details",
                "pymdownx.superfences",
                {"pymdownx.highlight": dict(guess_lang=False)},
                {"toc": dict(permalink=True, toc_depth=3)},
            ],
            validation=dict(
                links=dict(
                    not_found="warn",
                    anchors="warn",
                    absolute_links="warn",
                    unrecognized_links="warn",
                ),
                nav=dict(omitted_files="warn", not_found="warn"),
            ),
        ),
        indent=1,
    )


def sources() -> list[Path]:
    "All files that become pages, in the order in which they are read."
    single = lambda names: [NBS / n for n in names if (NBS / n).exists()]
    return [
        *single(BEFORE),
        *(p for f in FOLDERS for p in f.notebooks),
        *single(AFTER),
        ROOT / "CONTRIBUTING.md",
    ]


def navigation(results: bool) -> list:
    entry = lambda p: {title(p)[0]: page_of(p)}
    around = lambda names: [
        entry(NBS / n) for n in names if (NBS / n).exists() and n != "index.ipynb"
    ]
    inside = lambda f: [
        f"{f.name}/index.md",
        *([{"Results": "benchmarks/results.md"}] if f.name == "benchmarks" and results else []),
        *map(entry, f.notebooks),
    ]
    return [
        {"Home": "index.md"},
        *around(BEFORE),
        *({f.heading: inside(f)} for f in FOLDERS if f.notebooks),
        *around(AFTER),
        {"Contributing": "contributing.md"},
    ]


def write_pages(pages: Path, execute: bool):
    "Write every page of the site as Markdown."
    made, images = {}, {}
    for source in sources():
        page, shown = (
            page_of(source),
            execute and (source.parent.name == "tutorials" or source.name == "index.ipynb"),
        )
        if source.suffix == ".ipynb":
            made[page], images[page] = notebook_markdown(source, shown)
        else:
            made[page] = source.read_text(encoding="utf-8")
    anchors = {
        (page, a)
        for page, text in made.items()
        for a in re.findall(r"\{#([\w.-]+)", text) + re.findall(r'<a id="([\w.-]+)">', text)
    }
    known = {
        n: f"{page.removesuffix('.md')}.html#{a}"
        for page, text in made.items()
        for n, a in re.findall(r"^### `([\w.]+)` \{#([\w.]+)", text, re.M)
    } | names()
    made = {
        page: Text(source, page, known, anchors).finished(made[page])
        for source in sources()
        for page in [page_of(source)]
    }
    results = sorted((NBS / "benchmarks" / "results").glob("*.json"))
    made |= {f"{f.name}/index.md": folder_page(f) for f in FOLDERS if f.notebooks} | (
        {"benchmarks/results.md": results_page(results)} if results else {}
    )
    made.setdefault("index.md", home_page())
    for page, text in made.items():
        _put(pages / page, text.encode())
    for page, found in images.items():
        for name, data in found.items():
            _put((pages / page).parent / name, data)
    for extra in [
        p
        for folder in ("images", "tutorials/images", "example")
        for p in (NBS / folder).rglob("*")
        if p.is_file()
    ]:
        _put(pages / extra.relative_to(NBS), extra.read_bytes())
    _put(pages / "style.css", STYLE.encode())
    return bool(results)


def _put(path: Path, data: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def with_mkdocs(execute: bool):
    shutil.rmtree(PAGES, ignore_errors=True)
    results = write_pages(PAGES / "pages", execute)
    (PAGES / "mkdocs.yml").write_text(configuration(navigation(results)), encoding="utf-8")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--config-file",
            PAGES / "mkdocs.yml",
        ],
        check=True,
        cwd=ROOT,
        env=os.environ | dict(NO_MKDOCS_2_WARNING="1"),
    )


def main():
    parser = argparse.ArgumentParser(description="Build the documentation site in _docs.")
    parser.add_argument(
        "--execute", action="store_true", help="run home page and tutorials first, on copies"
    )
    execute = parser.parse_args().execute
    write()
    if shutil.which("quarto"):
        subprocess.run(
            ["nbdev-docs"], check=True, cwd=ROOT
        )  # without quarto, nbdev would try to install it with sudo
    else:
        with_mkdocs(execute)
    sys.exit(1 if links.report(SITE) else 0)


if __name__ == "__main__":
    main()
