"Evidence: a changed byte is named, a forged verdict does not follow, arithmetic finds both out."

import json
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from helpers import refused

from interpkit.core.artefacts import write_manifest
from interpkit.core.digests import canonical
from interpkit.core.errors import InterpkitError
from interpkit.core.files import read_json, write_json
from interpkit.gate.check import check
from interpkit.gate.derived import derive
from interpkit.gate.evidence import verify, write_evidence


@pytest.fixture(scope="module")
def result(tiny):
    return check(tiny.old, tiny.v2, tiny.data, dictionary=tiny.dictionary)


@pytest.fixture
def folder(result, tmp_path):
    return result.save(tmp_path / "run") / "evidence"


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
