"""The Triton backend in Triton's interpreter: the table of cases, and the tests of all backends.

In a process of its own, for the interpreter is chosen when triton is imported. interpreted.py makes
it see accesses out of bounds; within that process this file shows that it does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

TESTS = Path(__file__).parent


@triton.jit
def copy_kernel(x, out, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    tl.store(out + c, tl.load(x + c).to(tl.bfloat16))


if os.environ.get("TRITON_INTERPRET") == "1":

    def test_accesses_out_of_bounds_are_seen() -> None:
        x, out = torch.zeros(16), torch.zeros(16, dtype=torch.bfloat16)
        with pytest.raises(Exception, match="8 accesses outside"):
            copy_kernel[(1,)](x[:8], out, BLOCK=16)
        with pytest.raises(Exception, match="8 accesses outside"):
            copy_kernel[(1,)](x, out[8:], BLOCK=16)

    def test_bfloat16_is_rounded() -> None:
        x, out = torch.randn(256), torch.zeros(256, dtype=torch.bfloat16)
        copy_kernel[(1,)](x, out, BLOCK=256)
        assert torch.equal(out, x.bfloat16())

else:

    @pytest.mark.parametrize(
        ("name", "chosen"),
        [
            ("triton_interpreted", ""),
            ("gpu_cases", "test_interpreted"),
            *((name, "triton") for name in ("options", "inf", "stats", "shapes", "inplace")),
        ],
    )
    def test_interpreted(name: str, chosen: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        # numpy warns of infinities that the kernel means to make
        command += ["-W", "ignore::RuntimeWarning", "-k", chosen, f"{TESTS}/test_{name}.py"]
        done = subprocess.run(
            command,
            env={**os.environ, "TRITON_INTERPRET": "1"},
            cwd=TESTS.parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert " passed" in done.stdout
