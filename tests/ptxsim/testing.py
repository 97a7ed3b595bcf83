"""Small kernels for testing the simulator itself: one instruction on many values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .counters import Report
from .isa import Array
from .launch import Sim
from .store import aligned_zeros

THREADS = 128  # of a block
HEADER = """.version 8.8
.target sm_{arch}
.address_size 64
"""
_REGISTERS = """
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<32>;
    .reg .b64 %l<32>;
"""
_THREAD = """
    mov.u32 %r30, %ctaid.x;
    mov.u32 %r31, %ntid.x;
    mov.u32 %r29, %tid.x;
    mad.lo.s32 %r30, %r30, %r31, %r29;
"""


def kernel(body: str, parameters: int, *, outside: str = "", arch: int = 100) -> str:
    """PTX of a kernel `k` with pointer parameters p0, p1, ... loaded into %l16, %l17, ...

    %r29 is the thread, %r30 the thread in the grid; %p, %h, %r, %l are predicates and registers
    of 16, 32 and 64 bits.
    """
    names = ", ".join(f".param .u64 p{n}" for n in range(parameters))
    loads = "\n".join(f"    ld.param.u64 %l{16 + n}, [p{n}];" for n in range(parameters))
    return (
        f"{HEADER.format(arch=arch)}{outside}\n.visible .entry k({names})\n{{{_REGISTERS}"
        f"{loads}{_THREAD}{body}\n    ret;\n}}\n"
    )


def launch(
    body: str,
    args: Sequence[Any],
    *,
    grid: int = 1,
    block: int = THREADS,
    smem: int = 0,
    outside: str = "",
    arch: int = 100,
    **options: Any,
) -> Report:
    """Options are those of Sim."""
    sim = Sim(kernel(body, len(args), outside=outside, arch=arch), **options)
    return sim.launch("k", grid, block, args, smem=smem)


def elementwise(code: str, inputs: Sequence[Array], out: Any, *, noise: int = 0) -> Array:
    """Run `code` with %a, %b, %c, ... from the inputs, one element a thread; %d is the result.

    %d has the width of the numpy type `out`; the inputs have the same length.
    """
    n, out = len(inputs[0]), np.dtype(out)
    loads = []
    for k, values in enumerate(inputs):
        name, bits = "abcefg"[k], values.itemsize * 8
        loads.append(f"    .reg .b{bits} %{name};")
        loads.append(f"    mad.wide.u32 %l{k}, %r30, {values.itemsize}, %l{16 + k};")
        loads.append(f"    ld.global.b{bits} %{name}, [%l{k}];")
    last = len(inputs)
    store = (
        f"    mad.wide.u32 %l{last}, %r30, {out.itemsize}, %l{16 + last};\n"
        f"    st.global.b{out.itemsize * 8} [%l{last}], %d;"
    )
    guard = f"    setp.ge.u32 %p7, %r30, {n};\n    @%p7 ret;\n"
    body = "\n".join(
        [guard, f"    .reg .b{out.itemsize * 8} %d;", *loads, f"    {{ {code} }}", store]
    )
    result = np.zeros(n, out)
    args = [*map(np.ascontiguousarray, inputs), result]
    Sim(kernel(body, len(args)), noise=noise).launch("k", -(-n // 128), 128, args)
    return result


def buffer(n: int, kind: Any, *, shift: int = 0) -> Array:
    """Zeros that begin `shift` elements past a boundary of 64 bytes."""
    size = np.dtype(kind).itemsize
    return aligned_zeros((n + shift) * size)[shift * size : (n + shift) * size].view(kind)


def numbers(n: int, kind: str = "f4") -> Array:
    values = buffer(n, kind)
    values[:] = np.random.default_rng(0).integers(1, 1000, n)
    return values


def sample(kind: Any, n: int = 1500, seed: int = 0) -> Array:
    """Random bits, every special value, and ordinary numbers."""
    kind, rng = np.dtype(kind), np.random.default_rng(seed)
    bits = np.dtype(f"u{kind.itemsize}")
    patterns = rng.integers(0, np.iinfo(bits).max, n, bits, endpoint=True).view(kind)
    if kind.kind != "f":
        edges = np.array([0, 1, 2, np.iinfo(kind).min, np.iinfo(kind).max], kind)
        small = rng.integers(0, 70, n // 4).astype(kind)
        return rng.permutation(np.concatenate((patterns, small, edges)))
    info = np.finfo(kind)
    limits = [info.max, info.min, info.tiny, info.smallest_subnormal]
    special = [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, *map(float, limits)]
    edges = np.array([*special, 0.5, 1.5, 2.5, -0.5, 3.5, 2.0**31, -(2.0**31)])
    ordinary = rng.standard_normal(n // 2) * np.exp(rng.uniform(-8, 8, n // 2))
    with np.errstate(all="ignore"):
        return rng.permutation(
            np.concatenate((patterns, edges.astype(kind), ordinary.astype(kind)))
        )


def pair(kind: Any) -> tuple[Array, Array]:
    return sample(kind, seed=1), sample(kind, seed=2)


def same(result: Array, expected: Array) -> bool:
    """Bit for bit; any NaN equals any other."""
    result, expected = np.broadcast_arrays(result, expected)
    if result.dtype.kind == "f":
        nan = np.isnan(result) & np.isnan(expected)
    else:
        nan = np.zeros(result.shape, bool)
    bits = f"u{result.itemsize}"
    equal = np.ascontiguousarray(result).view(bits) == np.ascontiguousarray(expected).view(bits)
    return bool((equal | nan).all())
