"""Floating-point operations that numpy lacks: bfloat16, directed rounding, fused multiply-add.

Narrow results are computed in float64 "rounded to odd" (an inexact result gets an odd last
bit), which keeps enough to round a second time, in any direction, as if only once.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from .isa import Array

_F32_MIN = np.float32(2.0**-126)
_U16, _U32, _U64 = np.uint16, np.uint32, np.uint64


def flushed(x: Array) -> Array:
    """Subnormals as zeros of their sign (.ftz)."""
    small = np.abs(x) < _F32_MIN
    return np.where(small, np.copysign(np.float32(0), x), x) if small.any() else x


def saturated(x: Array) -> Array:
    """To [0, 1], NaN to 0 (.sat)."""
    return np.where(np.isnan(x), x.dtype.type(0), np.clip(x, 0, 1)).astype(x.dtype)


def _odd(value: Array, error: Array) -> Array:
    """Of a sum and its rounding error."""
    even = (value.view(_U64) & _U64(1)) == 0
    fix = even & (error != 0) & np.isfinite(value)
    if not fix.any():
        return value
    odd: Array = np.where(fix, np.nextafter(value, np.copysign(np.inf, error)), value)
    return odd


def _sum_error(a: Array, b: Array, total: Array) -> Array:
    """The rounding error of `total = a + b` (Knuth's two-sum)."""
    other = total - a
    error: Array = (a - (total - other)) + (b - other)
    return error


def odd_sum(a: Array, b: Array) -> Array:
    total = np.asarray(a + b)
    return _odd(total, _sum_error(a, b, total))


def odd_fma(a: Array, b: Array, c: Array) -> Array:
    """a*b + c rounded to odd; a and b hold float32 values or narrower, so a*b is exact."""
    return odd_sum(a * b, c)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """Rounded to nearest."""
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    result = total.astype(np.float32)
    # Rounding twice differs from once only where float64 fell on a tie of float32.
    doubtful = (total.view(_U64) << _U64(35)) == _U64(1 << 63)
    doubtful |= np.abs(result) < _F32_MIN
    if doubtful.any():
        where = np.flatnonzero(doubtful)
        product, addend = (np.broadcast_to(x, total.shape)[where] for x in (product, addend))
        result[where] = odd_sum(product, addend).astype(np.float32)
    return result


def _split(x: Array) -> tuple[Array, Array]:
    """Veltkamp's split into two halves of at most 26 bits."""
    scaled = x * 134217729.0
    high = scaled - (scaled - x)
    return high, x - high


def _exact_fma(a: float, b: float, c: float) -> float:
    if not np.isfinite([a, b, c]).all():
        return float(np.float64(a) * np.float64(b) + np.float64(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    try:
        return float(exact)  # Fraction rounds once, to nearest even
    except OverflowError:
        return float(np.copysign(np.inf, float(exact > 0) - 0.5))


def fma64(a: Array, b: Array, c: Array) -> Array:
    """Boldo and Melquiond: exact in all ranges."""
    a, b, c = np.broadcast_arrays(a, b, c)
    high = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    low = a2 * b2 - (((high - a1 * b1) - a2 * b1) - a1 * b2)
    total1 = c + low
    error1 = _sum_error(c, low, total1)
    total2 = high + total1
    error2 = _sum_error(high, total1, total2)
    result: Array = total2 + odd_sum(error1, error2)
    size, other = np.abs(high), np.abs(c)
    unsafe = ~((size < 1e290) & (size > 1e-250) & (other < 1e290)) | (np.abs(a) > 1e290)
    unsafe |= (np.abs(b) > 1e290) | ((other < 1e-250) & (other > 0))
    if unsafe.any():
        where = np.flatnonzero(unsafe)
        naive = high[where] + c[where]
        # Where a factor is zero or anything is not finite, the plain expression is right.
        plain = (a[where] == 0) | (b[where] == 0) | ~np.isfinite(a[where] + b[where] + c[where])
        hard = where[~plain]
        result[where] = naive
        result[hard] = [_exact_fma(float(a[i]), float(b[i]), float(c[i])) for i in hard]
    return result


def to_f32(x: Array, mode: str = "rn") -> Array:
    """Float64 (exact or rounded to odd) to float32; mode rn, rz, rm (down) or rp (up)."""
    result = x.astype(np.float32)
    if mode == "rn":
        return result
    back = result.astype(np.float64)
    if mode == "rz":
        wrong, toward = np.abs(back) > np.abs(x), np.float32(0)
    elif mode == "rm":
        wrong, toward = back > x, np.float32(-np.inf)
    else:
        wrong, toward = back < x, np.float32(np.inf)
    return np.where(wrong, np.nextafter(result, toward), result)


def bf16_from_f32(x: Array, mode: str = "rn") -> Array:
    """Float32 to the bits of the nearest bfloat16 (or of the one toward zero)."""
    bits = x.view(_U32)
    if mode == "rz":
        rounded = (bits >> _U32(16)).astype(_U16)
    else:
        rounded = ((bits + (((bits >> _U32(16)) & _U32(1)) + _U32(0x7FFF))) >> _U32(16)).astype(
            _U16
        )
    nan = x != x
    return np.where(nan, _U16(0x7FFF), rounded) if nan.any() else rounded


def bf16_from_f64(x: Array, mode: str = "rn") -> Array:
    near = x.astype(np.float32)
    if mode == "rz":
        return bf16_from_f32(to_f32(x, "rz"), "rz")
    toward = np.where(np.abs(x) > np.abs(near.astype(np.float64)), 1, -1).astype(np.int32)
    inexact = (
        np.isfinite(near) & (near.astype(np.float64) != x) & ((near.view(_U32) & _U32(1)) == 0)
    )
    odd = np.where(inexact, (near.view(np.int32) + toward), near.view(np.int32)).astype(np.int32)
    return bf16_from_f32(odd.view(np.float32))


def f32_from_bf16(bits: Array) -> Array:
    return (bits.astype(_U32) << _U32(16)).view(np.float32)


def f16_from_f64(x: Array) -> Array:
    return x.astype(np.float16)


def nudged(x: Array, ulps: int, seed: int) -> Array:
    """Finite float32 results moved by up to `ulps`, as the hardware's may be off.

    By how far depends on the result and the seed alone: lanes that compute the same get the same.
    0 and 1 stay: the hardware's approximations are exact there.
    """
    mixed = (x.view(np.uint32) ^ np.uint32(seed)) * np.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(0x85EBCA77)
    offset = ((mixed >> np.uint32(8)) % np.uint32(2 * ulps + 1)).astype(np.int32) - ulps
    moved = (x.view(np.int32) + offset).view(np.float32)
    return np.where(np.isfinite(x) & (x != 0) & (x != 1), moved, x)
