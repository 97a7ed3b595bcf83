"""The table of GPU cases on the built CUDA kernels, in the simulator: whole rows, and rows that lie
over ranks."""

from __future__ import annotations

import dataclasses
import zlib

import pytest
from cuda_kernels import ARCHS, SimulatedCuda, needs_cuda, simulated_cuda
from gpu_cases import CASES, Case, check_case
from shards import InShards

pytestmark = needs_cuda


def _shortened(case: Case) -> Case:
    """Of columns, a thread takes a row by itself, which is slow to simulate. It holds 80 classes of
    16 bits, and reads 261 of the wider ones again."""
    if case.layout not in ("columns", "every 2nd"):
        return case
    rows, classes, *positions = case.shape
    most = 80 if case.dtype.itemsize == 2 else 261
    return dataclasses.replace(case, shape=(rows, min(classes, most), *positions))


def _gpu_of(case: Case) -> SimulatedCuda:
    """Each on one architecture and under one schedule, by its name; approximations are off by up
    to 2 ulp."""
    number = zlib.crc32(case.name.encode())
    sched = ("minpc", "random")[number // 4 % 2]
    return simulated_cuda(ARCHS[number % 4], sched=sched, seed=number, noise=2)


SHORTENED = [_shortened(case) for case in CASES]


@pytest.mark.parametrize("case", SHORTENED, ids=str)
def test_case(case: Case) -> None:
    gpu = _gpu_of(case)
    check_case(case, gpu)
    assert not any(report.warnings for report in gpu.reports)


@pytest.mark.parametrize("case", SHORTENED, ids=str)
def test_case_over_ranks(case: Case) -> None:
    gpu = _gpu_of(case)
    check_case(case, InShards(gpu))
    assert not any(report.warnings for report in gpu.reports)
