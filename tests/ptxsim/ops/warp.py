"""Instructions in which the lanes of a warp exchange values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..body import Instruction
from ..frame import Frame
from ..isa import TYPES, Array
from ..lanes import index_of, lanes_of, union
from ..operands import Operand
from ..registry import op, sync, unsupported
from ..values import Access, Read, Step, items
from .common import pack_warps, warp_bits

_FULL = 0xFFFFFFFF


class WarpSync:
    """Waits for all lanes that the mask names."""

    warp_level = True

    def __init__(self, i: Instruction, mask: Read) -> None:
        self.instruction, self.mask = i, mask

    def ready(self, f: Frame) -> Frame | None:
        machine, i = f.machine, self.instruction
        mask = self.mask(f)
        machine.wait_mask[f.lanes] = mask
        if mask.shape[0] == 1 and mask[0] == _FULL and f.whole_warps:
            return f
        here = f.lanes
        if i.pc in machine.parked:
            here = union(machine.parked.pop(i.pc), here)
        index = index_of(here)
        marks = machine.exited.copy()  # a thread that has ended is not waited for
        marks[index] = True
        have, need = pack_warps(marks)[index >> 5], machine.wait_mask[index]
        unnamed = (need >> (index & 31).astype(np.uint32)) & 1 == 0
        if unnamed.any():
            raise machine.fail(i, "the mask does not name the calling thread", index[unnamed])
        go = (need & ~have) == 0
        if not go.all():
            machine.park(i.pc, lanes_of(index[~go]))
        if not go.any():
            return None
        lanes = lanes_of(index[go])
        return f if go.all() and index.size == f.n else Frame(machine, lanes, int(go.sum()), {})


def _mask_operand(i: Instruction) -> Operand:
    if i.opcode == "elect":
        return i.operands[1]
    return i.operands[-1]


@sync("shfl", "vote", "redux", "match", "elect")
def warp_sync(i: Instruction, access: Access) -> WarpSync:
    if not i.has("sync"):
        raise unsupported(i)
    return WarpSync(i, access.read(_mask_operand(i), TYPES["u32"]))


Source = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]

# (lane, b, first lane of the segment, last, bits that stay) -> (source lane, inside the segment)
_SOURCES: dict[str, Source] = {
    "up": lambda lane, b, low, high, keep: (lane - b, lane - b >= high),
    "down": lambda lane, b, low, high, keep: (lane + b, lane + b <= high),
    "bfly": lambda lane, b, low, high, keep: (lane ^ b, (lane ^ b) <= high),
    "idx": lambda lane, b, low, high, keep: (low | (b & ~keep), (low | (b & ~keep)) <= high),
}


@op("shfl")
def shfl(i: Instruction, access: Access) -> Step:
    source_of = _SOURCES[i.one_of(*_SOURCES)]
    outputs = items(i.operands[0])
    write = access.write(outputs[0], TYPES["b32"])
    write_inside = access.write(outputs[1], TYPES["pred"]) if len(outputs) > 1 else None
    value = access.read(i.operands[1], TYPES["b32"])
    b_read, c_read = (access.read(o, TYPES["u32"]) for o in i.operands[2:4])
    patterns: dict[tuple[int, int], tuple[Array, Array]] = {}

    def step(f: Frame) -> None:
        b, c = b_read(f).astype(np.int64), c_read(f).astype(np.int64)
        if b.shape[0] == c.shape[0] == 1 and f.whole_warps:
            # The usual case: all warps shuffle in the same way.
            key = int(b[0]), int(c[0])
            if key not in patterns:
                patterns[key] = _source_lanes(source_of, np.arange(32), b, c)
            source, inside = patterns[key]
            write(f, f.spread(value(f)).reshape(-1, 32).take(source, axis=1).reshape(-1))
            if write_inside:
                write_inside(f, np.tile(inside, f.n // 32))
            return
        lane = f.index & 31
        source, inside = _source_lanes(source_of, lane, b, c)
        position = np.full(f.machine.lane_count, -1)
        position[f.index] = np.arange(f.n)
        at = position[f.index - lane + source]
        named = (f.machine.wait_mask[f.index] >> source.astype(np.uint32)) & 1
        if ((at < 0) | (named == 0)).any():
            bad = f.index[(at < 0) | (named == 0)]
            raise f.machine.fail(i, "shuffle reads a lane that takes no part", bad)
        write(f, f.spread(value(f))[at])
        if write_inside:
            write_inside(f, inside)

    return step


def _source_lanes(source_of: Source, lane: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """Of each lane, and whether it lies in the segment (else its own)."""
    keep, clamp = (c >> 8) & 31, c & 31
    low = lane & keep
    source, inside = source_of(lane, b & 31, low, low | (clamp & ~keep), keep)
    return np.where(inside, source, lane), np.broadcast_to(inside, lane.shape).copy()


@op("vote")
def vote(i: Instruction, access: Access) -> Step:
    mode = i.one_of("all", "any", "uni", "ballot")
    read = access.read(i.operands[1], TYPES["pred"])
    write = access.result(i, TYPES["b32" if mode == "ballot" else "pred"])

    def step(f: Frame) -> None:
        flags = f.spread(read(f))
        yes = warp_bits(f, flags) & f.machine.wait_mask[f.lanes]
        if mode == "ballot":
            write(f, yes)
            return
        no = warp_bits(f, ~flags) & f.machine.wait_mask[f.lanes]
        results = {"all": no == 0, "any": yes != 0, "uni": (no == 0) | (yes == 0)}
        write(f, results[mode])

    return step


@op("activemask")
def activemask(i: Instruction, access: Access) -> Step:
    write = access.result(i, TYPES["b32"])
    return lambda f: write(f, warp_bits(f, np.ones(f.n, bool)))


def _grouped(f: Frame, keys: Array) -> tuple[Array, Array, Array]:
    """(order that sorts lanes by key, where each group starts in it, each lane's group)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.append(True, ordered[1:] != ordered[:-1])
    group = np.empty(f.n, np.int64)
    group[order] = np.cumsum(first) - 1
    return order, np.flatnonzero(first), group


def _sync_groups(f: Frame) -> Array:
    """Numbers of lanes that run a warp instruction together."""
    masks: Array = f.machine.wait_mask[f.lanes].astype(np.int64)
    return (f.index >> 5) << 32 | masks


@op("redux")
def redux(i: Instruction, access: Access) -> Step:
    name, type_ = i.one_of("add", "min", "max", "and", "or", "xor"), i.type
    if i.has("abs"):
        raise unsupported(i)
    ignore_nan = type_.is_float and not i.has("NaN")
    combine: np.ufunc = {
        "add": np.add,
        "min": np.fmin if ignore_nan else np.minimum,
        "max": np.fmax if ignore_nan else np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[name]
    read, write = access.read(i.operands[1], type_), access.result(i)

    def step(f: Frame) -> None:
        order, starts, group = _grouped(f, _sync_groups(f))
        values = f.spread(read(f))[order]
        write(f, combine.reduceat(values, starts, dtype=values.dtype)[group])

    return step


@op("match")
def match(i: Instruction, access: Access) -> Step:
    """match.any: lanes with my value; match.all: all of them if they agree."""
    outputs = items(i.operands[0])
    write = access.write(outputs[0], TYPES["b32"])
    write_all = access.write(outputs[1], TYPES["pred"]) if len(outputs) > 1 else None
    read = access.read(i.operands[1], i.type)

    def step(f: Frame) -> None:
        values = np.unique(f.spread(read(f)), return_inverse=True)[1]
        _, _, together = _grouped(f, _sync_groups(f))
        _, _, group = _grouped(f, together * f.n + values)
        bits = np.zeros(f.n, np.uint32)
        np.bitwise_or.at(bits, group, np.uint32(1) << (f.index & 31).astype(np.uint32))
        same = bits[group]
        if i.has("all"):
            agree = same == f.machine.wait_mask[f.lanes] & warp_bits(f, np.ones(f.n, bool))
            same = np.where(agree, same, np.uint32(0))
            if write_all:
                write_all(f, agree)
        write(f, same)

    return step


@op("elect")
def elect(i: Instruction, access: Access) -> Step:
    lane_out, leader_out = items(i.operands[0])
    write = access.write(lane_out, TYPES["b32"])
    write_leader = access.write(leader_out, TYPES["pred"])

    def step(f: Frame) -> None:
        order, starts, group = _grouped(f, _sync_groups(f))
        leader = f.index[order][starts][group]
        write(f, (leader & 31).astype(np.uint32))
        write_leader(f, leader == f.index)

    return step
