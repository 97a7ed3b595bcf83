"""State of the block barriers (bar.sync) and of the cluster barrier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .body import Instruction
from .isa import Array
from .lanes import Lanes, index_of, lanes_of, lanes_where

if TYPE_CHECKING:
    from .frame import Frame
    from .machine import Machine

_IDLE, _RELEASED = -1, -2


class BlockBarriers:
    """16 barriers a block. `state` of a lane: idle, released, or the barrier it waits at."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.state = np.full(machine.lane_count, _IDLE, np.int16)
        self.arrived: dict[int, Array] = {}  # barrier -> threads arrived, by block
        self.expected: dict[int, int] = {}  # barrier -> threads it waits for, if stated
        self.votes = np.zeros(machine.lane_count, bool)  # operands of bar.red
        self.tally = np.zeros(machine.lane_count, np.uint32)  # its results: votes for
        self.voters = np.zeros(machine.lane_count, np.uint32)  # and voters

    def released(self, frame: Frame) -> Array | None:
        """Returns a mask of the lanes that may go."""
        mask = self.state[frame.lanes] == _RELEASED
        return mask if mask.any() else None

    def leave(self, lanes: Lanes) -> None:
        self.state[lanes] = _IDLE

    def arrive(self, i: Instruction, barrier: int, lanes: Array, expected: int | None) -> Array:
        """Returns a mask of the lanes whose barrier is now complete. Those that only arrive
        (bar.arrive) do not wait, whatever the mask."""
        machine = self.machine
        blocks = machine.block_of(lanes)
        if expected is not None:
            self.expected[barrier] = expected
        arrived = self.arrived.setdefault(barrier, np.zeros(machine.block_count, np.int64))
        arrived += np.bincount(blocks, minlength=machine.block_count)
        waits = not i.has("arrive")
        if waits:
            self.state[lanes] = barrier
        complete = self._complete(barrier)
        go: Array = complete[blocks]
        if go.any():
            self._warn_of_mismatch(i, barrier, complete)
            self._open(barrier, complete)
            if waits:
                self.state[lanes[go]] = _IDLE
        return go

    def _warn_of_mismatch(self, i: Instruction, barrier: int, complete: Array) -> None:
        """Threads of a block that meet at different bar instructions: undefined on a device."""
        machine = self.machine
        for pc, lanes in machine.parked.items():
            index = index_of(lanes)
            through = complete[machine.block_of(index)] & (self.state[index] == barrier)
            if pc != i.pc and through.any():
                machine.warn(i, "threads of a block met at different barrier instructions")

    def release(self) -> None:
        """After an exit or an arrival."""
        for barrier in self.arrived:
            complete = self._complete(barrier)
            if complete.any():
                self._open(barrier, complete)

    def _complete(self, barrier: int) -> Array:
        arrived = self.arrived[barrier]
        need = self.expected.get(barrier, self.machine.living)
        done: Array = (arrived > 0) & (arrived >= need)
        return done

    def _open(self, barrier: int, complete: Array) -> None:
        machine = self.machine
        self.arrived[barrier][complete] = 0
        through = complete[machine.lane_blocks] & (self.state == barrier)
        lanes = lanes_where(through)
        if lanes is None:
            return
        blocks = machine.lane_blocks[lanes]
        count = machine.block_count
        self.tally[lanes] = np.bincount(blocks, self.votes[lanes], count)[blocks]
        self.voters[lanes] = np.bincount(blocks, minlength=count)[blocks]
        self.state[lanes] = _RELEASED
        if machine.shared.races is not None:
            machine.shared.races.leave_barrier(lanes, machine.shared.races.advance())
        # The lanes that have just arrived are not parked, so only the others are woken.
        machine.wake(through)


class ClusterBarriers:
    """`state` of a lane: 0, 1 arrived, 2 arrived and everyone else too."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.state = np.zeros(machine.lane_count, np.int8)
        self.stamps = np.zeros(machine.lane_count, np.int64)  # when the barrier completed

    def arrive(self, frame: Frame) -> Array | None:
        """Returns a mask of lanes that arrive twice."""
        again: Array = self.state[frame.lanes] != 0
        if again.any():
            return again
        self.state[frame.lanes] = 1
        if self.machine.shared.races is not None:
            self.machine.shared.races.arrive_cluster(frame.lanes)
        self.release()
        return None

    def release(self) -> None:
        machine = self.machine
        arrived = self.state == 1
        if not arrived.any():
            return
        clusters = machine.block_count // machine.cluster_size
        complete = (arrived | machine.exited).reshape(clusters, -1).all(axis=1)
        through = np.repeat(complete, machine.lane_count // clusters) & arrived
        if not through.any():
            return
        self.state[through] = 2
        if machine.shared.races is not None:
            self.stamps[through] = machine.shared.races.advance()
        machine.wake(through)

    def wait(self, frame: Frame) -> Array:
        """Those at 2 leave the barrier."""
        state = self.state[frame.lanes].copy()
        if (state == 2).all():
            lanes: Lanes = frame.lanes
        elif (state == 2).any():
            lanes = lanes_of(frame.index[state == 2])
        else:
            return state
        self.state[lanes] = 0
        if self.machine.shared.races is not None:
            self.machine.shared.races.leave_barrier(lanes, self.stamps[lanes], scope="cluster")
        return state
