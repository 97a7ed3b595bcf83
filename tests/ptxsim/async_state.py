"""Asynchronous copies and the mbarriers that announce them.

A copy is carried out as late as possible: when a thread waits for its group, or, for copies
that an mbarrier announces, when nothing else can run (at random moments under the random
schedule). Until then the shared memory it uses may not be touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .frame import Frame
from .isa import Array
from .shared_memory import FREE, READING, WRITING
from .store import scatter_constant

if TYPE_CHECKING:
    from .machine import Machine


@dataclass
class MBarrier:
    expected: int
    pending: int
    bytes: int = 0  # still to be delivered in this phase
    phase: int = 0


@dataclass
class ThreadCopies:
    """cp.async of many lanes: `size` bytes each, of which the first `used` come from memory."""

    lanes: Array
    groups: Array
    source: Array  # offsets into `data`
    data: Array
    target: Array
    size: int
    used: Array


@dataclass(eq=False)
class BulkCopy:
    """One thread's copy of consecutive bytes. `shared` are the offsets of its ends in shared
    memory; `barrier` the mbarrier that it completes on, else it is in `group` of `lane`."""

    lane: int
    source: Array
    target: Array
    shared: list[int]
    barrier: int | None
    group: int | None

    def carry_out(self) -> None:
        self.target[:] = self.source


class AsyncState:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.mbarriers: dict[int, MBarrier] = {}  # by offset in shared memory
        self.bulk: list[BulkCopy] = []
        self.threads: list[ThreadCopies] = []
        self.groups = np.zeros(machine.lane_count, np.int64)  # cp.async groups committed
        self.bulk_groups = np.zeros(machine.lane_count, np.int64)
        self.waiting = np.zeros(machine.lane_count, bool)  # parked at an mbarrier

    # --- mbarriers

    @property
    def pending(self) -> bool:
        return any(copy.barrier is not None for copy in self.bulk)

    def deliver(self) -> bool:
        """All, or a random one. False if there are none."""
        announced = [copy for copy in self.bulk if copy.barrier is not None]
        if not announced:
            return False
        if self.machine.launch.random:
            announced = [announced[int(self.machine.launch.rng.integers(len(announced)))]]
        for copy in announced:
            self._finish(copy)
            assert copy.barrier is not None
            self.complete_bytes(copy.barrier, copy.source.size)
        return True

    def complete_bytes(self, key: int, count: int) -> None:
        barrier = self.mbarriers[key]
        barrier.bytes -= count
        self.check(barrier)

    def check(self, barrier: MBarrier) -> None:
        """If everyone has arrived and all bytes are there."""
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.phase += 1
            barrier.pending = barrier.expected
            woken = self.waiting.copy()
            self.waiting[:] = False
            self.machine.wake(woken)

    # --- cp.async

    def commit(self, lanes: slice | Array) -> None:
        self.groups[lanes] += 1

    def wait(self, f: Frame, keep: int) -> None:
        """For all but the lanes' `keep` latest groups."""
        mine = np.zeros(self.machine.lane_count, bool)
        mine[f.lanes] = True
        remaining = []
        for copies in self.threads:
            ready = mine[copies.lanes] & (copies.groups < self.groups[copies.lanes] - keep)
            self._copy(copies, ready)
            if not ready.all():
                remaining.append(_part(copies, ~ready))
        self.threads = remaining

    def _copy(self, copies: ThreadCopies, ready: Array) -> None:
        if not ready.any():
            return
        shared = self.machine.shared
        part = _part(copies, ready)
        column = np.arange(part.size)
        wanted = column[None, :] < part.used[:, None]
        places = np.where(wanted, part.source[:, None] + column, part.source[:, None])
        rows = np.where(wanted, part.data[places], np.uint8(0))
        shared.store(part.target, rows)
        scatter_constant(shared.flight_map(), part.target, part.size, FREE)

    # --- bulk copies in groups

    def commit_bulk(self, lanes: slice | Array) -> None:
        self.bulk_groups[lanes] += 1

    def wait_bulk(self, f: Frame, keep: int) -> None:
        for lane in f.index:
            last = self.bulk_groups[lane] - keep
            mine = [c for c in self.bulk if c.group is not None and c.lane == lane]
            for copy in mine:
                if copy.group is not None and copy.group < last:
                    self._finish(copy)

    def begin(self, copy: BulkCopy, *, writes_shared: bool) -> None:
        self.bulk.append(copy)
        for offset in copy.shared:
            state = WRITING if writes_shared else READING
            self.machine.shared.flight_map()[offset : offset + copy.source.size] = state

    def _finish(self, copy: BulkCopy) -> None:
        copy.carry_out()
        self.bulk.remove(copy)
        shared = self.machine.shared
        for offset in copy.shared:
            end = offset + copy.source.size
            shared.flight_map()[offset:end] = FREE
            assert shared.known is not None
            shared.known[offset:end] = 1

    def unfinished_in(self, blocks: Array) -> bool:
        owners = [o // self.machine.shared.stride for copy in self.bulk for o in copy.shared]
        return bool(np.isin(owners, blocks).any())


def _part(copies: ThreadCopies, mask: Array) -> ThreadCopies:
    return ThreadCopies(
        copies.lanes[mask],
        copies.groups[mask],
        copies.source[mask],
        copies.data,
        copies.target[mask],
        copies.size,
        copies.used[mask],
    )
