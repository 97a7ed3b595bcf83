"""What may go wrong around a call: memory, threads, processes, interrupts.

Tested elsewhere: what a caller gets wrong (a target on another device, overlapping or expanded
memory in place: test_errors), a weight that requires a gradient (test_loss), more than 2^32
elements (test_large).

A fault that would harm the test process happens in a new process, which starts clean.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from checks import REDUCTIONS, Outcome, run
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from labelsmooth import label_smoothing_loss, release_memory

MIB = 2**20


def in_new_process(function: Callable[..., None], *arguments: Any) -> None:
    """One thread, where the function does not ask for more."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pool.submit(function, *arguments).result()


def problem(seed: int, rows: int = 40, classes: int = 1001) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def outcome(seed: int, **options: Any) -> Outcome:
    return run(*problem(seed), label_smoothing=0.1, **options)


def same(ours: Outcome, expected: Outcome) -> bool:
    return all(map(torch.equal, ours, expected))


# ---- memory --------------------------------------------------------------------------------------


def statistic_of_memory(index: int) -> int:
    """Bytes: 0 of address space, 1 of resident memory."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[index]) * os.sysconf("SC_PAGE_SIZE")


def no_memory_for_the_gradient(backend: str) -> None:
    logits, target = problem(0, rows=1024, classes=16384)  # 64 MiB
    before = logits.clone()
    expected = {
        reduction: run(logits, target, reduction=reduction, backend=backend)
        for reduction in REDUCTIONS
    }
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    for reduction in REDUCTIONS:
        release_memory()  # a gradient kept for the next call would do
        resource.setrlimit(resource.RLIMIT_AS, (statistic_of_memory(0) + 32 * MIB, unlimited[1]))
        try:
            # torch 2.10 tells an extension no more than which operator failed
            with pytest.raises(RuntimeError, match=r"allocate|empty_like.* call failed"):
                run(logits, target, reduction=reduction, backend=backend)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
        assert torch.equal(logits, before)
        assert same(run(logits, target, reduction=reduction, backend=backend), expected[reduction])


def test_no_memory_for_the_gradient(backend: str) -> None:
    """The logits are as they were, and the next call is right."""
    in_new_process(no_memory_for_the_gradient, backend)


def many_calls() -> None:
    logits, target = problem(0, rows=8, classes=50)
    outside = target + 50

    def rounds(times: int) -> None:
        """One step, two phases, an error."""
        leaf = logits.requires_grad_()
        for _ in range(times):
            for reduction in ("mean", "none"):
                options = {"reduction": reduction, "inplace": True, "backend": "cpu"}
                loss = label_smoothing_loss(leaf * 1, target, **options, return_stats=True)[0]
                torch.autograd.grad(loss.sum(), leaf)
            with pytest.raises(IndexError):
                label_smoothing_loss(leaf, outside, backend="cpu")
        gc.collect()

    rounds(400)  # after which all caches are filled
    before = statistic_of_memory(1)
    rounds(3400)
    grown = statistic_of_memory(1) - before
    assert grown < MIB, f"{grown} bytes in 10,200 calls"


def test_many_calls_leak_nothing() -> None:
    """Less than 103 bytes a call: any tensor that is lost costs more."""
    in_new_process(many_calls)


# ---- threads and processes -----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sixteen_threads_at_once(reduction: str, backend: str) -> None:
    """One in four has a target outside, and alone finds out."""
    expected = [outcome(seed, reduction=reduction, backend=backend) for seed in range(16)]

    def work(seed: int) -> None:
        for _ in range(10):
            if seed % 4 == 3:
                logits, target = problem(seed)
                target[17] = 1001 + seed
                with pytest.raises(IndexError, match=f"row 17 is {1001 + seed}"):
                    label_smoothing_loss(logits, target, reduction=reduction, backend=backend)
            ours = outcome(seed, reduction=reduction, backend=backend)
            assert same(ours, expected[seed])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(16))) == [None] * 16


class Losses(Dataset[Outcome]):
    """A data set, as where hard examples are mined."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def __len__(self) -> int:
        return 8

    def __getitem__(self, seed: int) -> Outcome:
        return outcome(seed, backend=self.backend)


def workers_forked_after_use(backend: str) -> None:
    torch.set_num_threads(2)
    expected = [outcome(seed, backend=backend) for seed in range(8)]
    loader = DataLoader(
        Losses(backend), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for _ in range(2):
        assert all(map(same, loader, expected))
        assert same(outcome(0, backend=backend), expected[0])


def test_workers_forked_after_use(backend: str) -> None:
    """The threads of the parent are not there in a fork, which must not wait for them."""
    in_new_process(workers_forked_after_use, backend)


# ---- interrupts ----------------------------------------------------------------------------------


def interrupted(backend: str) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def calls_until(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while True:
            outcome(0, backend=backend)

    expected = outcome(0, backend=backend)
    signal.signal(signal.SIGALRM, interrupt)
    for attempt in range(20):
        with pytest.raises(KeyboardInterrupt):
            calls_until(0.001 + 0.0002 * attempt)
        assert same(outcome(0, backend=backend), expected)


def test_interrupted_at_any_moment(backend: str) -> None:
    in_new_process(interrupted, backend)
