"""The table of GPU cases on the built CUDA kernels, in the simulator."""

from __future__ import annotations

import dataclasses
import zlib

import pytest
from cuda_kernels import ARCHS, needs_cuda, simulated_cuda
from gpu_cases import CASES, Case, check_case

pytestmark = needs_cuda


def _shortened(case: Case) -> Case:
    """Of columns, a thread takes a row by itself: 20011 classes cost the simulator a minute."""
    if case.layout == "columns" and case.classes > 2000:
        return dataclasses.replace(case, shape=(case.shape[0], 1501))
    return case


@pytest.mark.parametrize("case", map(_shortened, CASES), ids=str)
def test_case(case: Case) -> None:
    """Each on one architecture and under one schedule, by its name; approximations are off by up
    to 2 ulp."""
    number = zlib.crc32(case.name.encode())
    sched = ("minpc", "random")[number // 4 % 2]
    gpu = simulated_cuda(ARCHS[number % 4], sched=sched, seed=number, noise=2)
    check_case(case, gpu)
    assert not any(report.warnings for report in gpu.reports)
