"Parameters and policy: what is misspelt, of another type or dangerous ends before anything runs."

import json
import os
from dataclasses import asdict

import pytest
from helpers import refused
from pydantic import ValidationError

from interpkit.core.errors import ExitCode, InterpkitError
from interpkit.drift.limits import Limits
from interpkit.drift.statements import Statement
from interpkit.gate.check_toml import limit_lines, policy_text
from interpkit.gate.null_limits import kept_together, proposed, telling
from interpkit.gate.parameters import (
    JOBS,
    Drift,
    Preflight,
    TrainSae,
    from_cell,
    papermill_line,
    refuse_names,
    validated,
)
from interpkit.gate.policy import Limit, LimitsOf, Policy
from interpkit.gate.progress import Progress
from interpkit.gate.progress import line as progress_line

GIVEN = dict(old="v1", new="v2", data="q.parquet", run="r")


def error(function, *args) -> InterpkitError:
    "The error of a call that is refused before anything runs."
    return refused(lambda: function(*args), code=ExitCode.BAD_PARAMETERS)


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
    assert name in e.given
    assert "hunter2" not in str(e)


def test_a_declared_name_is_never_taken_for_a_secret():
    assert Policy.read(dict(training=dict(tokens=5))).training.tokens == 5


@pytest.mark.parametrize(
    "given, meant",
    [
        (dict(dta="x"), "'data'"),
        (dict(dictonary="x"), "'dictionary'"),
        (dict(train_dat=""), "'train_data'"),
    ],
)
def test_the_nearest_name_is_given(given, meant):
    assert meant in error(validated, Preflight, GIVEN | given).mend


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
    assert error(Policy.read, dict(alerts=1.0)).asked.startswith("alerts:")
    assert error(Policy.read, dict(alerts=-0.1)).asked.startswith("alerts:")
    assert error(Policy.read, dict(threshold=float("nan"))).asked.startswith("threshold:")
    assert error(Policy.read, dict(new=dict(sites=["1"]))).asked.startswith("new.sites:")


def test_parameters_are_frozen():
    p = validated(Preflight, GIVEN)
    with pytest.raises(ValidationError):
        p.old = "v0"


def test_a_cell_may_hold_parameters_and_nothing_else():
    others = dict(
        _private=1,
        In=[],
        Out={},
        os=os,
        Path=type("Path", (), {}),
        helper=len,
        exit=print,
    )
    assert from_cell(Preflight, GIVEN | others).new == "v2"
    assert "'run'" in error(from_cell, Preflight, GIVEN | dict(rnu="x")).mend


def test_a_notebook_without_its_parameters_says_which_one_is_missing_and_what_to_paste():
    e = error(from_cell, Preflight, dict(old="v1", new="", data="", run=""))
    assert e.asked == "new: folder or hub id of the new release"
    assert e.given == "no value for new, data, run"
    assert papermill_line(Preflight, dict(old="v1")) in e.mend
    assert error(from_cell, Drift, dict(run="")).asked.startswith("run:")


def test_a_misspelt_name_explains_what_is_missing():
    assert "'run'" in error(from_cell, Drift, dict(rnu="x", run="")).mend


def test_the_line_to_paste_keeps_what_was_given_and_is_complete():
    line = papermill_line(TrainSae, dict(release="my model", half=True))
    words = "papermill train_sae.ipynb train_sae-done.ipynb -p release 'my model' -p data"
    assert line.startswith(words)
    assert " -p out " in line
    assert " -p run " in line


def test_every_job_has_at_most_ten_parameters_that_are_described():
    for model in JOBS.values():
        assert len(model.model_fields) <= 10
        assert all(f.description for f in model.model_fields.values())


def test_default_limits_are_those_of_drift():
    defaults = LimitsOf()
    assert {n: getattr(defaults, n).limit for n in LimitsOf.model_fields} == asdict(Limits())


@pytest.mark.parametrize(
    "text, meant",
    [
        ("[limits.efect]\nlimit = 0.2", "'effect'"),
        ("[limits.effect]\nlimt = 0.2", "'limit'"),
        ("exmples = 'ids'", "'examples'"),
        ("[training]\nfeatures = 64", "'n_features'"),
    ],
)
def test_a_misspelt_line_of_check_toml_is_named_wherever_it_stands(tmp_path, text, meant):
    (tmp_path / "check.toml").write_text(text)
    assert meant in error(Policy.read, tmp_path / "check.toml").mend


def test_broken_and_missing_policies_are_one_error(tmp_path):
    (tmp_path / "check.toml").write_text("a = = 3")
    assert "TOML" in error(Policy.read, tmp_path / "check.toml").asked
    assert "ipk init" in error(Policy.read, tmp_path / "none.toml").mend


def test_what_the_command_line_says_goes_before_the_file_and_what_it_does_not_say_stays(tmp_path):
    (tmp_path / "check.toml").write_text(
        "seed = 4\nwatched = ['a']\n[training]\nk = 6\ntokens = 9\n"
    )
    p = Policy.read(tmp_path / "check.toml", seed=7, examples=None, training__k=8)
    assert p.seed == 7
    assert p.training.k == 8
    assert p.watched == ["a"]
    assert p.training.tokens == 9
    assert p.examples == "ids"


def test_a_policy_survives_json_and_its_own_toml(tmp_path):
    p = Policy.read(
        dict(
            watched=['a "quoted" # name', 3],
            sites=["model.layers.1:out"],
            decision=dict(kind="column", column=1),
            seed=5,
            examples="none",
            segments=False,
            pool="others",
            alerts=0.0,
            threshold=0.5,
            new=dict(sites={"model.layers.1": "encoder.1"}),
            limits=dict(effect=dict(limit=0.2, why="agreed")),
            own=dict(splice_error=0.002, error_share=0.02),
            training=dict(n_features=64),
        )
    )
    about = ("release", "data", "decision", "sites", "segments", "rare", "alerts")
    found = dict.fromkeys(about, "-")
    (tmp_path / "p.json").write_text(json.dumps(p.model_dump(mode="json")))
    (tmp_path / "p.toml").write_text(policy_text(p, found))
    assert Policy.read(tmp_path / "p.json") == p
    assert Policy.read(tmp_path / "p.toml") == p


@pytest.mark.parametrize("text", ["[1]", '"abc"', "[]"])
def test_a_policy_that_holds_no_names_is_refused(tmp_path, text):
    (tmp_path / "policy.json").write_text(text)
    refused(lambda: Policy.read(tmp_path / "policy.json"), code=64)


def test_a_comment_of_check_toml_keeps_away_from_a_long_value_and_says_the_unit():
    why = "again, a retrain that changes nothing, reaches 17.1 % in segment 'man, high school'"
    limits = limit_lines(LimitsOf(inputs=Limit(limit=0.22, why=why)))
    assert f'why = "{why}" # the reason' in "\n".join(limits)
    after = limits[limits.index(next(x for x in limits if "limits.active_features" in x)) + 1]
    assert after.startswith("limit = 1.5 ")
    assert after.endswith("# times as many")


# limits that nulls propose


def of_null(name, upper, segment="", question="same", outcome="INCONCLUSIVE"):
    n = dict(upper=upper, n=1000, n_eff=500.0, outcome=outcome)
    return Statement(name, question, 0.1, segment, **n)


@pytest.mark.parametrize(
    "valid, activation, told",
    [
        ("PASS", "PASS", ["effect", "effect: late", "inputs"]),
        ("INCONCLUSIVE", "PASS", ["effect", "effect: late", "inputs"]),
        ("PASS", "FAIL", ["inputs"]),
        ("FAIL", "PASS", ["inputs"]),
    ],
)
def test_effects_of_a_null_count_where_the_dictionary_is_a_witness(valid, activation, told):
    "Through a valid dictionary, one retrain moved the site by 30 % and its inputs by 11 %."
    known = [
        of_null("splice error", 0.1, question="valid", outcome=valid),
        of_null("activation", 0.3, question="moved", outcome=activation),
        *(of_null(name, 0.4) for name in ("effect", "effect: late", "inputs")),
    ]
    assert [s.name for s in telling(known) if s.question == "same"] == told


@pytest.mark.parametrize(
    "inputs, decisions, limits",
    [(0.2, 0.2, (0.25, 0.25)), (0.46, 0.22, (0.15, 0.10)), (0.2, 0.45, (0.15, 0.10))],
)
def test_no_limit_is_raised_for_a_null_that_will_not_pass(inputs, decisions, limits):
    defaults = LimitsOf()
    changed = {
        name: proposed(name, of_null(name, upper), "again", getattr(defaults, name).limit)
        for name, upper in dict(inputs=inputs, decisions=decisions).items()
    }
    kept = kept_together(changed, defaults)
    assert (kept["inputs"].limit, kept["decisions"].limit) == limits
    assert all("retrain" in limit.why for limit in kept.values())


# What is left, before anybody can know


@pytest.mark.parametrize(
    "done, elapsed, before, said",
    [
        (256, 0.0, 256, "train 256 of 2,000,000"),
        (512, 0.01, 256, "train 512 of 2,000,000"),
        (256, 0.0, 0, "train 256 of 2,000,000"),
        (1_000_256, 10.0, 256, "train 1,000,256 of 2,000,000, about 10 s left"),
        (0, 100.0, 0, "train 0 of 2,000,000"),
        (2_000_000, 100.0, 0, "train 2,000,000 of 2,000,000"),
    ],
)
def test_no_time_is_told_before_some_has_passed(done, elapsed, before, said):
    assert progress_line("train", done, 2_000_000, elapsed, before) == said


def test_a_run_that_goes_on_does_not_count_what_was_done_before(monkeypatch):
    told, clock = [], iter([0.0, 0.0, 10.0])
    monkeypatch.setattr("interpkit.gate.progress.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(Progress, "_tell", lambda self, text: told.append(text))
    progress = Progress(every=5)
    progress.live = False
    progress("train", 900, 1000)  # from a checkpoint
    progress("train", 910, 1000)
    assert told == ["train 910 of 1,000, about 90 s left"]
