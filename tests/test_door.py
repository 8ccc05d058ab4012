"The door: what `import interpkit` offers, and what it says of modules and names that have moved."

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mypy_patch
import pandas as pd
import pytest
from helpers import printed_by, refused

import interpkit
from interpkit import _moved
from interpkit.drift.simulate import small_world

DOOR = {"train", "evaluate", "explain", "check", "verify", "adapt", "attach"}
DOOR |= {"attribution_graph", "Release", "Dictionary"}


def python(code: str) -> str:
    "What a fresh Python prints."
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What it offers


def test_the_door_offers_its_names_and_no_torch_until_they_are_asked_for():
    assert set(interpkit.__all__) == DOOR
    assert set(dir(interpkit)) >= DOOR
    heavy = python(
        "import sys, interpkit, interpkit.explain; dir(interpkit); "
        "print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    assert heavy == "set()"


def test_each_name_is_what_its_module_holds():
    from interpkit.dictionary.dictionary import Dictionary
    from interpkit.dictionary.evaluate import evaluate
    from interpkit.explain.graph import attribution_graph
    from interpkit.gate.check import check
    from interpkit.gate.evidence import verify
    from interpkit.model.releases import Release
    from interpkit.training.train import train_dictionary

    assert interpkit.train is train_dictionary
    assert interpkit.evaluate is evaluate
    assert interpkit.attribution_graph is attribution_graph
    assert interpkit.check is check
    assert interpkit.verify is verify
    assert interpkit.Release is Release
    assert interpkit.Dictionary is Dictionary


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="chekc"):
        interpkit.chekc  # noqa: B018


def test_verify_needs_no_torch():
    said = python("import sys, interpkit; interpkit.verify; print('torch' in sys.modules)")
    assert said == "False"


ORDERS = {
    "the door first": "import interpkit; a = interpkit.explain; import interpkit.explain.ablation",
    "the floor first": "import interpkit.explain.ablation; import interpkit; a = interpkit.explain",
    "the name alone": "from interpkit import explain as a; import interpkit.explain.ablation",
    "a module as a name": "import interpkit.explain.ablation as _; import interpkit; "
    "a = interpkit.explain",
}


CALLED = """
import interpkit.explain.attribution
interpkit.explain.attribution.explain = lambda *given: given
assert a is interpkit.explain
assert callable(interpkit.explain.ablation.all_effects)
print(a('release', 'dictionary', 'rows'), interpkit.explain(1, 2, 3, top=4))
"""


def test_explain_can_be_called_in_whatever_order_it_is_imported():
    codes = [f"{order}\n{CALLED}" for order in ORDERS.values()]
    printed = printed_by(codes, first="import torch")
    said = "('release', 'dictionary', 'rows', 10) (1, 2, 3, 4)"
    assert dict(zip(ORDERS, printed, strict=True)) == dict.fromkeys(ORDERS, said)


def test_explain_explains(tiny):
    [explanation] = interpkit.explain(tiny.old, tiny.dictionary, tiny.rows.head(1), top=3)
    assert len(explanation.features) == 3


def test_explain_takes_what_the_function_takes():
    from interpkit.explain.attribution import explain

    door = inspect.signature(interpkit.explain).parameters
    assert list(door) == list(inspect.signature(explain).parameters)
    assert door["top"].default == inspect.signature(explain).parameters["top"].default


def test_adapt_can_be_called_and_takes_what_the_function_takes(tiny):
    from interpkit.adapt.ladder import adapt

    door = inspect.signature(interpkit.adapt).parameters
    own = inspect.signature(adapt).parameters
    assert list(door) == list(own)
    assert [p.default for p in door.values()] == [p.default for p in own.values()]
    refused(lambda: interpkit.adapt(tiny.old, tiny.old, tiny.dictionary, tiny.rows, 0), code=64)


# A slip at the door

SLIPS = {
    "check": ("dictionry", "dictionary"),
    "train": ("wirng", "wiring"),
    "evaluate": ("row", "rows"),
    "explain": ("tops", "top"),
    "adapt": ("budgt", "budget"),
    "verify": ("expct", "expect"),
    "Release.from_module": ("decison", "decision"),
    "Release.load": ("devise", "device"),
    "Release.save": ("overwrte", "overwrite"),
}


def at_the_door(name: str):
    first, _, method = name.partition(".")
    found = getattr(interpkit, first)
    return getattr(found, method) if method else found


@pytest.mark.parametrize("name", SLIPS)
def test_a_misspelt_argument_is_told_with_the_one_that_was_meant(name):
    slip, meant = SLIPS[name]
    call = at_the_door(name)
    given = [None] * (3 if name in ("check", "evaluate", "explain") else 2)
    error = refused(lambda: call(*given, **{slip: 1}), repr(slip), code=64)
    assert repr(meant) in error.mend


def test_a_policy_tells_the_key_that_was_meant():
    keys = {
        "limts": dict(limts={}),
        "efect": dict(limits=dict(efect=0.2)),
        "n_feature": dict(training=dict(n_feature=64)),
        "splice_eror": dict(own=dict(splice_eror=0.1)),
        "site": dict(new=dict(site={})),
    }
    for slip, policy in keys.items():
        call = lambda policy=policy: interpkit.check(None, None, None, policy=policy)  # noqa: E731
        assert "did you mean" in refused(call, repr(slip), code=64).mend


@pytest.mark.parametrize("name", [*SLIPS, "Release.save"])
def test_shift_tab_shows_every_parameter_with_a_sentence(name):
    from IPython.core.oinspect import Inspector

    call = at_the_door(name)
    shown = Inspector(theme_name="linux").info(call)["docstring"]
    parameters = inspect.signature(call).parameters.values()
    assert not [p.name for p in parameters if p.kind is p.VAR_KEYWORD and name != "train"]
    lines = shown.splitlines()
    for p in parameters:
        head = next((x for x in lines if x.startswith((f"{p.name}:", f"{p.name} ="))), None)
        assert head or p.name in ("self", "cls", "options", "release"), (name, p.name)
    assert lines[0]
    if name == "check":
        assert "limits: dict | None = None" in lines
        assert lines[lines.index("limits: dict | None = None") + 1].startswith("    {'effect'")


# What is passed in place of a release


def test_what_is_no_release_is_told_for_what_it_is(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from torch import nn

    rows = pd.DataFrame(dict(sequence_id=[1], a=[1.0]))
    given = {
        "LogisticRegression of sklearn": LogisticRegression(),
        "MLPClassifier of sklearn": MLPClassifier(),
        "Pipeline of sklearn": make_pipeline(LogisticRegression()),
        "the class Linear": nn.Linear,
        "weights without their model": nn.Linear(2, 1).state_dict(),
        "the function": lambda x: x,
        "int": 3,
    }
    for said, model in given.items():
        refused(lambda m=model: interpkit.check(m, m, rows), said, code=64)
        refused(lambda m=model: interpkit.Release.from_module(m), said, code=64)
    for name, said in {
        "model.pt": "a pickle",
        "model.safetensors": "weights without the model",
        "model.joblib": "no torch module",
        "model.onnx": "another framework",
        "rows.csv": "a table",
        "README": "a file",
    }.items():
        (tmp_path / name).write_bytes(b"x")
        refused(lambda n=name: interpkit.check(tmp_path / n, tmp_path / n, rows), said, ".save(")


# What has moved


@pytest.mark.parametrize("old, new", _moved.moves(_moved.MODULES).items())
def test_a_module_that_moved_tells_its_new_home(old, new):
    parents = [old.rsplit(".", n)[0] for n in range(old.count("."))]
    first = next(p for p in reversed(parents) if p in _moved.moves(_moved.MODULES))
    with pytest.raises(ImportError) as caught:
        importlib.import_module(old)
    assert _moved.moves(_moved.MODULES)[first] in str(caught.value)
    assert importlib.util.find_spec(new) is not None


def test_a_module_that_moved_is_told_also_by_its_package():
    with pytest.raises(ImportError, match="interpkit.sparse.products"):
        from interpkit.dictionary import kernels  # noqa: F401


def test_a_folder_that_an_old_version_left_does_not_hide_where_a_module_went(tmp_path):
    (tmp_path / "release").mkdir()
    code = f"import interpkit; interpkit.__path__.append({str(tmp_path)!r})\n"
    code += "try: import interpkit.release.check\nexcept ImportError as e: print(e)"
    assert python(code) == "interpkit.release.check has moved: it is interpkit.gate.check now"


def test_what_was_never_there_is_not_said_to_have_moved():
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("interpkit.nowhere")
    assert "moved" not in str(caught.value)


def thing(module: str, name: str):
    "What a module holds under a name, which may be Class.method."
    held = importlib.import_module(f"interpkit.{module}")
    for part in name.split("."):
        held = getattr(held, part)
    return held


def told(module: str, name: str) -> str:
    "What somebody reads who asks for a name where it was; '' where it is still answered."
    try:
        thing(module, name)
    except (ImportError, AttributeError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("line", _moved.NAMES.strip().splitlines())
def test_a_name_that_moved_tells_its_new_home(line):
    old, new = (end.split(":") for end in line.split(" -> "))
    assert thing(*new) is not None
    answer = told(*old)
    module = sys.modules.get(f"interpkit.{old[0]}")
    if module and old[1] in vars(module):
        return  # the old home still uses it
    assert f"interpkit.{new[0]}" in answer
    assert new[1] in answer


def test_a_moved_name_is_told_by_an_import_too():
    with pytest.raises(ImportError, match="from interpkit.gate.demo_table import HEADS"):
        from interpkit.gate.demo import HEADS  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'HEADERS'"):
        from interpkit.gate.demo import HEADERS  # noqa: F401


def test_a_module_that_tells_is_otherwise_as_it_was():
    from interpkit.gate import demo

    assert "def run_demo" in inspect.getsource(demo)
    assert not hasattr(demo, "nothing_of_this_name")
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        demo.nothing_of_this_name  # noqa: B018


def test_a_method_that_moved_is_told_by_its_class():
    class Thing:
        pass

    loader = SimpleNamespace(exec_module=lambda module: None)
    _moved._teach(loader, {"Thing.fly": "from interpkit.birds import fly"})
    loader.exec_module(SimpleNamespace(__name__="things", Thing=Thing))
    with pytest.raises(AttributeError, match="from interpkit.birds import fly"):
        Thing().fly()
    assert not hasattr(Thing(), "fly")


# Type checkers


@pytest.mark.parametrize("name", ["Release", "Dictionary"])
def test_a_type_checker_sees_the_methods_that_notebooks_patch_in(name):
    module = getattr(interpkit, name).__module__
    declared = set()
    tree = ast.parse(Path(importlib.import_module(module).__file__).read_text())
    owner = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    for node in ast.walk(owner):
        if isinstance(node, ast.AnnAssign):
            declared.add(node.target.id)
    public = {m for m in mypy_patch.patched()[f"{module}.{name}"] if not m.startswith("_")}
    assert public <= declared


# A slip in a call


@pytest.fixture(scope="module")
def parts():
    "A release, its dictionary and rows."
    world = small_world(n=60)
    return dict(release=world.old, dictionary=world.dictionary, rows=world.rows)


@pytest.mark.parametrize("name", ["evaluate", "explain"])
@pytest.mark.parametrize("order", ["dictionary release rows", "release rows dictionary"])
def test_a_call_in_another_order_is_told_the_right_one(name, order, parts):
    call = getattr(interpkit, name)
    given = [parts[part] for part in order.split()]
    refused(lambda: call(*given), f"{name}(release, dictionary, rows)", code=64)


@pytest.mark.parametrize("name", ["evaluate", "explain"])
def test_a_live_module_is_no_release(name, parts):
    call = getattr(interpkit, name)
    given = (parts["release"].model, parts["dictionary"], parts["rows"])
    refused(lambda: call(*given), "Release.from_module", code=64)


def test_who_asks_for_an_attribute_gets_an_attribute_error():
    from interpkit.drift import verdict

    assert not hasattr(verdict, "Limits")
    assert getattr(verdict, "Limits", None) is None
    with pytest.raises(AttributeError, match="from interpkit.drift.limits import Limits"):
        verdict.Limits  # noqa: B018
    with pytest.raises(ImportError, match="from interpkit.drift.limits import Limits"):
        from interpkit.drift.verdict import Limits  # noqa: F401


def test_a_function_that_became_a_method_is_told_too():
    with pytest.raises(ImportError, match="interpkit.dictionary.dictionary.Dictionary.load"):
        from interpkit.dictionary.dictionary import load  # noqa: F401
