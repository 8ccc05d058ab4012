"""Why was it decided so? What each feature did to a decision.

`interpkit.explain(release, dictionary, rows, top=10)` returns one `Explanation` per row: its `top`
features by the size of their attribution, and the share of attribution that no feature explains.
It is meant for a few rows; more than 1,000 are refused. `interpkit.explain.attribution` and
`.ablation` hold the rest. `interpkit.explain.pages.feature_pages` makes a page for each feature,
`interpkit.explain.release_view.release_view` says which features carry a release.
"""

# The package itself can be called. Python binds a subpackage to the attribute of its parent as soon
# as anything in it is imported, so that a function of the same name would be there or not there,
# depending on who imported what before. One object that is both is always there.

import sys
from types import ModuleType

from ..core.calls import at_the_door


@at_the_door
def explain(self, release, dictionary, rows, top: int = 10):
    "One `Explanation` per row: its `top` features by the size of their attribution."
    from .attribution import explain  # here, since it takes torch

    return explain(release, dictionary, rows, top)


class _Explain(ModuleType):
    __call__ = explain

    def getdoc(self) -> str:
        "What shift-tab shows in a notebook."
        from .attribution import explain

        return explain.getdoc()


del explain  # a name of the module would stand for a function in it
sys.modules[__name__].__class__ = _Explain
