"""The examples run, for a few steps, and the losses that they compare agree."""

from __future__ import annotations

import subprocess
import sys

import pytest
from checks import ROOT

LIMIT = 600  # seconds, on a busy machine: nothing here takes a tenth of that
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(name: str, *arguments: object, launcher: tuple[str, ...] = ()) -> str:
    command = [sys.executable, *launcher, ROOT / "examples" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mixup() -> None:
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    size = ("--rows", 64, "--classes", 512, "--loss-steps", 2)
    shown = run("mixup.py", "--steps", 12, "--batch", 16, "--threads", 1, *size)
    assert shown.count("The loss curves agree") == 2
    assert shown.count("Test accuracy") == 2


def test_large_vocabulary() -> None:
    pytest.importorskip("rich")
    shown = run("train_large_vocab.py", "--steps", 2, "--batch", 16, "--threads", 1)
    assert "The loss curves agree" in shown


def test_tensor_parallel() -> None:
    shown = run("tensor_parallel.py", "--steps", 2, launcher=TORCHRUN)
    assert "The loss curves agree" in shown
