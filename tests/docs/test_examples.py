"""The examples run, for a few steps, and the losses that they compare agree."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checks import ROOT

TEXT = ("--modules", 40, "--vocabulary", 2000)
LIMIT = 600  # seconds, on a busy machine: nothing here takes a tenth of that
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(name: str, *arguments: object, launcher: tuple[str, ...] = (), fails: bool = False) -> str:
    """What it prints, of errors where it fails."""
    command = [sys.executable, *launcher, ROOT / "examples" / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def test_mixup() -> None:
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    size = ("--rows", 64, "--classes", 512, "--loss-steps", 2)
    shown = run("mixup.py", "--steps", 12, "--batch", 16, "--threads", 1, *size)
    assert shown.count("The loss curves agree") == 2
    assert shown.count("Test accuracy") == 2


def test_large_vocabulary() -> None:
    pytest.importorskip("rich")
    shown = run("train_large_vocab.py", "--steps", 2, "--batch", 16, "--threads", 1, *TEXT)
    assert "The loss curves agree" in shown


def test_tensor_parallel() -> None:
    shown = run("tensor_parallel.py", "--steps", 2, launcher=TORCHRUN)
    assert "The loss curves agree" in shown


def test_gap_figure(tmp_path: Path) -> None:
    """The table of the medians is held against the formulas written out for ten classes; training
    for longer than here gets closer."""
    for module in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(module)
    size = ("--smoothings", 0.1, 0.4, "--steps", 200, "--width", 64)
    folder = tmp_path / "not" / "there"
    shown = run("gap_figure.py", *size, "--folder", folder)
    assert "The medians follow theory" in shown
    rows = re.findall(r"(0\.\d) +(all|others) +([\d.]+) +([\d.]+) ", shown)
    assert len(rows) == 4
    for smoothing, over, theory, median in rows:
        a = float(smoothing)
        gap = {"all": math.log((a / 10 + 1 - a) / (a / 10)), "others": math.log((1 - a) / (a / 9))}
        assert float(theory) == pytest.approx(gap[over], abs=1e-3)
        assert float(median) == pytest.approx(gap[over], abs=0.1)
    for name in ("gap.png", "true_dist.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_fused_projection() -> None:
    pytest.importorskip("rich")
    model = (*TEXT, "--width", 16, "--longest", 16, "--tested", 16)
    steps = ("--steps", 2, "--frozen-steps", 2, "--batch", 4, "--chunk-rows", 16, "--threads", 1)
    shown = run("fused_projection.py", *model, *steps)
    assert shown.count("The loss curves agree") == 2
    perplexities = re.findall(r"Perplexity with .*: ([\d.]+); in the last steps ([\d.]+)", shown)
    assert len(perplexities) == 5
    for same in (perplexities[:3], perplexities[3:]):  # with logits, and without any
        for column in zip(*same, strict=True):
            expected, *others = map(float, column)
            assert others == pytest.approx([expected] * len(others), rel=1e-3)


def test_distillation() -> None:
    pytest.importorskip("rich")
    text = ("--student-words", 10_000, "--test-words", 4000, "--teacher-words", 300_000)
    steps = ("--vocabulary", 2000, "--steps", 60, "--batch", 128, "--threads", 1)
    shown = run("distillation.py", *text, *steps)
    assert "The loss curves agree" in shown
    assert "The teacher helps" in shown


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("gap_figure.py", "--smoothings", 0), "expected a smoothing above 0"),
        (("gap_figure.py", "--smoothings", 0.1, 1), "invalid smoothing value: '1'"),
        (("train_large_vocab.py", "--modules", 1), "expected a text of 40,000 different words"),
        (("tensor_parallel.py",), "torchrun --nproc-per-node 2 examples/tensor_parallel.py"),
    ],
)
def test_wrong_use(command: tuple[str, ...], told: str) -> None:
    """A line says what is wrong."""
    for module in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(module)
    said = run(*command, fails=True)
    assert told in said
    assert "Traceback" not in said
