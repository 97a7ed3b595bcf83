"""What a call launches, and what it asks of the device before: no launch that is not needed, no
question twice, none whose answer is left unheard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cuda_kernels import SimulatedCuda, built_library, kernel_of, needs_cuda, simulated_cuda
from gpu_problem import Case, check_case
from ptxsim import Device

pytestmark = needs_cuda

INSUFFICIENT_DRIVER, INVALID_CLUSTER_SIZE = 35, 912  # cudaError_t


def kernels(gpu: SimulatedCuda) -> list[str]:
    return [kernel_of(report) for report in gpu.reports]


def on(device: Device) -> SimulatedCuda:
    return SimulatedCuda(built_library().on(device))


# ---- launches ------------------------------------------------------------------------------------

FEW, MANY = (700, 3), (1025, 3)  # rows that every block counts, and more
MEAN: dict[str, Any] = {}
SUM, NONE = {"reduction": "sum"}, {"reduction": "none"}

# Of forward with the gradient; the last is the reduction of the loss.
ONE_STEP: list[tuple[tuple[int, ...], dict[str, Any], str, tuple[str, ...], list[str]]] = [
    (FEW, MEAN, "ignored", (), ["warp", "sum"]),
    (FEW, MEAN, "beyond", (), ["warp", "sum"]),
    (MANY, MEAN, "ignored", (), ["sum", "warp", "sum"]),
    (FEW, MEAN, "ignored", ("normalizer",), ["warp", "sum"]),
    (FEW, MEAN, "ignored", ("weight",), ["sum", "sum", "warp", "sum"]),  # v_c too
    (FEW, {"weight_over": "target"}, "ignored", ("weight",), ["sum", "warp", "sum"]),
    (FEW, MEAN, "ignored", ("row_weight",), ["sum", "warp", "sum"]),
    (FEW, MEAN, "ignored", ("prior",), ["sum", "warp", "sum"]),
    (MANY, MEAN, "ignored", ("weight", "row_weight"), ["sum", "sum", "warp", "sum"]),
    ((300, 5), MEAN, "few", (), ["sum", "warp", "sum"]),
    (MANY, MEAN, "probabilities", (), ["warp", "sum"]),  # all of them count
    ((20, 3, 45), MEAN, "ignored", (), ["strided", "sum"]),
    ((3, 3, 400), MEAN, "ignored", (), ["sum", "strided", "sum"]),
    ((300, 1100), MEAN, "ignored", (), ["cluster", "sum"]),
    (MANY, SUM, "ignored", (), ["warp", "sum"]),
    ((9001, 2), MEAN, "ignored", (), ["sum", "warp", "sum"]),
    (MANY, NONE, "ignored", (), ["warp"]),
    (MANY, NONE, "ignored", ("row_weight",), ["warp"]),
]


@pytest.mark.parametrize(("shape", "options", "targets", "vectors", "expected"), ONE_STEP)
def test_launches_of_one_step(
    shape: tuple[int, ...],
    options: dict[str, Any],
    targets: str,
    vectors: tuple[str, ...],
    expected: list[str],
) -> None:
    gpu = simulated_cuda(90, sched="random")
    case = Case("one step", shape=shape, targets=targets, vectors=vectors, options=options)
    check_case(case, gpu)
    assert kernels(gpu) == expected
    assert not any(report.warnings for report in gpu.reports)


# Of forward, then of backward. Without a gradient the denominator is made with the mean.
TWO_STEPS: list[tuple[tuple[int, ...], dict[str, Any], tuple[str, ...], list[str], list[str]]] = [
    (FEW, MEAN, (), ["warp", "sum"], ["warp"]),
    (MANY, MEAN, (), ["warp", "sum"], ["sum", "warp"]),
    (MANY, MEAN, ("normalizer",), ["warp", "sum"], ["warp"]),
    (FEW, MEAN, ("row_weight",), ["warp", "sum"], ["sum", "warp"]),
    (FEW, MEAN, ("weight",), ["sum", "warp", "sum"], ["sum", "sum", "warp"]),
    (MANY, SUM, (), ["warp", "sum"], ["warp"]),
    (MANY, NONE, (), ["warp"], ["warp"]),
    ((300, 1100), MEAN, (), ["sums", "finish", "sum"], ["gradient"]),
    ((20, 3, 45), MEAN, (), ["strided", "sum"], ["strided"]),
]


@pytest.mark.parametrize(("shape", "options", "vectors", "forward", "backward"), TWO_STEPS)
def test_launches_of_two_steps(
    shape: tuple[int, ...],
    options: dict[str, Any],
    vectors: tuple[str, ...],
    forward: list[str],
    backward: list[str],
) -> None:
    gpu = simulated_cuda(90, sched="random")
    case = Case(
        "two steps",
        shape=shape,
        targets="ignored",
        vectors=vectors,
        one_step=False,
        options=options,
    )
    check_case(case, gpu)
    assert kernels(gpu) == forward + backward
    assert not any(report.warnings for report in gpu.reports)


# ---- questions -----------------------------------------------------------------------------------

SHAPES = [(5, 3), (2, 65536), (2, 33, 5), (1, 60000)]  # a warp, a cluster, strided, a whole block


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_second_call_asks_nothing(shape: tuple[int, ...], one_step: bool) -> None:
    device = replace(Device.of(90), multiprocessors=100 + len(shape) + 10 * one_step)
    case = Case("questions", torch.bfloat16, shape, one_step=one_step)
    check_case(case, on(device))
    gpu = on(device)
    check_case(case, gpu)
    assert gpu.gpu.questions == []


def test_what_a_first_call_asks() -> None:
    """Of the device once; of a kernel, that it may have much shared memory and whether there is
    room for its clusters."""
    device = replace(Device.of(90), multiprocessors=99)
    gpu = on(device)
    check_case(Case("first", shape=(2, 37)), gpu)
    assert set(gpu.gpu.questions) == {"device attribute"}
    assert len(gpu.gpu.questions) <= 6
    gpu = on(device)
    check_case(Case("longer", torch.bfloat16, (2, 262144)), gpu)
    assert gpu.gpu.questions == ["function attribute", "active clusters"]
    gpu = on(device)
    check_case(Case("shorter", torch.bfloat16, (2, 200000)), gpu)
    assert gpu.gpu.questions == ["active clusters"]


@pytest.mark.parametrize("answer", [0, INVALID_CLUSTER_SIZE])
@pytest.mark.parametrize(
    ("classes", "largest", "launched"),
    [
        (65536, 16, [("cluster", 8)]),  # one row, spread wide
        (65536, 4, [("cluster", 4)]),
        (32768, 1, [("cluster", 1)]),
        (65536, 1, [("sums", 1), ("finish", 1), ("gradient", 1)]),  # of one row, not half is held
    ],
)
def test_no_room_for_a_cluster(
    classes: int, largest: int, launched: list[tuple[str, int]], answer: int
) -> None:
    runtime = built_library().handle
    runtime.cudaGetLastError()
    gpu = on(replace(Device.of(90), largest_cluster=largest, beyond_largest=answer))
    check_case(Case("no room", torch.bfloat16, (1, classes)), gpu)
    rows = [report for report in gpu.reports if kernel_of(report) != "sum"]
    assert [(kernel_of(report), report.cluster[0]) for report in rows] == launched
    assert runtime.cudaPeekAtLastError() == 0  # what was answered is not left for who asks next


def test_a_driver_that_is_too_old() -> None:
    """It serves nothing, and that is what the launchers say of it."""
    old = on(replace(Device.of(90), multiprocessors=98, driver=12080))
    assert old.gpu.call("driver_version") == 12080
    with pytest.raises(AssertionError, match=f"cudaError_t {INSUFFICIENT_DRIVER}"):
        check_case(Case("old"), old)
    assert not old.reports
    assert on(Device.of(90)).gpu.call("driver_version") == 13000
