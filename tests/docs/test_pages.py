"""The pages ask no other host for anything: a browser without a network shows them whole."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from checks import ROOT

ELSEWHERE = re.compile(r"(?:https?:)?//")
# What a page loads by itself, of each element: a link (<a>) waits for the reader.
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
LOADS |= {"object": "data", "embed": "src", "video": "src", "audio": "src", "use": "href"}
STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//")


class Loaded(HTMLParser):
    """The addresses of other hosts that a page loads from."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.formulas = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.formulas += tag == "math"
        for address in (given.get(LOADS.get(tag, "")), given.get("srcset")):
            if address and ELSEWHERE.match(address):
                self.elsewhere.append(address)
        if STYLE.search(given.get("style") or ""):
            self.elsewhere.append(str(given["style"]))


def loaded(page: str) -> Loaded:
    parser = Loaded()
    parser.feed(page)
    return parser


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By `make docs`, after the last change of what the pages are made of; else made here."""
    folder = ROOT / "build" / "docs"
    index = folder / "searchindex.js"  # which `make docs` touches
    sources = ("docs/**/*", "labelsmooth/**/*.py", "benchmarks/results/*", "*.md")
    found = (path for pattern in sources for path in ROOT.glob(pattern) if path.is_file())
    changed = max(path.stat().st_mtime for path in found)
    if index.exists() and index.stat().st_mtime >= changed:
        return folder
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", ROOT / "docs", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(built: Path) -> None:
    names = [page.stem for page in ROOT.glob("docs/*.md")] + ["search", "genindex"]
    assert len(names) >= 17
    found = {name: loaded((built / f"{name}.html").read_text()).elsewhere for name in names}
    assert not {name: addresses for name, addresses in found.items() if addresses}


def test_styles_load_nothing_from_elsewhere(built: Path) -> None:
    styles = sorted(built.rglob("*.css"))
    assert styles
    for style in styles:
        assert not STYLE.search(style.read_text()), style.name


def test_formulas_are_in_the_pages(built: Path) -> None:
    assert loaded((built / "conventions.html").read_text()).formulas > 40


def test_search_has_its_index(built: Path) -> None:
    assert "drop-ins" in (built / "searchindex.js").read_text()
    assert "searchindex.js" in (built / "search.html").read_text()


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/mathjax.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img srcset="http://images.example/1.png 2x">',
        '<p style="background: url(https://images.example/1.png)">',
    ],
)
def test_what_would_be_found(page: str) -> None:
    assert loaded(page).elsewhere


def test_a_link_is_none() -> None:
    assert not loaded(
        '<a href="https://pytorch.org">torch</a><img src="_images/time.png">'
    ).elsewhere
