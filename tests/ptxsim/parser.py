"""PTX text -> module -> kernels. A kernel's body is parsed when it is first asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from .body import Body, parse_body
from .errors import SimError
from .isa import TYPES, Array
from .operands import split_operands


class Variable(NamedTuple):
    """Of the module or of a kernel; its size in bytes."""

    space: str
    name: str
    size: int
    align: int
    data: Array | None = None  # initial bytes


class Parameter(NamedTuple):
    name: str
    offset: int
    size: int
    type: str


@dataclass
class Kernel:
    name: str
    parameters: list[Parameter]
    parameter_bytes: int
    directives: str
    files: dict[int, str]
    head: str = field(repr=False)  # from .entry to the brace
    text: str = field(repr=False)

    @cached_property
    def body(self) -> Body:
        return parse_body(self.text)

    def limit(self, directive: str) -> tuple[int, ...] | None:
        """The numbers after a directive such as .reqntid, if the kernel has it."""
        match = re.search(re.escape(directive) + r"\s+(\d+(?:\s*,\s*\d+)*)", self.directives)
        return tuple(int(n) for n in match[1].split(",")) if match else None


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)\{")
_VARIABLE = re.compile(
    r"\.(global|const|shared)((?:\s+\.align\s+\d+|\s+\.\w+(?!\s*[\[=;]))*?)"
    r"\s+\.(\w+)\s+([\w$%]+)\s*(\[\d*\])?\s*(?:=\s*([^;]*))?;"
)


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if not depth:
            return match.start()
    raise SimError("unbalanced braces in PTX")


def _alignment(text: str, default: int) -> int:
    match = re.search(r"\.align\s+(\d+)", text)
    return int(match[1]) if match else default


def _initial_bytes(text: str | None, type_name: str, size: int) -> Array:
    data = np.zeros(size, np.uint8)
    if text is None:
        return data
    items = [item.strip() for item in text.strip(" \n\t{}").split(",")]
    if not all(re.fullmatch(r"-?\d+U?|0[xfFdD][0-9a-fA-F]+", item) for item in items):
        raise SimError(f"initial value not understood: {text[:60]}")
    bits = TYPES[type_name].bits
    raw = b"".join(
        (int(item[2:], 16) if item[1:2] in "xfFdD" and item[1:2] else int(item.rstrip("U")))
        .__and__((1 << bits) - 1)
        .to_bytes(bits // 8, "little")
        for item in items
    )
    data[: len(raw)] = np.frombuffer(raw, np.uint8)
    return data


def _parameters(text: str) -> tuple[list[Parameter], int]:
    parameters, end = [], 0
    for item in split_operands(" ".join(text.split())):
        name = re.search(r"([\w$]+)(?:\[(\d+)\])?$", item)
        kind = re.search(r"\.([busf]\d+)\b", item)
        if not name or not kind:
            raise SimError(f"parameter not understood: {item}")
        size = TYPES[kind[1]].bytes
        # The .align after .ptr describes the memory pointed to, not the parameter.
        align = size if ".ptr" in item else _alignment(item, size)
        offset = -(-end // align) * align
        end = offset + int(name[2] or 1) * size
        parameters.append(Parameter(name[1], offset, end - offset, kind[1]))
    return parameters, end


class Module:
    def __init__(self, text: str) -> None:
        target = re.search(r"\.target\s+(sm_(\d+)(\w?))", text)
        self.target = target[1] if target else ""
        self.arch = int(target[2]) if target else 0
        self.specific = bool(target and target[3])  # sm_90a: for that device alone
        files = {int(n): path for n, path in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)}
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        text = re.sub(r"//[^\n]*|\.file[^\n]*", "", text)
        text = re.split(r"\n\s*\.section\b", text, maxsplit=1)[0]
        self.kernels: dict[str, Kernel] = {}
        self.programs: dict[str, Any] = {}  # compiled kernels, kept by launch.py
        outside, at = [], 0
        while match := _ENTRY.search(text, at):
            end = _closing_brace(text, match.end())
            parameters, size = _parameters(match[2] or "")
            self.kernels[match[1]] = Kernel(
                match[1], parameters, size, match[3], files, match[0], text[match.end() : end]
            )
            outside.append(re.sub(r"\.(visible|weak)\s*$", "", text[at : match.start()]))
            at = end + 1
        outside.append(text[at:])
        self.outside = "".join(outside)  # the target, variables
        self.variables = self._variables(self.outside)

    @staticmethod
    def _variables(text: str) -> list[Variable]:
        found = []
        for space, attributes, kind, name, extent, initial in _VARIABLE.findall(text):
            width = TYPES[kind].bytes
            # [] is dynamic shared memory: size 0.
            size = width * int(extent[1:-1] or 0) if extent else width
            data = None if space == "shared" else _initial_bytes(initial or None, kind, size)
            found.append(Variable(space, name, size, _alignment(attributes, width), data))
        return found

    def kernel(self, name: str) -> Kernel:
        """By its name, or the only one whose (mangled) name contains it."""
        if name in self.kernels:
            return self.kernels[name]
        found = [kernel for key, kernel in self.kernels.items() if name in key]
        if len(found) != 1:
            raise KeyError(f"{name}: {len(found)} of the kernels {list(self.kernels)}")
        return found[0]
