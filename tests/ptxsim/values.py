"""Closures that read and write operands of a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .body import Instruction
from .errors import UnsupportedError
from .frame import Frame
from .isa import TYPES, Array, Type, extended
from .operands import Address, Group, Immediate, Operand, Register, Sink, Special, Symbol

Read = Callable[[Frame], Array]
Write = Callable[[Frame, Array], None]
Step = Callable[[Frame], None]

RANK_SHIFT = 24  # a shared address is (block's rank in its cluster + 1) << 24 | offset
GENERIC_SHARED = 1 << 60
GENERIC_LOCAL = 1 << 61


def immediate(text: str, type_: Type) -> Array:
    one = np.empty(1, type_.dtype)
    prefix, digits = text[:2].lower(), text[2:]
    if prefix in ("0f", "0d") and len(digits) in (8, 16):
        bits = int(digits, 16)
        number = np.array([bits], "u4").view("f4") if prefix == "0f" else None
        if number is None:
            number = np.array([bits], "u8").view("f8")
        # In an integer context the literal stands for its bits.
        one[:] = number if type_.kind == "f" else number.view(f"u{number.itemsize}")
        return one
    if type_.kind == "f" and any(c in text for c in ".eE") and prefix != "0x":
        one[:] = float(text)
        return one
    text = text.rstrip("U")
    if text[0] == "0" and text[1:].isdigit():
        text = "0o" + text[1:]
    value = int(text, 0)
    if type_.kind == "p":
        one[:] = bool(value)
        return one
    raw = (value & ((1 << type_.bits) - 1)).to_bytes(type_.bytes, "little")
    return np.frombuffer(raw, type_.dtype).copy()


@dataclass
class Symbols:
    """Addresses known when a kernel is compiled; globals are found at run time."""

    shared: dict[str, int]
    local: dict[str, int]
    parameters: dict[str, int]


class Access:
    """Readers and writers of one kernel's operands."""

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols

    def read(self, operand: Operand, type_: Type) -> Read:
        if isinstance(operand, Register):
            return _read_register(operand, type_)
        if isinstance(operand, Immediate):
            value = immediate(operand.text, type_)
            return lambda f: value
        if isinstance(operand, Special):
            return _read_special(operand.name, type_)
        if isinstance(operand, Symbol):
            return self._read_symbol(operand, type_)
        raise UnsupportedError(f"operand {operand}")

    def _read_symbol(self, symbol: Symbol, type_: Type) -> Read:
        name, dtype = symbol.name, type_.dtype
        if name in self.symbols.shared:
            offset = np.uint64(self.symbols.shared[name] + symbol.offset)
            return lambda f: (f.machine.shared_window(f) + offset).astype(dtype)
        if name in self.symbols.local:
            value = np.array([self.symbols.local[name] + symbol.offset], np.uint64)
            return lambda f: value.astype(dtype)

        def read_global(f: Frame) -> Array:
            address = f.machine.symbol_address(name) + symbol.offset
            return np.array([address], np.int64).astype(dtype)

        return read_global

    def address(self, operand: Operand) -> Read:
        if not isinstance(operand, Address):
            raise UnsupportedError(f"not an address: {operand}")
        offset = operand.offset
        if operand.base is None:
            fixed = np.array([offset], np.int64)
            return lambda f: fixed
        base = operand.base
        bits = base.type.bits if isinstance(base, Register) else 64
        read = self.read(base, TYPES[f"u{bits}"])
        if bits == 64:
            if not offset:
                return lambda f: read(f).view(np.int64)
            return lambda f: read(f).view(np.int64) + offset
        return lambda f: read(f).astype(np.int64) + offset

    def write(self, operand: Operand, type_: Type) -> Write:
        """Extended to the register's width."""
        if isinstance(operand, Sink):
            return lambda f, value: None
        if not isinstance(operand, Register):
            raise UnsupportedError(f"not a destination: {operand}")
        slot, bits, kind = operand.slot, operand.type.bits, type_.kind
        if bits == type_.bits:

            def write(f: Frame, value: Array) -> None:
                f.regs[slot] = value
        else:

            def write(f: Frame, value: Array) -> None:
                f.regs[slot] = extended(value, kind, bits)

        return write

    def sources(self, instruction: Instruction, type_: Type | None = None) -> list[Read]:
        """Readers of all operands but the first, as the instruction's type."""
        type_ = type_ or instruction.type
        return [self.read(operand, type_) for operand in instruction.operands[1:]]

    def result(self, instruction: Instruction, type_: Type | None = None) -> Write:
        return self.write(instruction.operands[0], type_ or instruction.type)


def items(operand: Operand) -> tuple[Operand, ...]:
    """A single operand is a group of one."""
    return operand.items if isinstance(operand, Group) else (operand,)


def _read_register(register: Register, type_: Type) -> Read:
    slot, dtype = register.slot, type_.dtype
    if register.type.kind == "p":
        if register.negated:
            return lambda f: ~f.regs[slot]
        return lambda f: f.regs[slot]
    if register.type.bits == type_.bits:

        def read(f: Frame) -> Array:
            value = f.regs[slot]
            return value if value.dtype is dtype else value.view(dtype)
    else:
        kind, bits = type_.kind, type_.bits

        def read(f: Frame) -> Array:
            return extended(f.regs[slot], kind, bits).view(dtype)

    return read


def _read_special(name: str, type_: Type) -> Read:
    dtype = type_.dtype

    def read(f: Frame) -> Array:
        value = f.machine.special(name)
        if value.shape[0] != 1:
            value = value[f.lanes]
        return value.astype(dtype)

    return read
