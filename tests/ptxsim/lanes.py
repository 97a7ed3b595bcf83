"""Sets of lanes: a slice where they are consecutive, else a sorted index array.

A slice turns every register access into a view instead of a gather.
"""

from __future__ import annotations

import numpy as np

from .isa import Array

Lanes = slice | Array


def lanes_of(index: Array) -> Lanes:
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == index.size else index


def lanes_where(mask: Array) -> Lanes | None:
    """None if it is empty."""
    index = np.flatnonzero(mask)
    return lanes_of(index) if index.size else None


def index_of(lanes: Lanes) -> Array:
    return np.arange(lanes.start, lanes.stop) if isinstance(lanes, slice) else lanes


def count_of(lanes: Lanes) -> int:
    return int(lanes.stop - lanes.start) if isinstance(lanes, slice) else lanes.size


def warps_of(lanes: Lanes) -> int:
    if isinstance(lanes, slice):
        return ((int(lanes.stop) - 1) >> 5) - (int(lanes.start) >> 5) + 1
    warps = lanes >> 5
    return int(np.count_nonzero(warps[1:] != warps[:-1])) + 1


def union(first: Lanes, second: Lanes) -> Lanes:
    if isinstance(first, slice) and isinstance(second, slice):
        if first.stop == second.start:
            return slice(first.start, second.stop)
        if second.stop == first.start:
            return slice(second.start, first.stop)
    index = np.concatenate((index_of(first), index_of(second)))
    index.sort()
    return lanes_of(index)


def split_range(lanes: Lanes, start: int, stop: int) -> tuple[Lanes | None, Lanes | None]:
    """(the part inside [start, stop), the rest); None where empty."""
    if isinstance(lanes, slice):
        low, high = max(start, lanes.start), min(stop, lanes.stop)
        if low >= high:
            return None, lanes
        if high - low == lanes.stop - lanes.start:
            return lanes, None
        if low == lanes.start:
            return slice(low, high), slice(high, lanes.stop)
        if high == lanes.stop:
            return slice(low, high), slice(lanes.start, low)
    index = index_of(lanes)
    first, last = np.searchsorted(index, (start, stop))
    if first == last:
        return None, lanes
    if last - first == index.size:
        return lanes, None
    rest = np.concatenate((index[:first], index[last:]))
    return lanes_of(index[first:last]), lanes_of(rest)


def sorted_distinct(values: Array) -> Array:
    """Many times faster than np.unique for these sizes."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if values.size else values
