"""atom and red: one lane after the other, in random order under the random schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..body import Instruction
from ..frame import Frame
from ..isa import Array
from ..registry import op, unsupported
from ..shared_memory import SharedMemory
from ..targets import Target, count_access, resolve
from ..values import Access, Step, Write, items
from .move import space_of

Combine = Callable[[Any, Any], Any]

_COMBINE: dict[str, Combine] = {
    "add": lambda old, x: old + x,
    "min": min,
    "max": max,
    "exch": lambda old, x: x,
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "inc": lambda old, x: old.dtype.type(0) if old >= x else old + old.dtype.type(1),
    "dec": lambda old, x: x if old == 0 or old > x else old - old.dtype.type(1),
}


def _check(i: Instruction, target: Target, size: int) -> None:
    f, store = target.frame, target.store
    if isinstance(store, SharedMemory) and store.races is not None:
        race = store.races.write(f, target.offsets, size, atomic=True)
        if race is not None:
            why = "shared-memory race (atomic without a barrier after a plain access)"
            raise f.machine.fail(i, why, target.lanes(race))
    missing = store.missing(target.offsets, size)
    if missing is not None:
        raise f.machine.fail(i, "atomic on uninitialised memory", target.lanes(missing))
    count_access(i, target, size, write=True)


def _atomic(i: Instruction, access: Access, writes: list[Write], first: int) -> Step:
    name = i.one_of(*_COMBINE, "cas")
    type_ = i.type
    if type_.element or type_.kind == "bf":
        raise unsupported(i)
    address = access.address(i.operands[first])
    values = [access.read(o, type_) for o in items(i.operands[first + 1])]
    swap = access.read(i.operands[first + 2], type_) if name == "cas" else None
    space, size = space_of(i), type_.bytes * len(values)

    def step(f: Frame) -> None:
        addresses = f.spread(address(f))
        new = [f.spread(read(f)) for read in values]
        swaps = None if swap is None else f.spread(swap(f))
        old = np.zeros((len(values), f.n), type_.dtype)
        for target in resolve(i, f, space, addresses, size, write=True):
            _check(i, target, size)
            chosen = np.arange(f.n) if target.chosen is None else target.chosen
            at = target.offsets // type_.bytes
            memory = target.store.data.view(type_.dtype)
            for k, value in enumerate(new):
                _apply(f, name, memory, at + k, chosen, value, swaps, old[k])
        for write, column in zip(writes, old, strict=False):
            write(f, column.copy())

    return step


def _apply(
    f: Frame,
    name: str,
    memory: Array,
    at: Array,
    chosen: Array,
    value: Array,
    swaps: Array | None,
    old: Array,
) -> None:
    launch = f.machine.launch
    order = launch.rng.permutation(chosen.size) if launch.random else range(chosen.size)
    for n in order:
        place, lane = at[n], chosen[n]
        before = memory[place]
        old[lane] = before
        if swaps is not None:
            memory[place] = swaps[lane] if before == value[lane] else before
        else:
            memory[place] = _COMBINE[name](before, value[lane])


@op("atom")
def atom(i: Instruction, access: Access) -> Step:
    return _atomic(i, access, [access.write(o, i.type) for o in items(i.operands[0])], 1)


@op("red")
def red(i: Instruction, access: Access) -> Step:
    if i.has("async"):
        raise unsupported(i)
    return _atomic(i, access, [], 0)
