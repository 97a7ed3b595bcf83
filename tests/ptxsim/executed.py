"""How many machine instructions the warps of a launch execute.

The simulator knows how often each PTX instruction is executed, and the disassembly which machine
instruction comes from which. That is not yet how often a machine instruction is executed: ptxas
moves code out of loops, makes branches predicates, under which code is issued for nobody, and
copies the bodies of loops. But warps flow through the graph of the machine code: what enters a
block leaves it, and the lanes of a warp that has diverged meet again at a BSYNC. Taken is the flow
that is nearest to the counts of PTX, which is the least sum over machine instructions of

    | times that the block of the instruction is passed - count of its PTX instruction |

The copies of a block are together passed as often as the count says: told by instructions of which
PTX and machine have one each. Of flows equally near the one of fewest instructions is taken.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array

from .body import Instruction
from .counters import Report
from .machine_code import MachineBlock, machine_code

# PTX instructions, not of packed types, of which ptxas makes one of these.
_ONE = {
    "ex2": ("MUFU",),
    "ld": ("LD", "LDG", "LDS"),
    "shfl": ("SHFL",),
    "st": ("ST", "STG", "STS"),
}
_SLIGHTLY = 1e-4
_MOST_MISSED = 0.4  # of all counts; usual are 0 to 8 %


def machine_instructions(launch: Report, ptxas: str) -> int:
    blocks = machine_code(launch.module, launch.kernel, ptxas)
    code = launch.module.kernel(launch.kernel).body.code
    flow = passed(blocks, code, launch.executions)
    return round(sum(times * len(block.code) for times, block in zip(flow, blocks, strict=True)))


class _Term(NamedTuple):
    """These blocks, one for each machine instruction, are together passed `count` times."""

    blocks: tuple[int, ...]
    count: int


def passed(
    blocks: Sequence[MachineBlock], code: Sequence[Instruction], executions: Sequence[int]
) -> list[float]:
    """How often each block is, by warps. `executions` are those of the PTX instructions `code`."""
    terms = _terms(blocks, code, executions)
    outside = len(blocks)  # whence the warps come and where they go
    edges = [(outside, 0)]
    for number, block in enumerate(blocks):
        edges += [(number, successor) for successor in block.successors]
        edges += [(number, outside)] if block.leaves else []
    meetings = {n for n, block in enumerate(blocks) if block.code[-1].is_a("BSYNC")}
    # Unknown are how often each block is passed, each edge, and how far each term is missed.
    first_edge, first_miss = outside + 1, outside + 1 + len(edges)
    limits = _Limits(first_miss + len(terms))
    for block in range(outside + 1):
        into = [edge for edge, (_, to) in enumerate(edges, first_edge) if to == block]
        out = [edge for edge, (at, _) in enumerate(edges, first_edge) if at == block]
        limits.passes(block, into, diverged=block in meetings)
        limits.passes(block, out, diverged=all(to > block for at, to in edges if at == block))
    for miss, term in enumerate(terms, first_miss):
        instructions = collections.Counter(term.blocks)
        limits.at_most(term.count, instructions | {miss: -1})
        limits.at_most(-term.count, {block: -n for block, n in instructions.items()} | {miss: -1})

    cost = np.zeros(limits.unknowns)
    cost[:outside] = [_SLIGHTLY * len(block.code) for block in blocks]
    cost[first_miss:] = list(terms.values())
    bounds = [(0, None)] * limits.unknowns
    bounds[outside] = (executions[0], executions[0])
    solved = linprog(cost, limits.matrix(), limits.most, bounds=bounds)
    assert solved.success, solved.message
    missed = float(cost[first_miss:] @ solved.x[first_miss:])
    if missed > _MOST_MISSED * sum(n * term.count for term, n in terms.items()):
        raise RuntimeError("no flow through the machine code is near to the counts of PTX")
    return list(solved.x[:outside])


class _Limits:
    """Sums of unknowns that are at most a number."""

    def __init__(self, unknowns: int) -> None:
        self.unknowns = unknowns
        self.most = list[float]()
        self.entries = list[tuple[float, int, int]]()

    def at_most(self, most: float, factors: Mapping[int, float]) -> None:
        self.entries += [(factor, len(self.most), at) for at, factor in factors.items()]
        self.most.append(most)

    def passes(self, block: int, edges: Sequence[int], *, diverged: bool) -> None:
        """A block is passed as often as its edges to one side; a warp that has diverged passes
        several of them at once."""
        self.at_most(0, {block: 1} | dict.fromkeys(edges, -1))
        for some in [[edge] for edge in edges] if diverged else [edges]:
            self.at_most(0, {block: -1} | dict.fromkeys(some, 1))

    def matrix(self) -> Any:
        factors, rows, columns = zip(*self.entries, strict=True)
        return csr_array((factors, (rows, columns)), (len(self.most), self.unknowns))


def _terms(
    blocks: Sequence[MachineBlock], code: Sequence[Instruction], executions: Sequence[int]
) -> collections.Counter[_Term]:
    """With the number of machine instructions that tell so, but those under a predicate: they are
    issued with their block, however often PTX executes them."""
    copies = collections.defaultdict[int, list[int]](list)  # by PTX instruction
    for number, block in enumerate(blocks):
        for i in block.code:
            made_of = code[i.source]
            packed = any(mod.endswith("x2") for mod in made_of.mods)
            if i.is_a(*_ONE.get(made_of.opcode, ())) and not packed and not _is_detour(block):
                copies[i.source].append(number)
    copied = {number for places in copies.values() if len(places) > 1 for number in places}
    terms = collections.Counter[_Term]()
    for source, places in copies.items():
        if len(places) > 1:
            terms[_Term(tuple(places), executions[source])] += len(places)
    for number, block in enumerate(blocks):
        if _is_detour(block):
            terms[_Term((number,), 0)] += len(block.code)
        elif number not in copied:
            for i in block.code:
                if i.guard is None or i is block.code[-1]:
                    terms[_Term((number,), executions[i.source])] += 1
    return terms


def _is_detour(block: MachineBlock) -> bool:
    """Around the short way: a call of a subroutine, a shuffle in a warp that has diverged."""
    return any(
        (i.is_a("CALL") and not i.branches) or i.opcode.startswith("WARPSYNC.COLLECTIVE")
        for i in block.code
    )
