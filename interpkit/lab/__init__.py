"""What is looked at in JupyterLab: boards to search, to click through, and to change things on.

`dictionary.browse(pages)`, `graph.show(clt, release=release, row=row)` and `result.explore()` open
three of them. Two are made by name, since they hold what nothing else does:

    from interpkit.lab import BudgetBoard, TrainingBoard

    TrainingBoard(lambda watch: interpkit.train(release, rows, store="run", watch=watch))
    BudgetBoard(Costs.load(file))  # of interpkit.serve.costs; `ipk profile` measures them

A board is seen where a cell ends with it; `board.to_html(file)` writes it for those without Python.
"""

from importlib import import_module

import interpkit

_PLACES = dict(place.split(":")[::-1] for place in interpkit._BOARDS.values())  # class -> module
__all__ = list(_PLACES)


def __getattr__(name: str):
    "Import a board when it is asked for."
    if name not in _PLACES:
        raise AttributeError(f"module 'interpkit.lab' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])
