"""Trainings of one model beside one another, each in a process of its own, a step of each in turn:
so their loss curves, their times and their peaks of memory can be compared."""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, get_num_threads

TOLERANCE = 1e-3  # of the loss at any step; float32 sums in another order drift apart in training


def training_options(description: str | None, learning_rate: float) -> argparse.ArgumentParser:
    """A parser of what every training takes, to which an example adds its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    return parser


@dataclass
class Run:
    """What a training, in its process, reported."""

    name: str
    pipe: Connection
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    before: int = 0  # bytes, peak memory before the first step
    peak: int = 0  # bytes, in the end
    result: Any = None  # what else it has to tell, in the end

    @property
    def step_ms(self) -> float:
        return statistics.median(self.seconds) * 1e3


def train_in_turns(
    train: Callable[..., None], names: Sequence[str], steps: int, *arguments: Any
) -> list[Run]:
    """Runs `train(parent, name, *arguments)` for each name, in processes of their own."""
    runs: list[Run] = []
    processes = multiprocessing.get_context("spawn")
    for name in names:
        ours, theirs = processes.Pipe()
        what = (theirs, name, *arguments)
        processes.Process(target=train, args=what, daemon=True).start()
        theirs.close()  # so that a child's death ends a wait for it
        runs.append(Run(name, ours))
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        for _ in progress.track(range(steps), description="training"):
            for run in runs:
                run.pipe.send(True)
                loss, seconds = run.pipe.recv()
                run.losses.append(loss)
                run.seconds.append(seconds)
    for run in runs:
        run.pipe.send(False)
        run.before, run.peak, run.result = run.pipe.recv()
    return runs


def answer(
    parent: Connection, step: Callable[[], Tensor], result: Callable[[], Any] = lambda: None
) -> None:
    """A step for every message, answered by its loss and time; in the end memory and the result."""
    before = peak_bytes()
    while parent.recv():
        start = time.perf_counter()
        loss = step()
        parent.send((loss.item(), time.perf_counter() - start))
    parent.send((before, peak_bytes(), result()))


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def show(runs: list[Run]) -> None:
    """The curves at some steps, then time and memory."""
    console = Console()
    steps = len(runs[0].losses)
    curve = Table("step", box=box.SIMPLE_HEAD, title="loss", title_justify="left")
    cost = Table("", box=box.SIMPLE_HEAD, title="cost", title_justify="left")
    for run in runs:
        heading = run.name.replace("Label", "\nLabel")
        for table in (curve, cost):
            table.add_column(heading, justify="right", no_wrap=True)
    for step in sorted({0, *range(9, steps, max(10, steps // 60 * 10)), steps - 1}):
        curve.add_row(str(step + 1), *(f"{run.losses[step]:.5f}" for run in runs))
    cost.add_row("time per step, median", *(f"{run.step_ms:.0f} ms" for run in runs))
    cost.add_row("peak memory", *(f"{run.peak / 2**20:.0f} MiB" for run in runs))
    cost.add_row(
        "of it since training began",
        *(f"{(run.peak - run.before) / 2**20:.0f} MiB" for run in runs),
    )
    console.print(curve, cost)


def compare(runs: list[Run]) -> bool:
    """Whether all losses are those of the first run, and says so."""
    first, *others = runs
    apart = [
        abs(loss - expected)
        for run in others
        for loss, expected in zip(run.losses, first.losses, strict=True)
    ]
    agree = all(difference <= TOLERANCE for difference in apart)  # not so if one is NaN
    verdict = "agree" if agree else "DISAGREE"
    print(f"The loss curves {verdict}: at most {max(apart):.1e} apart, tolerance {TOLERANCE:.0e}.")
    return agree
