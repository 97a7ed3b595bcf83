"""cvt: between integers and all floating types, with rounding, saturation and packing."""

from __future__ import annotations

import numpy as np

from ..body import Instruction
from ..floats import bf16_from_f32, f32_from_bf16, flushed, saturated
from ..isa import TYPES, Array, Type, extended
from ..registry import op, unsupported
from ..values import Access, Step
from .common import Function, narrowed, rounding, simple, widened

_TO_INTEGER = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def _integer_rounding(i: Instruction) -> Function | None:
    return next((_TO_INTEGER[m] for m in i.mods if m in _TO_INTEGER), None)


def _float_to_integer(i: Instruction, to: Type, source: Type) -> Function:
    """Out of range gives the nearest end of the range, NaN gives 0."""
    rounded = _integer_rounding(i) or np.trunc
    limits = np.iinfo(to.dtype)
    low, high = float(limits.min), float(limits.max)  # high may round up, hence the >= below

    def fn(x: Array) -> Array:
        value = rounded(widened(flushed(x) if i.has("ftz") else x, source))
        inside = (value > low) & (value < high)
        result = np.where(inside, value, 0.0).astype(to.dtype)
        result[value >= high] = limits.max
        result[value <= low] = limits.min
        return result

    return fn


def _float_to_float(i: Instruction, to: Type, source: Type) -> Function:
    mode, ftz = rounding(i), i.has("ftz")
    rounded = _integer_rounding(i)

    def fn(x: Array) -> Array:
        if ftz and source.name == "f32":
            x = flushed(x)
        if rounded is not None:
            x = rounded(x)
        if source.name == "bf16" and to.name == "f32":
            result = f32_from_bf16(x)
        elif source.name == "f32" and to.kind == "bf" and mode in ("rn", "rz"):
            result = bf16_from_f32(x, mode)
        elif mode == "rn" and to.kind == "f" and source.kind == "f":
            result = x.astype(to.dtype)
        else:
            result = narrowed(widened(x, source), to, mode)
        if i.has("sat"):
            result = saturated(result)
        if i.has("relu"):
            result = _rectified(result, to)
        return flushed(result) if ftz and to.name == "f32" else result

    def fresh(x: Array) -> Array:
        result = fn(x)
        return result.copy() if result is x else result

    if mode not in ("rn", "rz") and not (to.name == "f32" and source.kind == "f"):
        raise unsupported(i)
    if mode == "rz" and to.name == "f16":
        raise unsupported(i)
    return fresh


def _rectified(x: Array, type_: Type) -> Array:
    """Negative numbers to zero."""
    value = f32_from_bf16(x) if type_.kind == "bf" else x
    return np.where(value < 0, x.dtype.type(0), x)


def _integer_to_float(i: Instruction, to: Type) -> Function:
    mode = rounding(i)
    if mode != "rn":
        raise unsupported(i)

    def fn(x: Array) -> Array:
        if to.kind == "bf":
            return narrowed(x.astype(np.float64), to)
        result = x.astype(to.dtype)
        return saturated(result) if i.has("sat") else result

    if to.kind == "bf" and i.types[1].bits == 64:
        raise unsupported(i)  # would round twice
    return fn


def _integer_to_integer(i: Instruction, to: Type, source: Type) -> Function:
    if not i.has("sat"):
        return lambda x: extended(x, source.kind, to.bits).copy()
    limits, own = np.iinfo(to.dtype), np.iinfo(source.dtype)
    low, high = max(limits.min, own.min), min(limits.max, own.max)
    return lambda x: np.clip(x, low, high).astype(to.dtype)


def _packed(i: Instruction, access: Access) -> Step:
    """cvt.rn.bf16x2.f32 d, a, b: a is the upper half."""
    to = i.types[0].element
    if to is None or i.types[1].name != "f32" or i.has("satfinite"):
        raise unsupported(i)
    one = _float_to_float(i, to, TYPES["f32"])
    sixteen = np.uint32(16)

    def fn(high: Array, low: Array) -> Array:
        upper, lower = (one(x).view(np.uint16).astype(np.uint32) for x in (high, low))
        return upper << sixteen | lower

    return simple(i, access, fn, [TYPES["f32"]] * 2, i.types[0])


@op("cvt")
def cvt(i: Instruction, access: Access) -> Step:
    if len(i.types) != 2 or i.has("satfinite", "rna"):
        raise unsupported(i)
    to, source = i.types
    if to.element and source.element:
        raise unsupported(i)
    if to.element:
        return _packed(i, access)
    if source.is_float:
        fn = (_float_to_float if to.is_float else _float_to_integer)(i, to, source)
    elif to.is_float:
        fn = _integer_to_float(i, to)
    else:
        fn = _integer_to_integer(i, to, source)
    return simple(i, access, fn, [source], to)
