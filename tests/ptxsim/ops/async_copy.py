"""cp.async, cp.async.bulk and st.async."""

from __future__ import annotations

import numpy as np

from ..async_state import BulkCopy, ThreadCopies
from ..body import Instruction
from ..frame import Frame
from ..global_memory import Region
from ..isa import TYPES, Array
from ..operands import Address, Immediate
from ..registry import op, unsupported
from ..shared_memory import WRITING, SharedMemory
from ..store import scatter_constant
from ..targets import Target, checked_read, checked_write, resolve
from ..values import RANK_SHIFT, Access, Step, immediate, items
from .mbarrier import find
from .move import space_of

_CHUNK = 16  # bytes: bulk copies are multiples of it


@op("cp")
def cp(i: Instruction, access: Access) -> Step:
    if i.has("tensor", "reduce"):
        raise unsupported(i)
    bulk = i.has("bulk")
    if i.has("commit_group"):
        if bulk:
            return lambda f: f.machine.copies.commit_bulk(f.lanes)
        return lambda f: f.machine.copies.commit(f.lanes)
    if i.has("wait_group"):
        keep = _number(i)
        if bulk:
            return lambda f: f.machine.copies.wait_bulk(f, keep)
        return lambda f: f.machine.copies.wait(f, keep)
    if i.has("wait_all"):
        return _wait_all
    if i.has("mbarrier"):
        raise unsupported(i)
    return _bulk(i, access) if bulk else _thread_copy(i, access)


def _number(i: Instruction) -> int:
    operand = i.operands[0]
    if not isinstance(operand, Immediate):
        raise unsupported(i)
    return int(immediate(operand.text, TYPES["s32"])[0])


def _wait_all(f: Frame) -> None:
    f.machine.copies.commit(f.lanes)
    f.machine.copies.wait(f, 0)


def _thread_copy(i: Instruction, access: Access) -> Step:
    """cp.async.ca|cg.shared.global [to], [from], size {, bytes that are read}"""
    to, source = access.address(i.operands[0]), access.address(i.operands[1])
    size_operand = i.operands[2]
    if not isinstance(size_operand, Immediate):
        raise unsupported(i)
    size = int(immediate(size_operand.text, TYPES["u32"])[0])
    # A cache policy may follow; it is a 64-bit register.
    limited = len(i.operands) > 3 and getattr(i.operands[3], "type", TYPES["u32"]).bits == 32
    used_read = access.read(i.operands[3], TYPES["u32"]) if limited else None

    def step(f: Frame) -> None:
        copies = f.machine.copies
        used = f.spread(used_read(f)).astype(np.int64) if used_read else np.full(f.n, size)
        target = _single(i, f, "shared", f.spread(to(f)), size, write=True)
        _claim_shared(i, target, size)
        scatter_constant(f.machine.shared.flight_map(), target.offsets, size, WRITING)
        reading = np.flatnonzero(used > 0)
        offsets, data = np.zeros(f.n, np.int64), np.zeros(size, np.uint8)
        if reading.size:
            part = f.subset(reading, ())
            origin = _single(i, part, "global", f.spread(source(f))[reading], size, write=False)
            checked_read(i, origin, size)
            offsets[reading], data = origin.offsets, origin.store.data
        groups = copies.groups[f.lanes].copy()
        copies.threads.append(
            ThreadCopies(f.index, groups, offsets, data, target.offsets, size, used)
        )

    return step


def _single(
    i: Instruction, f: Frame, space: str, addresses: Array, size: int, *, write: bool
) -> Target:
    targets = list(resolve(i, f, space, addresses, size, write=write))
    if len(targets) != 1:
        raise unsupported(i)
    return targets[0]


def _claim_shared(i: Instruction, target: Target, size: int) -> None:
    """After other threads' accesses."""
    races = target.frame.machine.shared.races
    if races is not None:
        bad = races.write(target.frame, target.offsets, size)
        if bad is not None:
            why = "shared-memory race (asynchronous copy without a barrier after another access)"
            raise target.frame.machine.fail(i, why, target.lanes(bad))


def _spaces(i: Instruction) -> tuple[str, str]:
    named = [m.split("::")[0] for m in i.mods if m.split("::")[0] in ("shared", "global")]
    if len(named) != 2:
        raise unsupported(i)
    return named[0], named[1]


def _bulk(i: Instruction, access: Access) -> Step:
    """cp.async.bulk.to.from [to], [from], bytes {, [mbarrier]} {, block mask}"""
    to_space, from_space = _spaces(i)
    to, source = access.address(i.operands[0]), access.address(i.operands[1])
    count = access.read(i.operands[2], TYPES["u32"])
    announced = len(i.operands) > 3 and isinstance(i.operands[3], Address)
    barrier = access.address(i.operands[3]) if announced else None
    spread = i.has("multicast::cluster")
    blocks = access.read(i.operands[4], TYPES["u16"]) if spread else None

    def step(f: Frame) -> None:
        for k in range(f.n):
            one = f.subset(np.array([k]), f.regs)
            size = int(count(one)[0])
            addresses = [int(read(one)[0]) for read in (to, source)]
            if (size | addresses[0] | addresses[1]) % _CHUNK:
                raise f.machine.fail(i, "bulk copy not aligned to 16 bytes", one.index)
            if not size:
                continue
            key = int(barrier(one)[0]) if barrier else None
            targets = [(addresses[0], key)]
            if blocks is not None:
                targets = _multicast(addresses[0], key, int(blocks(one)[0]))
            for to_address, to_key in targets:
                _start(i, one, (to_space, to_address), (from_space, addresses[1]), size, to_key)

    return step


def _multicast(address: int, key: int | None, blocks: int) -> list[tuple[int, int | None]]:
    window = 0xFF << RANK_SHIFT
    ranks = [rank for rank in range(16) if blocks >> rank & 1]

    def placed(value: int, rank: int) -> int:
        return (value & ~window) | (rank + 1) << RANK_SHIFT

    return [(placed(address, r), None if key is None else placed(key, r)) for r in ranks]


def _start(
    i: Instruction,
    one: Frame,
    to: tuple[str, int],
    source: tuple[str, int],
    size: int,
    key: int | None,
) -> None:
    machine, lane = one.machine, int(one.index[0])
    steps = np.arange(0, size, _CHUNK)
    many = Frame(machine, np.full(steps.size, lane), steps.size, {})
    origin = _single(i, many, source[0], source[1] + steps, _CHUNK, write=False)
    target = _single(i, many, to[0], to[1] + steps, _CHUNK, write=True)
    checked_read(i, origin, _CHUNK)
    if isinstance(target.store, SharedMemory):
        _claim_shared(i, target, _CHUNK)
    else:  # claimed and counted now, written when the copy is carried out
        checked_write(i, target, _current(target))
    barrier = None
    if key is not None:
        place = _single(i, one, "shared", np.array([key]), 8, write=False)
        barrier = int(place.offsets[0])
        find(i, one, barrier)
    ends = [t for t in (origin, target) if isinstance(t.store, SharedMemory)]
    machine.copies.begin(
        BulkCopy(
            lane,
            _bytes(origin, size),
            _bytes(target, size),
            [int(t.offsets[0]) for t in ends],
            barrier,
            None if barrier is not None else int(machine.copies.bulk_groups[lane]),
        ),
        writes_shared=isinstance(target.store, SharedMemory),
    )


def _bytes(target: Target, size: int) -> Array:
    start = int(target.offsets[0])
    view: Array = target.store.data[start : start + size]
    return view


def _current(target: Target) -> Array:
    assert isinstance(target.store, Region)
    return target.store.load(target.offsets, _CHUNK, np.dtype(np.uint32))


def store_async(i: Instruction, access: Access) -> Step:
    """st.async [to], value, [mbarrier]: the value is taken now and arrives later."""
    reads = [access.read(o, i.type) for o in items(i.operands[1])]
    to, barrier = access.address(i.operands[0]), access.address(i.operands[2])
    size = i.type.bytes * len(reads)

    def step(f: Frame) -> None:
        values = np.stack([f.spread(read(f)) for read in reads], axis=1)
        target = _single(i, f, space_of(i), f.spread(to(f)), size, write=True)
        place = _single(i, f, space_of(i), f.spread(barrier(f)), 8, write=False)
        _claim_shared(i, target, size)
        for k, (offset, key) in enumerate(zip(target.offsets, place.offsets, strict=True)):
            find(i, f, int(key))
            goal = target.store.data[offset : offset + size]
            source = values[k].view(np.uint8).copy()
            copy = BulkCopy(int(f.index[k]), source, goal, [int(offset)], int(key), None)
            f.machine.copies.begin(copy, writes_shared=True)

    return step
