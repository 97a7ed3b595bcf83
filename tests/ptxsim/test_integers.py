"""Integers of the PTX simulator: arithmetic, bits, comparisons and a table of branches."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ptxsim.testing import elementwise, pair, same, sample

INTEGERS = {"u16": "u2", "s16": "i2", "u32": "u4", "s32": "i4", "u64": "u8", "s64": "i8"}


def exactly(fn: Callable[..., int], kind: str, *inputs: Any) -> Any:
    """fn on Python integers, wrapped to the type."""
    bits = np.dtype(kind).itemsize * 8
    values = [
        fn(*row) & ((1 << bits) - 1) for row in zip(*[x.tolist() for x in inputs], strict=True)
    ]
    return np.array(values, np.uint64).astype(f"u{bits // 8}").view(kind)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize(
    ("op", "fn"),
    [
        ("add", operator.add),
        ("sub", operator.sub),
        ("mul.lo", operator.mul),
        ("min", min),
        ("max", max),
    ],
)
def test_integer(op: str, fn: Callable[..., int], name: str) -> None:
    a, b = pair(INTEGERS[name])
    result = elementwise(f"{op}.{name} %d, %a, %b;", [a, b], INTEGERS[name])
    assert same(result, exactly(fn, INTEGERS[name], a, b))


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_high_wide_and_mad(name: str) -> None:
    kind = np.dtype(INTEGERS[name])
    bits = kind.itemsize * 8
    (a, b), c = pair(kind), sample(kind, seed=3)
    high = elementwise(f"mul.hi.{name} %d, %a, %b;", [a, b], kind)
    assert same(high, exactly(lambda x, y: (x * y) >> bits, kind.str, a, b))
    low = elementwise(f"mad.lo.{name} %d, %a, %b, %c;", [a, b, c], kind)
    assert same(low, exactly(lambda x, y, z: x * y + z, kind.str, a, b, c))
    if bits < 64:
        double = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
        wide = elementwise(f"mul.wide.{name} %d, %a, %b;", [a, b], double)
        assert same(wide, exactly(operator.mul, double.str, a, b))
        c = sample(double, seed=3)
        wide = elementwise(f"mad.wide.{name} %d, %a, %b, %c;", [a, b, c], double)
        assert same(wide, exactly(lambda x, y, z: x * y + z, double.str, a, b, c))


@pytest.mark.parametrize("name", INTEGERS)
def test_division_truncates_and_by_zero_gives_ones(name: str) -> None:
    kind = INTEGERS[name]
    a, b = pair(kind)

    def quotient(x: int, y: int) -> int:
        return -1 if y == 0 else abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)

    assert same(elementwise(f"div.{name} %d, %a, %b;", [a, b], kind), exactly(quotient, kind, a, b))
    remainder = exactly(lambda x, y: x - y * quotient(x, y) if y else x, kind, a, b)
    assert same(elementwise(f"rem.{name} %d, %a, %b;", [a, b], kind), remainder)


@pytest.mark.parametrize("name", ["b16", "b32", "b64", "s16", "s32", "s64"])
def test_shifts_past_the_width(name: str) -> None:
    bits = int(name[1:])
    kind = f"{'i' if name[0] == 's' else 'u'}{bits // 8}"
    a, n = sample(kind), sample("u4", seed=4)
    right = elementwise(f"shr.{name} %d, %a, %b;", [a, n], kind)
    assert same(right, exactly(lambda x, k: x >> min(k, bits), kind, a, n))
    if name[0] == "b":
        left = elementwise(f"shl.{name} %d, %a, %b;", [a, n], kind)
        assert same(left, exactly(lambda x, k: x << min(k, bits), kind, a, n))


def test_bit_fields() -> None:
    a, b, start, length = (sample("u4", seed=s) for s in range(4))

    def extract(x: int, p: int, n: int) -> int:
        p, n = p & 255, n & 255
        return (x >> p) & ((1 << n) - 1)

    def extract_signed(x: int, p: int, n: int) -> int:
        p, n = p & 255, n & 255
        field = (x >> min(p, 63)) & ((1 << n) - 1)
        return field - (1 << n) if n and field >> (n - 1) & 1 else field

    def insert(x: int, y: int, p: int, n: int) -> int:
        p, n = p & 255, n & 255
        mask = ((1 << n) - 1) << p
        return (y & ~mask) | ((x << p) & mask)

    assert same(
        elementwise("bfe.u32 %d, %a, %b, %c;", [a, start, length], "u4"),
        exactly(extract, "u4", a, start, length),
    )
    signed = a.view("i4")
    assert same(
        elementwise("bfe.s32 %d, %a, %b, %c;", [signed, start, length], "i4"),
        exactly(extract_signed, "i4", signed, start, length),
    )
    assert same(
        elementwise("bfi.b32 %d, %a, %b, %c, %e;", [a, b, start, length], "u4"),
        exactly(insert, "u4", a, b, start, length),
    )


def test_bit_counts() -> None:
    for bits in (32, 64):
        kind = f"u{bits // 8}"
        a = np.concatenate((sample(kind), np.array([1 << k for k in range(bits)], kind)))
        run = lambda code, a=a: elementwise(code, [a], "u4")  # noqa: E731
        assert same(run(f"popc.b{bits} %d, %a;"), exactly(lambda x: bin(x).count("1"), "u4", a))
        lead = exactly(lambda x, bits=bits: bits - x.bit_length(), "u4", a)
        assert same(run(f"clz.b{bits} %d, %a;"), lead)
        assert same(run(f"bfind.u{bits} %d, %a;"), exactly(lambda x: x.bit_length() - 1, "u4", a))
        turned = exactly(lambda x, bits=bits: int(f"{x:0{bits}b}"[::-1], 2), kind, a)
        assert same(elementwise(f"brev.b{bits} %d, %a;", [a], kind), turned)
    a = sample("i4")
    place = exactly(lambda x: (x if x >= 0 else ~x).bit_length() - 1, "u4", a)
    assert same(elementwise("bfind.s32 %d, %a;", [a], "u4"), place)


def test_logic_and_bytes() -> None:
    a, b, c = (sample("u4", seed=s) for s in range(3))
    assert same(elementwise("and.b32 %d, %a, %b;", [a, b], "u4"), a & b)
    assert same(elementwise("not.b32 %d, %a;", [a], "u4"), ~a)
    for table, expected in ((0x80, a & b & c), (0xFE, a | b | c), (0x96, a ^ b ^ c), (0, a & 0)):
        assert same(elementwise(f"lop3.b32 %d, %a, %b, %c, {table};", [a, b, c], "u4"), expected)
    both = (b.astype("u8") << np.uint64(32)) | a

    def permute(v: int, s: int) -> int:
        chosen = []
        for k in range(4):
            n = s >> 4 * k & 15
            byte = v >> 8 * (n & 7) & 255
            chosen.append((255 if byte & 128 else 0) if n & 8 else byte)
        return int.from_bytes(bytes(chosen), "little")

    assert same(
        elementwise("prmt.b32 %d, %a, %b, %c;", [a, b, c], "u4"), exactly(permute, "u4", both, c)
    )
    wrap = exactly(lambda v, n: v << (n & 31) >> 32, "u4", both, c)
    assert same(elementwise("shf.l.wrap.b32 %d, %a, %b, %c;", [a, b, c], "u4"), wrap)
    clamp = exactly(lambda v, n: v >> min(n, 32), "u4", both, c)
    assert same(elementwise("shf.r.clamp.b32 %d, %a, %b, %c;", [a, b, c], "u4"), clamp)


def test_comparisons_of_integers_and_predicates() -> None:
    a, b = pair("u4")
    b[::3] = a[::3]
    code = "setp.{} %p0, %a, %b; selp.b32 %d, 1, 0, %p0;"
    assert np.array_equal(
        elementwise(code.format("lt.s32"), [a, b], "u4"), a.view("i4") < b.view("i4")
    )
    assert np.array_equal(elementwise(code.format("hs.u32"), [a, b], "u4"), a >= b)
    both = """setp.eq.u32 %p1, %a, %b; setp.gt.and.u32 %p2|%p3, %a, 77, !%p1;
              selp.b32 %r0, 1, 0, %p2; selp.b32 %r1, 2, 0, %p3; or.b32 %d, %r0, %r1;"""
    result = elementwise(both, [a, b], "u4")
    assert np.array_equal(result, ((a > 77) & (a != b)) + 2 * (~(a > 77) & (a != b)))
    number = elementwise("set.lt.u32.s32 %d, %a, %b;", [a, b], "u4")
    assert np.array_equal(number, np.where(a.view("i4") < b.view("i4"), 0xFFFFFFFF, 0))
    number = elementwise("set.eq.f32.u32 %d, %a, %b;", [a, b], np.float32)
    assert np.array_equal(number, a == b)
    slct = elementwise("slct.b32.s32 %d, %a, %b, %c;", [a, b, sample("i4", seed=5)], "u4")
    assert np.array_equal(slct, np.where(sample("i4", seed=5) >= 0, a, b))


def test_a_table_of_branches() -> None:
    code = """and.b32 %r0, %a, 3; mov.b32 %d, 9; brx.idx %r0, table;
        table: .branchtargets one, two, one, three;
        one: mov.b32 %d, 1; bra done; two: mov.b32 %d, 2; bra done; three: mov.b32 %d, 3; done:"""
    a = sample("u4")
    assert np.array_equal(elementwise(code, [a], "u4"), np.array([1, 2, 1, 3])[a & 3])
