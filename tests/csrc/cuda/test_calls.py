"""Calls of the CUDA kernels beyond single cases: offsets past 2^31, sums by many blocks, the same
bits in every run, the scaling of a gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks import DTYPES, Outcome, assert_equals_reference, check_scaling
from cuda_kernels import SimulatedCuda, built_library, kernel_of, needs_cuda, simulated_cuda
from gpu_problem import Case, check_case
from ptxsim import Device
from reference import reference

from labelsmooth._call.problem import Inputs, Options

pytestmark = needs_cuda


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 33), (2**31 + 8, 1)), ((3, 2), (40, 2**31 + 8))], ids=str
)
def test_offsets_beyond_31_bits(
    shape: tuple[int, int], strides: tuple[int, int], inplace: bool
) -> None:
    """4 GB of address space, of which the system gives only the pages that are used."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    memory = torch.from_numpy(np.zeros(elements, np.int16)).view(torch.bfloat16)
    logits = memory.as_strided(shape, strides)
    logits.copy_(torch.randn(shape))
    target = torch.arange(shape[0]) % shape[1]
    truth = reference(logits, target, label_smoothing=0.1)
    original = logits.clone()
    inputs = Inputs(logits, target)
    options = Options(label_smoothing=0.1, inplace=inplace)
    made = simulated_cuda(90).forward(inputs, options, with_grad=True)
    assert_equals_reference(Outcome(made.loss, made.grad_logits), truth, original)


# Of 41003 float32 classes, 20502 with their probabilities, a block of sm_80 does not hold a row.
@pytest.mark.parametrize(
    "case",
    [
        Case("ignored", shape=(3, 41003), targets="ignored", values="garbage"),
        Case(
            "in place",
            shape=(3, 41003),
            targets="beyond",
            options={"inplace": True, "reduction": "none", "return_stats": True},
        ),
        Case(
            "probabilities",
            shape=(2, 20502),
            targets="probabilities",
            layout="odd",
            vectors=("weight", "prior"),
            options={"objective": "kl_div", "return_stats": True},
        ),
    ],
    ids=str,
)
def test_rows_in_parts(case: Case) -> None:
    gpu = simulated_cuda(80, sched="random", noise=2)
    check_case(case, gpu)
    kernels = [kernel_of(report) for report in gpu.reports if kernel_of(report) != "sum"]
    assert kernels == ["sums", "finish", "gradient"]
    assert not any(report.warnings for report in gpu.reports)


def test_more_chunks_than_marks() -> None:
    """A thread has 33 chunks of a row, and notes which hold classes of the target in 32 bits."""
    gpu = few_multiprocessors()
    case = Case("few", torch.float64, (1, 264, 128), targets="many", one_step=False)
    check_case(case, gpu)
    reports = [report for report in gpu.reports if kernel_of(report) == "strided"]
    assert [(report.grid[0], report.block[0]) for report in reports] == [(4, 4 * 32)] * 2


@pytest.mark.parametrize(
    "case",
    [
        Case("rows", shape=(32769, 2), targets="ignored", vectors=("row_weight",)),
        Case("mean of rows", shape=(32769, 2), targets="ignored", one_step=False),
        Case("classes", shape=(1, 20011), vectors=("weight", "prior")),
        Case("sum of rows", shape=(32769, 2), one_step=False, options={"reduction": "sum"}),
    ],
    ids=str,
)
def test_sums_by_several_blocks(case: Case) -> None:
    """More than 32768 rows, or 4096 classes, are summed up by more than one block, and those by
    another."""
    gpu = simulated_cuda(80, sched="random")
    check_case(case, gpu)
    grids = [report.grid[0] for report in gpu.reports if kernel_of(report) == "sum"]
    assert max(grids) > 1
    assert not any(report.warnings for report in gpu.reports)


@pytest.mark.parametrize(
    "case",
    [
        Case("warp", shape=(70, 33), targets="ignored", vectors=("weight",)),
        Case("cluster", dtype=torch.bfloat16, shape=(3, 40003)),
        Case("parts", shape=(3, 10007), one_step=False, options={"return_stats": True}),
        Case("strided", shape=(2, 33, 70)),
        Case("tiles", shape=(1, 1000, 33)),
        Case("tiles in parts", shape=(1, 2000, 33), one_step=False),
    ],
    ids=str,
)
def test_same_bits_whatever_runs_first(case: Case) -> None:
    problem = case.make()
    results = []
    for seed in range(2):
        gpu = simulated_cuda(90, sched="random", seed=seed)
        made = gpu.forward(problem.inputs, problem.options, with_grad=case.one_step)
        results.append(made)
        assert (case.name == "parts") == any(kernel_of(r) == "sums" for r in gpu.reports)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# ---- the scaling of a gradient that was made in forward ------------------------------------------


def few_multiprocessors() -> SimulatedCuda:
    """A device so small that each thread goes round a loop for the values below."""
    return SimulatedCuda(built_library().on(Device(80, 1, 163 * 1024, 164 * 1024)))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(dtype: torch.dtype, offset: int) -> None:
    gpu = few_multiprocessors()
    values = check_scaling(gpu.scale, dtype, 20003, offset)
    [report] = gpu.reports
    traffic, size = report.tensor(values), values.numel() * values.element_size()
    assert (traffic.read_bytes, traffic.written_bytes) == (size, size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_by_one_touches_nothing(dtype: torch.dtype) -> None:
    gpu = few_multiprocessors()
    values = torch.randn(20003).to(dtype)
    gpu.scale(values, torch.ones((), dtype=torch.float64 if dtype == torch.float64 else None))
    traffic = gpu.reports[0].tensor(values)
    assert (traffic.read_bytes, traffic.written_bytes) == (0, 0)


def test_scale_of_nothing() -> None:
    gpu = few_multiprocessors()
    gpu.scale(torch.empty(0), torch.tensor(0.5))
    assert not gpu.reports
