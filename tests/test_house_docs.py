"The documentation site: names lead to where they are documented, and every link leads somewhere."

import json
import re
import shutil
import subprocess

import docs
import pages
import pytest
from house import NBS, ROOT

KNOWN = {"decide": "08_drift/statements.md#decide", "check": "09_gate/check.md#check"}
KNOWN["Dictionary.load"] = "04_dictionary/folders.md#dictionary.load"


def finished(text: str) -> str:
    return pages.Text(NBS / "09_gate" / "01_report.ipynb", KNOWN).finished(text)


def test_names_in_backticks_lead_to_their_page():
    text = finished("see `decide(table, plan)` and `Dictionary.load`")
    assert "[`decide(table, plan)`](../08_drift/statements.md#decide)" in text
    assert "[`Dictionary.load`](../04_dictionary/folders.md#dictionary.load)" in text


@pytest.mark.parametrize("text", ["a `check` of `rows`, `no_such_name`", "```\n`decide(x)`\n```"])
def test_words_and_code_are_left_alone(text):
    assert finished(text) == text


def test_links_to_notebooks_lead_to_pages_and_links_to_files_are_said():
    text = "[errors](../00_core/00_errors.ipynb), [x](../../setup.py)"
    assert finished(text) == "[errors](../00_core/errors.md), x"


def test_a_formula_needs_no_script():
    assert "<mfrac>" in pages.formulas(r"the share $\frac{a}{b}$")
    assert pages.formulas("it costs $5 or $6") == "it costs $5 or $6"


def test_exported_cells_are_documented_by_nbdev():
    source = (
        "def percent(x: float, digits: int = 0) -> str:\n    ...\n\n"
        "def _hidden(): ...\n\n@patch\ndef of(self: str): ..."
    )
    assert pages.public_names(source) == ["percent", "str.of"]
    text = pages.documented("def percent(x): ...", "interpkit.core.show")
    assert "### `percent` {#percent .api}" in text
    assert "digits:int=0" in text
    assert '??? quote "Source"' in text
    assert pages.documented("import os", "interpkit.core.show") == ""


def test_the_family_of_contributing_works(tmp_path, monkeypatch):
    from interpkit.drift.simulate import check_family, small_world
    from interpkit.gate.policy import Policy

    text = (ROOT / "CONTRIBUTING.md").read_text()
    family = re.search(r"```python\n(import numpy.*?)```", text, re.S)[1]
    (tmp_path / "fraud_families.py").write_text(family)
    (tmp_path / "check.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    families = Policy.read(tmp_path / "check.toml").families
    world = small_world(n=300)
    rates = check_family(*families, comparison=world, checks=200, most=0.05)
    assert list(rates.statement.unique()) == ["decision moved"]
    assert list(rates.n) == [200, 1000]
    assert len(re.findall(r"^\*\*[1-5]\.", text, re.M)) == 5


@pytest.fixture
def at(tmp_path, monkeypatch):
    "Where a site is written and built."
    if shutil.which("quarto"):
        pytest.skip("quarto builds the site here")
    monkeypatch.setattr(docs, "PAGES", tmp_path / "src")
    monkeypatch.setattr(docs, "SITE", tmp_path / "site")
    return tmp_path


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "All pages, built anew; a link that leads nowhere ends the build."
    if shutil.which("quarto"):
        pytest.skip("quarto builds the site here")
    at = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docs, "PAGES", at / "src")
        patch.setattr(docs, "SITE", at / "site")
        docs.with_mkdocs(searched=False)
    return at / "site"


def loads_from_a_network(page: str) -> bool:
    "Whether a browser that shows the page asks another host for something."
    loads = r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//|@import url\(.?http"
    sheets = r"<link[^>]+rel=\"?stylesheet[^>]+href=\"?(?:https?:)?//"
    return bool(re.search(loads, page) or re.search(sheets, page))


def test_every_source_has_its_page(site):
    for source in docs.sources():
        assert (site / pages.page_of(source).replace(".md", ".html")).exists(), source


def test_pages_hold_documentation_and_no_directives(site):
    page = (site / "08_drift" / "statements.html").read_text()
    assert 'id="decide"' in page
    assert "#| export" not in page


def test_nothing_is_loaded_from_a_network(site):
    for page in site.rglob("*.html"):
        assert not loads_from_a_network(page.read_text()), page


def test_promises_that_do_not_hold_are_shown(site):
    shown = (site / "benchmarks" / "results.html").read_text().count("does not hold</span>")
    results = [json.loads(p.read_text()) for p in (NBS / "benchmarks/results").glob("*.json")]
    assert shown == sum(not bar["holds"] for result in results for bar in result["bars"])


def build_of_one(at, monkeypatch, text: str) -> str:
    "The site whose only page has this text, with all that the real one has; the page."
    monkeypatch.setattr(docs, "navigation", lambda: ["index.md"])

    def write(pages):
        pages.mkdir(parents=True)
        (pages / "index.md").write_text(text)

    monkeypatch.setattr(docs, "write_pages", write)
    docs.with_mkdocs()
    return (at / "site" / "index.html").read_text()


def test_words_of_a_page_are_found_and_its_code_has_colours(at, monkeypatch):
    text = "# Home\n\nA platypus.\n\n```python\ndef percent(x): ...\n```\n"
    page = build_of_one(at, monkeypatch, text)
    assert "platypus" in (at / "site" / "search" / "search_index.json").read_text()
    assert '<span class="k">def</span>' in page
    assert not loads_from_a_network(page)


def test_a_link_that_leads_nowhere_ends_the_build(at, monkeypatch):
    with pytest.raises(subprocess.CalledProcessError):
        build_of_one(at, monkeypatch, "# Home\n\n[away](nowhere.md)\n")
