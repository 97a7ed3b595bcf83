"""ld and st of all spaces and vector widths."""

from __future__ import annotations

import numpy as np

from ..body import Instruction
from ..frame import Frame
from ..isa import Array
from ..operands import Address, Symbol
from ..registry import op, unsupported
from ..targets import checked_read, checked_write, resolve
from ..values import Access, Step, Write, items
from .async_copy import store_async
from .move import space_of

_VECTORS = {"v2": 2, "v4": 4, "v8": 8}
_ORDERED = ("volatile", "relaxed", "acquire", "release", "mmio")


def vector_width(i: Instruction) -> int:
    return next((_VECTORS[m] for m in i.mods if m in _VECTORS), 1)


@op("ld", "ldu")
def ld(i: Instruction, access: Access) -> Step:
    writes = [access.write(o, i.type) for o in items(i.operands[0])]
    if len(writes) != vector_width(i):
        raise unsupported(i)
    space, size = space_of(i), i.type.bytes * len(writes)
    place = i.operands[1]
    if space == "param" and isinstance(place, Address) and isinstance(place.base, Symbol):
        return _ld_param(i, access, place, writes)
    address, dtype = access.address(place), i.type.dtype
    ordered = i.has(*_ORDERED)

    def step(f: Frame) -> None:
        rows: Array | None = None
        for target in resolve(i, f, space, address(f), size, write=False):
            checked_read(i, target, size, ordered=ordered)
            part = target.store.load(target.offsets, size, dtype)
            if target.chosen is None:
                rows = part
            else:
                if rows is None:
                    rows = np.zeros((f.n, part.shape[1]), part.dtype)
                rows[target.chosen] = part
        assert rows is not None
        if len(writes) == 1:
            writes[0](f, rows[:, 0])
            return
        columns = np.ascontiguousarray(rows.T)
        for write, column in zip(writes, columns, strict=True):
            write(f, column)

    return step


def _ld_param(i: Instruction, access: Access, place: Address, writes: list[Write]) -> Step:
    assert isinstance(place.base, Symbol)
    offset = access.symbols.parameters.get(place.base.name)
    if offset is None:  # the result of a call that is ignored
        (write,) = writes
        return lambda f: write(f, np.zeros(1, i.type.dtype))
    start = offset + place.offset + place.base.offset
    size, dtype = i.type.bytes, i.type.dtype

    def step(f: Frame) -> None:
        parameters = f.machine.launch.parameters
        for k, write in enumerate(writes):
            at = start + k * size
            write(f, parameters[at : at + size].copy().view(dtype))

    return step


@op("st")
def st(i: Instruction, access: Access) -> Step:
    space = space_of(i)
    if space == "param":  # an argument of a call
        return lambda f: None
    if i.has("async"):
        return store_async(i, access)
    reads = [access.read(o, i.type) for o in items(i.operands[1])]
    address, size = access.address(i.operands[0]), i.type.bytes * len(reads)

    def step(f: Frame) -> None:
        rows = np.empty((f.n, len(reads)), i.type.dtype)
        for k, read in enumerate(reads):
            rows[:, k] = read(f)
        store_rows(i, f, space, f.spread(address(f)), rows, size)

    return step


def store_rows(
    i: Instruction, f: Frame, space: str, addresses: Array, rows: Array, size: int
) -> None:
    for target in resolve(i, f, space, addresses, size, write=True):
        part = rows if target.chosen is None else rows[target.chosen]
        checked_write(i, target, part)
