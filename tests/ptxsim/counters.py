"""What a launch read, wrote and executed."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .isa import Array
from .lanes import sorted_distinct

if TYPE_CHECKING:
    from .frame import Frame
    from .parser import Module

SECTOR = 32  # bytes
_BANKS = 32  # of 4 bytes


@dataclass
class Access:
    """One load, store or atomic of the source, summed over the launch."""

    where: str  # file:line with -lineinfo, else the instruction's number
    op: str
    write: bool
    space: str = ""
    executions: int = 0  # warps
    bytes: int = 0  # requested by threads
    sectors: int = 0  # 32-byte sectors of global memory, distinct within a warp's access
    wavefronts: int = 0  # passes over the banks of shared memory
    ideal_wavefronts: int = 0  # the passes that its bytes would need without conflicts

    def count_global(self, frame: Frame, offsets: Array, size: int) -> None:
        self.space = "global"
        self.bytes += frame.n * size
        if offsets.shape[0] == 1:
            self.executions += frame.warps
            self.sectors += frame.warps
            return
        sectors = offsets >> 5
        if frame.whole_warps:
            rows = sectors.reshape(-1, 32)
            self.executions += rows.shape[0]
            if not (rows[:, 1:] >= rows[:, :-1]).all():
                rows = np.sort(rows, axis=1)
            self.sectors += rows.shape[0] + int(np.count_nonzero(rows[:, 1:] != rows[:, :-1]))
        else:
            self.executions += frame.warps
            self.sectors += sorted_distinct((frame.index >> 5) << 48 | sectors).size

    def count_shared(self, frame: Frame, offsets: Array, size: int) -> None:
        """A warp's access of 4 bytes a lane is one pass, of 8 two, of 16 four: a pass serves
        128 bytes, one word of each bank; the same word for several lanes is one word."""
        self.space = "shared"
        self.bytes += frame.n * size
        self.executions += frame.warps
        lanes_per_pass = min(32, 128 // max(size, 4))
        if frame.whole_warps:
            rows = offsets.reshape(-1, lanes_per_pass)
            steps = rows[:, 1:] - rows[:, :-1]
            if (steps == max(size, 4)).all() or (steps == 0).all():
                self.wavefronts += rows.shape[0]
                self.ideal_wavefronts += rows.shape[0]
                return
        part = frame.index // lanes_per_pass
        words = (offsets >> 2)[:, None] + np.arange(max(size // 4, 1))
        distinct = sorted_distinct(((part[:, None] << 40) | words).ravel())
        parts = distinct >> 40
        banks = np.sort(parts * _BANKS + distinct % _BANKS)
        starts = np.flatnonzero(np.append(True, banks[1:] != banks[:-1]))
        depth = np.diff(np.append(starts, banks.size))
        owner = banks[starts] // _BANKS
        firsts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        self.wavefronts += int(np.maximum.reduceat(depth, firsts).sum())
        self.ideal_wavefronts += firsts.size


@dataclass
class TensorTraffic:
    read_bytes: int = 0  # requested by threads
    written_bytes: int = 0
    read_distinct_bytes: int = 0  # of the 32-byte sectors touched at least once
    written_distinct_bytes: int = 0


@dataclass
class Report:
    """One launch. `instructions` counts warps, `thread_instructions` active threads."""

    module: Module = field(repr=False)
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared_bytes: int
    instructions: int = 0
    thread_instructions: int = 0
    executions: list[int] = field(default_factory=list)  # warps, by the instruction's number
    accesses: list[Access] = field(default_factory=list)
    traffic: dict[int, TensorTraffic] = field(default_factory=dict)  # by host address
    warnings: dict[str, int] = field(default_factory=dict)

    def _sum(self, name: str, space: str, *, write: bool) -> int:
        chosen = (a for a in self.accesses if a.space == space and a.write == write)
        return sum(getattr(a, name) for a in chosen)

    @property
    def read_bytes(self) -> int:
        return self._sum("bytes", "global", write=False)

    @property
    def written_bytes(self) -> int:
        return self._sum("bytes", "global", write=True)

    @property
    def read_efficiency(self) -> float:
        """Bytes asked for / bytes of the sectors that held them (1 if nothing was read)."""
        sectors = self._sum("sectors", "global", write=False)
        return self.read_bytes / (SECTOR * sectors) if sectors else 1.0

    @property
    def write_efficiency(self) -> float:
        sectors = self._sum("sectors", "global", write=True)
        return self.written_bytes / (SECTOR * sectors) if sectors else 1.0

    @property
    def bank_conflicts(self) -> int:
        """Extra passes over the banks of shared memory."""
        chosen = [a for a in self.accesses if a.space == "shared"]
        return sum(a.wavefronts - a.ideal_wavefronts for a in chosen)

    def tensor(self, tensor: Any) -> TensorTraffic:
        """Of one that was given to the launch or registered before it."""
        return self.traffic[host_address(tensor)]

    def lines(self) -> dict[str, Access]:
        """Accesses summed by source line and kind of instruction."""
        found: dict[str, Access] = {}
        for access in self.accesses:
            key = f"{access.where} {access.op}"
            line = found.setdefault(
                key, Access(access.where, access.op, access.write, access.space)
            )
            for name in ("executions", "bytes", "sectors", "wavefronts", "ideal_wavefronts"):
                setattr(line, name, getattr(line, name) + getattr(access, name))
        return found


def bytes_moved(reports: list[Report], tensor: Any, *, write: bool = False) -> int:
    """Of one tensor, by all launches."""
    traffic = [report.traffic.get(host_address(tensor), TensorTraffic()) for report in reports]
    return sum(t.written_bytes if write else t.read_bytes for t in traffic)


def host_address(tensor: Any) -> int:
    if hasattr(tensor, "data_ptr"):
        return int(tensor.data_ptr())
    return int(tensor.ctypes.data)


class Counters:
    """Of one launch."""

    def __init__(self, *, detailed: bool) -> None:
        self.detailed = detailed
        self.instructions = 0
        self.thread_instructions = 0
        self.executions: collections.Counter[int] = collections.Counter()  # by basic block's start
        self.accesses: dict[int, Access] = {}  # by the instruction's number
        self.warnings: collections.Counter[str] = collections.Counter()
