"""A plugin of mypy that knows the methods which notebooks add by `@patch`, one per cell.

Such a method stands after its class, so mypy would call it missing. It is declared here as a
member of any type: its own body and signature are checked where it is defined.
"""

import ast
from pathlib import Path

from mypy.nodes import MDEF, SymbolTableNode, TypeInfo, Var
from mypy.plugin import Plugin
from mypy.types import AnyType, TypeOfAny

PACKAGE = Path(__file__).resolve().parents[1] / "interpkit"


def patched_class(function: ast.AST) -> str:
    "The name of the class that a function is patched into, '' for other nodes."
    if not isinstance(function, ast.FunctionDef):
        return ""
    decorators = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    if not any(isinstance(d, ast.Name) and d.id == "patch" for d in decorators):
        return ""
    owner = function.args.args[0].annotation
    return owner.value if isinstance(owner, ast.Constant) else ast.unparse(owner)


def patched() -> dict[str, set[str]]:
    "The patched methods of each class, by its full name."
    homes: dict[str, str] = {}
    methods: list[tuple[str, str]] = []
    for file in PACKAGE.glob("*/*.py"):
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes[node.name] = f"{module}.{node.name}"
            if owner := patched_class(node):
                methods.append((owner, node.name))
    found: dict[str, set[str]] = {}
    for owner, name in methods:
        found.setdefault(homes[owner], set()).add(name)
    return found


def declare(info: TypeInfo, names: set[str]):
    "Add members of any type to a class."
    for name in names - set(info.names):
        member = Var(name, AnyType(TypeOfAny.explicit))
        member.info, member._fullname = info, f"{info.fullname}.{name}"
        member.is_classvar = member.is_initialized_in_class = True
        info.names[name] = SymbolTableNode(MDEF, member)


class Patched(Plugin):
    "Declares patched methods when mypy has seen a class."

    methods = patched()

    def get_customize_class_mro_hook(self, fullname: str):
        names = self.methods.get(fullname)
        return (lambda context: declare(context.cls.info, names)) if names else None


def plugin(version: str) -> type[Plugin]:
    return Patched
