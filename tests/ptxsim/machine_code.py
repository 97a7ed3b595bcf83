"""The machine code that ptxas makes of a kernel, as a graph of basic blocks, in which each machine
instruction knows the PTX instruction that it comes from.

For that every PTX instruction is given a source line of its own. The code is the same as without.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .body import LOC
from .cuda_build import find_tool
from .parser import Module

_LINE = re.compile(r'//## File "ptx", line (\d+)')
_LABEL = re.compile(r"([.$\w]+):$")
_CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_TARGET = re.compile(r"\.L_x_\d+")


@dataclass(frozen=True)
class MachineInstruction:
    opcode: str  # with its modifiers
    operands: str
    guard: str | None
    source: int  # the number of the PTX instruction

    def is_a(self, *opcodes: str) -> bool:
        return self.opcode.split(".")[0] in opcodes

    @property
    def branches(self) -> bool:
        """A call of a label is a branch too; what it leaves behind is never read."""
        return self.is_a("BRA", "BRX") or (self.is_a("CALL") and ".L_x_" in self.operands)

    @property
    def ends_block(self) -> bool:
        return self.branches or self.is_a("BSYNC", "EXIT", "RET")


@dataclass
class MachineBlock:
    """Instructions that a warp executes one after the other."""

    code: list[MachineInstruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)  # numbers of blocks
    leaves: bool = False  # a warp may end here


@functools.cache
def machine_code(module: Module, kernel: str, ptxas: str) -> list[MachineBlock]:
    """The blocks of a kernel in their order in memory, without the subroutines behind it, which
    divide and take roots of operands that the short way cannot take."""
    nvdisasm = find_tool("nvdisasm")
    if nvdisasm is None:
        raise FileNotFoundError("nvdisasm is neither on the path nor in Triton's package")
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(numbered(module, kernel))
        command = [ptxas, "-lineinfo", "-arch", module.target, str(source), "-o", str(cubin)]
        subprocess.run(command, check=True, capture_output=True)
        command = [nvdisasm, "--print-line-info", "--print-code", str(cubin)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return blocks_of(listing)


def numbered(module: Module, name: str) -> str:
    """The PTX of one kernel: before each instruction the source line of its number, from 1."""
    kernel = module.kernel(name)
    parts, end = [], 0
    for instruction in kernel.body.code:
        parts.append(LOC.sub("", kernel.text[end : instruction.at]))
        parts.append(f"\n.loc 1 {instruction.pc + 1} 0\n")
        end = instruction.at
    parts.append(LOC.sub("", kernel.text[end:]))
    return f'{module.outside}\n.file 1 "ptx"\n.visible {kernel.head}{"".join(parts)}}}\n'


def blocks_of(listing: str) -> list[MachineBlock]:
    """Of a kernel as nvdisasm lists it."""
    blocks = [MachineBlock()]
    labels: dict[str, int] = {}
    source = 0
    for line in listing.splitlines():
        if found := _LINE.search(line):
            source = int(found[1]) - 1
        elif found := _LABEL.match(line):
            if found[1].startswith("$"):  # a subroutine
                break
            if blocks[-1].code:
                blocks.append(MachineBlock())
            labels[found[1]] = len(blocks) - 1
        elif found := _CODE.search(line):
            guard, opcode, operands = found.groups()
            blocks[-1].code.append(MachineInstruction(opcode, operands.strip(), guard, source))
            if blocks[-1].code[-1].ends_block:
                blocks.append(MachineBlock())
    if not blocks[-1].code:
        blocks.pop()
    meetings: dict[str, str] = {}  # where the lanes that wait at a BSYNC go on, by its barrier
    for number, block in enumerate(blocks):
        for instruction in block.code:
            if instruction.is_a("BSSY"):
                barrier, label = instruction.operands.split(",")
                meetings[barrier] = _TARGET.findall(label)[0]
        last = block.code[-1]
        target = meetings[last.operands] if last.is_a("BSYNC") else last.operands
        block.leaves = last.is_a("EXIT", "RET")
        if last.branches or last.is_a("BSYNC"):
            block.successors = [labels[label] for label in _TARGET.findall(target)]
        # Besides its guard, a branch may have a predicate or a mask of lanes before its target.
        conditional = last.guard is not None or (last.is_a("BRA") and "," in last.operands)
        if conditional or not last.ends_block:
            block.successors.append(number + 1)
    reached, new = set[int](), {0}
    while new:
        reached |= new
        new = {to for number in new for to in blocks[number].successors} - reached
    return blocks[: max(reached) + 1]  # without the trap at the end
