"""cvt and mov of the PTX simulator against numpy, torch and exact integers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ptxsim.testing import elementwise, same, sample

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's own overflows

F16, F32, F64 = np.float16, np.float32, np.float64
INTEGERS = {"u8": "u1", "s8": "i1", "u16": "u2", "s16": "i2", "u32": "u4", "s32": "i4"} | {
    "u64": "u8",
    "s64": "i8",
}


def register(kind: str) -> Any:
    """The numpy type of the narrowest register that holds a type (8 bits live in 16)."""
    size = max(np.dtype(kind).itemsize, 2)
    return np.dtype(f"{np.dtype(kind).kind}{size}")


def bfloat16_bits(x: Any) -> Any:
    tensor = torch.from_numpy(np.ascontiguousarray(x)).bfloat16()
    return tensor.view(torch.int16).numpy().view("u2")


def equal_bfloat16(result: Any, expected: Any) -> bool:
    nan = ((result & 0x7FFF) > 0x7F80) & ((expected & 0x7FFF) > 0x7F80)
    return bool(((result == expected) | nan).all())


@pytest.mark.parametrize("to", INTEGERS)
@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_integer(source: str, to: str) -> None:
    wide = register(INTEGERS[source])
    a = sample(wide)
    narrow = a.astype(INTEGERS[source])
    result = elementwise(f"cvt.{to}.{source} %d, %a;", [a], register(INTEGERS[to]))
    assert same(result, narrow.astype(INTEGERS[to]).astype(register(INTEGERS[to])))
    limits = np.iinfo(INTEGERS[to])
    clamped = [min(max(int(x), limits.min), limits.max) for x in narrow]
    result = elementwise(f"cvt.sat.{to}.{source} %d, %a;", [a], register(INTEGERS[to]))
    assert [int(x) for x in result] == clamped


@pytest.mark.parametrize("to", ["u8", "s8", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("source", [F16, F32, F64])
@pytest.mark.parametrize(
    ("mode", "rule"),
    [("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)],
)
def test_float_to_integer(source: Any, to: str, mode: str, rule: Any) -> None:
    a = sample(source, 1000)
    limits = np.iinfo(INTEGERS[to])

    def convert(x: float) -> int:
        if math.isnan(x):
            return 0
        if math.isinf(x):
            return int(limits.max if x > 0 else limits.min)
        return int(min(max(rule(x), limits.min), limits.max))

    name = f"f{np.dtype(source).itemsize * 8}"
    result = elementwise(f"cvt.{mode}.{to}.{name} %d, %a;", [a], register(INTEGERS[to]))
    assert [int(x) for x in result] == [convert(float(x)) for x in a]


@pytest.mark.parametrize("source", ["s8", "u16", "s32", "u32", "s64", "u64"])
def test_integer_to_float(source: str) -> None:
    a = sample(register(INTEGERS[source]))
    exact = [int(x) for x in a.astype(INTEGERS[source])]
    doubles = np.array([float(x) for x in exact])  # Python rounds once
    assert same(elementwise(f"cvt.rn.f64.{source} %d, %a;", [a], F64), doubles)
    singles = np.array([np.float32(x) if abs(x) < 1 << 53 else single(x) for x in exact], F32)
    assert same(elementwise(f"cvt.rn.f32.{source} %d, %a;", [a], F32), singles)


def single(x: int) -> Any:
    """An integer to float32 with one rounding."""
    shift = max(abs(x).bit_length() - 40, 0)
    kept = abs(x) >> shift | int(abs(x) & ((1 << shift) - 1) != 0)  # the last bit is sticky
    return F32(math.ldexp(kept, shift) * (1 if x >= 0 else -1))


def test_between_floats() -> None:
    for source, to in ((F16, F32), (F16, F64), (F32, F16), (F32, F64), (F64, F16), (F64, F32)):
        a = sample(source)
        names = [f"f{np.dtype(k).itemsize * 8}" for k in (to, source)]
        mode = ".rn" if np.dtype(to).itemsize < np.dtype(source).itemsize else ""
        result = elementwise(f"cvt{mode}.{names[0]}.{names[1]} %d, %a;", [a], to)
        assert same(result, a.astype(to))


@pytest.mark.parametrize(("mode", "sign"), [("rm", -1), ("rp", 1)])
def test_float64_to_float32_directed(mode: str, sign: int) -> None:
    a = sample(F64)
    a = a[np.isfinite(a) & (np.abs(a) < 1e38)]
    result = elementwise(f"cvt.{mode}.f32.f64 %d, %a;", [a], F32)
    wide = result.astype(F64)
    assert (wide * sign >= a * sign).all()
    nearer = np.nextafter(result, F32(-sign * np.inf)).astype(F64)
    assert (nearer * sign < a * sign).all()  # the next one would be on the other side


def test_bfloat16() -> None:
    a = np.concatenate((sample(F32, 40000), np.arange(-300, 300, dtype=F32) * F32(2**-7)))
    result = elementwise("cvt.rn.bf16.f32 %d, %a;", [a], "u2")
    assert equal_bfloat16(result, bfloat16_bits(a))
    bits = np.arange(1 << 16, dtype="u2")
    wide = elementwise("cvt.f32.bf16 %d, %a;", [bits], F32)
    assert same(wide, (bits.astype("u4") << np.uint32(16)).view(F32))
    cut = elementwise("cvt.rz.bf16.f32 %d, %a;", [a], "u2")
    finite = np.isfinite(a)
    assert np.array_equal(cut[finite], (a.view("u4")[finite] >> np.uint32(16)).astype("u2"))


def test_packed() -> None:
    a, b = sample(F32, seed=1), sample(F32, seed=2)
    result = elementwise("cvt.rn.bf16x2.f32 %d, %a, %b;", [a, b], "u4").view("u2").reshape(-1, 2)
    assert equal_bfloat16(result[:, 0], bfloat16_bits(b))  # the second operand is the lower half
    assert equal_bfloat16(result[:, 1], bfloat16_bits(a))
    result = elementwise("cvt.rn.f16x2.f32 %d, %a, %b;", [a, b], "u4").view(F16).reshape(-1, 2)
    assert same(result[:, 0], b.astype(F16))
    assert same(result[:, 1], a.astype(F16))
    rectified = elementwise("cvt.rn.relu.f16x2.f32 %d, %a, %b;", [a, b], "u4").view(F16)
    positive = rectified.reshape(-1, 2)[:, 0]
    assert np.array_equal(positive, np.maximum(b.astype(F16), F16(0)), equal_nan=True)


def test_saturation_and_rounding_to_whole_numbers() -> None:
    a = sample(F32)
    clamped = np.where(np.isnan(a), F32(0), np.clip(a, 0, 1))
    assert (elementwise("cvt.sat.f32.f32 %d, %a;", [a], F32) == clamped).all()
    assert same(elementwise("cvt.rni.f32.f32 %d, %a;", [a], F32), np.rint(a))
    assert same(elementwise("cvt.rmi.f32.f32 %d, %a;", [a], F32), np.floor(a))


def test_moves() -> None:
    a, b = sample("u4", seed=1), sample("u4", seed=2)
    pair = elementwise("mov.b64 %d, {%a, %b};", [a, b], "u8")
    assert same(pair, (b.astype("u8") << np.uint64(32)) | a)
    halves = "mov.b32 {%h0, %h1}, %a; mov.b32 %d, {%h1, %h0};"
    assert same(elementwise(halves, [a], "u4"), (a << np.uint32(16)) | (a >> np.uint32(16)))
    assert same(elementwise("mov.f32 %d, 0f3FB8AA3B;", [a], F32), np.full(len(a), 1.442695, F32))
    assert (elementwise("mov.f64 %d, 0d4000000000000000;", [a], F64) == 2).all()
    assert (elementwise("mov.b32 %d, -0x10;", [a], "i4") == -16).all()
    eight = "mov.b32 {%h0, %h1}, %a; cvt.u32.u8 %d, %h0;"
    assert same(elementwise(eight, [a], "u4"), a & 255)
