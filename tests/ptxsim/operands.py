"""Operands of an instruction, parsed from their text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .isa import Type


@dataclass(frozen=True)
class Register:
    slot: int
    type: Type
    negated: bool = False


@dataclass(frozen=True)
class Special:
    """A read-only register such as %tid.x."""

    name: str


@dataclass(frozen=True)
class Immediate:
    text: str


@dataclass(frozen=True)
class Symbol:
    name: str
    offset: int = 0


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | None
    offset: int = 0


@dataclass(frozen=True)
class Group:
    """A vector `{a, b}` or a destination pair `p|q`."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Sink:
    """`_`: the result is dropped."""


Operand = Register | Special | Immediate | Symbol | Address | Group | Sink
Lookup = Callable[[str], Register | None]

_NUMBER = re.compile(r"-?\d|0[fFdDxX]")
_OFFSET = re.compile(r"(.+?)\s*\+\s*(-?\w+)$")


def split_operands(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    if not text:
        return []
    if "{" not in text and "[" not in text and "(" not in text:
        return [part.strip() for part in text.split(",")]
    parts: list[str] = []
    depth = start = 0
    for at, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and not depth:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _base_and_offset(text: str) -> tuple[str, int]:
    match = _OFFSET.match(text)
    return (match[1], int(match[2], 0)) if match else (text, 0)


def _parse_address(text: str, lookup: Lookup) -> Address:
    name, offset = _base_and_offset(text)
    if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", name):
        return Address(None, int(name, 0) + offset)
    return Address(lookup(name) or Symbol(name), offset)


def parse_operand(text: str, lookup: Lookup) -> Operand:
    if text[0] == "[":
        return _parse_address(text[1:-1].strip(), lookup)
    if text[0] == "{":
        items = split_operands(text[1:-1])
        return Group(tuple(parse_operand(item, lookup) for item in items))
    if text == "_":
        return Sink()
    if "|" in text:
        return Group(tuple(parse_operand(item.strip(), lookup) for item in text.split("|")))
    negated = text[0] == "!"
    register = lookup(text[1:].strip() if negated else text)
    if register:
        return Register(register.slot, register.type, negated) if negated else register
    if _NUMBER.match(text):
        return Immediate(text)
    if text[0] == "%":
        return Special(text)
    return Symbol(*_base_and_offset(text))


def registers_in(operand: Operand, *, addresses: bool = True) -> list[Register]:
    """Without `addresses`, none inside brackets."""
    if isinstance(operand, Register):
        return [operand]
    if isinstance(operand, Group):
        return [r for item in operand.items for r in registers_in(item, addresses=addresses)]
    if isinstance(operand, Address) and isinstance(operand.base, Register) and addresses:
        return [operand.base]
    return []
