"""Cases run in a worker process that dies with this one.

One for torch's defaults, another with THP_MEM_ALLOC_ENABLE=1 (huge pages for every tensor), because
torch reads that variable once.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks.measure import Case, Result
from benchmarks.report import describe

RunCase = Callable[[Case], Result]


def measure(cases: list[Case], run_case: RunCase) -> list[Result]:
    """All cases, one after another, with a bar that says which."""
    workers = {huge_pages: Worker(huge_pages) for huge_pages in (False, True)}
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    results = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            label = "main, huge pages" if case.huge_pages else case.part
            progress.update(task, description=f"{label}: {describe(case)}")
            try:
                results.append(workers[case.huge_pages].run(case, run_case))
            except BrokenProcessPool:
                raise SystemExit(
                    f"the process that ran {case} died; was there enough memory?"
                ) from None
            progress.advance(task)
    for worker in workers.values():
        worker.close()
    return results


class Worker:
    """A process that runs cases, with or without huge pages for every tensor."""

    def __init__(self, huge_pages: bool) -> None:
        self.huge_pages = huge_pages
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=die_with_parent)

    def run(self, case: Case, run_case: RunCase) -> Result:
        # The process starts at the first submission, and takes over the environment of that moment.
        before = os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
        if self.huge_pages:
            os.environ["THP_MEM_ALLOC_ENABLE"] = "1"
        try:
            future = self._pool.submit(run_case, case)
        finally:
            os.environ.pop("THP_MEM_ALLOC_ENABLE", None)
            if before is not None:
                os.environ["THP_MEM_ALLOC_ENABLE"] = before
        return future.result()

    def close(self) -> None:
        self._pool.shutdown()


def die_with_parent() -> None:
    """Linux alone can promise it; elsewhere a worker whose parent was killed stays."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        set_parent_death_signal = 1
        libc.prctl(set_parent_death_signal, signal.SIGKILL)
