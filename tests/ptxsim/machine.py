"""Runs a chunk of blocks (whole clusters) to their end, one lane per thread."""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np

from .async_state import AsyncState
from .barriers import BlockBarriers, ClusterBarriers
from .body import Instruction
from .counters import Access, Counters
from .errors import SimError
from .frame import Frame, Registers, merged, zero
from .global_memory import GlobalMemory
from .isa import Array
from .lanes import Lanes, count_of, index_of, lanes_of, lanes_where, sorted_distinct, union
from .program import Block, Program
from .scheduler import Scheduler
from .shared_memory import LocalMemory, SharedMemory
from .specials import special_register
from .values import RANK_SHIFT

Dim = tuple[int, int, int]


@dataclass
class Launch:
    """What its chunks have in common."""

    program: Program
    memory: GlobalMemory
    counters: Counters
    grid: Dim
    block: Dim
    cluster: Dim
    dynamic_shared: int
    parameters: Array  # the bytes of the parameters
    parameter_base: int  # their simulated address
    symbols: dict[str, int]  # addresses of the module's variables
    rng: np.random.Generator
    random: bool = False  # schedule
    noise: int = 0
    seed: int = 0  # of the noise
    races: bool = True
    max_steps: int = 10_000_000

    @property
    def shared_bytes(self) -> int:
        return self.program.shared_bytes(self.dynamic_shared)


class Machine:
    """State of the chunk. Lanes are numbered block by block, warps padded to 32 lanes."""

    def __init__(self, launch: Launch, blocks: Array) -> None:
        self.launch, self.program = launch, launch.program
        self.memory, self.counters = launch.memory, launch.counters
        self.blocks = blocks  # their numbers in the grid
        self.block_count = blocks.size
        threads = int(np.prod(launch.block))
        self.cluster_size = int(np.prod(launch.cluster))
        self.lanes_per_block = -(-threads // 32) * 32
        self.lane_count = self.block_count * self.lanes_per_block
        self.exited = np.arange(self.lane_count) % self.lanes_per_block >= threads
        self.living = np.full(self.block_count, threads)  # threads of each block
        self.lane_blocks = np.arange(self.lane_count) // self.lanes_per_block
        self.ranks = self.lane_blocks % self.cluster_size
        self.windows = (self.ranks + 1) << RANK_SHIFT  # shared-memory address of the own block
        self.wait_mask = np.zeros(self.lane_count, np.uint32)  # of lanes waiting in their warp
        entry = self.program.blocks.get(0)
        self.file: Registers = {
            slot: zero(self.program.registers[slot]) for slot in (entry.live_in if entry else ())
        }
        granule, races = self.program.shared_granule, launch.races
        self.shared = SharedMemory(self, launch.shared_bytes, granule, races=races)
        self.local = LocalMemory(self.lane_count, self.program.local_bytes)
        self.block_barriers = BlockBarriers(self)
        self.cluster_barriers = ClusterBarriers(self)
        self.copies = AsyncState(self)
        self.scheduler = Scheduler(launch.rng, self.lane_count, random=launch.random)
        self.parked: dict[int, Lanes] = {}
        self.specials: dict[str, Array] = {}

    # --- facts for instructions

    def special(self, name: str) -> Array:
        """A read-only register: one value, or one per lane of the machine."""
        if name not in self.specials:
            value = special_register(self, name)
            if "clock" in name or "timer" in name:
                return value
            self.specials[name] = value
        return self.specials[name]

    def block_of(self, lanes: Array) -> Array:
        return self.lane_blocks[lanes]

    def shared_window(self, frame: Frame) -> Array:
        lanes = slice(1) if self.cluster_size == 1 else frame.lanes
        return self.windows[lanes].view(np.uint64)

    def symbol_address(self, name: str) -> int:
        parameters = self.program.access.symbols.parameters
        if name in parameters:
            return self.launch.parameter_base + parameters[name]
        if name not in self.launch.symbols:
            raise SimError(f"unknown symbol {name}")
        return self.launch.symbols[name]

    def where(self, instruction: Instruction) -> str:
        if instruction.line is None:
            return f"instruction {instruction.pc}"
        number, line = instruction.line
        return f"{self.program.kernel.files.get(number, '?')}:{line}"

    def access_counter(self, instruction: Instruction, *, write: bool) -> Access:
        found = self.counters.accesses.get(instruction.pc)
        if found is None:
            name = ".".join((instruction.opcode, *instruction.mods))
            found = Access(self.where(instruction), name, write)
            self.counters.accesses[instruction.pc] = found
        return found

    def warn(self, instruction: Instruction, what: str, count: int = 1) -> None:
        self.counters.warnings[f"{what}: {self.where(instruction)}"] += count

    def fail(
        self, instruction: Instruction, why: str, lanes: Array, addresses: Array | None = None
    ) -> SimError:
        lane = int(lanes[0])
        block, thread = self.blocks[lane // self.lanes_per_block], lane % self.lanes_per_block
        at = "" if addresses is None else f" address {int(addresses[0]):#x}"
        return SimError(
            f"{why}: block {block} thread {thread}{at}"
            f" in `{instruction.text}` at {self.where(instruction)}"
        )

    # --- running

    def run(self) -> None:
        self.go(0, self._start())
        scheduler, blocks, limit = self.scheduler, self.program.blocks, self.launch.max_steps
        while True:
            if scheduler.idle:
                if self.copies.deliver():
                    continue
                if self.parked:
                    raise self._deadlock()
                return
            if self.launch.random and self.copies.pending and self.launch.rng.random() < 0.1:
                self.copies.deliver()
            pc, lanes = scheduler.take()
            self.execute(blocks[pc], lanes)
            if scheduler.steps > limit:
                raise SimError(f"no end after {limit} steps in {self.program.kernel.name}")

    def _start(self) -> Lanes:
        lanes = lanes_where(~self.exited)
        assert lanes is not None
        return lanes

    def execute(self, block: Block, lanes: Lanes) -> None:
        frame = self.frame(block, lanes)
        if block.sync is not None:
            ready = self._synchronise(block, frame)
            if ready is None:
                return
            frame = ready
        for step, dead in block.steps:
            step(frame)
            for slot in dead:
                frame.regs.pop(slot, None)
        length = block.end - block.start
        self.counters.executions[block.start] += frame.warps
        self.counters.instructions += length * frame.warps
        self.counters.thread_instructions += length * frame.n
        if frame.regs is not self.file:
            self._write_back(block, frame)
        block.finish(frame)

    def frame(self, block: Block, lanes: Lanes) -> Frame:
        n = count_of(lanes)
        if n == self.lane_count:
            return Frame(self, lanes, n, self.file)
        regs = {}
        for slot in block.live_in:
            value = self.file.get(slot)
            if value is not None:
                regs[slot] = value if value.shape[0] == 1 else value[lanes]
        return Frame(self, lanes, n, regs)

    def _write_back(self, block: Block, frame: Frame) -> None:
        for slot in block.changed:
            value, old = frame.regs[slot], self.file.get(slot)
            if old is None or old.shape[0] == 1:
                self.file[slot] = merged(old, value, frame.lanes, self.lane_count)
            else:
                old.view(value.dtype)[frame.lanes] = value

    def _synchronise(self, block: Block, frame: Frame) -> Frame | None:
        """The lanes that may execute a sync instruction now."""
        assert block.sync is not None
        if block.guard is not None:
            active = frame.spread(block.guard(frame))
            if not active.all():
                index = frame.index
                self.go(block.end, lanes_of(index[~active]))
                if not active.any():
                    return None
                frame = self.frame(block, lanes_of(index[active]))
        ready = block.sync.ready(frame)
        if ready is None or ready is frame:
            return ready
        return self.frame(block, ready.lanes)

    def go(self, pc: int, lanes: Lanes) -> None:
        self.scheduler.add(pc, lanes)

    def park(self, pc: int, lanes: Lanes) -> None:
        parked = self.parked.get(pc)
        self.parked[pc] = lanes if parked is None else union(parked, lanes)

    def wake(self, mask: Array) -> None:
        """They try their sync instruction again; a mask over all lanes."""
        for pc, lanes in list(self.parked.items()):
            index = index_of(lanes)
            chosen = mask[index]
            if not chosen.any():
                continue
            del self.parked[pc]
            self.go(pc, lanes_of(index[chosen]))
            if not chosen.all():
                self.parked[pc] = lanes_of(index[~chosen])

    def exit(self, frame: Frame) -> None:
        self.exited[frame.lanes] = True
        blocks = self.block_of(frame.index)
        self.living -= np.bincount(blocks, minlength=self.block_count)
        self._check_ended(blocks[self.living[blocks] == 0])
        for pc, lanes in list(self.parked.items()):
            sync = self.program.blocks[pc].sync
            if sync is not None and sync.warp_level:
                del self.parked[pc]
                self.go(pc, lanes)
        self.block_barriers.release()
        self.cluster_barriers.release()

    def _check_ended(self, blocks: Array) -> None:
        """Nobody may use the shared memory of these blocks any more."""
        if self.copies.bulk and self.copies.unfinished_in(blocks):
            raise SimError("a block ended while a bulk copy still uses its shared memory")
        races = self.shared.races
        if races is None or self.cluster_size == 1:
            return
        for block in sorted_distinct(blocks):
            if races.ends_too_early(int(block)):
                raise SimError(
                    f"block {self.blocks[block]} may end before another block is done with its"
                    " shared memory (no cluster barrier between)"
                )

    def _deadlock(self) -> SimError:
        waiting: collections.Counter[int] = collections.Counter()
        for pc, lanes in self.parked.items():
            waiting[pc] += count_of(lanes)
        code = self.program.code
        return SimError(
            "deadlock: "
            + "; ".join(
                f"{n} threads wait at `{code[pc].text}` at {self.where(code[pc])}"
                for pc, n in waiting.items()
            )
        )
