"""Integer arithmetic."""

from __future__ import annotations

import numpy as np

from ..body import Instruction
from ..isa import SIGNED, TYPES, UNSIGNED, Array, Type
from ..registry import op, unsupported
from ..values import Access, Step
from .common import on_pairs, simple


def _refuse_carry(i: Instruction) -> None:
    if i.has("cc", "sat"):
        raise unsupported(i)


def add(i: Instruction, access: Access) -> Step:
    _refuse_carry(i)
    fn = on_pairs(np.add, i.type.element, i.type.dtype) if i.type.element else np.add
    return simple(i, access, fn)


def sub(i: Instruction, access: Access) -> Step:
    _refuse_carry(i)
    return simple(i, access, np.subtract)


def _double(type_: Type) -> Type:
    return TYPES[f"{'s' if type_.kind == 's' else 'u'}{2 * type_.bits}"]


def high_product(x: Array, y: Array) -> Array:
    """The upper half of the double-width product."""
    bits, signed = x.itemsize * 8, x.dtype.kind == "i"
    if bits < 64:
        wide = (SIGNED if signed else UNSIGNED)[2 * bits]
        product = x.astype(wide) * y.astype(wide)
        upper: Array = (product >> wide.type(bits)).astype(x.dtype)
        return upper
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = x.view(np.uint64), y.view(np.uint64)
    a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
    middle = a1 * b0 + ((a0 * b0) >> half)
    other = (middle & low) + a0 * b1
    high: Array = a1 * b1 + (middle >> half) + (other >> half)
    if signed:
        high = high - np.where(x < 0, b, np.uint64(0)) - np.where(y < 0, a, np.uint64(0))
    return high.view(x.dtype)


def mul(i: Instruction, access: Access) -> Step:
    if i.has("wide"):
        wide = _double(i.type)
        fn = lambda x, y: x.astype(wide.dtype) * y.astype(wide.dtype)  # noqa: E731
        return simple(i, access, fn, result=wide)
    return simple(i, access, high_product if i.has("hi") else np.multiply)


def mad(i: Instruction, access: Access) -> Step:
    _refuse_carry(i)
    if i.has("wide"):
        wide = _double(i.type)
        return simple(
            i,
            access,
            lambda x, y, z: x.astype(wide.dtype) * y.astype(wide.dtype) + z,
            [i.type, i.type, wide],
            wide,
        )
    if i.has("hi"):
        return simple(i, access, lambda x, y, z: high_product(x, y) + z)
    return simple(i, access, lambda x, y, z: x * y + z)


def div(i: Instruction, access: Access) -> Step:
    """Toward zero; by zero gives all ones, as the hardware does."""
    return simple(i, access, lambda x, y: _quotient(x, y)[0])


@op("rem")
def rem(i: Instruction, access: Access) -> Step:
    return simple(i, access, lambda x, y: _quotient(x, y)[1])


def _quotient(x: Array, y: Array) -> tuple[Array, Array]:
    zero = y == 0
    divisor = np.where(zero, y.dtype.type(1), y)
    remainder = np.fmod(x, divisor)
    quotient = (x - remainder) // divisor
    ones = np.array(-1).astype(x.dtype)
    return np.where(zero, ones, quotient), np.where(zero, x, remainder)
