"""Logic, shifts and bit fields."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from ..body import Instruction
from ..isa import SIGNED, TYPES, UNSIGNED, Array
from ..operands import Immediate
from ..registry import op, unsupported
from ..values import Access, Step, immediate
from .common import simple

_U32, _U64 = np.uint32, np.uint64


for _name, _fn in {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
}.items():
    op(_name)(partial(simple, fn=_fn))


@op("lop3")
def lop3(i: Instruction, access: Access) -> Step:
    """A function of three bits, by its table of eight results."""
    table_text = i.operands[4]
    if not isinstance(table_text, Immediate) or i.has("BoolOp", "and", "or"):
        raise unsupported(i)
    table = int(immediate(table_text.text, TYPES["u32"])[0])

    def fn(x: Array, y: Array, z: Array) -> Array:
        result = x & y & z & _U32(0)
        for row in range(8):
            if table >> row & 1:
                a, b, c = (v if row & bit else ~v for v, bit in ((x, 4), (y, 2), (z, 1)))
                result = result | (a & b & c)
        return result

    reads = [access.read(o, i.type) for o in i.operands[1:4]]
    write = access.result(i)
    return lambda f: write(f, fn(*[read(f) for read in reads]))


def _shift(i: Instruction, access: Access, fn: Callable[[Array, Array], Array]) -> Step:
    """numpy, like PTX, shifts everything out when the count is the width or more."""
    dtype = i.type.dtype

    def shifted(x: Array, n: Array) -> Array:
        if dtype.itemsize < 4:  # a larger count must not wrap in the narrow type
            n = np.minimum(n, _U32(dtype.itemsize * 8))
        return fn(x, n.astype(dtype))

    return simple(i, access, shifted, [i.type, TYPES["u32"]])


@op("shl")
def shl(i: Instruction, access: Access) -> Step:
    return _shift(i, access, np.left_shift)


@op("shr")
def shr(i: Instruction, access: Access) -> Step:
    return _shift(i, access, np.right_shift)


@op("shf")
def shf(i: Instruction, access: Access) -> Step:
    """Funnel shift: 32 of the 64 bits of two registers."""
    left, wrap, thirty_two = i.has("l"), i.has("wrap"), _U64(32)

    def fn(low: Array, high: Array, n: Array) -> Array:
        n = (n & _U32(31) if wrap else np.minimum(n, _U32(32))).astype(_U64)
        both = high.astype(_U64) << thirty_two | low
        return ((both << n) >> thirty_two if left else both >> n).astype(_U32)

    return simple(i, access, fn, [TYPES["u32"]] * 3)


@op("prmt")
def prmt(i: Instruction, access: Access) -> Step:
    """Four of the eight bytes of two registers, or copies of their signs."""
    if not set(i.mods) <= {"b32"}:
        raise unsupported(i)

    def fn(x: Array, y: Array, selector: Array) -> Array:
        both = y.astype(_U64) << _U64(32) | x
        result = np.zeros(1, _U32)
        for k in range(4):
            n = (selector >> _U32(4 * k)).astype(_U64)
            byte = (both >> ((n & _U64(7)) * _U64(8))).astype(_U32) & _U32(255)
            sign = np.where(byte & _U32(128), _U32(255), _U32(0))
            byte = np.where(n & _U64(8), sign, byte)
            result = result | byte << _U32(8 * k)
        return result

    return simple(i, access, fn, [TYPES["u32"]] * 3)


@op("bfe")
def bfe(i: Instruction, access: Access) -> Step:
    """A bit field, sign-extended for signed types."""
    bits, signed = i.type.bits, i.type.kind == "s"

    def fn(x: Array, start: Array, length: Array) -> Array:
        # In 64 bits of the same signedness a shift to the right fills in as the field needs.
        wide = x.astype(np.int64 if signed else _U64)
        start = np.minimum(start & _U32(255), _U32(bits)).astype(wide.dtype)
        length = np.minimum(length & _U32(255), _U32(64)).astype(wide.dtype)
        unused = wide.dtype.type(64) - length
        field = ((wide >> start) << unused) >> unused
        return np.where(length == 0, wide.dtype.type(0), field).astype(x.dtype)

    return simple(i, access, fn, [i.type, TYPES["u32"], TYPES["u32"]])


@op("bfi")
def bfi(i: Instruction, access: Access) -> Step:
    """The low bits of the first source into the second."""
    bits = i.type.bits

    def fn(x: Array, y: Array, start: Array, length: Array) -> Array:
        start = (start & _U32(255)).astype(_U64)
        length = np.minimum(length & _U32(255), _U32(64)).astype(_U64)
        ones = ~(~_U64(0) << length)
        mask = ones << start
        wide = (y.astype(_U64) & ~mask) | ((x.astype(_U64) << start) & mask)
        return wide.astype(UNSIGNED[bits])

    return simple(i, access, fn, [i.type, i.type, TYPES["u32"], TYPES["u32"]])


@op("popc")
def popc(i: Instruction, access: Access) -> Step:
    return simple(i, access, lambda x: np.bitwise_count(x).astype(_U32), result=TYPES["u32"])


def _highest(x: Array) -> Array:
    """-1 if there is none."""
    wide = x.astype(_U64)
    position = np.full(x.shape, -1, np.int32)
    for step in (32, 16, 8, 4, 2, 1):
        more = (wide >> _U64(step)) != 0
        position += np.where(more, np.int32(step), np.int32(0))
        wide = np.where(more, wide >> _U64(step), wide)
    position += (wide != 0).astype(np.int32)
    return position


@op("clz")
def clz(i: Instruction, access: Access) -> Step:
    top = i.type.bits - 1
    return simple(i, access, lambda x: (top - _highest(x)).astype(_U32), result=TYPES["u32"])


@op("bfind")
def bfind(i: Instruction, access: Access) -> Step:
    """Highest bit that differs from the sign; ~0 if there is none."""
    bits, shift = i.type.bits, i.has("shiftamt")

    def fn(x: Array) -> Array:
        if x.dtype.kind == "i":
            x = (x ^ (x >> SIGNED[bits].type(bits - 1))).view(UNSIGNED[bits])
        place = _highest(x)
        if shift:
            place = np.where(place < 0, place, bits - 1 - place)
        return place.astype(np.int32).view(_U32)

    return simple(i, access, fn, result=TYPES["u32"])


@op("brev")
def brev(i: Instruction, access: Access) -> Step:
    """The bits of each byte, then the bytes."""
    byte = np.array([int(f"{b:08b}"[::-1], 2) for b in range(256)], np.uint8)
    return simple(i, access, lambda x: byte[x.view(np.uint8)].view(x.dtype).byteswap())
