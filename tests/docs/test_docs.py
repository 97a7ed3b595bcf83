"""The code of the README and of the documentation's pages runs, each from top to bottom; the files
that they name are there."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checks import ROOT

from labelsmooth.__main__ import main

OVER_RANKS = "many-gpus.md"
LIMIT = 300  # seconds, on a busy machine
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
PYTHON = {
    page: code
    for page, text in sorted(PAGES.items())
    if (code := re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
}
KNOWN = {"python", "py", "", "{include}", "{toctree}", "{eval-rst}"}
COMMANDS = sorted(
    {
        line.partition("#")[0].strip()
        for text in PAGES.values()
        for line in re.findall(r"^python -m labelsmooth.*", text, re.MULTILINE)
    }
)


@pytest.mark.parametrize("page", PAGES)
def test_no_other_code(page: str) -> None:
    """What is neither run, here or in tests/integrations (py), nor a command or a plan."""
    fence = re.compile(r"^ *```(.*)\n(?:.*\n)*?^ *```$", re.MULTILINE)
    assert {mark.partition(" ")[0] for mark in fence.findall(PAGES[page])} <= KNOWN
    assert not re.findall(r"\n\n(?:    |\t).*", fence.sub("", PAGES[page]))  # by its indentation


def test_the_quick_starts_have_code() -> None:
    assert "README.md" in PYTHON
    assert len(PYTHON["index.md"]) >= 2


@pytest.mark.parametrize("page", [page for page in PYTHON if page != OVER_RANKS])
def test_code(page: str) -> None:
    exec(compile("\n".join(PYTHON[page]), page, "exec"), {})


@pytest.mark.parametrize("ranks", [1, 2])
def test_code_over_ranks(ranks: int, tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text("\n".join(PYTHON[OVER_RANKS]))
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


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()[3:]) == 0
    assert capsys.readouterr().out


def test_there_are_commands() -> None:
    assert "python -m labelsmooth" in COMMANDS
    assert any("which" in command for command in COMMANDS)


def test_links_of_the_readme() -> None:
    """To files, which a page that shows the README resolves; images too."""
    links = re.findall(r'(?:\]\(|src=")([^)#"]+)', PAGES["README.md"])
    assert len(links) >= 15
    assert sum(link.endswith(".png") for link in links) >= 3
    for link in links:
        assert (ROOT / link).is_file(), link


@pytest.mark.parametrize("page", ["verification.md", "gpu-verification.md"])
def test_the_tests_that_are_named_are_there(page: str) -> None:
    named = re.findall(r"`(?:tests/)?((?:\w+/)*\w+(?:\.py|\.cpp))`", PAGES[page])
    assert len(named) >= 10
    files = {path.name for path in [*ROOT.glob("tests/**/*"), *ROOT.glob("scripts/*")]}
    for name in named:
        found = (ROOT / "tests" / name).is_file() if "/" in name else name in files
        assert found or (ROOT / name).is_file(), name


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn from the results, and those of the pages from these results."""
    pytest.importorskip("matplotlib")
    image = importlib.import_module("PIL.Image")
    pictures = importlib.import_module("benchmarks.pictures")
    committed = pictures.IMAGES
    monkeypatch.setattr(pictures, "IMAGES", tmp_path)
    pictures.main()
    assert {path.name for path in tmp_path.iterdir()} == {"time.png", "memory.png"}
    for drawn in tmp_path.iterdir():
        with image.open(drawn) as new, image.open(committed / drawn.name) as old:
            assert new.text["Source"] == old.text["Source"], drawn.name
