"""The public names of an exported cell as Markdown, read from their source alone: signature, docstring, and a table of what the comments beside parameters say."""

import ast
import io
import re
import tokenize
from html import escape


def documented(source: str) -> str:
    "The documentation of a cell's public names, with the source below it; '' for a cell of imports."
    tree, comments = ast.parse(source), _comments(source)
    if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body):
        return ""
    methods = {
        n.value.id: ast.unparse(t)
        for n in tree.body
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Name)
        for t in n.targets
        if isinstance(t, ast.Attribute)
    }
    methods |= {
        v.id: ast.unparse(t)
        for n in tree.body
        if isinstance(n, ast.Assign)
        and isinstance(n.value, ast.Tuple)
        and isinstance(n.targets[0], ast.Tuple)
        for t, v in zip(n.targets[0].elts, n.value.elts)
        if isinstance(t, ast.Attribute) and isinstance(v, ast.Name)
    }
    named = [
        (methods.get(n.name, n.name), n)
        for n in tree.body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef))
    ]
    parts = [
        _class(n, name, comments) if isinstance(n, ast.ClassDef) else _function(n, name, comments)
        for name, n in named
        if not re.search(r"(^|\.)_", name)
    ]
    return "\n\n".join(
        [
            *parts,
            '??? quote "Source"\n\n    ```python\n'
            + "\n".join("    " + l for l in source.splitlines())
            + "\n    ```",
        ]
    )


def _comments(source: str) -> dict[int, str]:
    "Comment by line."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def _parameters(f: ast.FunctionDef, method: bool) -> list[tuple]:
    "(name, annotation, default, node) of each parameter."
    a = f.args
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    found = list(zip(plain, defaults))[1 if method and plain else 0 :]
    named = [(p.arg, p, d) for p, d in found]
    if a.vararg:
        named.append((f"*{a.vararg.arg}", a.vararg, None))
    named += [(p.arg, p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg:
        named.append((f"**{a.kwarg.arg}", a.kwarg, None))
    return [(n, _code(p.annotation), _code(d), p if d is None else d) for n, p, d in named]


def _code(node) -> str:
    return "" if node is None else ast.unparse(node)


def _signature(name: str, parameters, returns: str) -> str:
    inside = [
        n + (f": {t}" if t else "") + (f" = {d}" if d and t else f"={d}" if d else "")
        for n, t, d, _ in parameters
    ]
    line = f"{name}({', '.join(inside)})" + (f" -> {returns}" if returns else "")
    if len(line) > 96:
        line = (
            f"{name}(\n    " + ",\n    ".join(inside) + ")" + (f" -> {returns}" if returns else "")
        )
    return f"```python\n{line}\n```"


def _is_method(f: ast.FunctionDef, name: str) -> bool:
    kinds = {ast.unparse(d) for d in f.decorator_list}
    return "." in name and "staticmethod" not in kinds


def _heading(name: str) -> str:
    return f"### `{name}` {{#{name.lower()} .api}}"


def _function(f: ast.FunctionDef, name: str, comments: dict) -> str:
    parameters = _parameters(f, _is_method(f, name))
    ends = {
        p.end_lineno: n for n, _, _, p in parameters
    }  # the last parameter of a line owns its comment
    said = {
        n: comments[line]
        for line, n in ends.items()
        if line in comments and line < f.body[0].lineno
    }
    last = f.returns.end_lineno if f.returns else (max(ends) if ends else f.lineno)
    result = comments.get(last, "") if not parameters or f.returns else ""
    said = {
        n: x for n, x in said.items() if not (x == result and n == ends.get(last) and _is_shape(x))
    }
    if last in ends and ends[last] in said:
        result = ""
    rows = (
        [(f"`{n}`", f"`{d}`" if d else "", said.get(n, "")) for n, _, d, _ in parameters]
        if said
        else []
    )
    if result and rows:
        rows.append(("returns", "", result))
    table = _table(("parameter", "default", "what it is"), rows)
    returned = _code(f.returns) + (f"  # {result}" if result and not rows else "")
    return "\n\n".join(
        x for x in (_heading(name), _signature(name, parameters, returned), _doc(f), table) if x
    )


def _is_shape(text: str) -> bool:
    return bool(re.match(r"[\w.]*\s*\[", text))


def _doc(node) -> str:
    return escape(ast.get_docstring(node) or "", quote=False)


def _class(c: ast.ClassDef, name: str, comments: dict) -> str:
    fields = [
        n
        for n in c.body
        if isinstance(n, ast.AnnAssign)
        and isinstance(n.target, ast.Name)
        and not n.target.id.startswith("_")
    ]
    rows = [(f"`{n.target.id}`", f"`{_code(n.annotation)}`", *_field(n, comments)) for n in fields]
    values = [
        (f"`{n.targets[0].id}`", f"`{_code(n.value)}`", comments.get(n.lineno, ""))
        for n in c.body
        if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name) and _is_enum(c)
    ]
    table = _table(("field", "type", "default", "what it is"), rows) or _table(
        ("name", "value", "what it means"), values
    )
    init = next(
        (n for n in c.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None
    )
    built = (
        _function(init, f"{name}.__init__", comments)
        .replace(f"{name}.__init__(", f"{name}(")
        .split("\n\n", 1)[1]
        if init and not rows
        else ""
    )
    return "\n\n".join(
        x
        for x in (
            _heading(name),
            _doc(c) if not built else "",
            built,
            _doc(c) if built else "",
            table,
            _methods(c, name),
        )
        if x
    )


def _table(head, rows) -> str:
    "A Markdown table without the columns that would be empty."
    kept = [i for i in range(len(head)) if any(r[i] for r in rows)]
    line = lambda cells: "| " + " | ".join(cells[i].replace("|", "\\|") for i in kept) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) if rows else ""


def _is_enum(c: ast.ClassDef) -> bool:
    return any("Enum" in ast.unparse(b) for b in c.bases)


def _field(n: ast.AnnAssign, comments: dict) -> tuple[str, str]:
    "Default and description of a dataclass or pydantic field."
    said = comments.get(n.end_lineno, "")
    if not isinstance(n.value, ast.Call):
        return (f"`{_code(n.value)}`" if n.value else "", said)
    given = {k.arg: k.value for k in n.value.keywords}
    said = (
        ast.literal_eval(given["description"])
        if isinstance(given.get("description"), ast.Constant)
        else said
    )
    default = (
        n.value.args[0]
        if n.value.args and ast.unparse(n.value.func) == "Field"
        else given.get("default_factory")
    )
    return (
        f"`{_code(default)}`"
        if default is not None and not isinstance(default, ast.Lambda)
        else "",
        said,
    )


def _methods(c: ast.ClassDef, name: str) -> str:
    "Public methods and properties, one a line."
    out = []
    for f in c.body:
        if not isinstance(f, ast.FunctionDef) or f.name.startswith("_"):
            continue
        kinds = {ast.unparse(d).split(".")[-1] for d in f.decorator_list}
        inside = ", ".join(
            n + (f"={d}" if d else "") for n, _, d, _ in _parameters(f, "staticmethod" not in kinds)
        )
        call = f.name if kinds & {"property", "cached_property"} else f"{f.name}({inside})"
        out.append(
            f'- <a id="{name.lower()}.{f.name.lower()}"></a>`{call}`'
            + (f": {_doc(f).splitlines()[0]}" if _doc(f) else "")
        )
    return "\n".join(out)
