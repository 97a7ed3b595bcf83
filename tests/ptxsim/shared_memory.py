"""Shared memory of the blocks of a chunk, and the local memory of its threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .isa import Array
from .races import RaceDetector
from .store import Store, aligned_zeros, gather
from .values import RANK_SHIFT

if TYPE_CHECKING:
    from .frame import Frame
    from .machine import Machine

_OFFSET = (1 << RANK_SHIFT) - 1
FREE, WRITING, READING = 0, 1, 2  # what an asynchronous copy does with a byte


class SharedMemory(Store):
    """One array for all blocks; each block's part starts at block * stride."""

    def __init__(self, machine: Machine, size: int, granule: int, *, races: bool) -> None:
        self.machine = machine
        self.size = size
        self.stride = -(-max(size, 1) // 64) * 64
        super().__init__(aligned_zeros(self.stride * machine.block_count), initialised=False)
        self.starts = machine.lane_blocks * self.stride
        self.races = RaceDetector(machine, self.data.size, granule) if races else None
        self.flight: Array | None = None

    def resolve(
        self, frame: Frame, addresses: Array, size: int, *, remote: bool, synchronous: bool
    ) -> tuple[Array, tuple[str, Array] | None]:
        """(offsets into `data`, the first fault as (why, mask of lanes))."""
        machine = self.machine
        # Nearly always every lane addresses its own block.
        own = addresses - machine.windows[frame.lanes]
        if int(own.min()) >= 0 and int(own.max()) + size <= self.size:
            return own + self.starts[frame.lanes], None
        rank = (addresses >> RANK_SHIFT) - 1
        offset = addresses & _OFFSET
        bad = (rank < 0) | (rank >= machine.cluster_size) | (offset + size > self.size)
        if bad.any():
            return offset, ("out-of-bounds shared access", bad)
        here = machine.block_of(frame.index)
        block = here - here % machine.cluster_size + rank
        far = block != here
        if not remote:
            return offset, ("remote address in an access to the block's own memory", far)
        if self.races is not None and synchronous:
            self.races.use_remote(frame.index[far], rank[far])
        gone = far & (machine.living[block] == 0)
        if gone.any():
            return offset, ("access to the shared memory of a block that has exited", gone)
        return block * self.stride + offset, None

    def flight_map(self) -> Array:
        """Of each byte: what a copy still does with it."""
        if self.flight is None:
            self.flight = np.zeros(self.data.size, np.uint8)
        return self.flight

    def in_flight(self, offsets: Array, size: int, *, write: bool) -> Array | None:
        """A mask of accesses to bytes that an asynchronous copy still uses."""
        if self.flight is None:
            return None
        state = gather(self.flight, offsets, size, np.dtype(np.uint8))
        busy = ((state != FREE) if write else (state == WRITING)).any(axis=1)
        return busy if busy.any() else None


class LocalMemory(Store):
    def __init__(self, lanes: int, size: int) -> None:
        self.size = size
        self.stride = -(-size // 32) * 32
        super().__init__(aligned_zeros(self.stride * lanes), initialised=False)
