"""Helpers that the families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..body import Instruction
from ..floats import (
    bf16_from_f32,
    bf16_from_f64,
    f16_from_f64,
    f32_from_bf16,
    flushed,
    saturated,
    to_f32,
)
from ..frame import Frame
from ..isa import Array, Type
from ..registry import unsupported
from ..values import Access, Read, Step, Write

Function = Callable[..., Array]


def step_of(write: Write, fn: Function, reads: Sequence[Read]) -> Step:
    """write(fn(operands...)), without the cost of a general call for one to three operands."""
    if len(reads) == 1:
        (a,) = reads
        return lambda f: write(f, fn(a(f)))
    if len(reads) == 2:
        a, b = reads
        return lambda f: write(f, fn(a(f), b(f)))
    if len(reads) == 3:
        a, b, c = reads
        return lambda f: write(f, fn(a(f), b(f), c(f)))
    return lambda f: write(f, fn(*[read(f) for read in reads]))


def simple(
    i: Instruction,
    access: Access,
    fn: Function,
    types: Sequence[Type] | None = None,
    result: Type | None = None,
) -> Step:
    """Each source is read as its type (default: the instruction's)."""
    types = types or [i.type] * (len(i.operands) - 1)
    reads = [access.read(o, t) for o, t in zip(i.operands[1:], types, strict=True)]
    return step_of(access.write(i.operands[0], result or i.type), fn, reads)


def rounding(i: Instruction) -> str:
    return next((m for m in i.mods if m in ("rn", "rz", "rm", "rp")), "rn")


def widened(x: Array, type_: Type) -> Array:
    return (f32_from_bf16(x) if type_.kind == "bf" else x).astype(np.float64)


def narrowed(x: Array, type_: Type, mode: str = "rn") -> Array:
    """Float64 (exact or rounded to odd) to the storage of a type."""
    if type_.kind == "bf":
        return bf16_from_f64(x, mode)
    if type_.bits == 16:
        return f16_from_f64(x)
    return to_f32(x, mode) if type_.bits == 32 else x


def _with_modifiers(i: Instruction, fn: Function, element: Type) -> Function:
    """Apply .ftz, .sat and .relu around a function on one element type."""
    if i.has("ftz") and element.name == "f32":
        inner = fn
        fn = lambda *x: flushed(inner(*[flushed(v) for v in x]))  # noqa: E731
    if i.has("sat", "relu"):
        plain = fn

        def clamped(*x: Array) -> Array:
            value = plain(*x)
            wide = value if element.kind == "f" else f32_from_bf16(value)
            if i.has("sat"):
                wide = saturated(wide)
            else:
                wide = np.where(wide > 0, wide, wide * 0).astype(wide.dtype)
            return wide if element.kind == "f" else bf16_from_f32(wide)

        fn = clamped
    return fn


def on_pairs(fn: Function, element: Type, dtype: np.dtype[np.generic]) -> Function:
    """Registers pack two elements."""

    def packed(*x: Array) -> Array:
        halves = [np.ascontiguousarray(v).view(element.dtype).reshape(-1, 2) for v in x]
        return np.ascontiguousarray(fn(*halves)).reshape(-1).view(dtype)

    return packed


def float_op(i: Instruction, access: Access, native: Function, exact: Function) -> Step:
    """An arithmetic instruction on any floating type.

    `native` is right in float32 and float64 when rounding to nearest; `exact` takes float64
    values of a narrower type and returns the float64 result, exact or rounded to odd.
    """
    mode, type_ = rounding(i), i.type
    element = type_.element or type_
    mixed = len(i.types) == 2  # add.f32.bf16: the factors are narrow, the last operand is not
    if (i.has("ftz") and element.bits == 16) or (mixed and (mode != "rn" or i.has("sat"))):
        raise unsupported(i)
    if element.bits == 64:
        if mode != "rn":
            raise unsupported(i)
        fn = native
    elif element.name == "f32" and mode == "rn":
        fn = native
    else:

        def fn(*x: Array) -> Array:
            return narrowed(exact(*[widened(v, element) for v in x]), element, mode)

    fn = _with_modifiers(i, fn, element)
    if type_.element:
        fn = on_pairs(fn, element, type_.dtype)
    reads = access.sources(i)
    if mixed:
        reads = mixed_sources(i, access)
        return step_of(access.write(i.operands[0], i.types[0]), native, reads)
    return step_of(access.result(i), fn, reads)


def mixed_sources(i: Instruction, access: Access) -> list[Read]:
    """As float32."""
    wide, narrow = i.types
    reads = [access.read(o, narrow) for o in i.operands[1:-1]]

    def lifted(read: Read) -> Read:
        if narrow.kind == "bf":
            return lambda f: f32_from_bf16(read(f))
        return lambda f: read(f).astype(np.float32)

    return [*map(lifted, reads), access.read(i.operands[-1], wide)]


def pick(condition: Array, yes: Array, no: Array) -> Array:
    """np.where on bits, several times faster for a mixed condition; a fresh array."""
    if condition.shape[0] == 1:
        chosen = yes if condition[0] else no
        size = max(yes.shape[0], no.shape[0])
        return np.broadcast_to(chosen, (size,)).copy()
    kind = np.dtype(f"u{yes.itemsize}")
    mask = np.negative(condition.astype(kind))
    other = no.view(kind)
    result: Array = other ^ ((yes.view(kind) ^ other) & mask)
    return result


def warp_bits(frame: Frame, flags: Array) -> Array:
    """Of each lane's warp: those whose flag is set."""
    marks = np.zeros(frame.machine.lane_count, bool)
    marks[frame.lanes] = flags
    bits: Array = pack_warps(marks)[frame.index >> 5]
    return bits


def pack_warps(marks: Array) -> Array:
    """One 32-bit number a warp."""
    packed = np.packbits(marks.reshape(-1, 32), axis=1, bitorder="little")
    words: Array = packed.view(np.uint32)[:, 0]
    return words
