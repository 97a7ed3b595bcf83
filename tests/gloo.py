"""Tests whose body runs on every rank of a process group, on gloo.

    @on_ranks(3)
    @pytest.mark.parametrize("case", ...)
    def test_something(group: ProcessGroup, case: ...) -> None: ...

Four processes are started when a test first needs them and kept for the next ones; a group of fewer
ranks is the first of them. A test fails where any rank raises, and where one does not come back.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import multiprocessing
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

WORLD = 4
LIMIT = 120  # seconds: nothing here takes a tenth of that
SUBGROUPS = {"first": [0], 1: [0], 2: [0, 1], 3: [0, 1, 2], 4: [0, 1, 2, 3], "even": [0, 2]}


def on_ranks(*groups: int | str) -> Callable[[Any], Any]:
    """`groups`: each of SUBGROUPS in turn."""

    def decorate(body: Any) -> Any:
        @functools.wraps(body)
        def test(ranks: int | str, **arguments: Any) -> None:
            _pool().run(Path(inspect.getfile(body)), body.__name__, ranks, arguments)

        signature = inspect.signature(body)
        group = signature.parameters["group"].replace(name="ranks")
        others = [p for name, p in signature.parameters.items() if name != "group"]
        test.__signature__ = signature.replace(parameters=[group, *others])  # type: ignore[attr-defined]
        test.body = body  # type: ignore[attr-defined]
        return pytest.mark.parametrize("ranks", groups)(test)

    return decorate


class _Pool:
    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        rendezvous = str(Path(tempfile.mkdtemp(prefix="labelsmooth-ranks-")) / "store")
        self._ends, self._processes = [], []
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, rendezvous, theirs, sys.path), daemon=True
            )
            process.start()
            self._ends.append(ours)
            self._processes.append(process)

    def run(self, *work: Any) -> None:
        """What `_work` takes; the next test gets other processes if this one fails."""
        try:
            failures = self._failures(work)
        except BaseException:
            self.stop()
            raise
        if failures:
            self.stop()
            raise AssertionError("\n".join(failures))

    def _failures(self, work: tuple[Any, ...]) -> list[str]:
        waiting, failures = list(self._ends), []
        for end in self._ends:
            end.send(work)
        while waiting:
            ready = wait(waiting, timeout=LIMIT)
            if not ready:
                return [*failures, f"ranks {[self._ends.index(e) for e in waiting]} hang"]
            for end in waiting[:]:
                if end not in ready:
                    continue
                waiting.remove(end)
                try:
                    error = end.recv()
                except EOFError:
                    error = "its process has ended"
                if error:
                    failures.append(f"rank {self._ends.index(end)}: {error}")
        return failures

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        _pool.cache_clear()


@functools.cache
def _pool() -> _Pool:
    return _Pool()


def _work(rank: int, rendezvous: str, end: Any, search: list[str]) -> None:
    sys.path[:] = search
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=LIMIT / 2),
    )
    groups = {which: dist.new_group(ranks) for which, ranks in SUBGROUPS.items()}
    modules: dict[Path, Any] = {}
    while True:
        path, name, which, arguments = end.recv()
        error = ""
        try:
            if path not in modules:
                spec = importlib.util.spec_from_file_location(f"on_ranks_{len(modules)}", path)
                assert spec
                assert spec.loader
                modules[path] = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = modules[path]
                spec.loader.exec_module(modules[path])
            torch.manual_seed(0)
            if rank in SUBGROUPS[which]:
                getattr(modules[path], name).body(group=groups[which], **arguments)
        except BaseException:  # pytest.fail's too
            error = traceback.format_exc()
        end.send(error)
