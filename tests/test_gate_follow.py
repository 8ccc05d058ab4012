"""A dictionary that is out of order follows within a check: verdict before and after, evidence
that binds both, and nothing laundered on the way."""

import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import small_updates as small
import torch
from helpers import refused
from small_runs import asked_of, by_hand

from interpkit.adapt.compared import joined
from interpkit.adapt.ladder import adapt
from interpkit.core.artefacts import write_manifest
from interpkit.core.files import read_json, write_json
from interpkit.dictionary.validity import verify_canary
from interpkit.drift.comparison import Comparison
from interpkit.drift.families import rows_of
from interpkit.drift.measure import measure_all
from interpkit.drift.statements import Statement
from interpkit.gate import jobs
from interpkit.gate.after import dictionary_problem, other_plan
from interpkit.gate.check import check, register
from interpkit.gate.cli import run as ipk
from interpkit.gate.evidence import verify
from interpkit.gate.follow import followed
from interpkit.gate.parameters import Adapt
from interpkit.gate.policy import Policy
from interpkit.gate.results import result_of
from interpkit.gate.scored import score
from interpkit.gate.story import Story
from interpkit.model.releases import Release

LOOSE = dict(splice_error=0.4, allowance=0.15)  # its own among alerts is 9 to 11 %
STEPS = dict(steps=["closed form"], budget=3600)


@lru_cache
def rows():
    return small.rows(1500, 3)


@lru_cache
def learn():
    return small.rows(2400, 5)


def checked(new, data=None, **given):
    given = dict(adapt_data=learn(), limits=LOOSE, adapt=STEPS, watched_share=0.08, draws=2) | given
    return check(small.old(), new, rows() if data is None else data, None, None, **given)


@lru_cache
def turned():
    "The check of a release whose site was turned: the same function."
    new = small.release("turned", small.CHANGES["rotated"], shift=1.0)
    return checked(new, dictionary=small.trained())


def other_rule(change=None):
    "A release that decides by another rule above its site, which may have been moved as well."
    new = small.release("other rule", change)
    with torch.no_grad():
        g = torch.Generator().manual_seed(3)
        layer = new.model[5]
        layer.weight.copy_(layer.weight[:, torch.randperm(16, generator=g)])
    return new


@lru_cache
def moved():
    "The check of a release whose site was turned, and which decides by another rule."
    how = dict(dictionary=small.trained(), limits=LOOSE | dict(allowance=0.3))  # no close call
    return checked(other_rule(small.CHANGES["rotated"]), **how)


# verdicts


@pytest.mark.parametrize("name", ["rotated", "permuted", "x 2", "stretched"])
def test_the_same_function_in_other_units_ends_as_adapt(name):
    new = small.release(name, small.CHANGES[name], shift=1.0)
    found = turned() if name == "rotated" else checked(new, dictionary=small.trained())
    assert found.before.action == "RETRAIN"
    assert (found.action, found.verdict.outcome, int(found.verdict.exit_code)) == (
        "ADAPT",
        "PASS",
        0,
    )
    assert found.dictionary.validity["release"] == found.verdict.new["name"]
    assert (
        found.plan.adapted["kept"] > 0.95 and found.plan.statements == found.before.plan.statements
    )
    text = str(found)
    for said in ("Through the dictionary of old", "linear maps", "This is no approval"):
        assert said in text
    assert "What the dictionary reads is as before" not in text  # the site has moved
    assert "The features fire " in text


def test_nothing_is_laundered_by_a_dictionary_that_follows():
    plain = checked(other_rule(), dictionary=small.trained())
    assert plain.action == "REVIEW" and plain.before is None and plain.adaptation is None
    assert moved().action == "ADAPT + REVIEW" and int(moved().verdict.exit_code) == 10
    shares = [r.verdict.statement("effect").ratio for r in (plain, moved())]
    assert abs(shares[1] / shares[0] - 1) < 0.25  # what it says is what the first one says
    assert "does not reason as old did" in str(moved()) and "in effect" in str(moved())


def test_a_transcoder_whose_target_was_turned_ends_as_adapt():
    "Its source stands where it stood, so the first check takes the old decoder for a reason."
    new = small.release("turned", small.CHANGES["rotated"])
    limits = dict(splice_error=0.6, allowance=0.5, error_share=0.7)
    found = checked(new, dictionary=small.transcoder(), limits=limits)
    assert (found.before.action, found.action) == ("REVIEW", "ADAPT")
    other = other_rule(small.CHANGES["rotated"])
    assert checked(other, dictionary=small.transcoder(), limits=limits).action == "ADAPT + REVIEW"


class Read:
    "A family of a team's own that reads the dictionary: the overlap lost of activations."

    name, question, limit = "read", "same", 0.2

    def measure(self, comparison):
        seen = comparison.observed
        lost, both = abs(seen.active_new - seen.active_old), seen.active_new + seen.active_old
        return rows_of(comparison, self.name, lost.sum(1), both.sum(1))


def test_a_family_that_reads_the_dictionary_is_asked_again_through_the_new_one(tmp_path):
    new = small.release("turned", small.CHANGES["rotated"])
    found = checked(new, dictionary=small.trained(), families=[f"{__name__}:Read"])
    assert (found.before.action, found.action) == ("REVIEW", "ADAPT")
    verify(found.save(tmp_path))


class Wrapped(torch.nn.Module):
    "The network under another name."

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


def test_a_dictionary_that_followed_a_renamed_release_reads_it_under_its_own_names():
    turned = small.release("turned", small.CHANGES["rotated"], shift=1.0)
    inputs = dict(kind="columns", columns=small.COLUMNS)
    model = Wrapped(turned.model)
    new = Release.from_module(model, inputs=inputs, sites=["net.2:out"], name="moved", device="cpu")
    found = checked(new, dictionary=small.trained(), new_sites={"2": "net.2"})
    assert found.action == "ADAPT"
    assert [str(s) for s in found.dictionary.sites] == ["net.2:out"]
    assert found.plan.adapted["dictionary"] == found.dictionary.fingerprint
    verify_canary(new, found.dictionary)  # as whoever loads the release would read it


def test_inputs_are_measured_once_and_are_those_of_both_checks():
    new, d = small.release("turned", small.CHANGES["rotated"], shift=1.0), small.trained()
    given = dict(limits=LOOSE, adapt=STEPS, watched_share=0.08, draws=2)
    policy, some = Policy.read(given), rows().head(800)
    plan, _ = register(small.old(), new, d, some, policy, "salt")
    before = score(small.old(), new, d, some, plan, salt="salt")
    found = followed(before, small.old(), new, some, learn(), policy, "salt")
    both = joined(d, found.dictionary, found.adaptation.identity, True)
    asked = (small.old(), new, both[0], some, found.plan, "salt")
    again = measure_all(Comparison(*asked, on_new=both[1]))
    order = ["statement", "segment", "sequence"]
    mine, other = (t.sort_values(order).reset_index(drop=True) for t in (found.table, again))
    assert (mine[order] == other[order]).all(axis=None)
    for column in ("numerator", "denominator"):
        assert np.allclose(mine[column], other[column], rtol=1e-3, atol=1e-3)
    assert found.printed["contributions"].keys() == {"effect", "inputs"}
    assert set(found.printed["behaviour"]["sign_turned"]) == {"effect", "inputs"}


def test_a_feature_without_an_identity_counts_as_wholly_changed():
    d, new = small.trained(), small.release("turned", small.CHANGES["rotated"], shift=1.0)
    made = adapt(small.old(), new, d, learn(), budget=3600, limits=LOOSE, steps=["closed form"])
    table, known = made.identity.table.copy(), made.identity.new_number
    largest = int(table[table.feature >= 0].sort_values("share").feature.iloc[-1])
    assert known[largest] >= 0
    table.loc[table.feature == largest, "status"] = "retired"
    one, other = joined(d, made.dictionary, replace(made.identity, table=table))
    both = Comparison(small.old(), new, one, rows(), turned().plan, "", on_new=other)
    seen = both.observed
    called = [label.partition(":")[0] for label in one.labels]  # without what it stands for
    gone, came = largest, called.index(f"new feature {known[largest]}")
    assert seen.active_old[:, [gone]].sum() > 0 and seen.active_new[:, [gone]].sum() == 0
    assert seen.active_new[:, [came]].sum() > 0 and seen.active_old[:, [came]].sum() == 0
    site = d.sites[0]
    acts = torch.randn(50, 12)
    for mine, whole in ((d, one), (made.dictionary, other)):
        assert torch.allclose(
            mine.forward({site: acts})[site], whole.forward({site: acts})[site], atol=1e-5
        )


def test_dictionaries_numbered_otherwise_are_refused():
    d = small.trained()
    fewer = d.subset(range(32))
    plan = turned().plan
    error = refused(
        lambda: Comparison(small.old(), small.old(), d, rows(), plan, on_new=fewer), "32 features"
    )
    assert "joined" in error.mend


# where none follows


def test_where_no_step_works_the_first_check_stands_with_the_reason():
    new = small.release("turned", small.CHANGES["rotated"], shift=1.0)
    for given, why in (
        (dict(adapt_data=small.rows(40, 8)), "pass more rows"),
        (dict(adapt=dict(budget=1e-6)), "s were allowed"),
        (dict(adapt=dict(steps=["warm start"], budget=1.0)), "warm start"),
    ):
        found = checked(new, rows().head(600), dictionary=small.trained(), **given)
        assert found.action == "RETRAIN" and found.before is None
        assert why in found.why_not and f"No dictionary followed: {found.why_not}" in str(found)
    silent = checked(new, rows().head(600), dictionary=small.trained(), adapt=dict(budget=0))
    assert silent.action == "RETRAIN" and silent.why_not == ""
    assert "--adapt-data" in str(silent)


@pytest.mark.parametrize("n, said", [(1, "at least 60"), (3, "at least 60"), (None, "differ")])
def test_rows_that_show_nothing_leave_the_first_check_as_it_is(n, said):
    new = small.release("turned", small.CHANGES["rotated"], shift=1.0)
    alike = learn().assign(**dict.fromkeys(small.COLUMNS, 0.0))
    given = alike if n is None else learn().head(n)
    found = checked(new, rows().head(300), dictionary=small.trained(), adapt_data=given)
    assert found.before is None and said in found.why_not


ODD = (
    (dict(held=1), "held"),
    (dict(held=0.0), "held"),
    (dict(held=True), "held"),
    (dict(seed="x"), "seed"),
    (dict(seed=-1), "seed"),
    (dict(rows=[dict.fromkeys(small.COLUMNS, 0.0)]), "sequence_id"),
    (dict(dictionary="folder"), "adapt(old, new, dictionary, rows)"),
)


@pytest.mark.parametrize("given, said", ODD)
def test_odd_parameters_of_adapt_are_refused_by_name(given, said):
    how = dict(old=small.old(), new=small.old(), dictionary=small.trained(), rows=learn()) | given
    error = refused(lambda: adapt(**how), code=65 if "rows" in given else 64)
    assert said in str(error)


def test_what_is_checked_is_not_learned_from():
    new = small.release("turned", small.CHANGES["rotated"])
    how = dict(dictionary=small.trained())
    error = refused(lambda: checked(new, adapt_data=rows().head(500), **how), "stand in both")
    assert "leave them out" in error.mend


def test_a_misspelt_step_is_refused_before_anything_runs():
    new = small.release("turned", small.CHANGES["rotated"])
    refused(lambda: checked(new, adapt=dict(steps=["polsh"])), "polsh", code=64)
    refused(lambda: checked(new, adapt=dict(seconds=3)), "seconds", code=64)


# evidence


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "The run of `turned`, whose report is drawn once."
    return turned().save(tmp_path_factory.mktemp("drawn") / "run")


@pytest.fixture
def saved(drawn, tmp_path):
    return Path(shutil.copytree(drawn, tmp_path / "run"))


def test_both_checks_are_verified_and_speak_of_each_other(saved, tmp_path):
    found = verify(saved)
    assert found.verdict.action == "ADAPT" and found.deviations
    assert verify(saved / "evidence").verdict.action == "RETRAIN"
    assert verify(saved / "adapted" / "evidence").verdict.adapted["before"]["action"] == "RETRAIN"
    assert verify(saved, expect=found.digest[:12]).digest == found.digest
    shutil.rmtree(saved / "adapted")
    refused(lambda: verify(saved), "report.html", code=65)  # it tells of the second check


def test_only_what_a_check_wrote_is_removed_before_another_is_saved(saved):
    (saved / "adapted" / "notes.txt").write_text("mine")
    (saved / "adapted" / "evidence.old").mkdir()
    before = turned().before
    before.save(saved)
    kept = sorted(p.name for p in (saved / "adapted").iterdir())
    assert kept == ["evidence.old", "notes.txt"]
    assert verify(saved).verdict.action == "RETRAIN"


def test_the_first_check_is_kept_where_following_is_cut_off(tmp_path, monkeypatch):
    def cut_off(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("interpkit.gate.check.followed", cut_off)
    new = small.release("turned", small.CHANGES["rotated"], shift=1.0)
    with pytest.raises(KeyboardInterrupt):
        checked(new, rows().head(600), dictionary=small.trained(), out=tmp_path / "run")
    assert verify(tmp_path / "run").verdict.action == "RETRAIN"


def forged(folder: Path, change, name="preregistration.json"):
    "A file of an evidence folder changed, and its manifest written anew."
    content = read_json(folder / name)
    change(content)
    write_json(folder / name, content)
    write_manifest(folder, "evidence")


def wider(plan):
    for s in plan["statements"]:
        if s["name"] == "effect":
            s["limit"] = 0.9


def test_a_second_plan_promises_what_the_first_did(saved):
    forged(saved / "adapted" / "evidence", wider)
    refused(lambda: verify(saved), "follow", code=65)


def test_a_second_plan_is_the_one_that_follows_from_the_first():
    plan, before = turned().plan, turned().before.plan
    assert other_plan(before, plan) == ""
    others = (dict(emerging=0), dict(watched=()), dict(features=8), dict(draws=9), dict(seed=9))
    for other in others:
        assert next(iter(other)) in other_plan(before, replace(plan, **other))


def of_another_check(saved, tmp_path):
    shutil.rmtree(saved / "evidence")
    moved().before.save(tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "evidence", saved / "evidence")


def another_dictionary(saved, tmp_path):
    shutil.rmtree(saved / "adapted" / "dictionary")
    small.trained().save(saved / "adapted" / "dictionary")


def no_dictionary(saved, tmp_path):
    shutil.rmtree(saved / "adapted" / "dictionary")


def changed_weights(saved, tmp_path):
    file = saved / "adapted" / "dictionary" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")


def a_dictionary_alone(saved, tmp_path):
    shutil.rmtree(saved / "adapted" / "evidence")
    (saved / "report.html").unlink()


ATTACKS = (of_another_check, another_dictionary, no_dictionary, changed_weights, a_dictionary_alone)


@pytest.mark.parametrize("attack", ATTACKS)
def test_parts_of_two_stories_are_refused(attack, saved, tmp_path):
    attack(saved, tmp_path)
    refused(lambda: verify(saved), code=65)


@pytest.mark.parametrize("name", ["before", "steps", "kept", "dictionary"])
def test_what_is_told_of_a_dictionary_has_its_form(name, saved):
    for value in (None, 7, [{}], "x"):
        folder = saved / "adapted" / "evidence"
        forged(folder, lambda plan, value=value: plan["adapted"].update({name: value}))
        refused(lambda folder=folder: verify(folder), code=65)


def test_a_second_plan_cannot_say_that_a_review_does_not_stand(saved):
    found = turned()
    failed = Statement("effect", "same", 0.15, outcome="FAIL")
    stayed = Statement("activation", "moved", 0.05, outcome="PASS")
    before = replace(found.before.verdict, statements=(failed, stayed))
    one = Story(saved, saved / "evidence", found.before.plan, before, "")
    problems = []
    for stands in (True, False):
        plan = replace(found.plan, adapted=found.plan.adapted | dict(stands=stands))
        two = Story(saved, saved / "adapted" / "evidence", plan, found.verdict, "", one)
        problems.append(dictionary_problem(two))
    assert problems == ["", "by it, the REVIEW before stands"]


def test_a_review_of_the_first_check_stands_whatever_the_second_says(saved):
    "By arithmetic: the second table passes everywhere, and its plan names a REVIEW before it."
    from interpkit.drift.statements import decide
    from interpkit.drift.verdict import judge

    found = turned()
    before = found.plan.adapted["before"] | dict(action="REVIEW")
    plan = replace(found.plan, adapted=found.plan.adapted | dict(before=before, stands=True))
    verdict = judge(decide(found.table, plan), plan, found.table)
    assert (verdict.action, verdict.outcome, verdict.same) == ("ADAPT + REVIEW", "FAIL", "PASS")


# jobs


def permuted_release(tiny, folder: Path) -> str:
    "v1 with its hidden units in another order, as a folder."
    shutil.copytree(tiny.v1, folder)
    from interpkit.model.releases import Release

    release = Release.load(tiny.v1)
    net, order = release.model, torch.randperm(16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[order])
        net[0].bias.copy_(net[0].bias[order])
        net[2].weight.copy_(net[2].weight[:, order])
    shutil.rmtree(folder)
    import tiny_fraud

    told = dict(inputs=dict(kind="columns", columns=[f"x{i}" for i in range(6)]))
    told |= dict(decision=dict(kind="scalar"), sites=["1:out"], name="v2")
    Release.from_module(net, **told).save(folder, factory=tiny_fraud.build)
    return str(folder)


@pytest.fixture
def asked(tiny, tmp_path):
    from interpkit.drift.simulate import small_world

    more = small_world(n=1200, seed=9).rows
    more = more.assign(sequence_id=[f"more {i}" for i in range(len(more))])
    more.drop(columns="group_id", errors="ignore").to_parquet(tmp_path / "more.parquet")
    new = permuted_release(tiny, tmp_path / "v2")
    return asked_of(tiny, new, tmp_path / "run", adapt_data=str(tmp_path / "more.parquet"))


def test_the_jobs_follow_report_and_verify(asked, tmp_path):
    result = by_hand(asked)
    run = Path(asked.run)
    assert (result["verdict"], result["action"], result["exit_code"]) == ("PASS", "ADAPT", 0)
    made = result_of(run, "adapt")
    assert made["step"] == "closed form" and made["verdict"] == "PASS" and made["tried"]
    assert result_of(run, "drift")["action"] == "RETRAIN"
    assert read_json(run / "verdict.json")["action"] == "ADAPT"
    assert "Followed" in (run / "report.html").read_text()
    assert ipk(["verify", str(run)]) == 0
    again = jobs.adapt(Adapt(run=str(run)))  # as a killed job would begin again
    assert again["dictionary"] == made["dictionary"] and again["evidence"] != ""
    others = (dict(evidence="0" * 64), dict(step="polish"), dict(why="none did"))
    for other in (*others, dict(dictionary="0" * 64), dict(action="REUSE")):
        write_json(run / "adapt" / "result.json", made | other)
        refused(lambda: verify(run), "adapt/result.json", code=65)
    (run / "adapt" / "result.json").unlink()
    refused(lambda: verify(run), "adapt/result.json", code=65)


def test_jobs_say_why_none_followed(asked, tmp_path):
    pd.read_parquet(asked.adapt_data).head(30).to_parquet(tmp_path / "few.parquet")
    few = asked.model_copy(update=dict(adapt_data=str(tmp_path / "few.parquet")))
    assert by_hand(few)["action"] == "RETRAIN"
    made = result_of(few.run, "adapt")
    assert made["step"] == "" and "pass" in made["why"]
    assert verify(few.run).verdict.action == "RETRAIN"
    shutil.rmtree(few.run)
    refused(lambda: jobs.adapt(Adapt(run=few.run)), "drift", code=65)


def test_a_release_that_fits_needs_none(tiny, asked, tmp_path):
    fits = asked.model_copy(update=dict(new=tiny.v1))
    assert by_hand(fits)["action"] == "REUSE"
    assert result_of(fits.run, "adapt")["step"] == "" == result_of(fits.run, "adapt")["why"]
    assert not (Path(fits.run) / "adapted").exists()
