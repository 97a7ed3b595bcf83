"""A kernel's body: declarations, labels and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeVar

from .errors import SimError, UnsupportedError
from .isa import TYPES, Type
from .operands import Operand, Register, Symbol, parse_operand, split_operands


@dataclass
class Instruction:
    """`@guard opcode.mods operands`. `types` are those of the mods that name a type."""

    pc: int
    opcode: str
    mods: tuple[str, ...]
    types: tuple[Type, ...]
    operands: tuple[Operand, ...]
    guard: Register | None
    line: tuple[int, int] | None  # (file, line) of the source, with -lineinfo
    text: str
    at: int = 0  # where it begins in the kernel's text
    scopes: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()  # of a branch

    def __post_init__(self) -> None:
        self._modset = frozenset(self.mods)

    @property
    def type(self) -> Type:
        """The operation's type: the last one named."""
        if not self.types:
            raise UnsupportedError(f"no type in `{self.text}`")
        return self.types[-1]

    def has(self, *mods: str) -> bool:
        return not self._modset.isdisjoint(mods)

    def one_of(self, *mods: str) -> str:
        """The one of these modifiers that the instruction has."""
        for mod in self.mods:
            if mod in mods:
                return mod
        raise UnsupportedError(f"none of {mods} in `{self.text}`")


@dataclass
class Body:
    code: list[Instruction] = field(default_factory=list)
    registers: list[Type] = field(default_factory=list)
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> (bytes, align)
    local: dict[str, tuple[int, int]] = field(default_factory=dict)


T = TypeVar("T")

LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)[^\n]*")
_LABEL = re.compile(r"([$%\w]+)\s*:(?!:)")
_STATEMENT = re.compile(r"[^;]*;")
_SPACE = re.compile(r"\s+")
_GUARD = re.compile(r"@(!?)\s*([%\w$]+)\s+")
_MEMORY = re.compile(
    r"\.(shared|local|param)((?:\s+\.align\s+\d+|\s+\.\w+(?=\s+\.))*)\s+\.(\w+)\s+([\w$%]+)"
    r"(?:\[(\d*)\])?$"
)
_BRANCHES = ("bra", "brx")


class _Parser:
    """Walks the body once; scopes are the braces of inline assembly."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.body = Body()
        self.scopes: list[int] = [0]
        self.names: dict[int, dict[str, Register]] = {0: {}}
        self.labels: dict[tuple[int, str], int] = {}
        self.tables: dict[tuple[int, str], list[str]] = {}
        self.line: tuple[int, int] | None = None

    def parse(self) -> Body:
        at, text, next_scope = 0, self.text, 1
        while True:
            space = _SPACE.match(text, at)
            at = space.end() if space else at
            if at >= len(text):
                break
            if text[at] == "{":
                self.scopes.append(next_scope)
                self.names[next_scope] = {}
                next_scope += 1
                at += 1
            elif text[at] == "}":
                self.scopes.pop()
                at += 1
            elif loc := LOC.match(text, at):
                self.line = (int(loc[1]), int(loc[2]))
                at = loc.end()
            elif label := _LABEL.match(text, at):
                self.labels[self.scopes[-1], label[1]] = len(self.body.code)
                self.last_label = label[1]
                at = label.end()
            else:
                statement = _STATEMENT.match(text, at)
                if not statement:
                    raise SimError(f"statement without end: {text[at : at + 60]!r}")
                self.statement(" ".join(statement[0][:-1].split()), at)
                at = statement.end()
        self.resolve_branches()
        return self.body

    def lookup(self, name: str) -> Register | None:
        for scope in reversed(self.scopes):
            if name in self.names[scope]:
                return self.names[scope][name]
        return None

    def statement(self, text: str, at: int) -> None:
        if text.startswith(".reg"):
            self.declare_registers(text)
        elif text.startswith(".branchtargets"):
            names = [name.strip() for name in text.split(None, 1)[1].split(",")]
            self.tables[self.scopes[-1], self.last_label] = names
        elif memory := _MEMORY.match(text):
            space, attributes, kind, name, count = memory.groups()
            width = TYPES[kind].bytes
            align = re.search(r"\.align\s+(\d+)", attributes)
            if space != "param":  # a .param here belongs to a call
                table = self.body.shared if space == "shared" else self.body.local
                table[name] = (int(count or 1) * width, int(align[1]) if align else width)
        elif text and not text.startswith("."):
            self.instruction(text, at)

    def declare_registers(self, text: str) -> None:
        kind, names = re.sub(r"^\.reg\s*", "", text).split(None, 1)
        type_ = TYPES[kind.lstrip(".")]
        scope = self.names[self.scopes[-1]]
        for name in names.split(","):
            counted = re.fullmatch(r"\s*(.+)<(\d+)>\s*", name)
            expanded = (
                [f"{counted[1]}{n}" for n in range(int(counted[2]))] if counted else [name.strip()]
            )
            for each in expanded:
                scope[each] = Register(len(self.body.registers), type_)
                self.body.registers.append(type_)

    def instruction(self, text: str, at: int) -> None:
        full, guard = text, None
        if match := _GUARD.match(text):
            register = self.lookup(match[2])
            if register is None:
                raise SimError(f"unknown guard in `{text}`")
            guard = Register(register.slot, register.type, bool(match[1]))
            text = text[match.end() :]
        head, _, rest = text.partition(" ")
        opcode, *mods = head.split(".")
        operands: tuple[Operand, ...] = ()
        if opcode != "call":
            operands = tuple(parse_operand(o, self.lookup) for o in split_operands(rest.strip()))
        self.body.code.append(
            Instruction(
                pc=len(self.body.code),
                opcode=opcode,
                mods=tuple(mods),
                types=tuple(TYPES[mod] for mod in mods if mod in TYPES),
                operands=operands,
                guard=guard,
                line=self.line,
                text=full,
                at=at,
                scopes=tuple(self.scopes),
            )
        )

    def resolve_branches(self) -> None:
        for instruction in self.body.code:
            if instruction.opcode not in _BRANCHES:
                continue
            target = instruction.operands[-1]
            if not isinstance(target, Symbol):
                raise SimError(f"branch target not understood: `{instruction.text}`")
            if instruction.opcode == "bra":
                names = [target.name]
            else:
                names = self.find(self.tables, target.name, instruction)
            instruction.targets = tuple(self.find(self.labels, name, instruction) for name in names)

    @staticmethod
    def find(table: dict[tuple[int, str], T], name: str, instruction: Instruction) -> T:
        for scope in reversed(instruction.scopes):
            if (scope, name) in table:
                return table[scope, name]
        raise SimError(f"no label {name} for `{instruction.text}`")


def parse_body(text: str) -> Body:
    return _Parser(text).parse()
