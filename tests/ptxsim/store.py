"""A block of bytes that is read and written a vector of lanes at a time."""

from __future__ import annotations

import numpy as np

from .isa import CONTAINER, Array

_ALIGNED = 64
_ONES = {size: np.frombuffer(b"\1" * size, CONTAINER[size])[0] for size in (1, 2, 4, 8)}


def aligned_zeros(size: int) -> Array:
    """On a boundary of 64, their number a multiple of 64."""
    size = -(-max(size, 1) // _ALIGNED) * _ALIGNED
    raw = np.zeros(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size]


def gather(data: Array, offsets: Array, size: int, dtype: np.dtype[np.generic]) -> Array:
    """(n, size // itemsize), rows contiguous."""
    table = data.view(dtype).reshape(-1, size // dtype.itemsize)
    return table.take(offsets >> (size.bit_length() - 1), axis=0)


def scatter(data: Array, offsets: Array, rows: Array) -> None:
    """Write rows (n, k) of one numpy type at byte offsets; the last writer wins."""
    size = rows.itemsize * rows.shape[1]
    if size <= 16:
        kind = CONTAINER[size]
        data.view(kind)[offsets >> (size.bit_length() - 1)] = rows.view(kind)[:, 0]
    else:
        wide = rows.view(CONTAINER[16])
        data.view(CONTAINER[16]).reshape(-1, size // 16)[offsets // size] = wide


def scatter_constant(data: Array, offsets: Array, size: int, value: int) -> None:
    scatter(data, offsets, np.full((offsets.size, size), value, np.uint8))


class Store:
    """Bytes, and for each granule of them whether it was ever written."""

    def __init__(self, data: Array, *, initialised: bool, granule: int = 1) -> None:
        self.data = data
        self.granule = granule
        self.known: Array | None = None if initialised else aligned_zeros(data.size // granule)

    def missing(self, offsets: Array, size: int) -> Array | None:
        """A mask of accesses to what was never written; None if there is none."""
        if self.known is None:
            return None
        count = max(size // self.granule, 1)
        at = offsets // self.granule if self.granule > 1 else offsets
        if count <= 8:
            good = gather(self.known, at, count, CONTAINER[count])[:, 0] == _ONES[count]
        else:
            good = (gather(self.known, at, count, CONTAINER[8]) == _ONES[8]).all(axis=1)
        return None if good.all() else ~good

    def load(self, offsets: Array, size: int, dtype: np.dtype[np.generic]) -> Array:
        return gather(self.data, offsets, size, dtype)

    def store(self, offsets: Array, rows: Array) -> None:
        scatter(self.data, offsets, rows)
        if self.known is not None:
            size = rows.itemsize * rows.shape[1]
            count = max(size // self.granule, 1)
            at = offsets // self.granule if self.granule > 1 else offsets
            scatter_constant(self.known, at, count, 1)


def increasing(offsets: Array) -> bool:
    """And so all different (true of most accesses)."""
    return bool((offsets[1:] > offsets[:-1]).all())


def disagreeing(data: Array, offsets: Array, rows: Array) -> Array | None:
    """After a scatter: rows that another lane overwrote."""
    if increasing(offsets):
        return None
    lost = differing(data, offsets, rows)
    return lost if lost.any() else None


def differing(data: Array, offsets: Array, rows: Array) -> Array:
    size = rows.itemsize * rows.shape[1]
    unit = CONTAINER[min(size, 8)]
    mask: Array = (gather(data, offsets, size, unit) != rows.view(unit)).any(axis=1)
    return mask
