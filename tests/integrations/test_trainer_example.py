"""The example with Hugging Face's Trainer, for a few steps."""

from __future__ import annotations

import subprocess
import sys

import pytest
from checks import ROOT


def test_trainer() -> None:
    pytest.importorskip("rich")
    text = ("--modules", "40", "--vocabulary", "2000")
    size = ("--batch", "1", "--length", "16", "--width", "16", "--threads", "1")
    command = [sys.executable, ROOT / "examples/trainer.py", "--steps", "2", *size, *text]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The loss curves agree" in done.stdout


def test_it_says_what_to_install() -> None:
    """Without accelerate, which the Trainer needs: a line, and no traceback."""
    hidden = "import sys; sys.modules['accelerate'] = None; import runpy; "
    path = ROOT / "examples"
    ran = f"{hidden}sys.path.insert(0, {str(path)!r}); runpy.run_path({str(path / 'trainer.py')!r})"
    done = subprocess.run(
        [sys.executable, "-c", ran], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 1
    assert "pip install rich transformers accelerate" in done.stderr
    assert "Traceback" not in done.stderr
