"Parameters and policy: everything that is misspelt, of another type or dangerous ends before anything runs."

import json

import pytest

from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.gate.parameters import (
    JOBS,
    Drift,
    Policy,
    Preflight,
    from_cell,
    refuse_names,
    validated,
)
from interpkit.gate.policy import policy_text

GIVEN = dict(old="v1", new="v2", data="q.parquet", run="r")


def error(fn, *args, **kw) -> InterpkitError:
    with pytest.raises(InterpkitError) as e:
        fn(*args, **kw)
    assert e.value.code == ExitCode.BAD_PARAMETERS
    return e.value


@pytest.mark.parametrize(
    "name", ["1x", "a b", "x=1;import os", "class", "", "a.b", "old\nimport os"]
)
def test_what_is_no_name_is_refused_as_code(name):
    assert "run as code" in error(refuse_names, [name], ["old"]).given


@pytest.mark.parametrize(
    "name", ["password", "hf_token", "API_KEY", "client_secret", "aws_access_key"]
)
def test_what_looks_like_a_secret_is_refused_by_its_name_alone(name):
    e = error(validated, Preflight, GIVEN | {name: "hunter2"})
    assert name in e.given and "hunter2" not in str(e)


def test_a_declared_name_is_never_taken_for_a_secret():
    assert Policy.read(dict(training=dict(tokens=5))).training.tokens == 5


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(dta="x"), "'data'"),
        (dict(dictonary="x"), "'dictionary'"),
        (dict(train_dat=""), "'train_data'"),
    ],
)
def test_the_nearest_name_is_given(given, said):
    assert said in error(validated, Preflight, GIVEN | given).mend


@pytest.mark.parametrize(
    "given, where",
    [
        (dict(old=3), "old"),
        (dict(run=None), "run"),
        (dict(policy=True), "policy"),
        (dict(data=""), "data"),
        (dict(new=["a"]), "new"),
    ],
)
def test_a_value_of_another_type_is_named(given, where):
    assert error(validated, Preflight, GIVEN | given).asked.startswith(where + ":")


def test_numbers_as_text_are_not_numbers():
    assert error(Policy.read, dict(seed="3")).asked.startswith("seed:")
    assert error(Policy.read, dict(draws=True)).asked.startswith("draws:")
    assert error(Policy.read, dict(watched_share=0)).asked.startswith("watched_share:")


def test_parameters_are_frozen():
    p = validated(Preflight, GIVEN)
    with pytest.raises(Exception):
        p.old = "v0"


def test_a_cell_may_hold_parameters_and_nothing_else():
    import os

    cell = dict(
        GIVEN,
        _private=1,
        In=[],
        Out={},
        os=os,
        Path=type("Path", (), {}),
        helper=lambda: 1,
        exit=print,
    )
    assert from_cell(Preflight, cell).new == "v2"
    assert "'run'" in error(from_cell, Preflight, dict(GIVEN, rnu="x")).mend


def test_a_notebook_that_nobody_gave_parameters_shows_the_example_and_a_half_given_one_does_not():
    assert from_cell(Drift, dict(run=""), lambda model: (model, "example")) == (Drift, "example")
    assert error(
        from_cell, Preflight, dict(old="v1", new="", data="", run=""), lambda model: "example"
    ).asked.startswith("new:")
    assert error(from_cell, Drift, dict(rnu="x", run=""), lambda model: "example")


def test_every_job_has_at_most_ten_parameters_that_are_described():
    for model in JOBS.values():
        assert len(model.model_fields) <= 10 and all(
            f.description for f in model.model_fields.values()
        )


@pytest.mark.parametrize(
    "text, said",
    [
        ("[limits.efect]\nlimit = 0.2", "'effect'"),
        ("[limits.effect]\nlimt = 0.2", "'limit'"),
        ("exmples = 'ids'", "'examples'"),
    ],
)
def test_a_misspelt_line_of_check_toml_is_named_wherever_it_stands(tmp_path, text, said):
    (tmp_path / "check.toml").write_text(text)
    assert said in error(Policy.read, tmp_path / "check.toml").mend


def test_broken_and_missing_policies_are_one_error(tmp_path):
    (tmp_path / "check.toml").write_text("a = = 3")
    assert "TOML" in error(Policy.read, tmp_path / "check.toml").asked
    assert "ipk init" in error(Policy.read, tmp_path / "none.toml").mend


def test_what_the_command_line_says_goes_before_the_file_and_what_it_does_not_say_stays(tmp_path):
    (tmp_path / "check.toml").write_text(
        "seed = 4\nwatched = ['a']\n[training]\nk = 6\ntokens = 9\n"
    )
    p = Policy.read(tmp_path / "check.toml", seed=7, examples=None, training__k=8)
    assert (p.seed, p.watched, p.training.k, p.training.tokens, p.examples) == (
        7,
        ["a"],
        8,
        9,
        "ids",
    )


def test_a_policy_survives_json_and_its_own_toml(tmp_path):
    p = Policy.read(
        dict(
            watched=['a "quoted" # name', 3],
            sites=["model.layers.1:out"],
            decision=dict(kind="column", column=1),
            seed=5,
            examples="none",
            segments=False,
            limits=dict(effect=dict(limit=0.2, why="agreed")),
            own=dict(splice_error=0.002, error_share=0.02),
            training=dict(features=64),
        )
    )
    (tmp_path / "p.json").write_text(json.dumps(p.model_dump(mode="json")))
    (tmp_path / "p.toml").write_text(
        policy_text(p, dict(release="v1", data="-", decision="-", sites="-", segments="-"))
    )
    assert Policy.read(tmp_path / "p.json") == Policy.read(tmp_path / "p.toml") == p
