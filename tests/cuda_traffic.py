"""What a simulated CUDA backend moved: its passes over the logits, and how wide they went."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cuda_kernels import SimulatedCuda, kernel_of
from ptxsim.counters import SECTOR, Access, Report, bytes_moved
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """What one call of a backend moved, and the tensors that it was about."""

    name: str
    reports: list[Report]
    logits: Tensor
    grad_logits: Tensor


class Calls:
    """A backend that keeps its calls apart."""

    def __init__(self, gpu: SimulatedCuda) -> None:
        self.gpu, self.calls = gpu, list[Call]()

    def made(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            before = len(self.gpu.reports)
            made = getattr(self.gpu, name)(*arguments, **options)
            reports = self.gpu.reports[before:]
            self.calls.append(Call(name, reports, self.gpu.logits, self.gpu.grad_logits))
            return made

        return call


def moved_bytes(gpu: SimulatedCuda | Call, *, write: bool) -> int:
    """Of the logits that are read or their gradient that is written, by all launches."""
    tensor = gpu.grad_logits if write else gpu.logits
    return bytes_moved(gpu.reports, tensor, write=write)


def passes(gpu: SimulatedCuda | Call, *, write: bool) -> float:
    """How often the logits were read or their gradient written."""
    tensor = gpu.grad_logits if write else gpu.logits
    return moved_bytes(gpu, write=write) / (tensor.numel() * tensor.element_size())


def assert_written_once(gpu: SimulatedCuda | Call) -> None:
    """But for the class of a row's target, which is written by itself after those around it."""
    rows = gpu.grad_logits.numel() / gpu.grad_logits.shape[1]
    assert 0 <= (passes(gpu, write=True) - 1) * gpu.grad_logits.numel() <= rows + 1e-3


def global_bytes(report: Report, *, write: bool) -> int:
    return sum(a.bytes for a in report.accesses if a.space == "global" and a.write == write)


def reads_of(gpu: SimulatedCuda) -> list[Access]:
    """From global memory, by the kernels over rows."""
    accesses = [a for r in gpu.reports if kernel_of(r) != "sum" for a in r.accesses]
    return [a for a in accesses if a.space == "global" and not a.write]


def bytes_of(access: Access) -> int:
    """A thread."""
    if access.op.startswith("cp.async"):
        return 16
    kind = re.search(r"(?:\.v(\d))?\.\D(\d+)$", access.op)
    return int(kind[1] or 1) * int(kind[2]) // 8 if kind else 0


def is_wide(access: Access) -> bool:
    return bytes_of(access) == 16


def assert_wide(gpu: SimulatedCuda | Call) -> None:
    """All but the ends of rows goes by 16 bytes, through whole sectors, without bank conflicts."""
    reports = [r for r in gpu.reports if kernel_of(r) not in ("sum", "finish")]
    accesses = [a for r in reports for a in r.accesses if is_wide(a)]
    for write in (False, True):
        moved = [a for a in accesses if a.space == "global" and a.write == write]
        count, sectors = sum(a.bytes for a in moved), sum(a.sectors for a in moved)
        tensor = gpu.grad_logits if write else gpu.logits
        assert count >= 0.95 * moved_bytes(gpu, write=write)
        # A warp's 16 sectors; 17 where a row begins within one.
        rows_within = tensor.stride(0) * tensor.element_size() % SECTOR != 0
        assert count >= (16 / 17 if rows_within else 0.95) * SECTOR * sectors
    assert all(a.wavefronts == a.ideal_wavefronts for a in accesses if a.space == "shared")
    assert not any(report.warnings for report in gpu.reports)
