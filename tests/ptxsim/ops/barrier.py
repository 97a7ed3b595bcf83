"""bar.sync and its relatives, bar.warp.sync, the cluster barrier."""

from __future__ import annotations

import numpy as np

from ..body import Instruction
from ..frame import Frame
from ..isa import TYPES
from ..lanes import lanes_of
from ..operands import Immediate, Operand
from ..registry import Sync, op, sync, unsupported
from ..values import Access, Read, Step
from .warp import WarpSync


class BlockBarrier:
    """Waits until the block's threads (or a stated number of them) have come."""

    warp_level = False

    def __init__(self, i: Instruction, number: Read, expected: Read | None, vote: Read | None):
        self.instruction = i
        self.number, self.expected, self.vote = number, expected, vote

    def ready(self, f: Frame) -> Frame | None:
        machine, barriers, pc = f.machine, f.machine.block_barriers, self.instruction.pc
        released = barriers.released(f)
        if released is not None:
            barriers.leave(lanes_of(f.index[released]))
            if released.all():
                return f
            machine.go(pc, lanes_of(f.index[~released]))
            return Frame(machine, lanes_of(f.index[released]), int(released.sum()), {})
        if self.vote is not None:
            barriers.votes[f.lanes] = self.vote(f)
        numbers = self.number(f)
        expected = self.expected(f) if self.expected is not None else None
        if (numbers != numbers[0]).any():
            for number in np.unique(numbers)[1:]:
                machine.go(pc, lanes_of(f.index[numbers == number]))
            f = machine.frame(machine.program.blocks[pc], lanes_of(f.index[numbers == numbers[0]]))
            return self.ready(f)
        count = None if expected is None else int(expected[0])
        go = barriers.arrive(self.instruction, int(numbers[0]), f.index, count)
        if go.all():
            return f
        machine.park(pc, lanes_of(f.index[~go]))
        return Frame(machine, lanes_of(f.index[go]), int(go.sum()), {}) if go.any() else None


class ClusterWait:
    warp_level = False

    def __init__(self, i: Instruction) -> None:
        self.instruction = i

    def ready(self, f: Frame) -> Frame | None:
        machine = f.machine
        state = machine.cluster_barriers.wait(f)
        if (state == 0).any():
            why = "wait at the cluster barrier without arriving first"
            raise machine.fail(self.instruction, why, f.index[state == 0])
        go = state == 2
        if go.all():
            return f
        machine.park(self.instruction.pc, lanes_of(f.index[~go]))
        return Frame(machine, lanes_of(f.index[go]), int(go.sum()), {}) if go.any() else None


def _arguments(i: Instruction) -> tuple[Operand, Operand | None]:
    """(barrier number, count of threads or None), without a reduction's result and predicate."""
    operands = i.operands[1:-1] if i.has("red") else i.operands
    return operands[0] if operands else Immediate("0"), operands[1] if len(operands) > 1 else None


def _block_barrier(i: Instruction, access: Access) -> BlockBarrier:
    number, count = _arguments(i)
    read = access.read(number, TYPES["u32"])
    expected = access.read(count, TYPES["u32"]) if count is not None else None
    vote = access.read(i.operands[-1], TYPES["pred"]) if i.has("red") else None
    return BlockBarrier(i, read, expected, vote)


@sync("bar", "barrier")
def barrier_sync(i: Instruction, access: Access) -> Sync | None:
    if i.has("cluster"):
        return ClusterWait(i) if i.has("wait") else None
    if i.has("warp"):
        return WarpSync(i, access.read(i.operands[0], TYPES["u32"]))
    return None if i.has("arrive") else _block_barrier(i, access)


@op("bar", "barrier")
def barrier(i: Instruction, access: Access) -> Step:
    if i.has("cluster"):
        return _cluster_arrive(i) if i.has("arrive") else lambda f: None
    if i.has("warp"):
        return _warp_barrier
    if i.has("arrive"):
        return _arrive(i, access)
    return _reduction(i, access) if i.has("red") else lambda f: None


def _warp_barrier(f: Frame) -> None:
    """Orders the memory accesses of the warp's threads."""
    races = f.machine.shared.races
    if races is not None:
        races.leave_barrier(f.lanes, races.advance(), scope="warp")


def _cluster_arrive(i: Instruction) -> Step:
    def step(f: Frame) -> None:
        again = f.machine.cluster_barriers.arrive(f)
        if again is not None:
            why = "second arrival at the cluster barrier without a wait"
            raise f.machine.fail(i, why, f.index[again])

    return step


def _arrive(i: Instruction, access: Access) -> Step:
    number, count = _arguments(i)
    if count is None:
        raise unsupported(i)
    read, expected = access.read(number, TYPES["u32"]), access.read(count, TYPES["u32"])

    def step(f: Frame) -> None:
        numbers, counts = read(f), expected(f)
        if (numbers != numbers[0]).any():
            raise f.machine.fail(i, "one arrive at different barriers is not supported", f.index)
        f.machine.block_barriers.arrive(i, int(numbers[0]), f.index, int(counts[0]))

    return step


def _reduction(i: Instruction, access: Access) -> Step:
    mode = i.one_of("popc", "and", "or")
    write = access.result(i, TYPES["u32" if mode == "popc" else "pred"])

    def step(f: Frame) -> None:
        barriers = f.machine.block_barriers
        votes, voters = barriers.tally[f.lanes], barriers.voters[f.lanes]
        results = {"popc": votes.copy(), "and": votes == voters, "or": votes != 0}
        write(f, results[mode])

    return step
