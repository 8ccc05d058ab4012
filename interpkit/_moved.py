"""Where modules and names of version 0.1 are now.

Who imports one that has moved gets an ImportError that tells its new home. Both tables hold lines
`old -> new`, without `interpkit.` before them. They stay for one version.
"""

import sys
from importlib.machinery import PathFinder

MODULES = """
dictionary.sparse -> dictionary.dictionary
dictionary.codes -> sparse.codes
dictionary.kernels -> sparse.products
dictionary.triton_kernels -> sparse.triton_kernels
dictionary.sparse_training -> training.trainer
dictionary.fit -> training.fit
dictionary.finish -> training.finish
dictionary.train -> training.train
dictionary.interop -> bridges.saelens
dictionary.circuit_tracer -> bridges.circuit_tracer
dictionary.in_jax -> bridges.jax
drift.contract -> drift.statements
release -> gate
release.check -> gate.check
release.cli -> gate.cli
release.demo -> gate.demo
release.evidence -> gate.evidence
release.jobs -> gate.jobs
release.parameters -> gate.parameters
release.policy -> gate.policy
release.progress -> gate.progress
release.report -> gate.report
release.runner -> gate.runner
"""

# names that left a module which is still there; a method is written Class.method
NAMES = """
gate.report:statement_rows -> gate.numbers:statement_rows
gate.report:changed_rows -> gate.numbers:changed_rows
gate.report:example_rows -> gate.numbers:example_rows
gate.report:plan_rows -> gate.numbers:plan_rows
gate.report:behaviour_rows -> gate.numbers:behaviour_rows
gate.report:site_rows -> gate.numbers:site_rows
gate.report:WORDS -> gate.numbers:WORDS
gate.demo:table_text -> gate.demo_table:table_text
gate.demo:table_svg -> gate.demo_table:table_svg
gate.demo:HEADS -> gate.demo_table:HEADS
gate.demo:COLUMNS_AT -> gate.demo_table:COLUMNS_AT
"""


def moves(table: str) -> dict[str, str]:
    "A table as old -> new, in full."
    pairs = [line.split(" -> ") for line in table.strip().splitlines()]
    return {f"interpkit.{old}": f"interpkit.{new}" for old, new in pairs}


def names_by_module(table: str) -> dict[str, dict[str, str]]:
    "A table of names as module -> name -> what to write now."
    modules: dict[str, dict[str, str]] = {}
    for old, new in moves(table).items():
        module, name = old.split(":")
        place, now = new.split(":")
        modules.setdefault(module, {})[name] = f"from {place} import {now}"
    return modules


class OldModules:
    "The finder that is asked last: a module that nobody else found may have moved."

    def __init__(self, table: str = MODULES):
        self.moved = moves(table)

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname in self.moved:
            told = f"{fullname} has moved: it is {self.moved[fullname]} now"
            raise ImportError(told, name=fullname)


class OldNames:
    "The finder that is asked first: a module whose names have moved learns to tell where to."

    def __init__(self, table: str = NAMES):
        self.moved = names_by_module(table)

    def find_spec(self, fullname: str, path=None, target=None):
        if fullname not in self.moved:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _teach(spec.loader, self.moved[fullname])
        return spec


class _OldMethod:
    "Stands in a class for a method that has moved."

    def __init__(self, told: str):
        self.told = told

    def __get__(self, instance, owner=None):
        raise AttributeError(self.told)


def _teach(loader, names: dict[str, str]):
    "Let a module, once it is loaded, answer for the names that have left it."
    execute = loader.exec_module

    def exec_module(module):
        execute(module)
        told = {n: f"{module.__name__}.{n} has moved: {now}" for n, now in names.items()}

        def __getattr__(name: str):
            if name in told:
                raise ImportError(told[name], name=module.__name__)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = __getattr__
        for method in (n for n in names if "." in n):
            owner, _, name = method.partition(".")
            if not hasattr(getattr(module, owner), name):
                setattr(getattr(module, owner), name, _OldMethod(told[method]))

    loader.exec_module = exec_module


sys.meta_path.insert(0, OldNames())  # type: ignore[arg-type]
sys.meta_path.append(OldModules())  # type: ignore[arg-type]
