"""What a GPU is measured with, and the CPU in its place where a benchmark is only rehearsed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.measure import Timed, peak_extra_bytes, wall_time
from labelsmooth._backends.choose import HAS_TRITON

Step = Callable[[], Any]


class Device(NamedTuple):
    name: str
    time: Timed  # of a step on the device
    host_time: Timed  # of a step on the host, the device being idle when it begins
    peak: Callable[[Step], tuple[int, Any]]  # extra bytes within a step, and its result
    triton: tuple[str, ...]  # the backend that runs as Triton's, if there is one


def event_time(step: Step) -> tuple[float, Any]:
    """Seconds between events before and after a step, and its result."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, result


def time_of_host(step: Step) -> tuple[float, Any]:
    torch.cuda.synchronize()
    return wall_time(step)


def peak_allocated(step: Step) -> tuple[int, Any]:
    """Peak of allocated bytes within a step above those before, and its result."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step()
    return torch.cuda.max_memory_allocated() - before, result


GPU = Device("cuda", event_time, time_of_host, peak_allocated, ("triton",) * HAS_TRITON)
CPU = Device("cpu", wall_time, wall_time, peak_extra_bytes, ("eager",))
