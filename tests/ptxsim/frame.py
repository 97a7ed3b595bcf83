"""The lanes that execute one basic block together, and their registers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from .isa import Array, Type
from .lanes import Lanes, index_of, lanes_of, warps_of

if TYPE_CHECKING:
    from .machine import Machine

# slot -> values: one per lane, or a single one where all lanes hold the same ("uniform").
Registers = dict[int, Array]


class Frame:
    """`n` active lanes of a machine; every register array has length n or 1.

    No two registers share memory, and an operation never writes into an array it read: a
    register is always rebound. So a frame of all lanes can use the machine's own registers.
    """

    __slots__ = ("_index", "_warps", "lanes", "machine", "n", "regs")

    def __init__(self, machine: Machine, lanes: Lanes, n: int, regs: Registers) -> None:
        self.machine = machine
        self.lanes = lanes
        self.n = n
        self.regs = regs
        self._index: Array | None = None
        self._warps = 0

    @property
    def warps(self) -> int:
        if not self._warps:
            self._warps = warps_of(self.lanes)
        return self._warps

    @property
    def index(self) -> Array:
        if self._index is None:
            self._index = index_of(self.lanes)
        return self._index

    @property
    def whole_warps(self) -> bool:
        if isinstance(self.lanes, slice):
            return not (self.lanes.start | self.lanes.stop) & 31
        if self.n & 31:
            return False
        rows = self.lanes.reshape(-1, 32)
        return not (rows[:, 0] & 31).any() and bool((rows[:, 31] - rows[:, 0] == 31).all())

    def spread(self, value: Array) -> Array:
        """One value per lane (read-only where it was uniform)."""
        return value if value.shape[0] == self.n else np.broadcast_to(value, (self.n,))

    def subset(self, chosen: Array, slots: Iterable[int]) -> Frame:
        """`chosen` are positions; with some registers."""
        regs = {}
        for slot in slots:
            value = self.regs.get(slot)
            if value is not None:
                regs[slot] = value if value.shape[0] == 1 else value[chosen]
        return Frame(self.machine, lanes_of(self.index[chosen]), chosen.size, regs)

    def merge(self, chosen: Array, part: Frame, slots: Iterable[int]) -> None:
        """From a subset."""
        for slot in slots:
            value = part.regs[slot]
            self.regs[slot] = merged(self.regs.get(slot), value, chosen, self.n)


def merged(old: Array | None, new: Array, where: Lanes, n: int) -> Array:
    """A fresh array of n: `old`, with `new` in some places."""
    result = np.zeros(n, new.dtype)
    if old is not None:
        result[:] = old.view(new.dtype)
    result[where] = new
    return result


def zero(type_: Type) -> Array:
    return np.zeros(1, type_.dtype)
