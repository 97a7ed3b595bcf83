"""The documentation's Python code runs, each page from top to bottom."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checks import ROOT

DOCS = ROOT / "docs"
OVER_RANKS = "many-gpus.md"
LIMIT = 300  # seconds, on a busy machine
PAGES = {
    page.name: code
    for page in sorted(DOCS.glob("*.md"))
    if (code := re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
}


def test_the_quick_start_has_code() -> None:
    assert len(PAGES["index.md"]) >= 4


@pytest.mark.parametrize("page", [page for page in PAGES if page != OVER_RANKS])
def test_code(page: str) -> None:
    exec(compile("\n".join(PAGES[page]), page, "exec"), {})


@pytest.mark.parametrize("ranks", [1, 2])
def test_code_over_ranks(ranks: int, tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text("\n".join(PAGES[OVER_RANKS]))
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, page],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
