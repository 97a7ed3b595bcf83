"""Floating-point arithmetic; the integer forms of the same opcodes are in integer.py."""

from __future__ import annotations

from functools import reduce

import numpy as np

from ..body import Instruction
from ..floats import bf16_from_f32, f32_from_bf16, flushed, fma32, fma64, odd_fma, odd_sum
from ..isa import Array
from ..registry import op, unsupported
from ..values import Access, Step
from . import integer
from .common import Function, float_op, on_pairs, simple
from .transcendental import approximate


def _is_float(i: Instruction) -> bool:
    element = i.type.element or i.type
    return element.is_float


@op("add")
def add(i: Instruction, access: Access) -> Step:
    if not _is_float(i):
        return integer.add(i, access)
    return float_op(i, access, np.add, odd_sum)


@op("sub")
def sub(i: Instruction, access: Access) -> Step:
    if not _is_float(i):
        return integer.sub(i, access)
    return float_op(i, access, np.subtract, lambda a, b: odd_sum(a, -b))


@op("mul")
def mul(i: Instruction, access: Access) -> Step:
    if not _is_float(i):
        return integer.mul(i, access)
    return float_op(i, access, np.multiply, lambda a, b: a * b)


@op("fma", "mad")
def fma(i: Instruction, access: Access) -> Step:
    if not _is_float(i):
        return integer.mad(i, access)
    element = i.type.element or i.type
    native = fma64 if element.bits == 64 else fma32
    if i.type.name == "f32x2":
        native = _flat(fma32)
    return float_op(i, access, native, _flat(odd_fma) if i.type.element else odd_fma)


def _flat(fn: Function) -> Function:
    """A function that patches single elements, applied to pairs."""

    def applied(*x: Array) -> Array:
        pairs = [np.ascontiguousarray(v) for v in np.broadcast_arrays(*x)]
        result: Array = fn(*[v.reshape(-1) for v in pairs]).reshape(pairs[0].shape)
        return result

    return applied


@op("div")
def div(i: Instruction, access: Access) -> Step:
    if not _is_float(i):
        return integer.div(i, access)
    if i.has("rn"):
        return float_op(i, access, np.divide, np.divide)
    return approximate(i, access, np.divide)


def _sign(i: Instruction, access: Access, flip: int) -> Step:
    """neg (flip the sign bit) and abs (clear it), which keep a NaN's payload."""
    element = i.type.element or i.type
    bits = np.uint64(1 << (element.bits - 1))
    if i.type.element:
        bits |= bits << np.uint64(element.bits)
    dtype = np.dtype(f"u{i.type.bytes}")
    top = bits.astype(dtype)

    def fn(x: Array) -> Array:
        if i.has("ftz"):
            x = flushed(x)
        raw: Array = x.view(dtype)
        signed: Array = raw ^ top if flip else raw & ~top
        return signed

    return simple(i, access, fn)


@op("neg")
def neg(i: Instruction, access: Access) -> Step:
    return _sign(i, access, 1) if _is_float(i) else simple(i, access, np.negative)


@op("abs")
def abs_(i: Instruction, access: Access) -> Step:
    return _sign(i, access, 0) if _is_float(i) else simple(i, access, np.abs)


@op("copysign")
def copysign(i: Instruction, access: Access) -> Step:
    # PTX takes the sign from the first source.
    return simple(i, access, lambda sign, value: np.copysign(value, sign))


def _extreme(i: Instruction, access: Access, propagate: Function, ignore: Function) -> Step:
    """min and max of two or (sm_100) three inputs; .NaN propagates a NaN, else it is ignored."""
    if i.has("xorsign", "abs"):
        raise unsupported(i)
    element = i.type.element or i.type
    pick_one = propagate if i.has("NaN") or not element.is_float else ignore

    def fn(*x: Array) -> Array:
        if element.kind == "bf":
            return bf16_from_f32(reduce(pick_one, [f32_from_bf16(v) for v in x]))
        if i.has("ftz"):
            x = tuple(flushed(v) for v in x)
        result = reduce(pick_one, x)
        if i.has("relu"):
            result = np.maximum(result, result.dtype.type(0))
        return result

    if i.has("relu") and element.is_float:
        raise unsupported(i)
    return simple(i, access, on_pairs(fn, element, i.type.dtype) if i.type.element else fn)


@op("max")
def max_(i: Instruction, access: Access) -> Step:
    return _extreme(i, access, np.maximum, np.fmax)


@op("min")
def min_(i: Instruction, access: Access) -> Step:
    return _extreme(i, access, np.minimum, np.fmin)
