"""Sim: the simulated device on which kernels of a PTX module are launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .counters import Counters, Report
from .errors import LaunchError
from .global_memory import GlobalMemory, Region
from .isa import TYPES, Array
from .machine import Dim, Launch, Machine
from .parser import Kernel, Module, Parameter
from .program import Program
from .store import aligned_zeros

_MAX_THREADS = 1024
_LANES_PER_CHUNK = 16384


def _dim(value: int | Sequence[int]) -> Dim:
    numbers = [int(value)] if isinstance(value, (int, np.integer)) else [int(v) for v in value]
    x, y, z = (*numbers, 1, 1)[:3]
    return x, y, z


class Sim:
    """Runs kernels of one module.

    sched   "minpc" or "random"; seed is the random schedule's, and the noise's.
    noise   approximate results (ex2, lg2, rcp ...) are moved by up to this many ulp, equal ones
            equally.
    races   check for races and for conflicting writes.
    counts  count sectors and bank conflicts by instruction.
    lanes   how many threads run as one numpy vector (a cluster is never divided).
    memory  to share between modules.
    """

    def __init__(
        self,
        ptx: str | Module,
        *,
        sched: str = "minpc",
        seed: int = 0,
        noise: int = 0,
        races: bool = True,
        counts: bool = True,
        lanes: int = _LANES_PER_CHUNK,
        max_steps: int = 10_000_000,
        memory: GlobalMemory | None = None,
    ) -> None:
        if sched not in ("minpc", "random"):
            raise ValueError(f'sched must be "minpc" or "random", not {sched!r}')
        self.module = Module(ptx) if isinstance(ptx, str) else ptx
        self.random, self.noise, self.races, self.counts = sched == "random", noise, races, counts
        self.lanes, self.max_steps = lanes, max_steps
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.memory = memory or GlobalMemory()
        self.reports: list[Report] = []
        self.symbols = {}
        for variable in self.module.variables:
            if variable.data is not None:
                data = aligned_zeros(variable.size)[: variable.size]
                data[:] = variable.data
                self.symbols[variable.name] = self.memory.add_bytes(data).base

    def tensor(self, tensor: Any, *, initialised: bool = True) -> int:
        """Make a torch CPU tensor or numpy array known; returns its simulated address.

        Kernels work on its own memory. A launch makes its tensor arguments known by itself,
        for its duration; what is registered here stays.
        """
        region = self.memory.add(tensor, initialised=initialised)
        return region.address_of(tensor)

    def output(self, tensor: Any) -> int:
        """As `tensor`, but to read an element before it is written is an error."""
        return self.tensor(tensor, initialised=False)

    def written(self, tensor: Any) -> bool:
        return self.memory.written(tensor)

    def shared_bytes(self, kernel: str, dynamic: int) -> int:
        """Static and dynamic."""
        return _program(self.module, kernel).shared_bytes(dynamic)

    def launch(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any],
        *,
        smem: int = 0,
        cluster: int | Sequence[int] | None = None,
    ) -> Report:
        """Run a kernel to its end; `smem` is the dynamic shared memory in bytes.

        An argument is a tensor, a number, or the parameter's raw bytes.
        """
        program = _program(self.module, kernel)
        shape = _dim(cluster or program.kernel.limit(".reqnctapercluster") or 1)
        grid, block = _dim(grid), _dim(block)
        _check_shape(program.kernel, grid, block, shape)
        own: list[Region] = []
        try:
            parameters = self._parameters(program.kernel, args, own)
            own.append(self.memory.add_bytes(parameters))
            launch = Launch(
                program=program,
                memory=self.memory,
                counters=Counters(detailed=self.counts),
                grid=grid,
                block=block,
                cluster=shape,
                dynamic_shared=smem,
                parameters=parameters,
                parameter_base=own[-1].base,
                symbols=self.symbols,
                rng=self.rng,
                random=self.random,
                noise=self.noise,
                seed=self.seed,
                races=self.races,
                max_steps=self.max_steps,
            )
            for region in self.memory.regions:
                region.start_launch()
            self._run(launch)
            report = self._report(launch)
        finally:
            for region in own:
                self.memory.remove(region)
        self.reports.append(report)
        return report

    def _run(self, launch: Launch) -> None:
        order = _cluster_order(launch.grid, launch.cluster)
        cluster = int(np.prod(launch.cluster))
        threads = -(-int(np.prod(launch.block)) // 32) * 32
        if self.random:
            order = self.rng.permutation(order.reshape(-1, cluster)).reshape(-1)
        chunk = max(self.lanes // threads // cluster, 1) * cluster
        with np.errstate(all="ignore"):
            for start in range(0, order.size, chunk):
                Machine(launch, order[start : start + chunk]).run()

    def _report(self, launch: Launch) -> Report:
        counters = launch.counters
        return Report(
            module=self.module,
            kernel=launch.program.kernel.name,
            grid=launch.grid,
            block=launch.block,
            cluster=launch.cluster,
            shared_bytes=launch.shared_bytes,
            instructions=counters.instructions,
            thread_instructions=counters.thread_instructions,
            executions=_by_instruction(launch.program, counters),
            accesses=[counters.accesses[pc] for pc in sorted(counters.accesses)],
            traffic={r.host: r.final_traffic() for r in self.memory.regions},
            warnings=dict(counters.warnings),
        )

    def _parameters(self, kernel: Kernel, args: Sequence[Any], own: list[Region]) -> Array:
        data = aligned_zeros(max(kernel.parameter_bytes, 8))
        if len(args) != len(kernel.parameters):
            raise LaunchError(
                f"{kernel.name} has {len(kernel.parameters)} parameters, got {len(args)}"
            )
        for parameter, arg in zip(kernel.parameters, args, strict=True):
            raw = self._argument(parameter, arg, own)
            if len(raw) != parameter.size:
                raise LaunchError(
                    f"parameter {parameter.name}: expected {parameter.size} bytes, got {len(raw)}"
                )
            start = parameter.offset
            data[start : start + parameter.size] = np.frombuffer(raw, np.uint8)
        return data

    def _argument(self, parameter: Parameter, arg: Any, own: list[Region]) -> bytes:
        if isinstance(arg, (bytes, bytearray)):
            return bytes(arg)
        if hasattr(arg, "data_ptr") or isinstance(arg, np.ndarray):
            region = self.memory.borrow(arg, own)
            return region.address_of(arg).to_bytes(8, "little")
        bits = TYPES[parameter.type].bits
        if isinstance(arg, (float, np.floating)):
            return np.array([arg], f"f{bits // 8}").tobytes()
        return (int(arg) & ((1 << bits) - 1)).to_bytes(bits // 8, "little")


def _by_instruction(program: Program, counters: Counters) -> list[int]:
    executions = [0] * len(program.code)
    for block in program.blocks.values():
        times = counters.executions[block.start]
        executions[block.start : block.end] = [times] * (block.end - block.start)
    return executions


def _program(module: Module, name: str) -> Program:
    kernel = module.kernel(name)
    if kernel.name not in module.programs:
        module.programs[kernel.name] = Program(module, kernel.name)
    program: Program = module.programs[kernel.name]
    return program


def _check_shape(kernel: Kernel, grid: Dim, block: Dim, cluster: Dim) -> None:
    threads = int(np.prod(block))
    if not 0 < threads <= _MAX_THREADS or min(grid) < 1:
        raise LaunchError(f"grid {grid} of blocks {block} cannot be launched")
    required, limit = kernel.limit(".reqntid"), kernel.limit(".maxntid")
    if required and threads != int(np.prod(required)):
        raise LaunchError(f"{kernel.name} requires blocks of {required} threads, not {block}")
    if limit and threads > int(np.prod(limit)):
        raise LaunchError(f"{kernel.name} allows at most {limit} threads a block, not {block}")
    if any(g % c for g, c in zip(grid, cluster, strict=True)):
        raise LaunchError(f"grid {grid} is not a multiple of the cluster {cluster}")


def _cluster_order(grid: Dim, cluster: Dim) -> Array:
    """Block numbers, cluster by cluster, by rank within each."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in reversed(grid)), indexing="ij")
    (gx, gy, _), (cx, cy, cz) = grid, cluster
    number = ((z // cz) * (gy // cy) + y // cy) * (gx // cx) + x // cx
    rank = ((z % cz) * cy + y % cy) * cx + x % cx
    key = number * (cx * cy * cz) + rank
    order: Array = np.argsort(key.reshape(-1), kind="stable")
    return order
