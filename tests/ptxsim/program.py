"""A kernel compiled to basic blocks of closures, with the registers live at their edges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from .body import Instruction
from .frame import Frame
from .isa import Type
from .operands import Address, Register, registers_in
from .ops import control  # importing the package fills the registry
from .parser import Module, Variable
from .registry import Sync, build_step, build_sync
from .values import Access, Read, Step, Symbols

_ENDS = ("bra", "brx", "ret", "exit")
# Opcodes whose first operand is read although it is not an address.
_READS_FIRST = ("bra", "brx", "nanosleep", "st", "red", "stmatrix")
_BARRIERS = ("bar", "barrier")


@dataclass
class Block:
    """Executed by the same lanes."""

    start: int
    end: int
    live_in: tuple[int, ...] = ()
    changed: tuple[int, ...] = ()  # registers written here and live afterwards
    steps: list[tuple[Step, tuple[int, ...]]] = field(default_factory=list)  # step, its last uses
    sync: Sync | None = None
    guard: Read | None = None  # of the sync instruction
    finish: Callable[[Frame], None] = lambda frame: None


def _defined(instruction: Instruction) -> list[Register]:
    if not instruction.operands or instruction.opcode in _READS_FIRST:
        return []
    first = instruction.operands[0]
    if instruction.opcode in _BARRIERS and not instruction.has("red"):
        return []
    return [] if isinstance(first, Address) else registers_in(first, addresses=False)


def _used(instruction: Instruction) -> list[Register]:
    defined = _defined(instruction)
    operands = instruction.operands[1:] if defined else instruction.operands
    registers = [register for operand in operands for register in registers_in(operand)]
    if instruction.guard is not None:
        registers.append(instruction.guard)
        registers += defined  # lanes that are guarded off keep the old value
    return registers


def _mask(registers: list[Register]) -> int:
    bits = 0
    for register in registers:
        bits |= 1 << register.slot
    return bits


def _slots(mask: int) -> tuple[int, ...]:
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return tuple(found)


def _layout(variables: list[tuple[str, int, int]], start: int = 0) -> tuple[dict[str, int], int]:
    """Offsets of (name, size, alignment)s, and the end."""
    offsets, end = {}, start
    for name, size, align in variables:
        offsets[name] = -(-end // align) * align
        end = offsets[name] + size
    return offsets, end


class Program:
    """Ready to run. It holds nothing of a launch, so launches can share it."""

    def __init__(self, module: Module, name: str) -> None:
        self.kernel = module.kernel(name)
        body = self.kernel.body
        self.code = body.code
        self.registers: list[Type] = body.registers
        shared = [(n, size, align) for n, (size, align) in body.shared.items()]
        module_shared = [v for v in module.variables if v.space == "shared"]
        shared += [(v.name, v.size, v.align) for v in module_shared if v.size]
        offsets, end = _layout(shared)
        self.static_shared = -(-end // 16) * 16
        dynamic: list[Variable] = [v for v in module_shared if not v.size]
        align = max([16, *(v.align for v in dynamic)])
        self.dynamic_start = -(-end // align) * align if dynamic else self.static_shared
        offsets.update({v.name: self.dynamic_start for v in dynamic})
        local, self.local_bytes = _layout([(n, *sizes) for n, sizes in body.local.items()])
        parameters = {p.name: p.offset for p in self.kernel.parameters}
        self.access = Access(Symbols(offsets, local, parameters))
        self.shared_granule = self._shared_granule()
        self.blocks: dict[int, Block] = {}
        self._compile()

    def shared_bytes(self, dynamic: int) -> int:
        """Static and dynamic."""
        return self.dynamic_start + dynamic if dynamic else self.static_shared

    def _shared_granule(self) -> int:
        """The narrowest access that may be to shared memory: the unit of race detection."""
        widths = [4]
        for i in self.code:
            generic = not i.has("global", "local", "param", "const")
            if (
                i.opcode in ("ld", "st", "atom", "red", "ldmatrix", "stmatrix")
                and generic
                and i.types
            ):
                widths.append(i.type.bytes)
        return min(widths)

    def _compile(self) -> None:
        syncs = {i.pc: s for i in self.code if (s := build_sync(i, self.access))}
        starts = {0, *syncs, *(pc + 1 for pc in syncs)}
        for i in self.code:
            starts.update(i.targets)
            if i.opcode in _ENDS:
                starts.add(i.pc + 1)
        edges = [*sorted(pc for pc in starts if pc < len(self.code)), len(self.code)]
        blocks = [Block(a, b) for a, b in pairwise(edges)]
        self.blocks = {block.start: block for block in blocks}
        self.uses = [_mask(_used(i)) for i in self.code]
        self.defines = [_mask(_defined(i)) for i in self.code]
        live_out = self._liveness(blocks)
        for block in blocks:
            self._compile_block(block, live_out[block.start], syncs.get(block.start))

    def _successors(self, block: Block) -> list[int]:
        last = self.code[block.end - 1]
        falls = last.opcode not in _ENDS or last.guard is not None
        return [t for t in (*last.targets, *([block.end] if falls else [])) if t in self.blocks]

    def _liveness(self, blocks: list[Block]) -> dict[int, int]:
        """Registers live after each block, as bit masks; sets `live_in` and `changed`."""
        needs, kills = {}, {}
        for block in blocks:
            need = kill = 0
            for pc in range(block.start, block.end):
                need |= self.uses[pc] & ~kill
                kill |= self.defines[pc]
            needs[block.start], kills[block.start] = need, kill
        live_in = dict(needs)
        live_out = dict.fromkeys(needs, 0)
        moving = True
        while moving:
            moving = False
            for block in reversed(blocks):
                at, out = block.start, 0
                for successor in self._successors(block):
                    out |= live_in[successor]
                into = needs[at] | (out & ~kills[at])
                moving |= into != live_in[at]
                live_in[at], live_out[at] = into, out
        for block in blocks:
            block.live_in = _slots(live_in[block.start])
            block.changed = _slots(kills[block.start] & live_out[block.start])
        return live_out

    def _compile_block(self, block: Block, live: int, sync: Sync | None) -> None:
        last = self.code[block.end - 1]
        ends = last.opcode in _ENDS
        if ends:
            live |= self.uses[last.pc]
            block.finish = control.branch(last, self.access)
        else:
            block.finish = control.fall_through(block.end, len(self.code))
        for pc in range(block.end - (2 if ends else 1), block.start - 1, -1):
            instruction = self.code[pc]
            step = build_step(instruction, self.access)
            if sync is not None:
                block.sync = sync
                if instruction.guard is not None:
                    block.guard = self.access.read(instruction.guard, instruction.guard.type)
            elif instruction.guard is not None:
                step = self._guarded(instruction, step)
            dead = (self.uses[pc] | self.defines[pc]) & ~live
            block.steps.insert(0, (step, _slots(dead)))
            live = (live & ~self.defines[pc]) | self.uses[pc]

    def _guarded(self, instruction: Instruction, step: Step) -> Step:
        assert instruction.guard is not None
        guard = self.access.read(instruction.guard, instruction.guard.type)
        needed = _slots(self.uses[instruction.pc])
        written = _slots(self.defines[instruction.pc])

        def guarded(frame: Frame) -> None:
            active = guard(frame)
            if active.all():
                step(frame)
            elif active.any():
                chosen = active.nonzero()[0]
                part = frame.subset(chosen, needed)
                step(part)
                frame.merge(chosen, part, written)

        return guarded
