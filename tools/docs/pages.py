"""A notebook as a page: its cells as Markdown, its public names documented, its links led on."""

import ast
import os
import re
from functools import cache
from html import escape
from importlib import import_module
from pathlib import Path

import nbformat
from floors import NBS, ROOT
from latex2mathml.converter import convert as mathml
from nbconvert import MarkdownExporter
from nbdev.config import nbpath2html
from nbdev.doclinks import patch_name
from nbdev.showdoc import BasicMarkdownRenderer, show_doc

from interpkit.model.releases import Release

# Cells


def directives(source: str) -> tuple[set[str], str]:
    "The names of the `#| name` lines of a cell, and the cell without them."
    lines = source.splitlines()
    names = {m[1] for line in lines if (m := re.match(r"#\|\s*([\w-]+)", line))}
    return names, "\n".join(line for line in lines if not line.startswith("#|")).strip("\n")


def prepared(nb):
    "The notebook as a reader should see it: no directives, nothing hidden, exports documented."
    module, kept = None, []
    for cell in nb.cells:
        names, source = directives(cell.source)
        if exported := re.search(r"#\|\s*default_exp (\S+)", cell.source):
            module = f"interpkit.{exported[1]}"
        if "hide" in names or not source.strip():
            continue
        if cell.cell_type == "code" and "export" in names:
            text = documented(source, module)
            kept += [nbformat.v4.new_markdown_cell(text)] if text else []
            continue
        cell.source = source
        kept.append(cell)
    nb.cells = kept
    return nb


@cache
def _exporter() -> MarkdownExporter:
    "One for all notebooks: each would read and compile its templates anew."
    return MarkdownExporter()


def markdown(notebook: Path) -> tuple[str, dict[str, bytes]]:
    "A notebook as Markdown, and the images that belong to it."
    nb, stem = nbformat.read(notebook, 4), Path(page_of(notebook)).stem
    nb.metadata.language_info = dict(name="python")
    told = dict(unique_key=stem, output_files_dir=f"{stem}_files")
    text, resources = _exporter().from_notebook_node(prepared(nb), told)
    return text, resources.get("outputs", {})


# Public names


def public_names(source: str) -> list[str]:
    "Functions, classes and patched methods of a cell whose names don't begin with `_`."
    kinds = (ast.FunctionDef, ast.ClassDef)
    nodes = [n for n in ast.parse(source).body if isinstance(n, kinds)]
    names = [patch_name(n) or n.name for n in nodes]
    return [n for n in names if not re.search(r"(^|\.)_", n)]


def documented(source: str, module: str) -> str:
    "What nbdev says of the public names of an exported cell, then its source; '' for imports."
    if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(source).body):
        return ""
    code = "\n".join(f"    {line}" for line in source.splitlines())
    entries = [_entry(module, name) for name in public_names(source)]
    return "\n\n".join([*entries, f'??? quote "Source"\n\n    ```python\n{code}\n    ```'])


def _entry(module: str, name: str) -> str:
    "Heading, signature and docstring of one name."
    thing = import_module(module)
    vars(thing).setdefault("Release", Release)  # modules below releases know it by type alone
    for part in name.split("."):
        thing = getattr(thing, part)
    if isinstance(thing, property):
        thing = thing.fget
    told = show_doc(thing, renderer=BasicMarkdownRenderer, name=name)._repr_markdown_()
    signature, _, doc = told.partition("```python")[2].partition("```")
    shown = f"### `{name}` {{#{name.lower()} .api}}\n\n```python{signature}```"
    return shown + "\n\n" + escape(doc.strip().strip("*"), quote=False)


# Links and formulas


def page_of(source: Path) -> str:
    "The page of a notebook or a Markdown file, from the root of the site; as nbdev names it."
    if source == ROOT / "CONTRIBUTING.md":
        return "contributing.md"
    return nbpath2html(source.relative_to(NBS)).with_suffix(".md").as_posix()


class Text:
    "The Markdown of one page, with its links led to pages of the site."

    def __init__(self, source: Path, known: dict[str, str]):
        self.source, self.page, self.known = source, page_of(source), known

    def finished(self, text: str) -> str:
        "The text with links, names in backticks and formulas as the site needs them."
        blocks = re.split(r"(^ *```.*?^ *```[^\n]*$)", spaced(text), flags=re.M | re.S)
        for i in range(0, len(blocks), 2):  # between blocks of code
            blocks[i] = "\n".join(map(self._line, blocks[i].split("\n")))
        return "".join(blocks)

    def _line(self, line: str) -> str:
        if line.startswith("    ") or line.lstrip().startswith(("<", "- <a id")):
            return line
        line = re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", self._link, line)
        if line.startswith("#"):
            return line
        parts = re.split(r"(`[^`]+`(?:\]\([^)]*\))?)", line)
        for i, part in enumerate(parts):
            parts[i] = self._name(part, parts[i - 1]) if i % 2 else formulas(part)
        return "".join(parts)

    def _link(self, link: re.Match) -> str:
        text, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        source = (self.source.parent / path).resolve()
        if source == ROOT / "README.md":
            source = NBS / "index.ipynb"
        if source.is_relative_to(NBS / "example") and source.is_file():
            return f"[{text}]({self._to(source.relative_to(NBS).as_posix())})"  # copied as it is
        if not _is_page(source):
            return text  # a file that is no page: said, not linked
        return f"[{text}]({self._to(page_of(source))}{'#' + anchor if anchor else ''})"

    def _name(self, code: str, before: str) -> str:
        "A name in backticks, as a link to where it is documented."
        if not code.endswith("`") or before.endswith("["):
            return code
        name = re.fullmatch(r"`(?:from |import )?([A-Za-z_][\w.]*)(\(.*\))?`", code)
        place = self.known.get(name[1]) if name else None
        if not place:
            return code
        page, _, anchor = place.partition("#")
        if re.fullmatch(r"[a-z]+", name[1]) and not name[2] and page != self.page:
            return code  # a plain word: only where it is called, or defined on this page
        return f"[{code}]({self._to(page)}#{anchor})"

    def _to(self, page: str) -> str:
        return os.path.relpath(page, Path(self.page).parent)


def _is_page(source: Path) -> bool:
    if not source.exists() or source.suffix not in (".ipynb", ".md"):
        return False
    return source.is_relative_to(NBS) or source == ROOT / "CONTRIBUTING.md"


def places(texts: dict[str, str]) -> dict[str, str]:
    "Where each public name is documented: 'Release.load' -> 'page.md#release.load'."
    known: dict[str, set[str]] = {}
    for page, text in texts.items():
        for name, anchor in re.findall(r"^### `([\w.]+)` \{#([\w.]+)", text, re.M):
            known.setdefault(name, set()).add(f"{page}#{anchor}")
    return {name: min(where) for name, where in known.items() if len(where) == 1}


def spaced(text: str) -> str:
    "With the empty line before lists and tables, and the deeper indent, of Python's Markdown."
    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        last = lines[-1] if lines else ""
        begins = re.match(r"\s*([-*]|\d+\.) |\|", line)
        goes_on = re.match(r"\s*([-*]|\d+\.) |\||\s+\S", last)
        if begins and not fenced and last.strip() and not goes_on:
            lines.append("")
        inner = re.match(r"  ([-*]|\d+\.) ", line) and not fenced
        lines.append("  " + line if inner else line)
    return "\n".join(lines)


def formulas(text: str) -> str:
    "Formulas as MathML, which a browser draws by itself."
    text = re.sub(r"\$\$(.+?)\$\$", lambda m: mathml(m[1], display="block"), text)
    inline = r"(?<![\\\w$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])"
    return re.sub(inline, lambda m: mathml(m[1]), text)
