"""The Triton backend in Triton's interpreter: interpreted_cases.py, in a process of its own.

For the interpreter is chosen when triton is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checks import ROOT

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
CASES = Path(__file__).with_name("interpreted_cases.py")


@pytest.mark.skipif(TORCH < (2, 11), reason="torch 2.10 launches no kernel in the interpreter")
def test_interpreted_cases() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", CASES],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
