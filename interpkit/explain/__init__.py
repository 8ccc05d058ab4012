"""What each feature did to a decision: attribution with its error node, and ablation.

This package can be called. `interpkit.explain(release, dictionary, rows)` is a short way to
`interpkit.explain.attribution.explain`. Python binds a subpackage to the attribute of its parent
as soon as anything in it is imported, so that a function of the same name would be there or not
there, depending on who imported what before. One object that is both is always there.
"""

import sys
from types import ModuleType


class _Explain(ModuleType):
    def __call__(self, release, dictionary, rows, top: int = 10):
        "An explanation for each row: its `top` features by the size of their attribution."
        from .attribution import explain  # here, since it takes torch

        return explain(release, dictionary, rows, top)


sys.modules[__name__].__class__ = _Explain
