"""The error budget and infinite logits under each instruction set that LABELSMOOTH_CPU can choose.

The suite itself runs under the best that the machine has. Sizes, layouts, options and statistics
are compared under each of them by tests/cpp: test_kernel.cpp and fuzz_kernel.cpp.
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
RUN = """
import os, sys
from labelsmooth import _C
assert _C.cpu_instruction_set == os.environ["LABELSMOOTH_CPU"]
import pytest
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "cpu", *sys.argv[1:]]))
"""
KERNEL_TESTS = ["tests/functional/test_accuracy.py", "tests/functional/test_inf.py"]


def python(instruction_set: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "LABELSMOOTH_CPU": instruction_set},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("instruction_set", OTHERS)
def test_kernels(instruction_set: str) -> None:
    run = python(instruction_set, RUN, *KERNEL_TESTS)
    refused = f"LABELSMOOTH_CPU={instruction_set}: expected one of"
    if refused in run.stderr:  # a machine that has it not: the error names those that it has
        assert instruction_set not in run.stderr.split(refused)[1]
        return
    assert run.returncode == 0, run.stdout + run.stderr


def test_unknown_name() -> None:
    run = python("mmx", "import labelsmooth")
    assert run.returncode != 0
    assert "LABELSMOOTH_CPU=mmx: expected one of" in run.stderr
    assert "baseline" in run.stderr or "neon" in run.stderr
