"""mov (with packing), address conversions, mapa."""

from __future__ import annotations

import numpy as np

from ..body import Instruction
from ..frame import Frame
from ..isa import TYPES, bits_type, extended
from ..operands import Group
from ..registry import op, unsupported
from ..values import GENERIC_LOCAL, GENERIC_SHARED, RANK_SHIFT, Access, Step

_RANK = 0xFF << RANK_SHIFT


@op("mov")
def mov(i: Instruction, access: Access) -> Step:
    destination, source = i.operands
    if isinstance(source, Group):
        return _pack(i, access, source)
    if isinstance(destination, Group):
        return _unpack(i, access, destination)
    read, write = access.read(source, i.type), access.result(i)
    # A copy, because no two registers may share memory.
    return lambda f: write(f, read(f).copy())


def _pack(i: Instruction, access: Access, source: Group) -> Step:
    """mov.b32 d, {low, high}"""
    count = len(source.items)
    part = bits_type(i.type.bits // count)
    reads = [access.read(o, part) for o in source.items]
    write = access.result(i)

    def step(f: Frame) -> None:
        parts = np.broadcast_arrays(*[read(f) for read in reads])
        write(f, np.stack(parts, axis=-1).view(i.type.dtype)[:, 0])

    return step


def _unpack(i: Instruction, access: Access, destination: Group) -> Step:
    """mov.b32 {low, high}, s"""
    count = len(destination.items)
    part = bits_type(i.type.bits // count)
    read = access.read(i.operands[1], i.type)
    writes = [access.write(o, part) for o in destination.items]

    def step(f: Frame) -> None:
        parts = np.ascontiguousarray(read(f)).view(part.dtype).reshape(-1, count)
        for k, write in enumerate(writes):
            write(f, parts[:, k].copy())

    return step


_SPACES = ("global", "shared", "local", "const", "param")


def space_of(i: Instruction, default: str = "generic") -> str:
    """The state space that an instruction names (`shared` for shared::cluster too)."""
    for mod in i.mods:
        if mod.split("::")[0] in _SPACES:
            return mod.split("::")[0]
    return default


def _generic_bit(space: str) -> int:
    return {"shared": GENERIC_SHARED, "local": GENERIC_LOCAL}.get(space, 0)


@op("cvta")
def cvta(i: Instruction, access: Access) -> Step:
    bit = np.uint64(_generic_bit(space_of(i)))
    read, write, bits = access.read(i.operands[1], TYPES["u64"]), access.result(i), i.type.bits
    if bits != 64:
        raise unsupported(i)
    if i.has("to"):
        return lambda f: write(f, read(f) & ~bit)
    return lambda f: write(f, read(f) | bit)


@op("isspacep")
def isspacep(i: Instruction, access: Access) -> Step:
    space = space_of(i)
    read = access.read(i.operands[1], TYPES["u64"])
    write = access.write(i.operands[0], TYPES["pred"])
    bit, windows = np.uint64(_generic_bit(space)), np.uint64(GENERIC_SHARED | GENERIC_LOCAL)
    own = i.has("shared", "shared::cta")

    def step(f: Frame) -> None:
        address = read(f)
        if not bit:
            write(f, (address & windows) == 0)
            return
        inside = (address & bit) != 0
        if own:
            inside = inside & ((address & np.uint64(_RANK)) == f.machine.shared_window(f))
        write(f, inside)

    return step


@op("mapa")
def mapa(i: Instruction, access: Access) -> Step:
    """The address of the same variable in another block of the cluster."""
    address, rank = access.read(i.operands[1], i.type), access.read(i.operands[2], TYPES["u32"])
    write, dtype = access.result(i), i.type.dtype
    keep = dtype.type((1 << i.type.bits) - 1 ^ _RANK)

    def step(f: Frame) -> None:
        window = (rank(f).astype(dtype) + dtype.type(1)) << dtype.type(RANK_SHIFT)
        write(f, (address(f) & keep) | window)

    return step


@op("getctarank")
def getctarank(i: Instruction, access: Access) -> Step:
    read, write = access.read(i.operands[1], i.type), access.result(i, TYPES["u32"])

    def step(f: Frame) -> None:
        window = extended(read(f), "u", 64) & np.uint64(_RANK)
        write(f, (window >> np.uint64(RANK_SHIFT)).astype(np.uint32) - np.uint32(1))

    return step
