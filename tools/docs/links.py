"""Every link inside a built site has to lead somewhere: pages, files, anchors. `python tools/docs/links.py _docs` lists those that do not and exits with 1."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
}  # what a browser fetches by itself
NAMED = ("canonical", "alternate", "prev", "next", "license")  # links that it only knows about


class Page(HTMLParser):
    "Anchors and links of one HTML page."

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links = set(), []  # links: (tag, attribute, target)
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        if tag == "link" and dict(attributes).get("rel") in NAMED:
            tag = "a"
        for key, value in attributes:
            if key == "id" or (tag == "a" and key == "name"):
                self.anchors.add(value)
            if key in ("href", "src", "data") and value is not None and tag != "use":
                self.links.append((tag, key, value))


def _target(site: Path, page: Path, path: str) -> Path:
    "The file that a path in a link leads to."
    found = (
        (site / path.lstrip("/") if path.startswith("/") else page.parent / path) if path else page
    )
    return found / "index.html" if path.endswith("/") or found.is_dir() else found


def _problem(site: Path, page: Path, pages: dict, tag: str, key: str, value: str) -> str:
    "What is wrong with a link, or ''."
    url = urlsplit(value)
    if url.scheme in ("mailto", "data", "javascript"):
        return ""
    if url.scheme or url.netloc:
        return "is fetched from the network" if (tag, key) in LOADED else ""
    target = _target(site, page, unquote(url.path)).resolve()
    if not target.is_relative_to(site):
        return "leaves the site"
    if not target.exists():
        return "no such page"
    anchor = unquote(url.fragment)
    return (
        "no such anchor"
        if anchor
        and target in pages
        and anchor not in pages[target].anchors
        and tag == "a"
        and anchor != "__top"
        else ""
    )


def broken(site) -> list[str]:
    "One line a link that leads nowhere, over all pages of a site."
    site = Path(site).resolve()
    pages = {p: Page(p) for p in sorted(site.rglob("*.html"))}
    return [
        f"{p.relative_to(site)}: {value!r} {why}"
        for p, found in pages.items()
        for link in found.links
        if (why := _problem(site, p, pages, *link))
        for value in link[2:]
    ]


def report(site) -> int:
    "Print what is broken; the number of links that are."
    found, pages = broken(site), len(list(Path(site).rglob("*.html")))
    print("\n".join(found), file=sys.stderr) if found else None
    print(f"{pages} pages, {len(found)} broken links")
    return len(found) if pages else 1


if __name__ == "__main__":
    sys.exit(1 if report(sys.argv[1]) else 0)
