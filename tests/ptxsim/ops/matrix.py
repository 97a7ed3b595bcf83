"""ldmatrix and stmatrix: a warp moves 8 x 8 matrices of 16-bit elements.

Lane 8 m + r gives the address of row r of matrix m; lane 4 r + k holds elements 2 k and 2 k + 1
of row r (of the transposed matrix with .trans).
"""

from __future__ import annotations

import numpy as np

from ..body import Instruction
from ..frame import Frame
from ..isa import TYPES, Array
from ..registry import op, sync, unsupported
from ..targets import checked_read, resolve
from ..values import Access, Step, items
from .memory import store_rows
from .move import space_of
from .warp import WarpSync

_ROW = 16  # bytes


def _count(i: Instruction) -> int:
    if not i.has("m8n8") or not i.has("b16"):
        raise unsupported(i)
    return int(i.one_of("x1", "x2", "x4")[1:])


def _address_lanes(f: Frame, count: int) -> Array:
    """Positions in the frame of the lanes whose addresses count."""
    return np.flatnonzero((f.index & 31) < 8 * count)


@sync("ldmatrix", "stmatrix")
def matrix_sync(i: Instruction, access: Access) -> WarpSync:
    everyone = np.array([0xFFFFFFFF], np.uint32)
    return WarpSync(i, lambda f: everyone)


@op("ldmatrix")
def ldmatrix(i: Instruction, access: Access) -> Step:
    count, transposed, space = _count(i), i.has("trans"), space_of(i)
    writes = [access.write(o, TYPES["b32"]) for o in items(i.operands[0])]
    address = access.address(i.operands[1])

    def step(f: Frame) -> None:
        chosen = _address_lanes(f, count)
        part = f.subset(chosen, ())
        rows = np.zeros((chosen.size, 8), np.uint16)
        for target in resolve(i, part, space, f.spread(address(f))[chosen], _ROW, write=False):
            checked_read(i, target, _ROW)
            loaded = target.store.load(target.offsets, _ROW, rows.dtype)
            rows[slice(None) if target.chosen is None else target.chosen] = loaded
        matrices = rows.reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        for m, write in enumerate(writes):
            write(f, np.ascontiguousarray(matrices[:, m]).view(np.uint32).reshape(-1))

    return step


@op("stmatrix")
def stmatrix(i: Instruction, access: Access) -> Step:
    count, transposed, space = _count(i), i.has("trans"), space_of(i)
    reads = [access.read(o, TYPES["b32"]) for o in items(i.operands[1])]
    address = access.address(i.operands[0])

    def step(f: Frame) -> None:
        words = np.stack([f.spread(read(f)).reshape(-1, 8, 4) for read in reads], axis=1)
        matrices = words.view(np.uint16)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        chosen = _address_lanes(f, count)
        part = f.subset(chosen, ())
        addresses = f.spread(address(f))[chosen]
        store_rows(i, part, space, addresses, matrices.reshape(-1, 8), _ROW)

    return step
