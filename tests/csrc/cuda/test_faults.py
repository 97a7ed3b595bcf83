"""A test of the tests: with a fault put into the CUDA kernels' source, the simulator or the
comparison with the reference fails."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_kernels import CSRC, SimulatedCuda, built_library, needs_cuda
from gpu_problem import Case, check_case
from ptxsim import CudaLibrary, Device, SimError
from ptxsim.parser import Module

pytestmark = [needs_cuda, pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")]

INSTANCE = """#include "row_kernels.cuh"
namespace labelsmooth::cuda {{
template __global__ void {}_kernel<float, {}>(const __grid_constant__ Problem<float>, int64_t,
                                                     int, int);
}}
"""

# 4099 classes: a cluster of 2 blocks, with an end that is no whole chunk.
TWO_BLOCKS = Case("two blocks", shape=(3, 4099), targets="ignored")
MASKED = Case("masked", shape=(2, 4099), values="half")
RISING = Case("rising", shape=(2, 4099), values="rising")
SHORT = Case("short", shape=(5, 37), layout="padded")
ODD = Case("odd", shape=(2, 37), layout="odd")
FEW = Case("few", shape=(1, 4099), targets="few")
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
        "  cluster_arrive();\n  cluster_wait();\n",
        "",
        TWO_BLOCKS,
        "shared-memory race",
    ),
    Fault(
        "a block leaves before its sums are read",
        "row_kernels.cuh",
        "    if (size > 1) cluster_wait();\n",
        "",
        TWO_BLOCKS,
        "another block is done",
    ),
    Fault(
        "no wait for copies",
        "row_kernels.cuh",
        "    __pipeline_wait_prior(0);\n    const int end",
        "    const int end",
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
        "element.cuh",
        "(classes + lead + size - 1) / size",
        "(classes + lead) / size",
        TWO_BLOCKS,
        "not all of an output",
    ),
    Fault(
        "places outside the row are summed up",
        "row.cuh",
        "if (i < begin || i >= end) x[i] = -infinity<T>();",
        ";",
        SHORT,
        "not close",
    ),
    Fault(
        "a difference of infinities",
        "row.cuh",
        "const T point = finite_or_zero(stats.shift);",
        "const T point = stats.shift;",
        MASKED,
        "NaN elsewhere",
    ),
    Fault(
        "sums keep the old maximum",
        "row.cuh",
        "stats.sum_exp *= exp(stats.shift - finite_or_zero(largest));",
        ";",
        RISING,
        "not close",
    ),
    Fault(
        "the last chunk is read whole",
        "element.cuh",
        "return chunk >= whole_begin && chunk < whole_end;",
        "return chunk >= whole_begin;",
        SHORT,
        "out-of-bounds",
    ),
    Fault(
        "rows are taken to be aligned",
        "element.cuh",
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
]


def simulated(ptx: str | None) -> SimulatedCuda:
    """On the built launchers, with the kernels in `ptx` instead of the built ones."""
    library = built_library()
    if ptx is not None:
        faulty = CudaLibrary(library.path, ptx_from=library.path)
        faulty.modules = [Module(ptx), *library.modules]
        library = faulty
    return SimulatedCuda(library.on(Device.of(90), sched="random"))


@pytest.mark.parametrize("case", [TWO_BLOCKS, MASKED, RISING, SHORT, ODD, FEW, UNMASKED], ids=str)
def test_without_a_fault(case: Case) -> None:
    check_case(case, simulated(None))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_fault(fault: Fault, tmp_path: Path) -> None:
    shutil.copytree(CSRC, tmp_path / "csrc")
    folder = tmp_path / "csrc" / "cuda"
    source = (folder / fault.file).read_text()
    assert source.count(fault.line) == 1
    (folder / fault.file).write_text(source.replace(fault.line, fault.fault))
    kernel = "warp" if fault.case.classes < 1000 else "cluster"
    soft = "true" if fault.case in (FEW, UNMASKED) else "false"
    (folder / "instance.cu").write_text(INSTANCE.format(kernel, soft))
    command = ["nvcc", "-std=c++17", "-arch=compute_90", "-ptx", "instance.cu"]
    compiled = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr

    gpu = simulated((folder / "instance.ptx").read_text())
    with pytest.raises((SimError, AssertionError), match=fault.error):
        check_case(fault.case, gpu)
