"""Time, peak memory and accuracy of one case.

Time. Every round runs each contestant once, in an order that rotates, so that a disturbance of the
machine meets all alike. Reported is the median over rounds. Machines are shared: only ratios within
one run mean anything.

A step is timed from the logits to their gradient, forward and backward. Before it, untimed, the
last gradient is given back and the logits are restored from a pristine copy: one in place has fresh
logits to destroy, one that allocates pays for its memory's first touch as in training, and all find
the same logits in the same caches.

Memory. An untimed step's new peak of the resident size, which Linux lets a process reset (5 into
/proc/self/clear_refs), less the size before. Logits and target are not in it; a gradient that does
not take the logits' place is. Other systems leave it out.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import Outcome, largest_errors
from benchmarks.contestants import LINE_UPS, Contestant
from benchmarks.problem import Problem
from labelsmooth import release_memory

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Timed = Callable[[Callable[[], Any]], tuple[float, Any]]  # a step -> its seconds and its result


@dataclass(frozen=True)
class Case:
    part: str  # which line-up runs
    rows: int
    classes: int
    dtype: str
    threads: int
    rounds: int
    spatial: tuple[int, ...] = ()  # logits are (rows, classes, *spatial)
    features: int = 0  # of the projection that makes the logits; 0: they are given
    huge_pages: bool = False
    details: bool = False  # memory and accuracy too
    only: tuple[str, ...] = ()  # keys of contestants; empty: all
    ranks: int = 0  # processes that the classes are spread over; 0: no process group

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.classes, *self.spatial)

    @property
    def millions(self) -> int:
        return round(math.prod(self.shape) / 2**20)

    @property
    def logits_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass
class Entry:
    key: str
    label: str
    times_ms: list[float]  # per call, one a round
    extra_bytes: int | None = None
    loss_error: float | None = None
    grad_error: float | None = None
    collectives: int | None = None
    sent_bytes: int | None = None
    received_bytes: int | None = None
    ms: float = field(init=False)

    def __post_init__(self) -> None:
        self.ms = statistics.median(self.times_ms)


@dataclass
class Result:
    case: Case
    entries: list[Entry]

    def ms(self, key: str) -> float | None:
        return next((entry.ms for entry in self.entries if entry.key == key), None)

    def ratio(self, key: str, to: str) -> float | None:
        ms, base = self.ms(key), self.ms(to)
        return ms / base if ms and base else None


def run_case(case: Case) -> Result:
    settle(case.threads)
    problem = Problem(case.shape, DTYPES[case.dtype])
    with torch.set_grad_enabled(case.part != "forward"):
        contestants = LINE_UPS[case.part](problem)
        if case.only:
            contestants = [c for c in contestants if c.key in case.only]
        if case.details:
            details = inspect(contestants, problem)
        else:
            details = warm_up(contestants, problem.refresh)
        entries = compete(contestants, details, problem.refresh, case.rounds)
    return Result(case, entries)


def settle(threads: int) -> None:
    logging.getLogger("torch").setLevel(logging.ERROR)  # torch.compile remarks on a missing GPU
    torch._inductor.config.compile_threads = 1  # no processes of its own
    torch.set_num_threads(threads)


def wall_time(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a step takes, and its result."""
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def warm_up(contestants: list[Contestant], before: Callable[[], None]) -> list[dict[str, Any]]:
    for contestant in contestants:
        before()
        contestant.step()
    return [{} for _ in contestants]


def compete(
    contestants: Sequence[Contestant],
    details: Iterable[dict[str, Any]],
    before: Callable[[], None],
    rounds: int,
    timed: Timed = wall_time,
) -> list[Entry]:
    """Every contestant's times, in turns, beside what else is known of it."""
    times = interleave([c.step for c in contestants], before, rounds, timed)
    return [
        Entry(c.key, c.label, [t * 1e3 / c.calls for t in seconds], **detail)
        for c, seconds, detail in zip(contestants, times, details, strict=True)
    ]


def interleave(
    steps: Sequence[Callable[[], Any]],
    before: Callable[[], None],
    rounds: int,
    timed: Timed = wall_time,
) -> list[list[float]]:
    """Seconds of every step in every round."""
    times: list[list[float]] = [[] for _ in steps]
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for place in range(len(steps)):
                index = (turn + place) % len(steps)
                before()
                seconds, result = timed(steps[index])
                times[index].append(seconds)
                del result  # only now: what it holds is not given back within the time
    finally:
        gc.enable()
    return times


def inspect(contestants: list[Contestant], problem: Problem) -> list[dict[str, Any]]:
    """Memory and, of those that make a gradient, errors, from a step that warms up too."""
    details: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    for contestant in contestants:
        problem.refresh()
        extra, result = peak_extra_bytes(contestant.step)
        details.append({"extra_bytes": extra})
        if contestant.convention is not None:
            assert problem.grad is not None
            in_place = problem.grad.data_ptr() == problem.buffer.data_ptr()
            grad = problem.grad.clone() if in_place else problem.grad
            outcomes.append(Outcome(result.item(), grad, contestant.convention))
    errors = iter(largest_errors(problem.pristine, problem.target, outcomes))
    for contestant, detail in zip(contestants, details, strict=True):
        if contestant.convention is not None:
            detail["loss_error"], detail["grad_error"] = next(errors)
    return details


def peak_extra_bytes(step: Callable[[], Any]) -> tuple[int | None, Any]:
    """Peak resident size within a step above the one before (None if unknown), and its result."""
    give_back()
    try:
        CLEAR_REFS.write_text("5")
        before = status_bytes("VmRSS")
    except OSError:
        return None, step()
    result = step()
    return max(0, status_bytes("VmHWM") - before), result


def give_back() -> None:
    """Free memory goes to the system: using it again must show."""
    gc.collect()
    release_memory()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def status_bytes(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {name}")
