"""What ptxas made of the CUDA kernels, in the built extension: registers, spills, wide accesses."""

from __future__ import annotations

import functools
import re
import subprocess
from typing import NamedTuple

import pytest
from cuda_kernels import ARCHS, EXTENSION, built_library, needs_cuda
from ptxsim.cuda_build import find_tool

pytestmark = needs_cuda

REGISTERS = 65536  # of a multiprocessor


class Usage(NamedTuple):
    registers: int
    stack: int  # bytes, spilled registers among them
    local: int


def cuobjdump(*arguments: str) -> str:
    tool = find_tool("cuobjdump")
    assert tool, "cuobjdump is neither on the path nor in Triton's package"
    command = [tool, *arguments, str(EXTENSION)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@functools.cache
def usages(arch: int) -> dict[str, Usage]:
    """Of each kernel, by its mangled name."""
    text = cuobjdump("-res-usage", "-arch", f"sm_{arch}")
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", text)
    return {name: Usage(int(r), int(stack), int(local)) for name, r, stack, local in found}


def kernels(arch: int, kernel: str, *, dtypes: str = r"\w+?") -> dict[str, Usage]:
    pattern = re.compile(rf"\d{kernel}_kernelI({dtypes})(LNS\d_4KindE\dE)?E")
    return {name: usage for name, usage in usages(arch).items() if pattern.search(name)}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_is_there_and_spills_nothing(arch: int) -> None:
    for kernel, count in (
        ("warp", 12),
        ("cluster", 12),
        ("sums", 12),
        ("finish", 12),
        ("gradient", 12),
        ("strided", 12),
        ("rank", 2),
        ("scale", 4),
    ):
        assert len(kernels(arch, kernel)) == count
    spilling = {name: u for name, u in usages(arch).items() if u.stack or u.local}
    assert not spilling


# The threads of a block, and how many blocks of them the registers must leave room for on a
# multiprocessor: enough loads under way to hide the latency of memory.
BLOCKS = [
    ("warp", 128, 4),
    ("cluster", 256, 2),
    ("sums", 256, 2),
    ("gradient", 256, 2),
    ("finish", 256, 2),
    ("strided", 256, 2),
    ("rank", 128, 6),
    ("scale", 256, 5),
]


@pytest.mark.parametrize(("kernel", "threads", "blocks"), BLOCKS)
@pytest.mark.parametrize("arch", ARCHS)
def test_registers_leave_room_for_blocks(arch: int, kernel: str, threads: int, blocks: int) -> None:
    for name, usage in kernels(arch, kernel).items():
        resident = blocks * threads
        if "_kernelId" in name:
            double = {"strided": 3 * 128, "warp": 3 * 128, "cluster": 256}
            resident = double.get(kernel, resident)
        assert -(-usage.registers // 8) * 8 * resident <= REGISTERS, name


@pytest.mark.parametrize("arch", ARCHS)
def test_the_largest_blocks_of_clusters_fit(arch: int) -> None:
    """Of the plain kernel, two of 512 threads; with statistics or weights three of 256."""
    for name, usage in kernels(arch, "cluster", dtypes="f|6__half|13__nv_bfloat16").items():
        threads = {"KindE0": 2 * 512, "KindE1": 3 * 256, "KindE2": 2 * 256}
        [resident] = [threads[kind] for kind in threads if kind in name]
        assert usage.registers * resident <= REGISTERS, name


LOAD, COPY, STORE = r"\bLDG\.E\S*\.128", r"\bLDGSTS\.E\S*\.128", r"\bSTG\.E\S*\.128"
WIDE = {
    "warp": (COPY, STORE),
    "cluster": (COPY, STORE),
    "sums": (LOAD,),
    "gradient": (LOAD, STORE),
    "scale": (LOAD, STORE),
}


@pytest.mark.parametrize("dtype", ["f", "13__nv_bfloat16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_accesses_of_16_bytes(arch: int, dtype: str) -> None:
    hot = {
        name: instructions
        for kernel, instructions in WIDE.items()
        for name in kernels(arch, kernel, dtypes=dtype)
        if "KindE" not in name or "KindE0" in name  # plain; the others have the same code
    }
    assert len(hot) == len(WIDE)
    listing = cuobjdump("-sass", "-arch", f"sm_{arch}", "-fun", ",".join(hot))
    for function in listing.split("Function : ")[1:]:
        name = function.split(maxsplit=1)[0]
        for instruction in hot.pop(name):
            assert re.search(instruction, function), f"{instruction} in {name}"
    assert not hot


def test_no_power_of_a_difference_that_ptxas_may_fuse() -> None:
    """Of products that are rounded, like those that other powers are of: fused, one is not. The
    interpreter of PTX rounds both."""
    powers = 0
    for module in built_library().modules:
        for kernel in module.kernels.values():
            made = {}
            for found in re.finditer(r"([\w.]+)\s+(%f\d+), ([^;]*);", kernel.text):
                name, result, operands = found.groups()
                made[result] = name
                if name.startswith("ex2.approx"):
                    powers += 1
                    assert made[operands] not in ("add.f32", "sub.f32"), kernel.name
    assert powers
