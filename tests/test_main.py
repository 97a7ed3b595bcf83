"""`python -m labelsmooth`: what a bug report should begin with."""

from __future__ import annotations

import subprocess
import sys

import torch

import labelsmooth
from labelsmooth import _C


def test_names_versions_backends_and_hardware() -> None:
    command = [sys.executable, "-m", "labelsmooth"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for fact in (labelsmooth.__version__, torch.__version__, _C.cpu_instruction_set):
        assert fact in shown
    for word in ("cpu", "eager", "GPU"):
        assert word in shown
