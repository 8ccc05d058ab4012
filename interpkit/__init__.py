"""Keeps the interpretation of a production model valid and accountable.

From one model release to the next: `train` a dictionary, `evaluate` it, `explain` decisions with
it, `check` a new release against the old one, `verify` what a check has found, `adapt` a
dictionary to a release that it no longer fits, `attach` a monitor to a model that serves.
"""

from importlib import import_module

from interpkit import _moved  # noqa: F401  tells where modules of the version before are now

__version__ = "0.2.0"

_DOOR = {  # what the package offers at its top, and where it lives
    "train": "interpkit.training.train:train_dictionary",
    "evaluate": "interpkit.dictionary.evaluate:evaluate",
    "explain": "interpkit.explain",  # a package that can be called, see there
    "attribution_graph": "interpkit.explain.graph:attribution_graph",
    "check": "interpkit.gate.check:check",
    "adapt": "interpkit.adapt",  # as explain
    "attach": "interpkit.serve.monitor:attach",
    "feature_pages": "interpkit.explain.pages:feature_pages",
    "release_view": "interpkit.explain.release_view:release_view",
    "verify": "interpkit.gate.evidence:verify",
    "Release": "interpkit.model.releases:Release",
    "Dictionary": "interpkit.dictionary.dictionary:Dictionary",
}
_BOARDS = {  # what is looked at in JupyterLab; `interpkit.core.views.board` opens one
    "browser": "interpkit.lab.feature_browser:FeatureBrowser",
    "graph": "interpkit.lab.graph_board:GraphBoard",
    "verdict": "interpkit.lab.verdict_board:VerdictBoard",
    "training": "interpkit.lab.training_board:TrainingBoard",
    "budget": "interpkit.lab.budget_board:BudgetBoard",
}
__all__ = list(_DOOR)


def __getattr__(name: str):
    "Import what is asked for: torch takes seconds, and `ipk verify` does without it."
    if name not in _DOOR:
        raise AttributeError(f"module 'interpkit' has no attribute {name!r}")
    place, _, attribute = _DOOR[name].partition(":")
    module = import_module(place)
    return getattr(module, attribute) if attribute else module


def __dir__():
    return sorted([*globals(), *__all__])


def _warn_of_clash():
    """Warn of another package of this name.

    The name interpkit on PyPI belongs to another project; installed beside this one, either
    overwrites files of the other.
    """
    from importlib import metadata

    try:
        other = metadata.version("interpkit")
    except metadata.PackageNotFoundError:
        return
    import warnings

    warnings.warn(
        f"the package interpkit {other} is installed: an unrelated project with the same import "
        "name, which overwrites files of interpkit-notebooks. Repair: "
        "pip uninstall -y interpkit interpkit-notebooks, "
        "then install interpkit-notebooks again from its source: pip install -e .",
        stacklevel=3,
    )


_warn_of_clash()
