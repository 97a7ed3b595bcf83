"""Global memory: the tensors of the launch, in place, at simulated addresses far apart."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .counters import TensorTraffic, host_address
from .isa import Array
from .store import Store, aligned_zeros, gather, scatter

_SPACING = 40  # regions lie 1 TiB apart, so no stray index reaches the next one
_GRAIN = 32
_PAGE = 4096


@dataclass(frozen=True)
class Layout:
    """Where a torch tensor's or numpy array's elements lie; `steps` are bytes."""

    host: int
    item: int
    shape: tuple[int, ...]
    steps: tuple[int, ...]

    @staticmethod
    def of(tensor: Any) -> Layout:
        if hasattr(tensor, "data_ptr"):
            item = int(tensor.element_size())
            steps = tuple(s * item for s in tensor.stride())
        else:
            item, steps = int(tensor.itemsize), tuple(tensor.strides)
        return Layout(host_address(tensor), item, tuple(tensor.shape), steps)

    @property
    def size(self) -> int:
        if 0 in self.shape:
            return 0
        return self.item + sum((n - 1) * s for n, s in zip(self.shape, self.steps, strict=True))

    @property
    def has_gaps(self) -> bool:
        own = prod(n for n, s in zip(self.shape, self.steps, strict=True) if s)
        return own * self.item < self.size

    def elements(self, units: Array, unit: int) -> Array:
        """The part that belongs to the elements of an array with one entry per `unit` bytes,
        the first for the first element."""
        scale = units.itemsize
        steps = tuple(s // unit * scale for s in self.steps)
        shape = (*self.shape, self.item // unit)
        return np.lib.stride_tricks.as_strided(units, shape, (*steps, scale))


class Region(Store):
    """One tensor's memory. Offsets count from `origin`, a multiple of 32 at or below its base."""

    def __init__(
        self, number: int, host: int, size: int, *, granule: int, initialised: bool, keep: Any
    ) -> None:
        # The address keeps the host's alignment, as a launcher tests pointers for it.
        self.base = (number << _SPACING) + host % _PAGE
        self.host, self.size, self.keep = host, size, keep
        lead = host % _GRAIN
        span = -(-(lead + size) // _GRAIN) * _GRAIN
        # The view is rounded outward to whole grains; accesses are checked against the true end.
        data = np.zeros(_GRAIN, np.uint8)
        if size:
            data = np.ctypeslib.as_array((ctypes.c_uint8 * span).from_address(host - lead))
        super().__init__(data, initialised=initialised, granule=granule)
        self.origin = self.base - lead
        self.valid: Array | None = None  # bytes that belong to the tensor, if it has gaps
        self.start_launch()

    def start_launch(self) -> None:
        self.traffic = TensorTraffic()
        self.touched: list[Array | None] = [None, None]  # sectors read, written
        self.writers: Array | None = None  # block number + 1, by granule

    def address_of(self, tensor: Any) -> int:
        return self.base + host_address(tensor) - self.host

    def holds(self, layout: Layout) -> bool:
        if not (self.host <= layout.host and layout.host + layout.size <= self.host + self.size):
            return False
        if self.valid is None or layout.size == 0:
            return True
        first = self.base - self.origin + layout.host - self.host
        return bool(layout.elements(self.valid[first:], 1).all())

    def written(self, layout: Layout) -> bool:
        if self.known is None:
            raise ValueError("not registered as an output")
        first = (self.base - self.origin + layout.host - self.host) // self.granule
        return bool(layout.elements(self.known[first:], self.granule).all())

    def outside(self, addresses: Array, size: int) -> Array | None:
        """A mask; None if there is none."""
        offsets = addresses - self.base
        bad = (offsets < 0) | (offsets + size > self.size)
        if self.valid is not None:
            inside = np.where(bad, 0, addresses - self.origin)
            bad |= ~(gather(self.valid, inside, size, np.dtype(bool)).all(axis=1))
        return bad if bad.any() else None

    def touch(self, offsets: Array, lanes: int, size: int, *, write: bool) -> None:
        if write:
            self.traffic.written_bytes += lanes * size
        else:
            self.traffic.read_bytes += lanes * size
        sectors = self.touched[write]
        if sectors is None:
            sectors = self.touched[write] = np.zeros(self.data.size // _GRAIN, bool)
        sectors[offsets >> 5] = True

    def final_traffic(self) -> TensorTraffic:
        read, written = (0 if t is None else int(t.sum()) * _GRAIN for t in self.touched)
        self.traffic.read_distinct_bytes, self.traffic.written_distinct_bytes = read, written
        return self.traffic

    def foreign(self, offsets: Array, size: int, blocks: Array) -> int:
        """How many accesses touch what another block wrote in this launch."""
        if self.writers is None:
            return 0
        count = max(size // self.granule, 1)
        table = self.writers.reshape(-1, count)
        owner = table.take(offsets // (count * self.granule), axis=0)
        return int(np.count_nonzero(((owner != 0) & (owner != blocks[:, None])).any(axis=1)))

    def claim(self, offsets: Array, size: int, blocks: Array) -> None:
        if self.writers is None:
            self.writers = aligned_zeros(self.data.size // self.granule * 4).view(np.int32)
        count = max(size // self.granule, 1)
        at = offsets // self.granule if self.granule > 1 else offsets
        rows = np.repeat(blocks.astype(np.int32), count).reshape(-1, count)
        for first in range(0, count, 8):  # 32 bytes of owner numbers at a time
            scatter(self.writers.view(np.uint8), (at + first) * 4, _rows(rows, first))


def _rows(rows: Array, first: int) -> Array:
    return np.ascontiguousarray(rows[:, first : first + 8])


class GlobalMemory:
    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.bases: list[int] = []
        self.recent: list[Region] = []  # the last one that was asked for comes last
        self._next = 1

    def add_bytes(self, data: Array, *, granule: int = 1) -> Region:
        """Over a buffer of the simulator's own."""
        return self._add(host_address(data), data.nbytes, granule, True, data)

    def add(self, tensor: Any, *, initialised: bool = True) -> Region:
        """A new region, or the one that the tensor lies in. From now on a pointer into both this
        region and others, of views of one tensor, means this."""
        layout = Layout.of(tensor)
        found = self.holding(layout)
        if found is not None:
            self.recent.remove(found)
            self.recent.append(found)
            return found
        region = self._add(layout.host, layout.size, layout.item, initialised, tensor)
        if layout.has_gaps:
            region.valid = aligned_zeros(region.data.size)[: region.data.size].view(bool)
            layout.elements(region.valid[region.base - region.origin :], 1)[...] = True
        return region

    def borrow(self, tensor: Any, own: list[Region]) -> Region:
        """As `add`; a region that is new also goes into `own`, for the caller to remove."""
        known = len(self.regions)
        region = self.add(tensor)
        own.extend(self.regions[known:])
        return region

    def written(self, tensor: Any) -> bool:
        layout = Layout.of(tensor)
        region = self.holding(layout)
        if region is None:
            raise ValueError("not registered as an output")
        return region.written(layout)

    def _add(self, host: int, size: int, granule: int, initialised: bool, keep: Any) -> Region:
        region = Region(self._next, host, size, granule=granule, initialised=initialised, keep=keep)
        self._next += 1
        self.regions.append(region)
        self.bases.append(region.base)
        self.recent.append(region)
        return region

    def remove(self, region: Region) -> None:
        at = self.regions.index(region)
        del self.regions[at], self.bases[at]
        self.recent.remove(region)

    def holding(self, layout: Layout) -> Region | None:
        return next((region for region in reversed(self.recent) if region.holds(layout)), None)

    def containing(self, host: int) -> Region | None:
        """Of the host's memory."""
        for region in reversed(self.recent):
            if region.host <= host < region.host + region.size:
                return region
        return None

    def device_address(self, host: int) -> int | None:
        region = self.containing(host)
        return None if region is None else region.base + host - region.host

    def region_at(self, address: int) -> Region | None:
        """Of a simulated address."""
        at = bisect_right(self.bases, address) - 1
        # Just below a base still belongs to that region: an index of -1 is its error.
        if at + 1 < len(self.bases) and self.bases[at + 1] - address < 1 << (_SPACING - 1):
            at += 1
        if at < 0 or abs(address - self.bases[at]) > 1 << (_SPACING - 1):
            return None
        return self.regions[at]
