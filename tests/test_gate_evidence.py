"Evidence: a changed byte is named, a forged verdict does not follow, arithmetic finds both out."

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from helpers import refused
from small_runs import asked_of, by_hand, line

from interpkit.core.artefacts import new_artefact, write_manifest
from interpkit.core.digests import canonical, digest_file
from interpkit.core.errors import InterpkitError
from interpkit.core.files import read_json, write_json
from interpkit.drift.statements import Plan, decide
from interpkit.drift.verdict import judge
from interpkit.gate import jobs, signatures
from interpkit.gate.check import check
from interpkit.gate.cli import run as ipk
from interpkit.gate.derived import derive, plan_problems
from interpkit.gate.evidence import Verified, verify, write_evidence
from interpkit.gate.parameters import Drift, Report
from interpkit.gate.results import digest_of
from interpkit.gate.signatures import new_key, sign, signature_file
from interpkit.gate.standard import deviations
from interpkit.gate.story import Story, refuse_other_story


@pytest.fixture(scope="module")
def result(tiny):
    return check(tiny.old, tiny.v2, tiny.data, dictionary=tiny.dictionary)


@pytest.fixture(scope="module")
def saved(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("saved") / "run")


@pytest.fixture
def folder(saved, tmp_path):
    "A copy of the evidence, without the page beside it."
    return Path(shutil.copytree(saved / "evidence", tmp_path / "run" / "evidence"))


def test_an_intact_folder_gives_its_verdict_again(result, folder):
    verified = verify(folder)
    assert canonical(verified.verdict.to_dict()) == canonical(result.verdict.to_dict())
    assert verified.rows == len(result.table)
    assert verify(folder.parent).digest == verified.digest
    assert verify(folder, verified.digest[:12]).digest == verified.digest


@pytest.mark.parametrize(
    "name",
    ["preregistration.json", "preview.json", "printed.json", "verdict.json", "table.parquet"],
)
def test_one_changed_byte_anywhere_is_named(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    refused(lambda: verify(folder), f"{name} was changed")


def test_what_is_missing_added_or_a_link_is_named(folder):
    (folder / "printed.json").unlink()
    (folder / "note.txt").write_text("fine")
    refused(lambda: verify(folder), "printed.json is missing", "note.txt was added")


def test_a_verdict_beside_the_evidence_that_says_something_else_is_named(folder):
    run = folder.parent
    write_json(run / "verdict.json", read_json(folder / "verdict.json"))
    verify(run)
    write_json(run / "verdict.json", read_json(folder / "verdict.json") | dict(verdict="PASS"))
    refused(lambda: verify(run), "verdict.json was changed")


FORGED = {
    "a limit": lambda d: d["statements"][0].update(limit=9.0),
    "an outcome": lambda d: d["statements"][-1].update(outcome="PASS"),
    "the verdict": lambda d: d.update(verdict="PASS", action="REUSE", exit_code=0),
    "a share": lambda d: d["statements"][3].update(ratio=0.01),
    "what changed": lambda d: d.update(changed=[]),
    "the releases": lambda d: d["new"].update(name="v3"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forger_who_mends_the_manifest_is_found_by_the_table(folder, what):
    verdict = read_json(folder / "verdict.json")
    FORGED[what](verdict)
    write_json(folder / "verdict.json", verdict)
    write_manifest(folder, "evidence")
    refused(lambda: verify(folder), "follows from the table")


def test_a_table_that_was_cut_or_holds_nan_gives_no_verdict(folder):
    table = pd.read_parquet(folder / "table.parquet")
    for bad in (
        table.iloc[1:],
        table.assign(numerator=table.numerator.where(table.index != 3, float("nan"))),
        pd.concat([table, table.head(1)]),
        table.drop(columns="weight"),
    ):
        bad.to_parquet(folder / "table.parquet", index=False)
        write_manifest(folder, "evidence")
        refused(lambda: verify(folder))
    (folder / "table.parquet").write_bytes(b"PAR1 no")
    write_manifest(folder, "evidence")
    refused(lambda: verify(folder))


def test_the_digest_that_was_filed_tells_two_checks_apart(tiny, folder, tmp_path):
    again = check(tiny.old, tiny.v2, tiny.data, dictionary=tiny.dictionary, seed=1)
    other = again.save(tmp_path / "other")
    filed = verify(folder).digest
    assert filed != verify(other).digest
    refused(lambda: verify(other, filed), "another check")


def test_the_order_of_the_table_changes_no_byte_of_the_verdict(result, folder):
    before = canonical(derive(folder).to_dict())
    shuffled = pd.read_parquet(folder / "table.parquet").sample(frac=1, random_state=1)
    shuffled.to_parquet(folder / "table.parquet", index=False)
    assert canonical(derive(folder).to_dict()) == before


def test_evidence_whose_verdict_does_not_follow_is_never_written(result, tmp_path):
    forged = replace(result.verdict, outcome="PASS")
    with pytest.raises(InterpkitError):
        write_evidence(tmp_path / "e", result.plan, result.table, forged, result.printed)
    assert not list(tmp_path.iterdir())


def test_neither_torch_nor_the_models_are_needed(folder):
    code = f"""
import sys

class No:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers", "sae_lens"):
            raise ImportError(name)

sys.meta_path.insert(0, No())
from interpkit.gate.cli import run
sys.exit(run(["verify", {str(folder)!r}, "--json"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 10, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["verdict"] == "FAIL"


# The run around the evidence


@pytest.fixture
def whole(runs, tmp_path):
    "A copy of the run of v2."
    return Path(shutil.copytree(runs / "v2", tmp_path / "whole"))


@pytest.fixture
def run(runs, tmp_path):
    "The same without its page, which takes a second to draw."
    leave = shutil.ignore_patterns("report.html")
    return Path(shutil.copytree(runs / "v2", tmp_path / "v2", ignore=leave))


@pytest.fixture(scope="module")
def found(runs):
    "What the evidence of the run of v2 says."
    return verify(runs / "v2" / "evidence")


def told(run: Path, found: Verified):
    "A call that compares the files of a run with what its evidence says."
    story = Story(run, run / "evidence", found.plan, found.verdict, found.digest)
    return lambda: refuse_other_story(story)


def edit(file: Path, **changes):
    write_json(file, read_json(file) | changes)


def test_a_run_is_verified_with_the_code_of_its_verdict(tiny, runs, whole, capsys):
    assert ipk(["verify", str(runs / "same" / "evidence")]) == 0
    assert ipk(line(asked_of(tiny, tiny.v2, whole))) == 10
    assert ipk(["verify", str(whole)]) == 10
    said = capsys.readouterr().out
    assert "files agree with each other" in said
    assert "Not signed" in said
    assert "Standard check" in said


LAID = ("evidence", "drift", "report", "verdict.json")
PAGE = ("report.html",)  # which agrees with its evidence; it is drawn again each time it is read


@pytest.mark.parametrize(
    "more",
    [(), ("preregistration.json", "preview.json"), ("preregistration.json", "preflight", *PAGE)],
    ids=["found", "and planned", "and filed"],
)
def test_the_evidence_of_a_release_that_passed_is_no_evidence_of_another(
    tiny, runs, run, more, capsys
):
    for name in (*LAID, *more):
        there = runs / "same" / name
        if there.is_dir():
            shutil.rmtree(run / name)
            shutil.copytree(there, run / name)
        else:
            shutil.copy(there, run / name)
    assert ipk(["verify", str(run)]) == 65
    assert ipk(line(asked_of(tiny, tiny.v2, run))) == 65
    assert "another question" in capsys.readouterr().err
    jobs_only = refused(lambda: jobs.report(Report(run=str(run))))
    assert "one story" in jobs_only.asked


TOLD = {
    "check.json": lambda f: edit(f, policy=read_json(f)["policy"] | dict(seed=3)),
    "preflight/result.json": lambda f: edit(f, registered=""),
    "preregistration.json": lambda f: edit(f, draws=1),
    "preview.json": lambda f: write_json(f, []),
    "drift/result.json": lambda f: edit(f, evidence="0" * 64),
    "report/result.json": lambda f: edit(f, verdict="PASS", exit_code=0),
    "verdict.json": lambda f: edit(f, verdict="PASS"),
    "report.html": lambda f: f.write_text(f.read_text().replace("FAIL", "PASS")),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_file_of_the_run_that_tells_another_story_is_named(whole, found, name):
    TOLD[name](whole / name)
    if name != "report.html":
        (whole / "report.html").unlink()
    refused(told(whole, found), f"{name}: ")


@pytest.mark.parametrize("name", [n for n in TOLD if n.endswith("json")])
def test_a_file_of_the_run_of_another_form_is_no_crash(run, found, name):
    for content in ([], {}, 3, None, dict(places=1, digests=[], policy="")):
        write_json(run / name, content)
        refused(told(run, found), name)
    (run / name).write_text('{"a": 1, "a": 2}')
    refused(told(run, found), name)


@pytest.mark.parametrize("name", ["check.json", "preflight/result.json", "drift/result.json"])
def test_a_run_without_what_its_jobs_filed_is_no_run(run, found, name):
    (run / name).unlink()
    refused(told(run, found), f"{name}: missing")


def test_what_is_handed_over_without_the_run_can_be_verified(whole, tmp_path):
    for name in LAID[:1] + LAID[3:] + PAGE:
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        copy(whole / name, tmp_path / name)
    assert verify(tmp_path).verdict.outcome == "FAIL"
    (tmp_path / "report.html").write_text("<h1>PASS</h1>")
    refused(lambda: verify(tmp_path), "report.html: another page")


# Before the new release is scored


@pytest.fixture
def elsewhere(tiny, tmp_path):
    "A copy of v2 whose weights lie outside of its folder, where no digest of it reaches."
    at = Path(shutil.copytree(tiny.v2, tmp_path / "v2"))
    (at / "manifest.json").unlink()
    head = read_json(at / "release.json")
    (at / head.get("weights", "model.safetensors")).rename(tmp_path / "w.safetensors")
    edit(at / "release.json", weights="../w.safetensors")
    return at


@pytest.mark.parametrize("dictionary", [True, False], ids=["dictionary", "none"])
def test_weights_that_are_replaced_after_the_preflight_are_not_scored(
    tiny, elsewhere, tmp_path, dictionary
):
    given = {} if dictionary else dict(dictionary="")
    p = asked_of(tiny, str(elsewhere), tmp_path / "run", **given)
    by_hand(p, "preflight")
    run = Path(p.run)
    if not dictionary:
        shutil.copytree(tiny.dictionary_folder, run / "dictionary")
    shutil.copy(Path(tiny.v1) / "model.safetensors", tmp_path / "w.safetensors")
    refused(lambda: jobs.drift(Drift(run=p.run)), "another new, by fingerprint")
    assert not (run / "evidence").exists()


def drift_of(run: Path):
    return lambda: jobs.drift(Drift(run=str(run)))


def test_a_plan_that_was_not_registered_is_not_made_up_afterwards(run):
    edit(run / "preflight" / "result.json", registered="")
    refused(drift_of(run), "registered before")


@pytest.mark.parametrize("left", [{}, dict(old="", new="")], ids=["none", "no rows"])
def test_fingerprints_that_were_left_out_are_not_taken_for_compared(run, left):
    edit(run / "preflight" / "result.json", fingerprints=left)
    refused(drift_of(run), "preflight/result.json")
    refused(lambda: verify(run), "preflight/result.json")


def test_a_question_that_was_edited_is_not_answered(tiny, run):
    settings = read_json(run / "check.json")
    places = settings["places"] | dict(new=tiny.v1)
    digests = settings["digests"] | dict(new=digest_of(tiny.v1))
    edit(run / "check.json", places=places, digests=digests)
    refused(drift_of(run), "check.json changed since")


def test_a_dictionary_that_another_job_trained_is_not_used(tiny, tmp_path):
    run = tmp_path / "run"
    by_hand(asked_of(tiny, tiny.v2, run, dictionary=""), "preflight")
    shutil.copytree(tiny.dictionary_folder, run / "dictionary")
    (run / "train_sae").mkdir()
    trained = dict(release="v1", dictionary="0" * 64, features=1, measured={})
    write_json(run / "train_sae" / "result.json", trained)
    refused(drift_of(run), "another dictionary")


def test_after_a_drift_that_refused_the_old_verdict_is_none(tiny, runs, tmp_path):
    run = Path(shutil.copytree(runs / "same", tmp_path / "same"))
    data = tmp_path / "rows.parquet"
    tiny.rows.head(500).to_parquet(data)
    settings = read_json(run / "check.json")
    edit(run / "check.json", places=settings["places"] | dict(data=str(data)))
    refused(drift_of(run), "data changed since")
    refused(lambda: jobs.report(Report(run=str(run))), "no drift/result.json")
    assert ipk(["verify", str(run)]) == 65


# Files that are none


def test_a_manifest_that_was_changed_is_named(folder):
    file = folder / "manifest.json"
    text = file.read_text()
    for other in (text + " ", text.replace('"kind"', '"approved": true,\n "kind"')):
        file.write_text(other)
        refused(lambda: verify(folder), "manifest.json was changed")
    file.write_text(text.replace('"table.parquet": "', '"table.parquet": "0'))
    refused(lambda: verify(folder), "manifest.json", "table.parquet was changed")


@pytest.mark.parametrize("name", ["manifest.json", "verdict.json", "table.parquet"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(lambda: verify(folder), name, "a pipe or a device")


@pytest.mark.parametrize("name", ["verdict.json", "report.html", "drift/result.json", "check.json"])
def test_a_pipe_beside_the_evidence_is_refused_and_not_waited_for(run, found, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    refused(told(run, found), name, "a pipe or a device")


@pytest.mark.parametrize("name", ["manifest.json", "verdict.json", "table.parquet"])
def test_a_link_in_place_of_a_file_is_refused(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refused(lambda: verify(folder), f"{name} is a link")


def test_a_link_to_evidence_is_no_evidence(run, tmp_path):
    (run / "evidence").rename(tmp_path / "evidence")
    (run / "evidence").symlink_to(tmp_path / "evidence")
    refused(lambda: verify(run), "a link")


def test_a_name_that_is_said_twice_is_refused(folder):
    file = folder / "verdict.json"
    file.write_text(
        file.read_text().replace('"verdict": "FAIL"', '"verdict": "PASS",\n "verdict": "FAIL"')
    )
    write_manifest(folder, "evidence")
    refused(lambda: verify(folder), "'verdict' stands twice")


@pytest.mark.parametrize("expect", ["", " ", "9", "9f3a9f3a9f3", "g" * 12, "0" * 65])
def test_a_digest_of_too_few_digits_is_no_digest(folder, expect):
    refused(lambda: verify(folder, expect), "12 to 64 hex digits", code=64)
    assert ipk(["verify", str(folder), f"--expect={expect}"]) == 64


# What follows, after the manifest was mended


def forged(folder: Path, name: str, content):
    "Write a file of evidence, with a manifest that fits."
    write_json(folder / name, content)
    write_manifest(folder, "evidence")


@pytest.mark.parametrize("name", ["preregistration.json", "printed.json", "verdict.json"])
@pytest.mark.parametrize("content", [{}, [], None, 3, "x"], ids=str)
def test_a_file_that_says_nothing_is_named(folder, name, content):
    if (name, content) == ("printed.json", {}):
        pytest.skip("nothing printed is nothing claimed")
    forged(folder, name, content)
    refused(lambda: verify(folder), name)


def test_notes_that_stand_in_the_verdict_alone_are_named(folder):
    forged(folder, "verdict.json", read_json(folder / "verdict.json") | dict(notes=["approved"]))
    refused(lambda: verify(folder), "verdict.json: notes: ['approved']")


def test_examples_of_other_sequences_are_named(folder):
    printed = read_json(folder / "printed.json")
    feature, shown = next(iter(printed["examples"].items()))
    printed["examples"][feature] = shown[::-1]
    forged(folder, "printed.json", printed)
    refused(lambda: verify(folder), f"printed.json: the examples of {feature!r}")


@pytest.mark.parametrize("name", ["rank_correlation", "top_replaced", "unexplained", "identical"])
def test_a_number_of_behaviour_that_the_table_does_not_give_is_named(folder, name):
    printed = read_json(folder / "printed.json")
    was = printed["behaviour"][name]
    printed["behaviour"][name] = not was if name == "identical" else was / 2 + 0.3
    forged(folder, "printed.json", printed)
    refused(lambda: verify(folder), f"printed.json: {name} is")


def test_error_rates_other_than_those_that_were_stated_are_named(folder):
    printed = read_json(folder / "printed.json")
    printed["error_rates"] = dict(false_fail_at_most=0.0001)
    forged(folder, "printed.json", printed)
    refused(lambda: verify(folder), "printed.json: other error rates than preregistration.json")


def test_a_preview_of_other_limits_is_named(folder):
    preview = read_json(folder / "preview.json")
    preview[0]["limit"] = 0.99
    forged(folder, "preview.json", preview)
    refused(lambda: verify(folder), "preview.json: ")


def test_a_file_in_another_form_or_of_another_name_is_named(folder):
    (folder / "verdict.json").write_text(json.dumps(read_json(folder / "verdict.json")))
    (folder / "approval.json").write_text("{}")
    write_manifest(folder, "evidence")
    refused(lambda: verify(folder), "verdict.json: not in the form", "approval.json: no file of")


def leaves(x, at=()):
    "The places of all values in nested JSON."
    if isinstance(x, dict | list) and x:
        for key, value in x.items() if isinstance(x, dict) else enumerate(x):
            yield from leaves(value, (*at, key))
    else:
        yield at


def put(x, at: tuple, value):
    "The same JSON with another value in one place."
    copy = json.loads(json.dumps(x))
    inner = copy
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return copy


def test_any_value_of_the_verdict_and_any_of_the_plan_that_is_another_type_is_refused(folder):
    for name, step in (("verdict.json", 83), ("preregistration.json", 71)):
        before = read_json(folder / name)
        for at in list(leaves(before))[::step]:
            forged(folder, name, put(before, at, {"not": ["that"]}))
            refused(lambda: verify(folder))
        forged(folder, name, before)
    verify(folder)


# Whether it is the standard check


def rewritten(folder: Path, **changes) -> Verified:
    "The evidence as its author would write it under another plan."
    plan = replace(Plan.from_dict(read_json(folder / "preregistration.json")), **changes)
    table = pd.read_parquet(folder / "table.parquet")
    write_evidence(folder, plan, table, judge(decide(table, plan), plan, table, plan.notes))
    return verify(folder)


def test_what_is_not_standard_is_told(folder, capsys):
    statements = Plan.from_dict(read_json(folder / "preregistration.json")).statements
    assert verify(folder).deviations == ()
    wide = tuple(replace(s, limit=3.0) for s in statements)
    told = rewritten(folder, statements=wide, alpha=0.2).deviations
    assert any("effect may be" in line for line in told)
    assert any("watched feature may be" in line for line in told)
    assert "alpha is 0.2 (0.01)" in told
    without = tuple(s for s in statements if s.name != "effect")
    assert "no statement on effect" in rewritten(folder, statements=without).deviations
    assert ipk(["verify", str(folder)]) in (0, 10, 11)
    assert "Not the standard check" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fields, told",
    [
        (dict(watched_limit=0.99), "effect of a feature that emerges may be 99 % (30 %)"),
        (dict(watched_share=0.9), "watched share is 0.9 (0.02)"),
        (dict(emerging=10**6), "emerging is 1e+06"),
        (dict(about=dict(alerts=0.97)), "alerts is 0.97 (0.1)"),
    ],
    ids=str,
)
def test_what_makes_a_check_easier_is_told(folder, fields, told):
    plan = replace(Plan.from_dict(read_json(folder / "preregistration.json")), **fields)
    assert any(told in line for line in deviations(plan))


def test_a_statement_asks_what_its_family_asks(folder):
    "Every FAIL of 'same' would be no part of the verdict, were it asked as 'moved'."
    plan = Plan.from_dict(read_json(folder / "preregistration.json"))
    moved = tuple(replace(s, question="moved") for s in plan.statements if s.question == "same")
    assert any(
        "asks 'moved'" in problem for problem in plan_problems(replace(plan, statements=moved))
    )


def test_limits_of_a_run_that_its_policy_does_not_allow_are_named(run):
    plan = Plan.from_dict(read_json(run / "preregistration.json"))
    wide = replace(plan, statements=tuple(replace(s, limit=3.0) for s in plan.statements))
    rewritten(run / "evidence", statements=wide.statements)
    (run / "preview.json").unlink()
    write_json(run / "preregistration.json", wide.to_dict())
    registered = digest_file(run / "preregistration.json")
    edit(run / "preflight" / "result.json", registered=registered)
    refused(lambda: verify(run), "check.json: the policy has other limits")


# Who signed


@pytest.fixture
def pair(tmp_path):
    "A private and a public key."
    return new_key(tmp_path / "jane.pem")


def test_a_signature_says_who_and_leaves_the_evidence_as_it_is(run, pair, capsys):
    before = {p.name: p.read_bytes() for p in (run / "evidence").iterdir()}
    private, public = map(str, pair)
    who = ["--name", "Jane Doe, model risk", "--note", "for use until May"]
    assert ipk(["sign", str(run), "--key", private, *who]) == 0
    assert {p.name: p.read_bytes() for p in (run / "evidence").iterdir()} == before
    capsys.readouterr()
    assert ipk(["verify", str(run), "--key", public]) == 10
    said = capsys.readouterr().out
    assert "Jane Doe, model risk" in said
    assert "for use until May" in said
    assert verify(run / "evidence", key=public).signatures[0].name == "Jane Doe, model risk"


def test_who_signs_has_a_name_and_what_they_replace_is_told(run, pair, capsys):
    command = ["sign", str(run), "--key", str(pair[0])]
    assert ipk(command) == 64
    said = capsys.readouterr().err
    assert "the name of the person who signs" in said
    assert '--name "Jane Doe, model risk"' in said
    assert not signature_file(run / "evidence").exists()
    assert ipk([*command, "--name", "Jane", "--note", "until May"]) == 0
    assert "replaces" not in capsys.readouterr().out
    assert ipk([*command, "--name", "Jane Doe"]) == 0
    said = capsys.readouterr().out
    assert "This replaces what the same key had signed: Jane, key" in said
    assert "until May" in said


def test_another_folder_is_named_for_what_it_is(tmp_path):
    with new_artefact(tmp_path / "made", "release"):
        pass
    error = refused(lambda: verify(tmp_path / "made"), "an evidence folder")
    assert error.given == f"a release folder: {tmp_path / 'made'}"
    assert error.mend == "pass an evidence folder"


def test_a_second_signer_stands_beside_the_first(run, pair, tmp_path):
    other = new_key(tmp_path / "john.pem")
    for private, name in ((pair[0], "Jane"), (other[0], "John"), (pair[0], "Jane Doe")):
        sign(run / "evidence", private, name)
    assert sorted(s.name for s in verify(run).signatures) == ["Jane Doe", "John"]
    for _, public in (pair, other):
        verify(run, key=public)


def test_a_signature_by_another_key_or_over_other_bytes_is_named(runs, run, pair, tmp_path):
    refused(lambda: verify(run, key=pair[1]), "no signature")
    stranger = new_key(tmp_path / "stranger.pem")
    sign(run / "evidence", stranger[0], "Jane Doe")
    refused(lambda: verify(run, key=pair[1]), "signed by Jane Doe")
    file = signature_file(run / "evidence")
    signed = read_json(file)
    for part in ("name", "note", "key", "signature", "evidence"):
        there = signed["signatures"][0][part]
        other = ("0" if there[0] != "0" else "1") + there[1:] if len(there) > 20 else "John Doe"
        write_json(file, put(signed, ("signatures", 0, part), other))
        refused(lambda: verify(run), "made by another key")
    other_run = Path(shutil.copytree(runs / "same", tmp_path / "same"))
    write_json(signature_file(other_run / "evidence"), signed)
    refused(lambda: verify(other_run), "over other evidence")


@pytest.mark.parametrize(
    "content",
    [[], {}, "x", {"format": "interpkit evidence signature 1", "signatures": [{}]}, None],
    ids=str,
)
def test_a_file_of_signatures_of_another_form_is_refused(folder, content):
    write_json(signature_file(folder), content)
    refused(lambda: verify(folder), "signatures")


def test_each_wrong_key_has_its_sentence(folder, pair, tmp_path, capsys):
    private, public = pair
    refused(lambda: verify(folder, key=private), "a private key, which nobody", code=64)
    refused(lambda: sign(folder, public, "Jane"), "sign with the private one", code=64)
    refused(lambda: verify(folder, key=tmp_path / "none.pem"), "check the path", code=64)
    (tmp_path / "text.pem").write_text("secret")
    refused(lambda: sign(folder, tmp_path / "text.pem", "Jane"), "no PEM file", code=64)
    refused(lambda: new_key(private), "exists", code=64)
    assert ipk(["sign", str(folder)]) == 64
    assert ipk(["sign", "--new-key", str(private)]) == 64
    assert not signature_file(folder).exists()


def pem(key, password: bytes = b"") -> bytes:
    how = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def test_keys_of_another_kind_and_encrypted_ones_are_no_crash(folder, tmp_path, monkeypatch):
    file = tmp_path / "key.pem"
    file.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    refused(lambda: sign(folder, file, "Jane"), "of another kind", code=64)
    file.write_bytes(pem(Ed25519PrivateKey.generate(), b"open sesame"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    refused(lambda: sign(folder, file, "Jane"), "nobody at the terminal", code=64)
    monkeypatch.setattr(signatures, "_passphrase", lambda path: b"open sesame")
    sign(folder, file, "Jane")
    assert verify(folder).signatures[0].name == "Jane"


def test_what_does_not_agree_is_not_signed(run, pair):
    edit(run / "verdict.json", verdict="PASS")
    assert ipk(["sign", str(run), "--key", str(pair[0])]) == 65
    assert not signature_file(run / "evidence").exists()


def test_a_name_that_would_paint_the_terminal_is_refused(folder, pair):
    for bad in ("Jane\x1b[2J", "Jane\nSigned: the board", "x" * 501):
        refused(lambda bad=bad: sign(folder, pair[0], bad), "printable", code=64)
