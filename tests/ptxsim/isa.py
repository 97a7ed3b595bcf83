"""PTX types and the numpy types that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNSIGNED: dict[int, np.dtype[Any]] = {b: np.dtype(f"u{b // 8}") for b in (8, 16, 32, 64)}
SIGNED: dict[int, np.dtype[Any]] = {b: np.dtype(f"i{b // 8}") for b in (8, 16, 32, 64)}
FLOAT: dict[int, np.dtype[Any]] = {b: np.dtype(f"f{b // 8}") for b in (16, 32, 64)}
# numpy has no 128-bit integer; a complex128 carries the bits (it is only ever moved).
CONTAINER: dict[int, np.dtype[Any]] = {
    **{b // 8: d for b, d in UNSIGNED.items()},
    16: np.dtype(np.complex128),
}


@dataclass(frozen=True)
class Type:
    """A PTX type. `kind` is b(its), u, s, f(loat), bf(loat16) or p(redicate)."""

    name: str
    kind: str
    bits: int
    dtype: np.dtype[Any]
    element: Type | None = None  # of a packed type such as bf16x2

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind in ("f", "bf")


def _types() -> dict[str, Type]:
    table = {"pred": Type("pred", "p", 1, np.dtype(bool))}
    for bits in (8, 16, 32, 64):
        table[f"b{bits}"] = Type(f"b{bits}", "b", bits, UNSIGNED[bits])
        table[f"u{bits}"] = Type(f"u{bits}", "u", bits, UNSIGNED[bits])
        table[f"s{bits}"] = Type(f"s{bits}", "s", bits, SIGNED[bits])
    table["b128"] = Type("b128", "b", 128, CONTAINER[16])
    for bits in (16, 32, 64):
        table[f"f{bits}"] = Type(f"f{bits}", "f", bits, FLOAT[bits])
    table["bf16"] = Type("bf16", "bf", 16, UNSIGNED[16])
    for element, bits in (("f16", 32), ("bf16", 32), ("f32", 64), ("s16", 32), ("u16", 32)):
        name = f"{element}x2"
        table[name] = Type(name, "b", bits, UNSIGNED[bits], table[element])
    return table


TYPES = _types()


def bits_type(bits: int) -> Type:
    """The untyped-bits type of a width."""
    return TYPES[f"b{bits}"]


def extended(value: Array, kind: str, bits: int) -> Array:
    """`value` sign- or zero-extended, or truncated, to an integer of `bits`."""
    if value.dtype.itemsize * 8 == bits:
        return value
    size = value.dtype.itemsize * 8
    if kind == "s":
        return value.view(SIGNED[size]).astype(SIGNED[bits])
    return value.view(UNSIGNED[size]).astype(UNSIGNED[bits])
