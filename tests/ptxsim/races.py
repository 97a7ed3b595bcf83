"""Shared-memory races: two accesses to a word, one of them a write, with no barrier between.

Time advances when a barrier releases. A word remembers who wrote and who read it last, and at
what time; a lane remembers the time of its last barrier. An older record is ordered before the
lane's access; a newer one by another lane is a race.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .isa import Array
from .lanes import Lanes
from .store import disagreeing, scatter

if TYPE_CHECKING:
    from .frame import Frame
    from .machine import Machine

_LANE_BITS = 24
_LANE = (1 << _LANE_BITS) - 1
_MANY = _LANE  # several lanes at the same time
_ATOMIC = _LANE - 1
_STAMP = np.dtype(np.int64)


class RaceDetector:
    def __init__(self, machine: Machine, size: int, granule: int) -> None:
        self.machine = machine
        self.granule = granule
        self.shift = granule.bit_length() - 1
        lanes = machine.lane_count
        self.now = 1
        # Lane numbers start at 1, so that a stamp of 0 is "never".
        self.since_block = np.full(lanes, 1 << _LANE_BITS, _STAMP)
        self.since_warp = self.since_block.copy()
        self.since_cluster = self.since_block.copy()
        self.arrived_cluster = np.zeros(lanes, _STAMP)  # not yet at a cluster barrier
        # When a lane last used the memory of each block of its cluster (by rank).
        self.remote = np.zeros((lanes, machine.cluster_size), _STAMP)
        self.writes = np.zeros(size >> self.shift, _STAMP)
        self.reads = np.zeros(size >> self.shift, _STAMP)

    def advance(self) -> int:
        """The stamp before which everything is over."""
        self.now += 1
        return self.now << _LANE_BITS

    def leave_barrier(self, lanes: Lanes, stamp: int | Array, *, scope: str = "block") -> None:
        self.since_warp[lanes] = stamp
        if scope != "warp":
            self.since_block[lanes] = stamp
        if scope == "cluster":
            self.since_cluster[lanes] = stamp

    def arrive_cluster(self, lanes: Lanes) -> None:
        """Does not order accesses after the arrival."""
        self.arrived_cluster[lanes] = self.now << _LANE_BITS | _LANE
        self.now += 1

    def use_remote(self, lanes: Array, ranks: Array) -> None:
        self.remote[lanes, ranks] = self.now << _LANE_BITS

    def ends_too_early(self, block: int) -> bool:
        """Whether another block's use of this block's shared memory may come after its end."""
        size, per_block = self.machine.cluster_size, self.machine.lanes_per_block
        own = slice(block * per_block, (block + 1) * per_block)
        first = block - block % size
        cluster = slice(first * per_block, (first + size) * per_block)
        used = self.remote[cluster, block % size]
        over = used < np.minimum(self.arrived_cluster[cluster], self.since_cluster[own].max())
        return bool(((used > 0) & ~over).any())

    def _rows(self, stamps: Array, offsets: Array, size: int) -> Array:
        count = max(size >> self.shift, 1)
        table = stamps.reshape(-1, count)
        return table.take(offsets // (count * self.granule), axis=0)

    def _write_rows(self, stamps: Array, offsets: Array, size: int, values: Array) -> Array | None:
        """Returns a mask of the lanes that were not the last to do so."""
        count = max(size >> self.shift, 1)
        at = (offsets >> self.shift) * 8
        rows = np.repeat(values, count).reshape(-1, count)
        raw = stamps.view(np.uint8)
        for first in range(0, count, 2):
            scatter(raw, at + 8 * first, np.ascontiguousarray(rows[:, first : first + 2]))
        return disagreeing(raw, at, rows[:, :1].copy())

    def _conflicts(
        self, frame: Frame, stamps: Array, lanes: Array, *, atomic: bool
    ) -> Array | None:
        """Mask of the lanes for which one of these records is not ordered before now."""
        machine = self.machine
        if machine.cluster_size == 1:
            recent = stamps >= self.since_block[frame.lanes][:, None]
        else:
            recent = stamps >= self.since_cluster[frame.lanes][:, None]
        if not recent.any():
            return None
        row, column = np.nonzero(recent)
        me, stamp = lanes[row], stamps[row, column]
        other = (stamp & _LANE) - 1
        unknown = other >= _ATOMIC - 1  # no single lane
        known = np.where(unknown, me, other)
        here = machine.block_of(known) == machine.block_of(me)
        unordered = stamp >= self.since_block[me]
        unordered &= unknown | (known != me)
        same_warp = ~unknown & (known >> 5 == me >> 5)
        unordered &= ~(same_warp & (stamp < self.since_warp[me]))
        # Another block's access counts as over only if it came before that lane's arrival.
        remote = ~here & ~((stamp < self.arrived_cluster[known]) & (stamp < self.since_cluster[me]))
        unordered = np.where(here, unordered, remote)
        if atomic:
            unordered &= (stamp & _LANE) != _ATOMIC
        bad = np.zeros(frame.n, bool)
        bad[row[unordered]] = True
        return bad if bad.any() else None

    def read(self, frame: Frame, offsets: Array, size: int) -> Array | None:
        """Returns a mask of the lanes that race."""
        lanes = frame.index
        bad = self._conflicts(frame, self._rows(self.writes, offsets, size), lanes, atomic=False)
        if bad is not None:
            return bad
        mine = (self.now << _LANE_BITS) + lanes + 1
        before = self._rows(self.reads, offsets, size)[:, 0]
        shared = (before >= self.since_block[frame.lanes]) & (before & _LANE != lanes + 1)
        stamps = np.where(shared, self.now << _LANE_BITS | _MANY, mine)
        lost = self._write_rows(self.reads, offsets, size, stamps)
        if lost is not None:
            many = np.full(int(lost.sum()), self.now << _LANE_BITS | _MANY)
            self._write_rows(self.reads, offsets[lost], size, many)
        return None

    def write(
        self,
        frame: Frame,
        offsets: Array,
        size: int,
        *,
        atomic: bool = False,
        changes: Callable[[], Array] | None = None,
    ) -> Array | None:
        """Returns a mask of the lanes that race. `changes` masks those that write something new:
        what is there already may be written twice."""
        lanes = frame.index
        for stamps in (self.writes, self.reads):
            rows = self._rows(stamps, offsets, size)
            bad = self._conflicts(frame, rows, lanes, atomic=atomic)
            if bad is not None and changes is not None and stamps is self.writes:
                bad &= changes()
            if bad is not None and bad.any():
                return bad
        owner = np.full(frame.n, _ATOMIC) if atomic else lanes + 1
        self._write_rows(self.writes, offsets, size, (self.now << _LANE_BITS) + owner)
        return None
