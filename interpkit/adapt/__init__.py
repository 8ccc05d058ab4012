"""Follow a model to its next release: the cheapest step that is shown to work.

`interpkit.adapt(old, new, dictionary, rows)` returns an `Adaptation`: a dictionary for the new
release, or none where no step was shown to work, with a table of the steps, what became of each
feature, and where it comes from. `interpkit.adapt.ladder` holds it, and the modules beside it the
steps.
"""

# The package itself can be called, as `interpkit.explain` can, and for the same reason.

import sys
from types import ModuleType


class _Adapt(ModuleType):
    def __call__(self, old, new, dictionary, rows, budget=None, **how):
        """An `Adaptation` of the old release's dictionary to the new release.

        `budget` is seconds or a `Budget`; `how`: limits, held, steps, seed, as in
        `interpkit.adapt.ladder.adapt`.
        """
        from .ladder import adapt  # here, since it takes torch

        return adapt(old, new, dictionary, rows, budget, **how)


sys.modules[__name__].__class__ = _Adapt
