"""What the CUDA kernels read and write: each logit read once, each gradient written once, in
16-byte accesses. And that those long rows are right."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cuda_kernels import kernel_of, needs_cuda, simulated_cuda
from cuda_traffic import (
    Calls,
    assert_wide,
    assert_written_once,
    bytes_of,
    global_bytes,
    is_wide,
    moved_bytes,
    passes,
    reads_of,
)
from gpu_problem import Case, check_case
from ptxsim.counters import SECTOR, bytes_moved
from shards import InShards

pytestmark = needs_cuda

BF16, F32, F64, F16 = torch.bfloat16, torch.float32, torch.float64, torch.float16

# One step. Of each: the kernel, blocks a row.
ONE_STEP: list[tuple[int, torch.dtype, tuple[int, int], dict[str, Any], str, int]] = [
    # around what a warp holds, and the longest that it does
    (80, BF16, (5, 256), {}, "warp", 1),
    (90, BF16, (2, 2048), {}, "warp", 1),
    (100, F32, (3, 1001), {}, "warp", 1),
    (120, F16, (2, 1000), {}, "warp", 1),
    (90, BF16, (2, 2057), {}, "cluster", 1),
    # one block, to the last byte of shared memory of an sm_80
    (80, F32, (1, 40000), {}, "cluster", 1),
    (80, BF16, (2, 50257), {}, "cluster", 1),
    # clusters, around the places where their blocks meet
    (90, BF16, (2, 16376), {}, "cluster", 2),
    (90, BF16, (2, 16383), {}, "cluster", 4),
    (100, BF16, (2, 32000), {}, "cluster", 4),
    (120, F32, (2, 32768), {}, "cluster", 8),
    (90, BF16, (2, 65535), {"layout": "odd", "options": {"inplace": True}}, "cluster", 8),
    (100, BF16, (2, 262144), {}, "cluster", 8),
    (90, F32, (1, 262143), {}, "cluster", 16),
    (100, F64, (1, 131072), {}, "cluster", 16),
    (120, BF16, (1, 180000), {}, "cluster", 8),
    (90, F32, (1, 60000), {"targets": "probabilities"}, "cluster", 8),
    (90, BF16, (1, 32000), {"targets": "probabilities"}, "cluster", 8),
    (90, BF16, (1, 32000), {"targets": "few"}, "cluster", 4),
    (100, F32, (1, 1001), {"targets": "few"}, "warp", 1),
    (90, BF16, (2, 4096), {"options": {"smooth_over": "unmasked"}}, "cluster", 1),
]


@pytest.mark.parametrize(
    ("arch", "dtype", "shape", "fields", "kernel", "cluster"), ONE_STEP, ids=lambda x: str(x)
)
def test_read_once_and_written_once(
    arch: int,
    dtype: torch.dtype,
    shape: tuple[int, int],
    fields: dict[str, Any],
    kernel: str,
    cluster: int,
) -> None:
    gpu = simulated_cuda(arch, sched="random", noise=2)
    check_case(Case("traffic", dtype=dtype, shape=shape, **fields), gpu)
    [report] = [r for r in gpu.reports if kernel_of(r) != "sum"]
    assert (kernel_of(report), report.cluster[0]) == (kernel, cluster)
    assert 1 <= passes(gpu, write=False) <= 1.02
    assert_written_once(gpu)
    assert_wide(gpu)


# The rest. Of each: arch, dtype, shape, what changes, how often the logits are read.
OTHERS: list[tuple[int, torch.dtype, tuple[int, int], dict[str, Any], int]] = [
    (80, BF16, (2, 100000), {}, 2),  # longer than a block holds: sums, then the gradient
    (120, F32, (1, 131072), {}, 2),
    (90, F16, (2, 32001), {"one_step": False}, 2),  # forward, then backward
    (100, F16, (2, 2000), {"one_step": False}, 2),
    (80, F32, (2, 10007), {"one_step": False, "options": {"inplace": True}}, 2),
]


@pytest.mark.parametrize(("arch", "dtype", "shape", "fields", "reads"), OTHERS, ids=str)
def test_read_twice_and_written_once(
    arch: int, dtype: torch.dtype, shape: tuple[int, int], fields: dict[str, Any], reads: int
) -> None:
    gpu = simulated_cuda(arch, sched="random", noise=2)
    check_case(Case("traffic", dtype=dtype, shape=shape, **fields), gpu)
    assert reads <= passes(gpu, write=False) <= 1.02 * reads
    assert_written_once(gpu)
    assert_wide(gpu)


# Two ranks. Of each: arch, dtype, shape, what changes, how many numbers of a row a rank sends, the
# kernel that makes their gradient.
RANKS: list[tuple[int, torch.dtype, tuple[int, int], dict[str, Any], int, str]] = [
    (90, BF16, (2, 4096), {}, 4, "warp"),
    (80, F32, (3, 2048), {"options": {"inplace": True}}, 4, "warp"),
    (100, BF16, (2, 8192), {"options": {"smooth_over": "unmasked"}}, 7, "gradient"),
    (90, BF16, (2, 131072), {}, 4, "gradient"),
    (120, F32, (2, 65536), {"options": {"inplace": True}}, 4, "gradient"),
    (80, F32, (1, 32768), {"one_step": False, "options": {"objective": "kl_div"}}, 5, "gradient"),
]


@pytest.mark.parametrize(
    ("arch", "dtype", "shape", "fields", "sent", "kernel"), RANKS, ids=lambda x: str(x)
)
def test_over_ranks(
    arch: int,
    dtype: torch.dtype,
    shape: tuple[int, int],
    fields: dict[str, Any],
    sent: int,
    kernel: str,
) -> None:
    """Once for its part of the rows, not at all for the rows, and once more for the gradient."""
    calls = Calls(simulated_cuda(arch, sched="random", noise=2))
    check_case(Case("ranks", dtype=dtype, shape=shape, **fields), InShards(calls, cuts=(0.5,)))
    for call in calls.made("partial"):
        assert [kernel_of(report) for report in call.reports] == ["sums", "finish"]
        assert 1 <= passes(call, write=False) <= 1.02
        assert global_bytes(call.reports[-1], write=True) == shape[0] * 4 * sent
        assert_wide(call)
    for call in calls.made("backward"):
        assert [kernel_of(r) for r in call.reports if kernel_of(r) != "sum"] == [kernel]
        assert 1 <= passes(call, write=False) <= 1.02
        assert_written_once(call)
        assert_wide(call)
    for call in calls.made("combine"):
        assert moved_bytes(call, write=False) == 0
        [report] = [r for r in call.reports if kernel_of(r) == "rank"]
        # Each rank's part, its shift twice, and the target; the loss and what backward needs.
        assert global_bytes(report, write=False) == shape[0] * (2 * 4 * (sent + 1) + 8)
        assert global_bytes(report, write=True) == shape[0] * 4 * (1 + 4)


# Rows whose classes are not adjacent. Of each: blocks of a cluster, how often the logits are read,
# the least part of the sectors read that is logits.
STRIDED: list[tuple[int, torch.dtype, tuple[int, ...], dict[str, Any], int, int, float]] = [
    # a thread a position; in lines, by a block
    (90, BF16, (1, 21, 512), {}, 1, 1, 0.95),
    (90, F32, (2, 100, 64), {}, 1, 1, 0.95),
    (80, F32, (1, 500, 64), {"options": {"inplace": True}}, 1, 1, 0.95),
    # by clusters, of whole sectors and of half ones
    (100, F32, (1, 2000, 16), {}, 4, 1, 0.95),
    (90, BF16, (32, 3000), {"layout": "columns"}, 8, 1, 0.95),
    (90, BF16, (1, 30000, 8), {"options": {"inplace": True}}, 16, 1, 0.45),
    # positions that begin anywhere in a sector
    (120, F32, (2, 700, 49), {}, 2, 1, 0.45),
    # longer than a block holds: parts leave their sums too; the gradient in a call of its own
    (80, F32, (1, 9000, 16), {}, 1, 2, 0.9),
    (90, BF16, (1, 3000, 32), {"one_step": False}, 1, 2, 0.95),
    (90, BF16, (2, 100, 64), {"one_step": False}, 1, 2, 0.95),
]


@pytest.mark.parametrize(
    ("arch", "dtype", "shape", "fields", "cluster", "reads", "efficiency"), STRIDED, ids=str
)
def test_strided_rows(
    arch: int,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    fields: dict[str, Any],
    cluster: int,
    reads: int,
    efficiency: float,
) -> None:
    """By whole sectors; but each thread of the sums reads the target's logit by itself."""
    gpu = simulated_cuda(arch, sched="random", noise=2)
    check_case(Case("strided", dtype=dtype, shape=shape, **fields), gpu)
    reports = [r for r in gpu.reports if kernel_of(r) == "strided"]
    assert [r.cluster[0] for r in reports] == [cluster] * len(reports)
    threads = max(r.grid[0] * r.block[0] for r in reports)
    targets = moved_bytes(gpu, write=False) // dtype.itemsize - reads * gpu.logits.numel()
    assert 0 <= targets <= threads + math.prod(shape) // shape[1]  # of which a row's is read again
    assert passes(gpu, write=True) == 1
    moved = [a for r in reports for a in r.accesses if bytes_of(a) == dtype.itemsize]
    for write in (False, True):
        accesses = [a for a in moved if a.space == "global" and a.write == write]
        count, sectors = sum(a.bytes for a in accesses), sum(a.sectors for a in accesses)
        assert sectors - (0 if write else targets) <= count / efficiency / SECTOR
    assert all(report.bank_conflicts == 0 for report in reports)
    assert not any(report.warnings for report in gpu.reports)


# Of each: arch, dtype, shape, the probabilities' dtype, what changes.
PROBABILITIES: list[tuple[int, torch.dtype, tuple[int, int], torch.dtype, dict[str, Any]]] = [
    (90, BF16, (2, 1000), F32, {}),
    (100, BF16, (2, 32000), F32, {}),
    (80, F16, (2, 10000), F32, {"options": {"inplace": True}}),
    (90, BF16, (2, 32000), BF16, {}),
    (120, BF16, (2, 4000), F16, {}),
    (90, F32, (2, 4000), BF16, {}),
    (80, F32, (2, 4096), F64, {}),
    (90, BF16, (2, 100000), F32, {"one_step": False, "options": {"reduction": "sum"}}),
]


@pytest.mark.parametrize(("arch", "dtype", "shape", "probs", "fields"), PROBABILITIES, ids=str)
def test_probabilities_are_read_as_they_are(
    arch: int,
    dtype: torch.dtype,
    shape: tuple[int, int],
    probs: torch.dtype,
    fields: dict[str, Any],
) -> None:
    """Not rounded to the logits' dtype, and not by single elements."""
    gpu = simulated_cuda(arch, sched="random", noise=2)
    case = Case("t", dtype=dtype, shape=shape, targets="probabilities", probs_dtype=probs, **fields)
    check_case(case, gpu)
    reads = 1 if case.one_step else 2
    assert reads <= passes(gpu, write=False) <= 1.02 * reads
    target = gpu.inputs.target
    assert target.dtype == probs
    moved = bytes_moved(gpu.reports, target)
    assert moved == reads * target.numel() * target.element_size()
    least = min(16, 16 // dtype.itemsize * probs.itemsize)
    narrow = sum(a.sectors for a in reads_of(gpu) if bytes_of(a) < least)
    assert narrow <= 0.05 * sum(a.sectors for a in reads_of(gpu))


@pytest.mark.parametrize("classes", [2000, 4096, 262144])
def test_a_few_classes_are_looked_for_where_they_are(classes: int) -> None:
    """Each thread looks twice at first, then once more for a chunk that has any, in both passes."""
    gpu = simulated_cuda(90)
    check_case(Case("few", dtype=BF16, shape=(1, classes), targets="few"), gpu)
    assert passes(gpu, write=False) <= 1.02
    [report] = [r for r in gpu.reports if kernel_of(r) != "sum"]
    target, probs = gpu.inputs.target, gpu.inputs.target_probs
    assert probs is not None
    traffic, size = report.tensor(target), target.numel() * target.element_size()
    threads = report.grid[0] * report.block[0]
    assert traffic.read_bytes <= (2 * threads + 2 * target.numel()) * size
    for tensor in target, probs:
        assert report.tensor(tensor).read_distinct_bytes <= 3 * SECTOR


@pytest.mark.parametrize("targets", ["classes", "probabilities"])
def test_weights_are_read_wide(targets: str) -> None:
    """The vectors over the classes too: else a warp asks for each of their sectors 8 times. Not
    those in the entropy of class probabilities, which kl_div alone wants."""
    gpu = simulated_cuda(90)
    vectors = ("weight", "prior")
    check_case(Case("weighted", dtype=BF16, shape=(2, 4096), vectors=vectors, targets=targets), gpu)
    read = reads_of(gpu)
    narrow = sum(a.sectors for a in read if not is_wide(a))
    assert narrow < 0.05 * sum(a.sectors for a in read)
