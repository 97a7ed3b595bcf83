"""The documentation's Python code runs, each page from top to bottom."""

from __future__ import annotations

import re

import pytest
from checks import ROOT

DOCS = ROOT / "docs"
PAGES = {
    page.name: code
    for page in sorted(DOCS.glob("*.md"))
    if (code := re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
}


def test_the_quick_start_has_code() -> None:
    assert len(PAGES["index.md"]) >= 4


@pytest.mark.parametrize("page", PAGES)
def test_code(page: str) -> None:
    exec(compile("\n".join(PAGES[page]), page, "exec"), {})
