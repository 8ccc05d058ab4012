"""Follow a model to its next release: the cheapest step that is shown to work.

`interpkit.adapt(old, new, dictionary, rows)` returns an `Adaptation`: a dictionary for the new
release, or none where no step was shown to work, with a table of the steps, what became of each
feature, and where it comes from. `interpkit.adapt.ladder` holds it, and the modules beside it the
steps.
"""

# The package itself can be called, as `interpkit.explain` can, and for the same reason.

import sys
from types import ModuleType

from ..core.calls import at_the_door


@at_the_door
def adapt(
    self,
    old,
    new,
    dictionary,
    rows,
    budget=None,
    limits=None,
    held=1 / 3,
    steps=None,
    seed: int = 0,
):
    """An `Adaptation` of the old release's dictionary to the new release.

    `budget` is seconds or a `Budget`; the rest is as in `interpkit.adapt.ladder.adapt`.
    """
    from .ladder import adapt  # here, since it takes torch

    return adapt(old, new, dictionary, rows, budget, limits, held, steps, seed)


class _Adapt(ModuleType):
    __call__ = adapt

    def getdoc(self) -> str:
        "What shift-tab shows in a notebook."
        from .ladder import adapt

        return adapt.getdoc()


del adapt  # a name of the module would stand for a function in it
sys.modules[__name__].__class__ = _Adapt
