"The example that README and docs show: committed evidence, and the report that follows from it."

from pathlib import Path

from interpkit.gate.evidence import verify
from interpkit.gate.report import write_report

EXAMPLE = Path(__file__).parent.parent / "nbs" / "example"


def test_the_example_can_be_verified():
    v = verify(EXAMPLE).verdict
    assert (v.old["name"], v.new["name"], v.outcome, v.action) == (
        "v1",
        "v2-concept",
        "FAIL",
        "REVIEW",
    )
    assert {s.name.split(": ")[0] for s in v.statements if s.outcome == "FAIL"} == {"effect"}


def test_the_report_that_is_shown_is_the_one_that_the_evidence_gives(tmp_path):
    assert (
        write_report(EXAMPLE / "evidence", tmp_path / "report.html").read_bytes()
        == (EXAMPLE / "report.html").read_bytes()
    ), "make example"


def test_page_one_shows_no_customer():
    text = (EXAMPLE / "report.html").read_text()
    assert "q1s" not in text and "<script" not in text
