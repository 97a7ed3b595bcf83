"""Floating-point arithmetic of the PTX simulator against numpy or exact rationals."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ptxsim.testing import elementwise, pair, same, sample

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's own overflows

F32, F64 = np.float32, np.float64


@pytest.mark.parametrize(("name", "kind"), [("f32", F32), ("f64", F64), ("f16", np.float16)])
def test_float_to_nearest(name: str, kind: Any) -> None:
    a, b = pair(kind)
    for op, fn in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
        assert same(elementwise(f"{op}.rn.{name} %d, %a, %b;", [a, b], kind), fn(a, b))
    if name != "f16":
        assert same(elementwise(f"div.rn.{name} %d, %a, %b;", [a, b], kind), np.divide(a, b))
        assert same(elementwise(f"sqrt.rn.{name} %d, %a;", [a], kind), np.sqrt(a))
        assert same(elementwise(f"rcp.rn.{name} %d, %a;", [a], kind), 1 / a)
    assert same(elementwise(f"neg.{name} %d, %a;", [a], kind), -a)
    assert same(elementwise(f"abs.{name} %d, %a;", [a], kind), np.abs(a))


def rounded(exact: Fraction, mode: str) -> float:
    """A rational to float32, by the neighbours of float32's own rounding."""
    near = (
        F32(float(exact))
        if abs(exact) < Fraction(2) ** 128
        else F32(math.inf * (exact > 0) or -math.inf)
    )
    candidates = sorted(
        {float(np.nextafter(near, F32(s * np.inf))) for s in (1, -1)} | {float(near)}
    )
    finite = [c for c in candidates if math.isfinite(c)]
    below = [c for c in finite if Fraction(c) <= exact]
    above = [c for c in finite if Fraction(c) >= exact]
    down, up = below[-1] if below else -math.inf, above[0] if above else math.inf
    if mode == "rm":
        return down
    if mode == "rp":
        return up
    if mode == "rz":
        return down if exact > 0 else up
    if down == up:
        return down
    gap_down, gap_up = exact - Fraction(down), Fraction(up) - exact
    if gap_down != gap_up:
        return down if gap_down < gap_up else up
    return down if not int(np.array(down, F32).view("u4")) & 1 else up


def ordinary(kind: Any, n: int, seed: int) -> Any:
    """Finite numbers of a few binades with few bits: sums cancel and ties occur."""
    rng = np.random.default_rng(seed)
    few = rng.integers(-4096, 4096, n) * 2.0 ** rng.integers(-14, 14, n)
    many = rng.standard_normal(n) * 2.0 ** rng.integers(-20, 20, n)
    return np.where(rng.random(n) < 0.5, few, many).astype(kind)


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_float32_fma_rounds_once(mode: str) -> None:
    a, b, c = (ordinary(F32, 3000, s) for s in range(3))
    c[:1000] = -(a[:1000].astype(F64) * b[:1000]).astype(F32)  # cancellation
    a[1000:1500], b[1000:1500] = a[1000:1500] * F32(2e-20), b[1000:1500] * F32(1e-20)  # subnormal
    c[1000:1500] *= F32(1e-40)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    expected = np.array([rounded(e, mode) for e in exact], F32)
    result = elementwise(f"fma.{mode}.f32 %d, %a, %b, %c;", [a, b, c], F32)
    wrong = (result != expected) & (expected != 0)
    assert not wrong.any()
    assert (result[expected == 0] == 0).all()


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_float32_add_and_mul_directed(mode: str) -> None:
    a, b = ordinary(F32, 2000, 1), ordinary(F32, 2000, 2)
    for op, fn in (("add", operator.add), ("mul", operator.mul)):
        expected = np.array(
            [
                rounded(fn(Fraction(float(x)), Fraction(float(y))), mode)
                for x, y in zip(a, b, strict=True)
            ],
            F32,
        )
        result = elementwise(f"{op}.{mode}.f32 %d, %a, %b;", [a, b], F32)
        assert (result == expected).all()


def test_float64_fma_rounds_once() -> None:
    a, b, c = (ordinary(F64, 2000, s) for s in range(3))
    c[:800] = -(a[:800] * b[:800])
    a[800:900] *= 1e-200
    b[800:900] *= 1e-110
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    result = elementwise("fma.rn.f64 %d, %a, %b, %c;", [a, b, c], F64)
    assert (result == np.array([float(e) for e in exact])).all()
    a, b, c = (sample(F64, seed=s) for s in range(3))
    special = ~np.isfinite(a + b + c)
    result = elementwise("fma.rn.f64 %d, %a, %b, %c;", [a, b, c], F64)
    assert same(result[special], (a * b + c)[special])


@pytest.mark.parametrize("kind", [F32, F64])
def test_min_and_max_of_nan(kind: Any) -> None:
    name = f"f{np.dtype(kind).itemsize * 8}"
    a, b = pair(kind)
    for op, ignoring, propagating in (("max", np.fmax, np.maximum), ("min", np.fmin, np.minimum)):
        result = elementwise(f"{op}.{name} %d, %a, %b;", [a, b], kind)
        assert np.array_equal(result, ignoring(a, b), equal_nan=True)
        if kind is F32:
            result = elementwise(f"{op}.NaN.f32 %d, %a, %b;", [a, b], kind)
            assert np.array_equal(result, propagating(a, b), equal_nan=True)


def test_max_of_three() -> None:
    a, b, c = (sample(F32, seed=s) for s in range(3))
    result = elementwise("max.f32 %d, %a, %b, %c;", [a, b, c], F32)
    assert np.array_equal(result, np.fmax(np.fmax(a, b), c), equal_nan=True)
    result = elementwise("min.NaN.f32 %d, %a, %b, %c;", [a, b, c], F32)
    assert np.array_equal(result, np.minimum(np.minimum(a, b), c), equal_nan=True)


def test_flush_to_zero_and_saturate() -> None:
    tiny = np.array([1e-40, -1e-40, 2.0**-126, 0.0, -0.0, 1.0, np.nan, -3.0, 7.0], F32)
    zero = np.zeros_like(tiny)
    result = elementwise("add.ftz.f32 %d, %a, %b;", [tiny, zero], F32)
    assert same(result, np.array([0, 0, 2.0**-126, 0, 0, 1, np.nan, -3, 7], F32))
    half = np.full_like(tiny, 0.5)
    assert elementwise("mul.ftz.f32 %d, %a, %b;", [tiny, half], F32)[2] == 0
    result = elementwise("add.sat.f32 %d, %a, %b;", [tiny, zero], F32)
    assert same(result, np.array([1e-40, 0, 2.0**-126, 0, 0, 1, 0, 0, 1], F32))


def bf16(x: Any) -> Any:
    """Float32 to bfloat16 and back, by torch."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().float().numpy()


def test_packed_halves() -> None:
    a, b, c = (ordinary(np.float16, 2000, s) for s in range(3))
    words = [x.view("u4") for x in (a, b, c)]
    result = elementwise("fma.rn.f16x2 %d, %a, %b, %c;", words, "u4").view(np.float16)
    exact = a.astype(F64) * b.astype(F64) + c.astype(F64)  # 22 + 11 bits: exact
    assert same(result, exact.astype(np.float16))
    result = elementwise("max.f16x2 %d, %a, %b;", words[:2], "u4").view(np.float16)
    assert np.array_equal(result, np.fmax(a, b))


def test_packed_bfloat16() -> None:
    a, b = (bf16(ordinary(F32, 2000, s)) for s in range(2))
    words = [(x.view("u4") >> np.uint32(16)).astype("u2").view("u4") for x in (a, b)]
    for op, fn in (("add.rn", np.add), ("mul.rn", np.multiply), ("max", np.fmax)):
        result = elementwise(f"{op}.bf16x2 %d, %a, %b;", words, "u4").view("u2")
        wide = (result.astype("u4") << np.uint32(16)).view(F32)
        assert np.array_equal(wide, bf16(fn(a.astype(F64), b.astype(F64)).astype(F32)))


def test_packed_float32() -> None:
    a, b, c = (ordinary(F32, 2000, s) for s in range(3))
    words = [x.view("u8") for x in (a, b, c)]
    result = elementwise("add.rn.f32x2 %d, %a, %b;", words[:2], "u8").view(F32)
    assert same(result, a + b)
    single = elementwise("fma.rn.f32 %d, %a, %b, %c;", [a, b, c], F32)
    assert same(elementwise("fma.rn.f32x2 %d, %a, %b, %c;", words, "u8").view(F32), single)


def test_mixed_precision() -> None:
    a, b = bf16(ordinary(F32, 2000, 1)), ordinary(F32, 2000, 2)
    narrow = (a.view("u4") >> np.uint32(16)).astype("u2")
    assert same(elementwise("sub.rn.f32.bf16 %d, %a, %b;", [narrow, b], F32), a - b)
    half = ordinary(np.float16, 2000, 3)
    result = elementwise("add.rn.f32.f16 %d, %a, %b;", [half, b], F32)
    assert same(result, half.astype(F32) + b)


@pytest.mark.parametrize(
    ("op", "fn", "ulp"),
    [
        ("ex2.approx.ftz", np.exp2, 1),
        ("ex2.approx", np.exp2, 1),
        ("lg2.approx", np.log2, 1),
        ("rcp.approx", np.reciprocal, 1),
        ("rsqrt.approx", lambda x: 1 / np.sqrt(x), 1),
        ("tanh.approx", np.tanh, 1),
        ("sqrt.approx", np.sqrt, 1),
    ],
)
def test_approximations(op: str, fn: Callable[..., Any], ulp: int) -> None:
    a = sample(F32)
    expected = fn(a.astype(F64)).astype(F32)
    if "ftz" in op:
        expected = np.where(np.abs(expected) < F32(2.0**-126), F32(0), expected)
    assert same(elementwise(f"{op}.f32 %d, %a;", [a], F32), expected)
    # The noise moves finite results by at most so many ulp, some of them by that many.
    noisy = elementwise(f"{op}.f32 %d, %a;", [a], F32, noise=2)
    usable = np.isfinite(expected) & (np.abs(expected) > 1e-30)
    step = np.abs(noisy.view("i4")[usable].astype(np.int64) - expected.view("i4")[usable])
    assert step.max() == 2


def test_powers_of_two_have_no_noise() -> None:
    """CUDA's own functions rely on it: tanh, in double."""
    whole = np.arange(-126, 128, dtype=F32)
    noisy = elementwise("ex2.approx.ftz.f32 %d, %a;", [whole], F32, noise=2)
    assert same(noisy, np.ldexp(F32(1), whole.astype(int)))


@pytest.mark.parametrize(("name", "kind"), [("f32", F32), ("f64", F64), ("f16", np.float16)])
def test_comparisons_with_nan(name: str, kind: Any) -> None:
    a, b = pair(kind)
    b[::3] = a[::3]
    code = "setp.{}.{} %p0, %a, %b; selp.b32 %d, 1, 0, %p0;"
    unordered = np.isnan(a) | np.isnan(b)
    tests = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    for test, holds in tests.items():
        result = elementwise(code.format(test, name), [a, b], "u4")
        assert np.array_equal(result, holds & ~unordered)
        result = elementwise(code.format(f"{test}u", name), [a, b], "u4")
        assert np.array_equal(result, holds | unordered)
    assert np.array_equal(elementwise(code.format("num", name), [a, b], "u4"), ~unordered)
    assert np.array_equal(elementwise(code.format("nan", name), [a, b], "u4"), unordered)
