"""Machine instructions that the CUDA kernels execute for each logit: of loops and of what a row and
a thread do once. A GPU that issues more than it can in the time of the bytes makes them wait."""

from __future__ import annotations

import functools
import shutil
from typing import NamedTuple

import pytest
from cuda_kernels import ARCHS, needs_cuda

pytest.importorskip("scipy")

from benchmarks.launches import Case, run_step

needs_ptxas = pytest.mark.skipif(not shutil.which("ptxas"), reason="needs nvcc's ptxas")
pytestmark = [needs_cuda, needs_ptxas]


class Count(NamedTuple):
    a_logit: float
    logits_a_thread: float


@functools.cache
def count(arch: int, dtype: str, classes: int, variant: str = "plain") -> Count:
    step = run_step("labelsmooth, CUDA", Case(arch, dtype, classes, variant))
    logits, launches = step.logits.numel(), step.launches
    threads = max(launch.report.grid[0] * launch.report.block[0] for launch in launches)
    return Count(sum(launch.instructions for launch in launches) / logits, logits / threads)


# The most a logit in the plain case, and where a thread has fewer than 128 logits to share what it
# does once.
MOST = {"bfloat16": (30, 34), "float32": (44, 48)}

each_arch_and_dtype = pytest.mark.parametrize(
    ("arch", "dtype"), [(arch, dtype) for dtype in MOST for arch in ARCHS]
)


def most(dtype: str, made: Count) -> int:
    return MOST[dtype][made.logits_a_thread < 128]


@pytest.mark.parametrize("classes", [32768, 131072])
@each_arch_and_dtype
def test_plain(arch: int, dtype: str, classes: int) -> None:
    made = count(arch, dtype, classes)
    assert made.a_logit <= most(dtype, made)


@pytest.mark.parametrize(("variant", "more"), [("stats", 6), ("weight", 8)])
@each_arch_and_dtype
def test_what_statistics_and_weights_add(arch: int, dtype: str, variant: str, more: int) -> None:
    made = count(arch, dtype, 32768, variant)
    assert made.a_logit <= most(dtype, made) + more


@each_arch_and_dtype
def test_a_softcap(arch: int, dtype: str) -> None:
    made = count(arch, dtype, 32768, "softcap")
    assert made.a_logit <= 2 * most(dtype, made)


@each_arch_and_dtype
def test_few_classes(arch: int, dtype: str) -> None:
    assert count(arch, dtype, 1000).a_logit <= 1.4 * MOST[dtype][0]
