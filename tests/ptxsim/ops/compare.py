"""setp, set, selp, slct."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..body import Instruction
from ..floats import f32_from_bf16, flushed
from ..frame import Frame
from ..isa import TYPES, Array
from ..operands import Operand
from ..registry import op, unsupported
from ..values import Access, Read, Step, items
from .common import pick

Test = Callable[[Array, Array], Array]

_ORDERED: dict[str, Test] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_COMBINE: dict[str, Test] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def _unordered(x: Array, y: Array) -> Array:
    return np.isnan(x) | np.isnan(y)


def _test(i: Instruction) -> Test:
    """The comparison: on floats a plain one is false for NaN, one with a final u true."""
    name, is_float = i.mods[0], i.type.is_float
    if not is_float or (name in _ORDERED and name != "ne"):
        test = _ORDERED[name]
    elif name == "ne":
        test = lambda x, y: (x != y) & ~_unordered(x, y)  # noqa: E731
    elif name == "num":
        test = lambda x, y: ~_unordered(x, y)  # noqa: E731
    elif name == "nan":
        test = _unordered
    elif name[:-1] in _ORDERED and name[-1] == "u":
        ordered = _ORDERED[name[:-1]]
        test = lambda x, y: ordered(x, y) | _unordered(x, y)  # noqa: E731
    else:
        raise unsupported(i)
    plain = test
    if i.type.kind == "bf":
        return lambda x, y: plain(f32_from_bf16(x), f32_from_bf16(y))
    if i.has("ftz"):
        return lambda x, y: plain(flushed(x), flushed(y))
    return plain


def _condition(
    i: Instruction, access: Access, sources: tuple[Operand, ...]
) -> tuple[Callable[..., Array], Read, Read, Read | None]:
    test = _test(i)
    a, b = (access.read(o, i.type) for o in sources[:2])
    third = access.read(sources[2], TYPES["pred"]) if len(sources) > 2 else None
    return test, a, b, third


@op("setp")
def setp(i: Instruction, access: Access) -> Step:
    if i.type.element:
        raise unsupported(i)
    outputs = [access.write(o, TYPES["pred"]) for o in items(i.operands[0])]
    test, a, b, third = _condition(i, access, i.operands[1:])
    if third is None and len(outputs) == 1:
        write = outputs[0]
        return lambda f: write(f, test(a(f), b(f)))
    combine = _COMBINE[i.one_of(*_COMBINE)] if third else None

    def step(f: Frame) -> None:
        result = test(a(f), b(f))
        values = [result, ~result]
        for write, value in zip(outputs, values, strict=False):
            write(f, combine(value, third(f)) if combine and third else value)

    return step


@op("set")
def set_(i: Instruction, access: Access) -> Step:
    """As setp, but the result is a number: all ones or 1.0 for true."""
    if i.type.element:
        raise unsupported(i)
    test, a, b, third = _condition(i, access, i.operands[1:])
    combine = _COMBINE[i.one_of(*_COMBINE)] if third else None
    to = i.types[0]
    write = access.result(i, to)
    true = np.array([1.0], to.dtype) if to.kind == "f" else np.array([-1]).astype(to.dtype)

    def step(f: Frame) -> None:
        result = test(a(f), b(f))
        if combine and third:
            result = combine(result, third(f))
        write(f, np.where(result, true, np.zeros(1, to.dtype)))

    return step


@op("selp")
def selp(i: Instruction, access: Access) -> Step:
    yes, no = access.read(i.operands[1], i.type), access.read(i.operands[2], i.type)
    condition = access.read(i.operands[3], TYPES["pred"])
    write = access.result(i)
    return lambda f: write(f, pick(condition(f), yes(f), no(f)))


@op("slct")
def slct(i: Instruction, access: Access) -> Step:
    """The first source where the third is not negative."""
    to, by = i.types
    yes, no = access.read(i.operands[1], to), access.read(i.operands[2], to)
    key = access.read(i.operands[3], by)
    write = access.result(i, to)
    return lambda f: write(f, pick(key(f) >= 0, yes(f), no(f)))
