"""A test of the tests: with a fault put into the CUDA kernels' source, the simulator or the
comparison with the reference fails."""

from __future__ import annotations

import copy
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_kernels import CSRC, SimulatedCuda, built_library, needs_cuda
from gpu_problem import Case, check_case
from ptxsim import Device, SimError
from ptxsim.parser import Module

pytestmark = [needs_cuda, pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")]

INSTANCE = """#include "row_kernels.cuh"
#include "strided_kernel.cuh"
namespace labelsmooth::cuda {{
template __global__ void {kernel}_kernel<float, Kind::{kind}>(
    const __grid_constant__ Problem<float>, int64_t, {parameters});
}}
"""

# 4099 classes: a cluster of 2 blocks, with an end that is no whole chunk.
TWO_BLOCKS = Case("two blocks", shape=(3, 4099), targets="ignored")
SHORT = Case("short", shape=(5, 37), layout="padded")
ODD = Case("odd", shape=(2, 37), layout="odd")
FEW = Case("few", shape=(1, 4099), targets="few")
TILES = Case("tiles", shape=(1, 600, 33), targets="ignored")  # of 8 positions, a cluster of 2 each
MASKED = Case("masked tiles", shape=(1, 600, 33), values="half")
RISING = Case("rising tiles", shape=(1, 600, 33), values="rising")
UNMASKED = Case("unmasked", shape=(2, 37), values="masked", options={"smooth_over": "unmasked"})


@dataclass(frozen=True)
class Fault:
    """`line` of `file` becomes `fault`, which the case shows by `error`."""

    name: str
    file: str
    line: str
    fault: str
    case: Case
    error: str

    def __str__(self) -> str:
        return self.name


FAULTS = [
    Fault(
        "no barrier between a block's warps",
        "reduce.cuh",
        "  __syncthreads();\n",
        "",
        TWO_BLOCKS,
        "shared-memory race",
    ),
    Fault(
        "no wait for the cluster's sums",
        "reduce.cuh",
        "    cluster_arrive();\n    cluster_wait();\n",
        "",
        TWO_BLOCKS,
        "shared-memory race",
    ),
    Fault(
        "no wait for copies",
        "row_kernels.cuh",
        "    __pipeline_wait_prior(0);\n    Packed",
        "    Packed",
        TWO_BLOCKS,
        "asynchronous copy",
    ),
    Fault(
        "some lanes left out of an exchange",
        "reduce.cuh",
        "all_lanes = 0xffffffffu",
        "all_lanes = 0xffff00ffu",
        SHORT,
        "mask does not name",
    ),
    Fault(
        "the last chunk is lost",
        "span.cuh",
        "(classes + lead + size - 1) / size",
        "(classes + lead) / size",
        TWO_BLOCKS,
        "not all of an output",
    ),
    Fault(
        "places outside the row are summed up",
        "row.cuh",
        "(i >= begin && i < end && first + i != left_out)",
        "first + i != left_out",
        SHORT,
        "not close|NaN elsewhere",
    ),
    Fault(
        "a difference of infinities",
        "row_sums.cuh",
        "return Powers<T>(finite_or_zero(largest));",
        "return Powers<T>(largest);",
        MASKED,
        "NaN elsewhere",
    ),
    Fault(
        "sums keep the old maximum",
        "row_sums.cuh",
        "if (totals.exp != T(0)) totals.exp *= powers().from(before);",
        ";",
        RISING,
        "not close",
    ),
    Fault(
        "the last chunk is read whole",
        "span.cuh",
        "whole_end = end * size - lead > classes ? chunks - 1 : chunks;",
        "whole_end = chunks;",
        SHORT,
        "out-of-bounds",
    ),
    Fault(
        "rows are taken to be aligned",
        "span.cuh",
        "static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(Element))",
        "0",
        ODD,
        "misaligned",
    ),
    Fault(
        "another thread's classes",
        "target.cuh",
        "(chunk & (step_ - 1)) == first",
        "(chunk & (step_ - 1)) != first",
        FEW,
        "not close",
    ),
    Fault(
        "a class that comes twice counts once",
        "target.cuh",
        "t[i] += prob;",
        "t[i] = prob;",
        FEW,
        "not close",
    ),
    Fault(
        "a mass of all classes",
        "row.cuh",
        "      sums.coef += coef[i];\n      sums.prior",
        "      sums.coef += prior[i];\n      sums.prior",
        UNMASKED,
        "not close",
    ),
    Fault(
        "no barrier between the lines of a tile",
        "strided_kernel.cuh",
        "places[thread - half] = sums;\n      __syncthreads();\n",
        "places[thread - half] = sums;\n",
        TILES,
        "shared-memory race",
    ),
    Fault(
        "no wait for the sums of a tile's other blocks",
        "strided_kernel.cuh",
        "places[thread] = sums;\n    sync_blocks();\n",
        "places[thread] = sums;\n",
        TILES,
        "shared-memory race",
    ),
    Fault(
        "a tile's block leaves before its sums are read",
        "strided_kernel.cuh",
        "    sync_blocks();  // all have read",
        "    // all have read",
        TILES,
        "another block is done|shared-memory race",
    ),
    Fault(
        "chunks of another line",
        "strided_kernel.cuh",
        "return line + slot * lines;",
        "return slot + line * slots;",
        TILES,
        "not all of an output",
    ),
    Fault(
        "positions beyond the last",
        "strided_kernel.cuh",
        "problem, active ? index : problem.rows - 1",
        "problem, index",
        TILES,
        "out-of-bounds",
    ),
]


def simulated(ptx: str | None) -> SimulatedCuda:
    """On the built launchers, with the kernels in `ptx` instead of the built ones."""
    library = built_library()
    if ptx is not None:
        library = copy.copy(library)  # with its devices, which launchers remember by number
        library.modules = [Module(ptx), *library.modules]
    return SimulatedCuda(library.on(Device.of(90), sched="random"))


@pytest.mark.parametrize(
    "case", [TWO_BLOCKS, SHORT, ODD, FEW, UNMASKED, TILES, MASKED, RISING], ids=str
)
def test_without_a_fault(case: Case) -> None:
    check_case(case, simulated(None))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault(fault: Fault, tmp_path: Path) -> None:
    shutil.copytree(CSRC, tmp_path / "csrc")
    folder = tmp_path / "csrc" / "cuda"
    source = (folder / fault.file).read_text()
    assert source.count(fault.line) == 1
    (folder / fault.file).write_text(source.replace(fault.line, fault.fault))
    kernel = (
        "strided"
        if len(fault.case.shape) == 3
        else "warp"
        if fault.case.classes < 1000
        else "cluster"
    )
    kind = "soft" if fault.case in (FEW, UNMASKED) else "plain"
    parameters = {
        "strided": "Tiling, RowSums<float, false>*",
        "warp": "int, int",
        "cluster": "int, int, int",
    }[kernel]
    instance = INSTANCE.format(kernel=kernel, kind=kind, parameters=parameters)
    (folder / "instance.cu").write_text(instance)
    command = ["nvcc", "-std=c++17", "-arch=compute_90", "-ptx", "instance.cu"]
    compiled = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr

    gpu = simulated((folder / "instance.ptx").read_text())
    with pytest.raises((SimError, AssertionError), match=fault.error):
        check_case(fault.case, gpu)
