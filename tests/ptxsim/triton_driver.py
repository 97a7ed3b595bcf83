"""Ordinary Triton launches, `kernel[grid](...)` on CPU tensors, through Triton's own compiler
to PTX for a chosen architecture, and the simulator.

    with simulated_triton(90, sched="random") as gpu:
        kernel[(rows,)](x, out, columns, BLOCK=1024)
    gpu.reports[-1].read_bytes
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel

from .counters import Report
from .device import Device
from .global_memory import GlobalMemory
from .launch import Sim
from .parser import Module

_FLOATS = ("fp16", "fp32", "fp64")
_FIRST_ORDINAL = 1000  # Triton caches compiled kernels by device number
_devices: list[Device] = []
_modules: dict[str, Module] = {}  # by PTX text: parsed once a process


class TritonGpu:
    """Both the simulated device and Triton's driver."""

    def __init__(self, device: Device, options: dict[str, Any]) -> None:
        self.device, self.options = device, options
        self.memory = GlobalMemory()
        self.reports: list[Report] = []
        self.compiled: list[CompiledKernel] = []  # of each report
        self.sims: dict[str, Sim] = {}
        self.target = GPUTarget("cuda", device.arch, 32)
        self.utils = _Utils(device)
        self.launcher_cls = _Launcher
        if device not in _devices:
            _devices.append(device)

    def output(self, tensor: Any) -> None:
        self.memory.add(tensor, initialised=False)

    def written(self, tensor: Any) -> bool:
        return self.memory.written(tensor)

    def sim(self, ptx: str) -> Sim:
        if ptx not in self.sims:
            if ptx not in _modules:
                _modules[ptx] = Module(ptx)
            self.sims[ptx] = Sim(_modules[ptx], memory=self.memory, **self.options)
        return self.sims[ptx]

    # --- what Triton asks of a driver

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return _FIRST_ORDINAL + _devices.index(self.device)

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.device.arch, 10)


class _Utils:
    def __init__(self, device: Device) -> None:
        self.device = device

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.device.shared_per_block,
            "multiprocessor_count": self.device.multiprocessors,
            "warpSize": 32,
            "max_num_regs": 65536,
            "sm_clock_rate": 1_000_000,
            "mem_clock_rate": 1_000_000,
            "mem_bus_width": 1024,
        }

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, str, int, int, int]:
        return None, name, 0, 0, 1024  # module (nothing to unload), function, registers, ...


class _Launcher:
    """Launches on the device that is active at the time."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata = metadata
        constants = {path[0] for path in source.constants if len(path) == 1}
        self.types = [
            None if kind == "constexpr" or n in constants else kind
            for n, kind in enumerate(source.signature.values())
        ]

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        function: Any,
        packed: Any,
        compiled: CompiledKernel,
        enter_hook: Any,
        exit_hook: Any,
        *args: Any,
    ) -> None:
        values = [_value(t, v) for t, v in zip(self.types, args, strict=True) if t is not None]
        blocks = self.metadata.num_ctas
        gpu = triton.runtime.driver.active
        sim = gpu.sim(compiled.asm["ptx"])
        # Pointers to scratch memory follow, which these kernels do not use.
        parameters = sim.module.kernel(self.metadata.name).parameters
        values += [0] * (len(parameters) - len(values))
        report = sim.launch(
            self.metadata.name,
            (x * blocks, y, z),
            self.metadata.num_warps * 32,
            values,
            smem=self.metadata.shared,
            cluster=(blocks, 1, 1),
        )
        gpu.reports.append(report)
        gpu.compiled.append(compiled)


def _value(kind: str, value: Any) -> Any:
    if hasattr(value, "data_ptr"):
        return value
    return float(value) if kind in _FLOATS else int(value)


def _until_ptx(
    backend: Any = None,
    stages: dict[str, Any] | None = None,
    options: Any = None,
    language: Any = None,
    capability: Any = None,
) -> tuple[str, str]:
    """Triton asks for a key of its cache and, where it compiles, shows the stages: the assembler's
    is left out, for nobody runs what it makes."""
    if stages is not None:
        stages["cubin"] = lambda ptx, metadata: b""
    return "until ptx", "until ptx"


@contextlib.contextmanager
def simulated_triton(device: Device | int, **options: Any) -> Iterator[TritonGpu]:
    """Options are those of Sim."""
    gpu = TritonGpu(Device.of(device) if isinstance(device, int) else device, options)
    before, launch_metadata = triton.runtime.driver._active, CompiledKernel.launch_metadata
    triton.runtime.driver.set_active(gpu)
    stages_hook = triton.knobs.runtime.add_stages_inspection_hook
    triton.knobs.runtime.add_stages_inspection_hook = _until_ptx
    cache = triton.knobs.cache.dir
    triton.knobs.cache.dir = f"{cache}/until_ptx"  # Triton 3.6 asks for no key
    # A launcher gets no reference to the kernel's PTX; this passes it the kernel itself.
    CompiledKernel.launch_metadata = lambda self, grid, stream, *args: self
    try:
        yield gpu
    finally:
        triton.runtime.driver._active = before
        triton.knobs.runtime.add_stages_inspection_hook = stages_hook
        triton.knobs.cache.dir = cache
        CompiledKernel.launch_metadata = launch_metadata
