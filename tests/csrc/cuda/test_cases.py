"""The table of GPU cases on the built CUDA kernels, in the simulator: whole rows, and rows that lie
over ranks."""

from __future__ import annotations

import re
import zlib

import pytest
import torch
from checks import loss_dtype
from cuda_kernels import ARCHS, SimulatedCuda, built_library, needs_cuda, simulated_cuda
from gpu_cases import CASES, EACH_KERNEL, Case, check_case
from shards import InShards

pytestmark = needs_cuda


def _gpu_of(case: Case) -> SimulatedCuda:
    """Each on one architecture and under one schedule, by its name; approximations are off by up
    to 2 ulp."""
    number = zlib.crc32(case.name.encode())
    sched = ("minpc", "random")[number // 4 % 2]
    return simulated_cuda(ARCHS[number % 4], sched=sched, seed=number, noise=2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    gpu = _gpu_of(case)
    check_case(case, gpu)
    assert not any(report.warnings for report in gpu.reports)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_over_ranks(case: Case) -> None:
    gpu = _gpu_of(case)
    check_case(case, InShards(gpu))
    assert not any(report.warnings for report in gpu.reports)


def test_the_short_selection_launches_every_kernel() -> None:
    """Of every dtype: what compute-sanitizer watches on a GPU, tests/gpu/test_cases.py."""
    gpu = simulated_cuda(90)
    for case in EACH_KERNEL[::2]:  # the other half: the same with a target of a few classes
        check_case(case, gpu)
        check_case(case, InShards(gpu))
        ones = torch.ones(300, dtype=case.dtype)
        gpu.scale(ones, torch.tensor(3.0, dtype=loss_dtype(ones)))
    launched = {report.kernel for report in gpu.reports}
    built = {name for module in built_library().modules for name in module.kernels}
    assert set(map(_kind, launched)) == set(map(_kind, built))


def _kind(kernel: str) -> tuple[str, str]:
    """A kernel's name and its first type, of the mangled name."""
    [found] = re.findall(r"\d([a-z]+)_kernel(?:I(d|f|\d+__[a-z_0-9]+?)[EL])?", kernel)
    return found
