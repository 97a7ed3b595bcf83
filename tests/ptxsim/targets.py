"""From addresses to checked places in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from .body import Instruction
from .frame import Frame
from .global_memory import Region
from .isa import Array
from .shared_memory import LocalMemory, SharedMemory
from .store import differing, disagreeing, increasing
from .values import GENERIC_LOCAL, GENERIC_SHARED

_TEBIBYTE = 40
_HALF = 1 << (_TEBIBYTE - 1)


@dataclass
class Target:
    """Where some lanes' access goes. `chosen` are their positions in the frame that asked,
    None for all of it. `offsets` has one element where all lanes share an address."""

    frame: Frame
    chosen: Array | None
    store: Region | SharedMemory | LocalMemory
    offsets: Array

    def lanes(self, mask: Array) -> Array:
        index = self.frame.index
        return index[:1] if mask.shape[0] != index.shape[0] else index[mask]


def resolve(
    i: Instruction, f: Frame, space: str, addresses: Array, size: int, *, write: bool
) -> Iterator[Target]:
    """After the checks of alignment, bounds and asynchronous copies; several where the lanes go to
    different spaces or tensors."""
    if size > 1 and int(np.bitwise_or.reduce(addresses)) & (size - 1):
        bad = (addresses & (size - 1)) != 0
        raise _fault(i, f, f"misaligned {size}-byte access", addresses, bad)
    if space == "generic":
        for part, chosen, kind, clean in _spaces(f, addresses):
            for target in _in_space(i, part, kind, clean, size, remote=True, write=write):
                target.chosen = _compose(chosen, target.chosen)
                yield target
    else:
        remote = i.has("shared::cluster")
        yield from _in_space(i, f, space, addresses, size, remote=remote, write=write)


def _compose(outer: Array | None, inner: Array | None) -> Array | None:
    if outer is None or inner is None:
        return inner if outer is None else outer
    composed: Array = outer[inner]
    return composed


def _fault(i: Instruction, f: Frame, why: str, addresses: Array, bad: Array) -> Exception:
    index = f.index
    lanes = index[bad] if bad.shape[0] == index.shape[0] else index[:1]
    return f.machine.fail(i, why, lanes, addresses[bad])


def _spaces(f: Frame, addresses: Array) -> Iterator[tuple[Frame, Array | None, str, Array]]:
    low, high = int(addresses.min()), int(addresses.max())
    windows = (
        ("global", -(1 << 62), GENERIC_SHARED),
        ("shared", GENERIC_SHARED, GENERIC_LOCAL),
        ("local", GENERIC_LOCAL, 1 << 62),
    )
    for kind, start, end in windows:
        base = max(start, 0)
        if start <= low and high < end:
            yield f, None, kind, addresses - base if base else addresses
        elif low < end and high >= start:
            inside = (addresses >= start) & (addresses < end)
            if inside.any():
                chosen = np.flatnonzero(inside)
                yield f.subset(chosen, ()), chosen, kind, addresses[chosen] - base


def _in_space(
    i: Instruction,
    f: Frame,
    space: str,
    addresses: Array,
    size: int,
    *,
    remote: bool,
    write: bool,
) -> Iterator[Target]:
    if space in ("global", "const", "param"):
        yield from _global(i, f, addresses, size)
    elif space == "shared":
        yield _shared(i, f, f.spread(addresses), size, remote=remote, write=write)
    else:
        yield _local(i, f, f.spread(addresses), size)


def _global(i: Instruction, f: Frame, addresses: Array, size: int) -> Iterator[Target]:
    low, high = int(addresses.min()), int(addresses.max())
    if (low + _HALF) >> _TEBIBYTE != (high + _HALF) >> _TEBIBYTE:
        tensors = (addresses + _HALF) >> _TEBIBYTE
        for number in np.unique(tensors):
            chosen = np.flatnonzero(tensors == number)
            part = f.subset(chosen, ())
            for target in _global(i, part, addresses[chosen], size):
                target.chosen = chosen
                yield target
        return
    region = f.machine.memory.region_at(low)
    if region is None:
        everything = np.ones(addresses.shape, bool)
        raise _fault(i, f, "wild global access", addresses, everything)
    if low < region.base or high + size > region.base + region.size or region.valid is not None:
        bad = region.outside(addresses, size)
        if bad is not None:
            raise _fault(i, f, "out-of-bounds global access", addresses, bad)
    yield Target(f, None, region, addresses - region.origin)


def _shared(
    i: Instruction, f: Frame, addresses: Array, size: int, *, remote: bool, write: bool
) -> Target:
    shared = f.machine.shared
    offsets, fault = shared.resolve(
        f, addresses, size, remote=remote, synchronous=i.opcode != "cp" and not i.has("async")
    )
    if fault is not None:
        raise _fault(i, f, fault[0], addresses, fault[1])
    busy = shared.in_flight(offsets, size, write=write)
    if busy is not None:
        why = "shared memory used while an asynchronous copy still uses it (missing wait)"
        raise _fault(i, f, why, addresses, busy)
    return Target(f, None, shared, offsets)


def _local(i: Instruction, f: Frame, addresses: Array, size: int) -> Target:
    local = f.machine.local
    bad = (addresses < 0) | (addresses + size > local.size)
    if bad.any():
        raise _fault(i, f, "out-of-bounds local access", addresses, bad)
    return Target(f, None, local, f.index * local.stride + addresses)


def checked_read(i: Instruction, target: Target, size: int, *, ordered: bool = False) -> None:
    """Counted, and checked for races and uninitialised memory. `ordered`: volatile or acquiring, so
    another block's writes may be meant."""
    f, store, offsets, machine = target.frame, target.store, target.offsets, target.frame.machine
    if isinstance(store, SharedMemory) and store.races is not None:
        race = store.races.read(f, offsets, size)
        if race is not None:
            why = "shared-memory race (read without a barrier after another thread's write)"
            raise machine.fail(i, why, target.lanes(race))
    if isinstance(store, Region) and store.writers is not None and not ordered:
        blocks = machine.blocks[machine.block_of(f.index)] + 1
        count = store.foreign(np.broadcast_to(offsets, (f.n,)), size, blocks)
        if count:
            machine.warn(i, "global read of what another block wrote", count)
    missing = store.missing(offsets, size)
    if missing is not None:
        kind = type(store).__name__.replace("Memory", "").replace("Region", "Global").lower()
        raise machine.fail(i, f"read of uninitialised {kind} memory", target.lanes(missing))
    count_access(i, target, size, write=False)


def count_access(i: Instruction, target: Target, size: int, *, write: bool) -> None:
    f, store = target.frame, target.store
    if isinstance(store, Region):
        store.touch(target.offsets, f.n, size, write=write)
    bulk = i.opcode == "cp" and isinstance(store, SharedMemory)
    elsewhere = isinstance(store, LocalMemory) or i.has("param")  # a parameter is a constant
    if not f.machine.counters.detailed or bulk or elsewhere:
        return
    counter = f.machine.access_counter(i, write=write)
    if isinstance(store, Region):
        counter.count_global(f, target.offsets, size)
    else:
        counter.count_shared(f, target.offsets, size)


def checked_write(i: Instruction, target: Target, rows: Array) -> None:
    """Rows (n, k), with the checks for races and disagreeing lanes."""
    f, store, offsets, machine = target.frame, target.store, target.offsets, target.frame.machine
    size = rows.itemsize * rows.shape[1]
    if isinstance(store, SharedMemory) and store.races is not None:
        changes = partial(differing, store.data, offsets, rows)
        race = store.races.write(f, offsets, size, changes=changes)
        if race is not None:
            why = "shared-memory race (write without a barrier after another thread's access)"
            raise machine.fail(i, why, target.lanes(race))
    if isinstance(store, Region) and machine.launch.races:
        blocks = machine.blocks[machine.block_of(f.index)] + 1
        count = store.foreign(offsets, size, blocks)
        store.claim(offsets, size, blocks)
        if not count and not increasing(offsets):
            count = store.foreign(offsets, size, blocks)  # claimed by another in this very store
        if count:
            machine.warn(i, "global word written by two blocks", count)
    count_access(i, target, size, write=True)
    store.store(offsets, rows)
    if not isinstance(store, LocalMemory) and machine.launch.races:
        lost = disagreeing(store.data, offsets, rows)
        if lost is not None:
            why = "threads store different values to one address"
            raise machine.fail(i, why, target.lanes(lost))
