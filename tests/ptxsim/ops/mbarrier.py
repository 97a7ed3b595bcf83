"""mbarrier objects in shared memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..async_state import MBarrier
from ..body import Instruction
from ..frame import Frame
from ..isa import TYPES, Array
from ..lanes import lanes_of
from ..operands import Address
from ..registry import Sync, op, sync, unsupported
from ..targets import resolve
from ..values import Access, Read, Step
from .move import space_of


def _keys(i: Instruction, f: Frame, addresses: Array) -> Array:
    keys = np.zeros(f.n, np.int64)
    for target in resolve(i, f, space_of(i), f.spread(addresses), 8, write=False):
        keys[slice(None) if target.chosen is None else target.chosen] = target.offsets
    return keys


def find(i: Instruction, f: Frame, key: int) -> MBarrier:
    barrier = f.machine.copies.mbarriers.get(key)
    if barrier is None:
        raise f.machine.fail(i, "mbarrier used before its initialisation", f.index)
    return barrier


def _each(keys: Array) -> Iterator[tuple[int, Array]]:
    """Distinct keys, each with a mask of its lanes."""
    if (keys == keys[0]).all():
        yield int(keys[0]), np.ones(keys.size, bool)
        return
    for key in np.unique(keys):
        yield int(key), keys == key


@op("mbarrier")
def mbarrier(i: Instruction, access: Access) -> Step:
    if i.has("init"):
        return _init(i, access)
    if i.has("inval"):
        return lambda f: None
    if i.has("test_wait", "try_wait"):
        write = access.write(i.operands[0], TYPES["pred"])
        return lambda f: write(f, np.ones(1, bool))
    if i.has("arrive", "expect_tx", "arrive_drop", "complete_tx"):
        return _arrive(i, access)
    raise unsupported(i)


def _init(i: Instruction, access: Access) -> Step:
    address, count = access.address(i.operands[0]), access.read(i.operands[1], TYPES["u32"])

    def step(f: Frame) -> None:
        counts = f.spread(count(f))
        for key, n in zip(_keys(i, f, address(f)).tolist(), counts.tolist(), strict=True):
            f.machine.copies.mbarriers[key] = MBarrier(n, n)

    return step


def _arrive(i: Instruction, access: Access) -> Step:
    """arrive [with a count], expect_tx, both, complete_tx; the state is the phase's number."""
    place = next(k for k, operand in enumerate(i.operands) if isinstance(operand, Address))
    address = access.address(i.operands[place])
    state = access.write(i.operands[0], TYPES["b64"]) if place else None
    more = i.operands[place + 1 :]
    number = access.read(more[0], TYPES["u32"]) if more else None
    arrives, drops, transfers = (
        i.has("arrive", "arrive_drop"),
        i.has("arrive_drop"),
        i.has("expect_tx", "complete_tx"),
    )
    sign = -1 if i.has("complete_tx") else 1

    def step(f: Frame) -> None:
        machine, copies = f.machine, f.machine.copies
        numbers = f.spread(number(f)).astype(np.int64) if number else np.ones(f.n, np.int64)
        phases = np.zeros(f.n, np.uint64)
        keys = _keys(i, f, address(f))
        if machine.shared.races is not None:
            machine.shared.races.arrive_cluster(f.lanes)
        for key, mask in _each(keys):
            barrier, amount = find(i, f, key), int(numbers[mask].sum())
            phases[mask] = barrier.phase
            if transfers:
                barrier.bytes += sign * amount
            if arrives:
                count = int(mask.sum()) if transfers else amount
                if count > barrier.pending:
                    raise machine.fail(i, "more arrivals than the mbarrier expects", f.index[mask])
                barrier.pending -= count
                barrier.expected -= count if drops else 0
            copies.check(barrier)
        if state:
            state(f, phases)

    return step


class PhaseWait:
    """A spinning loop sees only the phase's end."""

    warp_level = False

    def __init__(self, i: Instruction, address: Read, state: Read, *, parity: bool) -> None:
        self.instruction, self.address, self.state, self.parity = i, address, state, parity

    def ready(self, f: Frame) -> Frame | None:
        machine, state = f.machine, f.spread(self.state(f)).astype(np.int64)
        done = np.zeros(f.n, bool)
        for key, mask in _each(_keys(self.instruction, f, self.address(f))):
            phase = find(self.instruction, f, key).phase
            done[mask] = (phase & 1) != (state[mask] & 1) if self.parity else phase > state[mask]
        go = f.index[done]
        if go.size and machine.shared.races is not None:
            races = machine.shared.races
            races.leave_barrier(go, races.advance(), scope="cluster")
        if done.all():
            return f
        stay = f.index[~done]
        machine.copies.waiting[stay] = True
        machine.park(self.instruction.pc, lanes_of(stay))
        return Frame(machine, lanes_of(go), go.size, {}) if go.size else None


@sync("mbarrier")
def mbarrier_wait(i: Instruction, access: Access) -> Sync | None:
    if not i.has("test_wait", "try_wait"):
        return None
    address, parity = access.address(i.operands[1]), i.has("parity")
    state = access.read(i.operands[2], TYPES["u32" if parity else "b64"])
    return PhaseWait(i, address, state, parity=parity)
