"""Into which tiles rows are cut whose classes are not adjacent, and how many blocks share one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_kernels import ARCHS, make_plan, needs_cuda
from cuda_problem import Plan, problem_of
from ptxsim import Device

from labelsmooth._call.problem import Inputs, Options

pytestmark = needs_cuda

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
SECTOR = 32  # bytes


def strided_plan(
    arch: int,
    shape: tuple[int, ...],
    dtype: torch.dtype = BF16,
    *,
    probabilities: bool = False,
    gradient: bool = True,
    forward: bool = True,
    partial: bool = False,
) -> Plan:
    """Of contiguous logits (N, C, S); of logits (N, C), which are those of (C, N) transposed."""
    shape = shape if len(shape) == 3 else (shape[1], shape[0])
    logits = torch.empty(shape, dtype=dtype, device="meta")
    if logits.dim() == 2:
        logits = logits.t()
    target = torch.empty_like(logits if probabilities else logits[:, 0].long())
    problem = problem_of(Inputs(logits, target), Options())
    problem.logits.data = problem.target_probs.data = address = 1 << 20
    problem.grad_logits = problem.logits
    problem.grad_logits.data = address if gradient else None
    problem.target = None if probabilities else address
    problem.loss = address if forward else None
    problem.parts = address if partial else None
    plan = make_plan(problem, arch)
    assert plan.kernel == "strided"
    return plan


def tiles(plan: Plan, shape: tuple[int, ...]) -> int:
    rows = shape[0] * (shape[2] if len(shape) == 3 else 1)
    return -(-rows // plan.positions)


def blocks(plan: Plan, shape: tuple[int, ...]) -> int:
    return tiles(plan, shape) * plan.cluster * plan.parts


# Of each: positions of a tile, blocks that share and hold it, or else parts that it is read in.
PICKS: list[tuple[int, tuple[int, ...], torch.dtype, int, int, int]] = [
    # a few positions with many classes: held by clusters, of half sectors where those of whole ones
    # would be too few; in parts, where clusters are too small
    (80, (1, 50257, 64), BF16, 32, 0, 256),
    (90, (1, 50257, 64), BF16, 8, 16, 1),
    (100, (1, 50257, 64), BF16, 8, 16, 1),
    (120, (1, 50257, 64), BF16, 32, 0, 256),
    (90, (1, 50257, 64), F32, 8, 16, 1),
    (120, (1, 50257, 64), F32, 32, 0, 256),
    # many positions with few classes: a thread a position
    *((arch, (8, 21, 512 * 512), dtype, 256, 1, 1) for arch in ARCHS for dtype in (BF16, F32)),
    (90, (8, 21, 512 * 512), F64, 128, 1, 1),
    # little of both
    (80, (2, 1000, 7 * 7), F32, 4, 1, 1),
    (90, (2, 1000, 7 * 7), F32, 8, 2, 1),
    (100, (2, 1000, 7 * 7), BF16, 16, 2, 1),
    (120, (2, 1000, 7 * 7), BF16, 16, 2, 1),
    # much of both: tiles as wide as can be held
    *((arch, (8, 1000, 512 * 512), BF16, 32, 1, 1) for arch in (80, 90, 100)),
    (120, (8, 1000, 512 * 512), BF16, 16, 1, 1),
    (90, (8, 1000, 512 * 512), F32, 16, 1, 1),
    # transposed: rows are neighbours
    (80, (8192, 32000), BF16, 32, 0, 8),
    (90, (8192, 32000), BF16, 16, 16, 1),
    (100, (8192, 32000), F32, 8, 16, 1),
    (120, (8192, 32000), F32, 32, 0, 16),
    # no more positions than there are
    (90, (4, 50257), BF16, 4, 16, 1),
    (80, (4, 50257), BF16, 4, 0, 32),
]


@pytest.mark.parametrize(("arch", "shape", "dtype", "positions", "cluster", "parts"), PICKS)
def test_picks(
    arch: int, shape: tuple[int, ...], dtype: torch.dtype, positions: int, cluster: int, parts: int
) -> None:
    plan = strided_plan(arch, shape, dtype)
    holding = plan.cluster if plan.shared_bytes else 0
    assert (plan.positions, holding, plan.parts) == (positions, cluster, parts)


@pytest.mark.parametrize("fields", [{"gradient": False}, {"forward": False}])
@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_is_held_for_another_call(arch: int, fields: dict[str, Any]) -> None:
    plan = strided_plan(arch, (1, 50257, 64), **fields)
    assert (plan.positions, plan.cluster, plan.shared_bytes) == (32, 1, 0)
    assert strided_plan(arch, (8, 21, 512 * 512), **fields).parts == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_a_ranks_rows(arch: int) -> None:
    ranks: dict[str, Any] = {"gradient": False, "forward": False, "partial": True}
    assert strided_plan(arch, (8, 21, 512 * 512), **ranks).parts == 1
    assert strided_plan(arch, (1, 50257, 64), **ranks).parts == 256


SHAPES: list[tuple[int, ...]] = [
    *(
        (n, c, s)
        for n in (1, 8)
        for c in (1, 10, 257, 2000, 50257)
        for s in (2, 49, 1000, 512 * 512)
    ),
    *((n, c) for n in (2, 300, 8192, 1 << 20) for c in (2, 33, 1000, 32000, 2_000_000)),
]


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
@pytest.mark.parametrize("arch", ARCHS)
def test_plans_fit_the_device(arch: int, dtype: torch.dtype) -> None:
    """Two blocks to a multiprocessor by their shared memory, of which 4 KB are not the plan's; one
    where there are no clusters."""
    device = Device.of(arch)
    limit = device.shared_per_block if arch == 80 else device.shared_per_multiprocessor // 2
    threads = 128 if dtype == F64 else 256
    for shape in SHAPES:
        for probabilities in (False, True):
            plan = strided_plan(arch, shape, dtype, probabilities=probabilities)
            case = f"{shape}, probabilities {probabilities}"
            assert plan.threads == threads, case
            assert plan.positions in (2**k for k in range(9)), case
            lines = threads // plan.positions
            assert lines >= 1, case
            assert plan.cluster in ((1,) if arch == 80 else (1, 2, 4, 8, 16)[: 4 + (arch < 120)])
            assert plan.cluster == 1 or (lines > 1 and plan.shared_bytes), case
            assert plan.parts == 1 or not plan.shared_bytes, case
            assert plan.shared_bytes + 4096 <= limit, case
            assert (plan.capacity > 0) == (plan.shared_bytes > 0), case
            chunks = -(-shape[1] * dtype.itemsize // 16)
            if plan.shared_bytes:
                # Blocks begin at a multiple of 8 chunks.
                of_block = chunks if plan.cluster == 1 else -(-chunks // (8 * plan.cluster)) * 8
                assert plan.capacity * lines >= of_block, case
                held = 16 + (16 // dtype.itemsize * max(4, dtype.itemsize) if probabilities else 0)
                assert plan.shared_bytes == plan.capacity * threads * held, case
            assert lines <= chunks, case  # none is idle


@pytest.mark.parametrize("fields", [{}, {"gradient": False}, {"forward": False}])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_few_positions_fill_the_device(
    arch: int, dtype: torch.dtype, fields: dict[str, Any]
) -> None:
    """Three of four multiprocessors at least."""
    shape = (1, 50257, 64)
    plan = strided_plan(arch, shape, dtype, **fields)
    assert 4 * blocks(plan, shape) >= 3 * Device.of(arch).multiprocessors


@pytest.mark.parametrize("dtype", [BF16, F32, F64])
@pytest.mark.parametrize("arch", ARCHS)
def test_many_positions_are_read_by_whole_sectors(arch: int, dtype: torch.dtype) -> None:
    for classes in (21, 200, 1000, 5000, 50257):
        plan = strided_plan(arch, (8, classes, 256 * 256), dtype)
        assert plan.positions * dtype.itemsize >= SECTOR


def test_threads_lie_along_what_is_nearer() -> None:
    """Every 2nd class: a block takes a row by itself."""
    logits = torch.empty((512, 20000), dtype=BF16, device="meta")[:, ::2]
    problem = problem_of(Inputs(logits, torch.empty(512, dtype=torch.int64)), Options())
    problem.logits.data = problem.target = problem.loss = 1 << 20
    problem.grad_logits = problem.logits
    plan = make_plan(problem, 90)
    assert (plan.kernel, plan.positions, plan.cluster) == ("strided", 1, 1)
