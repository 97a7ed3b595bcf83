"""`python -m labelsmooth`: what a bug report should begin with."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import labelsmooth
from labelsmooth import _C, which
from labelsmooth.__main__ import main


def test_names_versions_backends_and_hardware() -> None:
    command = [sys.executable, "-m", "labelsmooth"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for fact in (labelsmooth.__version__, torch.__version__, _C.cpu_instruction_set):
        assert fact in shown
    for word in ("cpu", "eager", "GPU"):
        assert word in shown


def test_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["which", "espnet"]) == 0
    assert capsys.readouterr().out.rstrip() == which.as_text(which.matching(["espnet"]))
    assert main(["which"]) == 0
    assert capsys.readouterr().out.rstrip() == which.as_text(which.ROWS)
    assert main(["which", "--markdown", "espnet"]) == 0
    assert capsys.readouterr().out.startswith("| you have |")


def test_which_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["which", "espnet", "mixup"]) == 1
    said = capsys.readouterr()
    assert not said.out
    for word in ("espnet mixup", *which.libraries()):
        assert word in said.err
