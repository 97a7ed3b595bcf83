"""How many blocks of a kernel fit a multiprocessor, from what the compiler says that they need.

By the rules of the occupancy calculator in NVIDIA's CUDA documentation and the limits of the
device; without clusters, which must fit a group of multiprocessors, and the launch of blocks in
waves.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ptxsim import Device
from ptxsim.cuda_build import find_tool

WARP = 32
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # of a warp
WARP_UNIT = 4  # warps are spread over so many schedulers, each with its share of the registers
SHARED_UNIT = 128
RESERVED_SHARED = 1024  # of each block, for the system


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture."""

    registers: int  # a thread
    stack: int  # bytes a thread: spilled registers and local arrays
    static_shared: int  # bytes a block


def resource_usage(binary: Path) -> dict[tuple[int, str], Resources]:
    """(arch, mangled name) -> Resources, of an object, library or cubin. Raises FileNotFoundError
    where there is no cuobjdump."""
    tool = find_tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError("cuobjdump is neither on the path nor in Triton's package")
    command = [tool, "--dump-resource-usage", str(binary)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    pattern = r"arch = sm_(\d+)|Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    found, arch = {}, 0
    for match in re.finditer(pattern, text):
        if match[1]:
            arch = int(match[1])
        else:
            found[arch, match[2]] = Resources(int(match[3]), int(match[4]), int(match[5]))
    return found


def assembler(triton_for: int | None = None) -> str:
    """nvcc's ptxas, or that with which Triton assembles for an architecture."""
    if triton_for is None:
        tool = find_tool("ptxas")
    else:
        from triton.backends.nvidia.compiler import get_ptxas

        tool = get_ptxas(triton_for).path
    if tool is None:
        raise FileNotFoundError("ptxas is neither on the path nor in Triton's package")
    return tool


def resources_of_ptx(ptx: str, ptxas: str) -> Resources:
    """Of the one kernel of a PTX text, assembled for the target that it names."""
    [target] = re.findall(r"^\.target (sm_\w+)", ptx, re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [ptxas, "-arch", target, str(source), "-o", str(cubin)]
        subprocess.run(command, check=True, capture_output=True)
        [found] = resource_usage(cubin).values()
    return found


def blocks_per_multiprocessor(
    device: Device, threads: int, registers: int, shared_bytes: int
) -> int:
    """`threads` and `shared_bytes` (static and dynamic) of a block, `registers` of a thread."""
    warps = _round_up(threads, WARP) // WARP
    warp_registers = _round_up(registers * WARP, REGISTER_UNIT)
    warps_by_registers = REGISTERS // warp_registers // WARP_UNIT * WARP_UNIT
    block_shared = _round_up(shared_bytes + RESERVED_SHARED, SHARED_UNIT)
    return min(
        device.blocks_per_multiprocessor,
        device.threads_per_multiprocessor // (warps * WARP),
        warps_by_registers // warps,
        device.shared_per_multiprocessor // block_shared,
    )


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
