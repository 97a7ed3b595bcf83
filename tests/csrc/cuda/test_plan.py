"""Which kernel takes which rows, on each architecture: make_plan, and the launches that follow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_kernels import ARCHS, kernel_of, make_plan, needs_cuda, simulated_cuda
from cuda_problem import Plan, problem_of
from gpu_problem import Case
from ptxsim import Device
from torch import Tensor

from labelsmooth._call.problem import Inputs, Options

pytestmark = needs_cuda

CHUNK = 16  # bytes
RESERVED = 4096  # bytes of shared memory that a plan leaves a block, for sums and for the system
SIZES = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 2, torch.float16: 2}


def plan_of(
    arch: int,
    rows: int,
    classes: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    probs: torch.dtype | None = None,
    gradient: bool = True,
    forward: bool = True,
    partial: bool = False,
    stride: int | None = None,
    largest_cluster: int = 16,
) -> Plan:
    """Of no memory: a plan looks at addresses and strides alone."""

    def matrix(dtype: torch.dtype) -> Tensor:
        return torch.empty(1, dtype=dtype).expand(rows, classes)

    target = torch.zeros(1, dtype=torch.int64) if probs is None else matrix(probs)
    problem = problem_of(Inputs(matrix(dtype), target), Options())
    for part in (problem.logits, problem.grad_logits, problem.target_probs):
        part.outer_stride, part.class_stride = stride or classes, 1
    problem.logits.data = problem.grad_logits.data = 1 << 20
    problem.target_probs.data = 1 << 20 if probs else None
    problem.grad_logits.data = 1 << 20 if gradient else None
    problem.target = None if probs else 1 << 20
    problem.loss = 1 << 20 if forward else None
    problem.parts = 1 << 20 if partial else None
    return make_plan(problem, arch, largest_cluster)


def chunks_of(classes: int, dtype: torch.dtype) -> int:
    """Of rows that begin at a multiple of 16 bytes, or anywhere."""
    size = classes * SIZES[dtype]
    return -(-size // CHUNK) + (size % CHUNK != 0)


CLASSES = [1, 100, 256, 1000, 1024, 2048, 2064, 4096, 8192, 16384, 32000, 32768, 50257, 65536]
CLASSES += [81000, 100000, 128256, 131072, 151936, 180000, 200000, 256000, 262144, 500000, 2000000]


@pytest.mark.parametrize("rows", [1, 64, 4096, 100000])
@pytest.mark.parametrize("dtype", SIZES)
@pytest.mark.parametrize("arch", ARCHS)
def test_plans_fit_the_device(arch: int, dtype: torch.dtype, rows: int) -> None:
    device = Device.of(arch)
    for classes in CLASSES:
        for probs in (None, *SIZES):
            plan = plan_of(arch, rows, classes, dtype, probs=probs)
            chunks, held = chunks_of(classes, dtype), held_bytes(dtype, probs)
            case = f"{classes} classes, probabilities {probs}"
            assert (plan.kernel == "warp") == (chunks <= 257), case
            if plan.kernel == "warp":
                assert plan.lanes in (4, 8, 16, 32), case
                assert plan.capacity >= chunks, case
                assert plan.shared_bytes == 128 // plan.lanes * plan.capacity * held, case
            elif plan.kernel == "cluster":
                assert plan.cluster * plan.chunks_a_part >= chunks, case
                assert plan.capacity <= plan.chunks_a_part, case
                assert plan.shared_bytes == plan.capacity * held, case
                assert plan.cluster in cluster_sizes(arch), case
                assert plan.threads in (256, 512), case
            assert plan.shared_bytes + RESERVED <= device.shared_per_block, case
            if plan.kernel == "parts":
                assert plan.parts * plan.chunks_a_part >= chunks, case
            if plan.kernel == "cluster" and arch >= 90:
                assert 2 * (plan.shared_bytes + RESERVED) <= device.shared_per_multiprocessor, case


def held_bytes(dtype: torch.dtype, probs: torch.dtype | None) -> int:
    """Of a chunk: probabilities as wide as the logits are held as they are, others in the type of
    the sums."""
    if probs is None:
        return CHUNK
    size = SIZES[dtype]
    return CHUNK + CHUNK // size * (size if SIZES[probs] == size else max(4, size))


def cluster_sizes(arch: int) -> tuple[int, ...]:
    return {80: (1,), 90: (1, 2, 4, 8, 16), 100: (1, 2, 4, 8, 16), 120: (1, 2, 4, 8)}[arch]


# The longest rows of CLASSES that are read once.
ONCE = [
    (80, torch.bfloat16, 81000),
    (80, torch.float32, 40000),
    (90, torch.bfloat16, 262144),
    (90, torch.float32, 262144),
    (90, torch.float64, 131072),
    (100, torch.bfloat16, 262144),
    (100, torch.float32, 262144),
    (120, torch.bfloat16, 180000),
    (120, torch.float32, 90000),
]


@pytest.mark.parametrize(("arch", "dtype", "classes"), ONCE)
def test_rows_that_are_read_once(arch: int, dtype: torch.dtype, classes: int) -> None:
    for shorter in CLASSES:
        plan = plan_of(arch, 2048, shorter, dtype)
        assert plan.kernel in ("warp", "cluster")
        if shorter <= classes and plan.kernel == "cluster":
            assert plan.capacity == plan.chunks_a_part
    longer = plan_of(arch, 2048, 16 * classes, dtype)
    assert longer.kernel == "cluster"
    assert longer.capacity < longer.chunks_a_part


@pytest.mark.parametrize("arch", ARCHS)
def test_the_rest_of_a_long_row_is_read_again_soon(arch: int) -> None:
    """131072 classes in bfloat16: what all blocks at work read until they read it again, on average
    half of their rests, is less than the L2 cache; there are none where clusters hold the row."""
    device = Device.of(arch)
    plan = plan_of(arch, 8192, 131072)
    blocks_at_work = device.multiprocessors * (2 if arch >= 90 else 1)
    rest = (plan.chunks_a_part - plan.capacity) * CHUNK
    assert (rest > 0) == (arch == 80)
    assert blocks_at_work * rest < 40e6  # of an A100


def test_few_long_rows_are_cut_into_parts() -> None:
    assert plan_of(80, 64, 500000).kernel == "parts"
    assert plan_of(80, 8192, 500000).kernel == "cluster"


@pytest.mark.parametrize("arch", ARCHS)
def test_lanes_of_short_rows(arch: int) -> None:
    """Few where rows are many, so that each has chunks to share what it does once."""
    assert plan_of(arch, 100000, 1000).lanes == 16
    assert plan_of(arch, 100000, 1000, torch.float32).lanes == 16
    assert plan_of(arch, 100000, 100).lanes == 4
    assert plan_of(arch, 64, 1000).lanes == 32


@pytest.mark.parametrize(
    ("arch", "classes", "clusters"),
    [  # by the largest cluster that there is room for
        (90, 32768, {8: 1, 1: 1}),
        (90, 65536, {16: 2, 2: 2, 1: 1}),
        (90, 262144, {16: 8, 8: 8, 4: 4, 2: 2, 1: 1}),
        (90, 700000, {16: 16, 8: 8, 4: 4}),
        (120, 131072, {16: 8, 8: 8, 4: 4, 2: 2}),
    ],
)
def test_clusters_that_there_is_no_room_for(
    arch: int, classes: int, clusters: dict[int, int]
) -> None:
    """The next smaller one takes its place, and holds what it can; of few rows, parts."""
    for largest, cluster in clusters.items():
        plan = plan_of(arch, 4096, classes, largest_cluster=largest)
        assert (plan.kernel, plan.cluster) == ("cluster", cluster)
        assert plan.shared_bytes + RESERVED <= Device.of(arch).shared_per_multiprocessor // 2
    assert plan_of(arch, 16, 700000, largest_cluster=1).kernel == "parts"


@pytest.mark.parametrize("arch", ARCHS)
def test_few_rows_fill_the_device(arch: int) -> None:
    """Two blocks at least for each multiprocessor."""
    multiprocessors = Device.of(arch).multiprocessors
    for gradient, forward in ((True, True), (False, True), (True, False)):
        plan = plan_of(arch, 64, 262144, gradient=gradient, forward=forward)
        blocks = 64 * (plan.cluster if plan.kernel == "cluster" else plan.parts)
        assert blocks >= 2 * multiprocessors


@pytest.mark.parametrize("arch", ARCHS)
def test_many_rows_are_not_spread(arch: int) -> None:
    """Where there are rows enough for all."""
    assert plan_of(arch, 8192, 16000).cluster == 1
    assert plan_of(arch, 8192, 2064).cluster == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_that_need_no_holding(arch: int) -> None:
    """The gradient is made in another call."""
    assert plan_of(arch, 64, 32000, gradient=False).kernel == "parts"
    assert plan_of(arch, 64, 32000, forward=False).kernel == "parts"
    assert plan_of(arch, 64, 32000, forward=False, probs=torch.float32).kernel == "parts"
    assert plan_of(arch, 64, 1000, gradient=False).kernel == "warp"
    assert plan_of(arch, 64, 1000, forward=False).kernel == "warp"


@pytest.mark.parametrize("arch", ARCHS)
def test_a_ranks_rows(arch: int) -> None:
    """Summed up in parts, short ones too."""
    for classes in (100, 1000, 32000):
        plan = plan_of(arch, 64, classes, gradient=False, forward=False, partial=True)
        assert plan.kernel == "parts"
    assert plan_of(arch, 8192, 1000, gradient=False, forward=False, partial=True).parts == 1


LAUNCHES: list[tuple[int, tuple[int, ...], dict[str, Any], str, int, int]] = [
    # arch, shape, fields of the case, kernel, blocks, cluster
    (80, (3, 8193), {}, "cluster", 3, 1),
    (90, (3, 8193), {}, "cluster", 6, 2),
    (100, (1, 16000), {}, "cluster", 2, 2),
    (120, (1, 65536), {}, "cluster", 8, 8),
    (90, (1, 524288), {}, "cluster", 16, 16),
    (100, (9, 33), {}, "warp", 1, 1),
    (90, (17, 57), {}, "warp", 3, 1),
    (90, (3, 40), {"layout": "columns"}, "strided", 1, 1),
    (80, (2, 20, 70), {}, "strided", 2, 1),
]


@pytest.mark.parametrize(("arch", "shape", "fields", "kernel", "blocks", "cluster"), LAUNCHES)
def test_launches(
    arch: int,
    shape: tuple[int, ...],
    fields: dict[str, Any],
    kernel: str,
    blocks: int,
    cluster: int,
) -> None:
    """The launchers learn of the device what the plans above were made of."""
    gpu = simulated_cuda(arch)
    problem = Case("launch", dtype=torch.bfloat16, shape=shape, **fields).make()
    gpu.forward(problem.inputs, problem.options, with_grad=True)
    [report] = [r for r in gpu.reports if kernel_of(r) != "sum"]
    assert (kernel_of(report), report.grid[0], report.cluster[0]) == (kernel, blocks, cluster)
