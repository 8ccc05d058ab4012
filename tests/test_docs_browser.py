"""The search of the site, over HTTP in a real Chromium: a word is typed, and its page is found.

A site that is opened as a file has no search, since a browser lets no file read an index.
"""

import re
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "docs"))
import docs  # noqa: E402

pytestmark = pytest.mark.browser
PAGES = ("words.md", "not_for.md", "instead_of.md")


class Quiet(SimpleHTTPRequestHandler):
    "Serves a folder and says nothing."

    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    "The address of a site of a few real pages, with the configuration of the whole one."
    if shutil.which("quarto"):
        pytest.skip("quarto builds the site here")
    monkeypatch.setattr(docs, "PAGES", tmp_path / "src")
    monkeypatch.setattr(docs, "SITE", tmp_path / "site")
    monkeypatch.setattr(docs, "navigation", lambda: ["index.md", *PAGES])

    def write(pages):
        pages.mkdir(parents=True)
        (pages / "index.md").write_text("# Home\n\nA platypus lays eggs.\n")
        for name in PAGES:  # without their links, which lead to pages that are not here
            text = (ROOT / "nbs" / name).read_text(encoding="utf-8")
            (pages / name).write_text(re.sub(r"\[([^\]]*)\]\([^)\s]+\)", r"\1", text))
        shutil.copy(ROOT / "tools" / "docs" / "style.css", pages)

    monkeypatch.setattr(docs, "write_pages", write)
    docs.with_mkdocs()
    handler = partial(Quiet, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def page():
    "A page of a real browser."
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: make browser")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with api.sync_playwright() as playwright:
        if path is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium: make browser")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def found(page, address: str, words: str) -> list[str]:
    "Titles of the pages that the search of a site finds."
    page.goto(f"{address}/index.html")
    box = page.locator("input[name=query]")
    assert box.get_attribute("aria-label") == "Search"
    box.click()
    box.press_sequentially(words, delay=20)
    page.wait_for_selector(".md-search-result__item", timeout=20_000)
    return page.locator(".md-search-result__item h1").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_word_is_found_over_http(page, served, scheme):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme=scheme)
    assert found(page, served, "platypus") == ["Home"]
    assert "Words" in found(page, served, "ordinary")
    assert "What it is not for" in found(page, served, "disparate impact")
    page.locator(".md-search-result__item a").first.click()
    page.wait_for_url("**/not_for.html*")
    assert all(url.startswith((served, "data:", "blob:")) for url in asked)  # nothing from afar
