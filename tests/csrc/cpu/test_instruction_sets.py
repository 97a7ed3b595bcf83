"""The kernel tests once more under each instruction set that LABELSMOOTH_CPU can choose.

The suite itself runs under the best that the machine has.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from checks import ROOT

from labelsmooth import _C

INSTRUCTION_SETS = ["avx512_bf16", "avx512", "avx2", "baseline", "neon_bf16", "neon"]
OTHERS = [name for name in INSTRUCTION_SETS if name != _C.cpu_instruction_set]
PRINT_USED = "from labelsmooth import _C; print(_C.cpu_instruction_set)"
PYTEST = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "cpu"]
KERNEL_TESTS = [
    "test_accuracy.py",
    "test_inf.py",
    "test_shapes.py",
    "test_stats.py",
    "test_strided.py",
]


def python(instruction_set: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "LABELSMOOTH_CPU": instruction_set},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("instruction_set", OTHERS)
def test_kernels(instruction_set: str) -> None:
    used = python(instruction_set, "-c", PRINT_USED)
    if used.returncode != 0:  # a machine that has it not: the error names those that it has
        assert f"LABELSMOOTH_CPU={instruction_set}: expected one of" in used.stderr
        assert instruction_set not in used.stderr.split("expected one of")[1]
        return
    assert used.stdout.strip() == instruction_set
    run = python(instruction_set, *PYTEST, *[f"tests/functional/{name}" for name in KERNEL_TESTS])
    assert run.returncode == 0, run.stdout + run.stderr


def test_unknown_name() -> None:
    run = python("mmx", "-c", "import labelsmooth")
    assert run.returncode != 0
    assert "LABELSMOOTH_CPU=mmx: expected one of" in run.stderr
    assert "baseline" in run.stderr or "neon" in run.stderr
