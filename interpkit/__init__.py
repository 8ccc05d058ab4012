"Keeps the interpretation of a production model valid, affordable and accountable from one model release to the next."

__version__ = "0.2.0"

_PLACES = {
    "check": "interpkit.gate.check",
    "Release": "interpkit.model.releases",
    "Dictionary": "interpkit.dictionary.dictionary",
}
__all__ = list(_PLACES)


def __getattr__(name: str):
    "What the package offers at its top is imported when it is first asked for."
    if name not in _PLACES:
        raise AttributeError(f"module 'interpkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])


def _warn_of_clash():
    "The name interpkit on PyPI belongs to another project; installed beside this one, either overwrites files of the other."
    from importlib import metadata

    try:
        other = metadata.version("interpkit")
    except metadata.PackageNotFoundError:
        return
    import warnings

    warnings.warn(
        f"the package interpkit {other} is installed: an unrelated project with the same import name, which overwrites files of interpkit-notebooks. "
        "Repair: pip uninstall -y interpkit interpkit-notebooks && pip install interpkit-notebooks",
        stacklevel=3,
    )


_warn_of_clash()
