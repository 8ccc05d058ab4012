"The example that README and docs show: committed evidence, and the report that follows from it."

from pathlib import Path

from interpkit.gate.evidence import verify
from interpkit.gate.report import write_report

EXAMPLE = Path(__file__).parent.parent / "nbs" / "example"


def test_the_example_can_be_verified():
    verdict = verify(EXAMPLE).verdict
    assert verdict.old["name"] == "v1"
    assert verdict.new["name"] == "v2-concept"
    assert verdict.outcome == "FAIL"
    assert verdict.action == "REVIEW"
    failed = {s.name.split(": ")[0] for s in verdict.statements if s.outcome == "FAIL"}
    assert failed == {"effect", "inputs", "decisions"}


def test_the_report_that_is_shown_is_the_one_that_the_evidence_gives(tmp_path):
    written = write_report(EXAMPLE / "evidence", tmp_path / "report.html").read_bytes()
    assert written == (EXAMPLE / "report.html").read_bytes(), "run: make example"


def test_page_one_shows_no_customer():
    text = (EXAMPLE / "report.html").read_text()
    assert "q1s" not in text
    assert "<script" not in text
