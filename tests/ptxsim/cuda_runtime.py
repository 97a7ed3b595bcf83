"""Drive launchers that nvcc compiled: each launch they make runs in the simulator.

path = build_library(["kernels.cu"], build_folder, archs=(80, 90))
gpu = CudaLibrary(path).on(Device.of(90), sched="random")
status = gpu.call("launch_row_max", x, out, 6, 1003, None)
gpu.reports[-1].read_bytes
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .counters import Report, host_address
from .cuda_build import build_library, extract_ptx
from .device import DEFAULT_SHARED, Device
from .global_memory import GlobalMemory, Region
from .launch import Sim
from .parser import Kernel, Module

# cudaError_t
_INVALID_VALUE, _INVALID_CONFIGURATION, _NO_KERNEL_IMAGE, _LAUNCH_FAILURE = 1, 9, 209, 719
_INVALID_CLUSTER_SIZE = 912
# cudaFuncAttribute
_MAX_DYNAMIC_SHARED, _NON_PORTABLE_CLUSTER = 8, 14


class _Dim3(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]

    def values(self) -> tuple[int, int, int]:
        return self.x, self.y, self.z


_DIM = ctypes.POINTER(_Dim3)
_ARGS = ctypes.POINTER(ctypes.c_void_p)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, _DIM, _DIM, _DIM, _ARGS, ctypes.c_size_t)
_QUERY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int)
_SET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
_OCCUPANCY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)
_CLUSTERS = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_int),
)


class _Hooks(ctypes.Structure):
    _fields_ = [
        ("device", ctypes.c_int),
        ("launch", _LAUNCH),
        ("device_attribute", _QUERY),
        ("set_function_attribute", _SET),
        ("active_blocks", _OCCUPANCY),
        ("active_clusters", _CLUSTERS),
        ("driver_version", ctypes.c_int),
    ]


class CudaLibrary:
    """A library of launchers, linked with the stand-in runtime, and the PTX of its kernels.

    `ptx_from` takes the PTX from another binary instead: the one that ships.
    """

    def __init__(self, path: str | Path, *, ptx_from: str | Path | None = None) -> None:
        self.handle = ctypes.CDLL(str(path))
        self.modules = [Module(text) for text in extract_ptx(Path(ptx_from or path))]
        self.path = Path(path)
        # As in a process with several GPUs, each device keeps its number and what was set on
        # it: launchers may remember both.
        self.devices: list[Device] = []
        self.attributes: dict[tuple[int, str, int], int] = {}
        self._symbols: list[str] | None = None

    def on(self, device: Device, **options: Any) -> Gpu:
        """A simulated GPU that runs the launchers; options are those of Sim."""
        if device not in self.devices:
            self.devices.append(device)
        return Gpu(self, device, options)

    def module_for(self, kernel: str, arch: int) -> Module | None:
        """The module with the newest PTX that the device can take."""
        fitting = [m for m in self.modules if kernel in m.kernels and _runs_on(m, arch)]
        return max(fitting, key=lambda m: m.arch, default=None)

    def function(self, name: str) -> Callable[..., int]:
        """An exported function by its name, or by the one mangled name that contains it."""
        if not hasattr(self.handle, name):
            if self._symbols is None:
                command = ["nm", "-D", "--defined-only", str(self.path)]
                listing = subprocess.run(command, check=True, capture_output=True, text=True)
                self._symbols = re.findall(r" T (\S+)", listing.stdout)
            pattern = re.compile(rf"(?<!\d){len(name)}{name}")
            found = [symbol for symbol in self._symbols if pattern.search(symbol)]
            if len(found) != 1:
                raise KeyError(f"{name}: {len(found)} exported functions")
            name = found[0]
        function: Callable[..., int] = getattr(self.handle, name)
        return function


def _runs_on(module: Module, arch: int) -> bool:
    return module.arch == arch if module.specific else module.arch <= arch


class Gpu:
    """One simulated device: its memory, the reports of the launches on it, and what it was asked
    and told between them."""

    def __init__(self, library: CudaLibrary, device: Device, options: dict[str, Any]) -> None:
        self.library, self.device, self.options = library, device, options
        self.memory = GlobalMemory()
        self.reports: list[Report] = []
        self.questions: list[str] = []
        self.sims: dict[int, Sim] = {}
        self.ordinal = library.devices.index(device)
        self.error: BaseException | None = None
        self.hooks = _Hooks(
            self.ordinal,
            _LAUNCH(self._launch),
            _QUERY(self._device_attribute),
            _SET(self._set_attribute),
            _OCCUPANCY(self._active_blocks),
            _CLUSTERS(self._active_clusters),
            device.driver,
        )

    def tensor(self, tensor: Any, *, initialised: bool = True) -> None:
        """Make a tensor known, e.g. one whose pointer is inside a struct; see Sim.tensor."""
        self.memory.add(tensor, initialised=initialised)

    def output(self, tensor: Any) -> None:
        """As `tensor`, but to read an element before it is written is an error."""
        self.memory.add(tensor, initialised=False)

    def written(self, tensor: Any) -> bool:
        """Whether every element of an `output` has been written."""
        return self.memory.written(tensor)

    def call(self, function: str, *args: Any) -> int:
        """Call an exported launcher and return its status.

        Tensors become pointers, integers 64-bit integers, floats single precision (pass
        ctypes.c_double for a double), None a null pointer; ctypes objects pass unchanged.
        """
        self.error = None
        own: list[Region] = []
        values = [self._argument(arg, own) for arg in args]
        self.library.handle.ptxsim_set_hooks(ctypes.byref(self.hooks))
        status = int(self.library.function(function)(*values))
        for region in own:
            self.memory.remove(region)
        if self.error is not None:
            raise self.error
        return status

    def _argument(self, arg: Any, own: list[Region]) -> Any:
        if arg is None:
            return ctypes.c_void_p(None)
        if hasattr(arg, "data_ptr") or isinstance(arg, np.ndarray):
            self.memory.borrow(arg, own)
            return ctypes.c_void_p(host_address(arg))
        if isinstance(arg, (int, np.integer)):
            return ctypes.c_int64(int(arg))
        return ctypes.c_float(arg) if isinstance(arg, float) else arg

    # --- hooks; an exception cannot cross C, so it is kept for `call`

    def _launch(
        self, name: bytes, grid: Any, block: Any, cluster: Any, args: Any, shared: int
    ) -> int:
        try:
            return self._checked_launch(
                name.decode(),
                grid.contents.values(),
                block.contents.values(),
                cluster.contents.values(),
                args,
                shared,
            )
        except BaseException as error:
            self.error = self.error or error
            return _LAUNCH_FAILURE

    def _checked_launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        cluster: tuple[int, int, int],
        args: Any,
        shared: int,
    ) -> int:
        module = self.library.module_for(name, self.device.arch)
        if module is None:
            return _NO_KERNEL_IMAGE
        kernel = module.kernels[name]
        fixed = kernel.limit(".reqnctapercluster")
        shape = cluster if cluster[0] else tuple((*fixed, 1, 1)[:3]) if fixed else (1, 1, 1)
        blocks = int(np.prod(shape))
        status = self._refusal(grid, block) or self._cluster_refusal(name, blocks)
        if status:
            return status
        if blocks > self.device.largest_cluster:
            return _INVALID_CLUSTER_SIZE
        sim = self._sim(module)
        if shared > self._most_shared(name, sim):
            return _INVALID_VALUE
        values = [self._raw(kernel, index, args) for index in range(len(kernel.parameters))]
        self.reports.append(sim.launch(name, grid, block, values, smem=shared, cluster=shape))
        return 0

    def _refusal(self, grid: tuple[int, int, int], block: tuple[int, int, int]) -> int:
        """The error code of a launch that the device refuses, else 0."""
        if not 0 < int(np.prod(block)) <= 1024 or block[2] > 64:
            return _INVALID_CONFIGURATION
        if min(grid) < 1 or grid[0] >= 1 << 31 or max(grid[1:]) >= 1 << 16:
            return _INVALID_CONFIGURATION
        return 0

    def _cluster_refusal(self, name: str, cluster: int) -> int:
        if cluster == 1:
            return 0
        if self.device.arch < 90:
            return _INVALID_CONFIGURATION
        beyond = self._get_attribute(name, _NON_PORTABLE_CLUSTER)
        return 0 if cluster <= (16 if beyond else 8) else _INVALID_CLUSTER_SIZE

    def _sim(self, module: Module) -> Sim:
        if id(module) not in self.sims:
            self.sims[id(module)] = Sim(module, memory=self.memory, **self.options)
        return self.sims[id(module)]

    def _raw(self, kernel: Kernel, index: int, args: Any) -> bytes:
        """A parameter's bytes, with the host pointers in it made simulated ones."""
        raw = bytearray(ctypes.string_at(args[index], kernel.parameters[index].size))
        for at in range(0, len(raw) - 7, 8):
            address = self.memory.device_address(int.from_bytes(raw[at : at + 8], "little"))
            if address is not None:
                raw[at : at + 8] = address.to_bytes(8, "little")
        return bytes(raw)

    def _most_shared(self, name: str, sim: Sim) -> int:
        """Dynamic shared memory that a block may have."""
        allowed = self._get_attribute(name, _MAX_DYNAMIC_SHARED)
        return max(allowed, DEFAULT_SHARED - sim.shared_bytes(name, 0))

    def _get_attribute(self, name: str, attribute: int) -> int:
        return self.library.attributes.get((self.ordinal, name, attribute), 0)

    def _device_attribute(self, attribute: int, number: int) -> int:
        self.questions.append("device attribute")
        return self.library.devices[number].attribute(attribute)

    def _set_attribute(self, name: bytes, attribute: int, value: int) -> int:
        self.questions.append("function attribute")
        kernel = name.decode()
        if attribute == _MAX_DYNAMIC_SHARED:
            module = self.library.module_for(kernel, self.device.arch)
            static = self._sim(module).shared_bytes(kernel, 0) if module else 0
            if static + value > self.device.shared_per_block:
                return _INVALID_VALUE
        self.library.attributes[self.ordinal, kernel, attribute] = value
        return 0

    def _active_blocks(self, name: bytes, threads: int, shared: int) -> int:
        module = self.library.module_for(name.decode(), self.device.arch)
        if module is None:
            return 0
        total = self._sim(module).shared_bytes(name.decode(), shared)
        return self.device.active_blocks(threads, total)

    def _active_clusters(
        self, name: bytes, cluster: int, threads: int, shared: int, clusters: Any
    ) -> int:
        self.questions.append("active clusters")
        module = self.library.module_for(name.decode(), self.device.arch)
        if module is None:
            return _NO_KERNEL_IMAGE
        if status := self._cluster_refusal(name.decode(), cluster):
            return status
        if shared > self._most_shared(name.decode(), self._sim(module)):
            return _INVALID_VALUE
        if cluster > self.device.largest_cluster:
            clusters[0] = 0
            return self.device.beyond_largest
        blocks = self._active_blocks(name, threads, shared)
        at_least = min(blocks, 1)  # a device that is made small for a test has the same room
        clusters[0] = max(blocks * self.device.multiprocessors // cluster, at_least)
        return 0


__all__ = ["CudaLibrary", "Device", "Gpu", "build_library", "extract_ptx"]
