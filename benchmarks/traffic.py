"""What a training step moves and executes on a GPU, counted without one.

The kernels' PTX runs in the simulator of tests/ptxsim, which counts the 32-byte sectors of global
memory that each access of a warp touches, whose bytes are given here, and the instructions of the
machine code that ptxas makes of it. launches.py says which steps are compared, floors.py what time
they need at least.

Needs this repository with the CUDA kernels built in place, and nvcc's ptxas. Writes JSON, and
beside it the tables as Markdown. Takes some ten minutes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import labelsmooth
from benchmarks import report
from benchmarks.floors import GPUS, LOGITS
from benchmarks.launches import (
    DTYPES,
    SECTOR,
    Case,
    Launch,
    Report,
    Step,
    available,
    installed,
    plain_name,
    run_step,
)
from benchmarks.occupancy import WARP, blocks_per_multiprocessor
from benchmarks.report import Sheet

RESULTS = Path(__file__).parent / "results"
CLASSES = [1000, 32768, 131072, 262144]


@dataclass(frozen=True)
class Kernel:
    """One launch. Counts are for each logit of the call."""

    name: str
    code: str  # the target that it was assembled for
    threads: int
    cluster: int
    shared_bytes: int  # a block, static and dynamic
    registers: int
    stack: int
    blocks_per_multiprocessor: int
    warps_per_multiprocessor: int
    read_bytes: float
    written_bytes: float
    instructions: float  # of the machine, of warps, times 32
    ptx_instructions: float
    bank_conflicts: int


@dataclass(frozen=True)
class Counted:
    """One forward with gradient. Counts are for each logit, times for LOGITS of them."""

    implementation: str
    arch: int
    gpu: str
    dtype: str
    rows: int
    classes: int
    kernels: list[Kernel]
    logits_read: float  # how often each logit is read
    grad_written: float  # how often each element of the gradient is written
    read_bytes: float
    written_bytes: float
    read_efficiency: float  # of the bytes read, those of logits; of the written, of the gradient
    write_efficiency: float
    instructions: float
    memory_ms: float
    issue_ms: float

    @property
    def floor_ms(self) -> float:
        return max(self.memory_ms, self.issue_ms)


# ---- counting ------------------------------------------------------------------------------------


def count(name: str, case: Case) -> Counted:
    step = run_step(name, case)
    kernels = [describe(launch, case, step.logits.numel()) for launch in step.launches]
    logits_read = passes(step, step.logits, "read_bytes")
    grad_written = passes(step, step.grad_logits, "written_bytes")
    read_bytes = sum(k.read_bytes for k in kernels)
    written_bytes = sum(k.written_bytes for k in kernels)
    instructions = sum(k.instructions for k in kernels)
    gpu = GPUS[case.arch]
    return Counted(
        implementation=name,
        arch=case.arch,
        gpu=gpu.name,
        dtype=case.dtype,
        rows=case.rows,
        classes=case.classes,
        kernels=kernels,
        logits_read=logits_read,
        grad_written=grad_written,
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        read_efficiency=logits_read * step.logits.itemsize / read_bytes,
        write_efficiency=grad_written * step.logits.itemsize / written_bytes,
        instructions=instructions,
        memory_ms=gpu.memory_ms(read_bytes + written_bytes),
        issue_ms=gpu.issue_ms(instructions),
    )


def passes(step: Step, tensor: Tensor, what: str) -> float:
    """How often each element of a tensor is read or written."""
    reports = [launch.report for launch in step.launches]
    known = [r.tensor(tensor) for r in reports if tensor.data_ptr() in r.traffic]
    return sum(getattr(t, what) for t in known) / (tensor.numel() * tensor.itemsize)


def sector_bytes(made: Report, *, write: bool) -> int:
    chosen = (a for a in made.accesses if a.space == "global" and a.write == write)
    return SECTOR * sum(a.sectors for a in chosen)


def describe(launch: Launch, case: Case, logits: int) -> Kernel:
    made, needed = launch.report, launch.resources
    threads = made.block[0] * made.block[1] * made.block[2]
    blocks = blocks_per_multiprocessor(case.device, threads, needed.registers, made.shared_bytes)
    return Kernel(
        name=plain_name(made.kernel),
        code=made.module.target,
        threads=threads,
        cluster=made.cluster[0],
        shared_bytes=made.shared_bytes,
        registers=needed.registers,
        stack=needed.stack,
        blocks_per_multiprocessor=blocks,
        warps_per_multiprocessor=blocks * threads // WARP,
        read_bytes=sector_bytes(made, write=False) / logits,
        written_bytes=sector_bytes(made, write=True) / logits,
        instructions=launch.instructions / logits,
        ptx_instructions=made.instructions * WARP / logits,
        bank_conflicts=made.bank_conflicts,
    )


# ---- tables --------------------------------------------------------------------------------------


def sheets(steps: list[Counted]) -> list[Sheet]:
    return [
        *(step_sheet([s for s in steps if s.arch == arch]) for arch in {s.arch: 0 for s in steps}),
        kernel_sheet(steps),
    ]


def step_sheet(steps: list[Counted]) -> Sheet:
    gpu = GPUS[steps[0].arch]
    return Sheet(
        f"{gpu.name} (sm_{steps[0].arch})",
        f"Bytes and machine instructions for each logit. The time that {LOGITS >> 20}M logits need "
        f"at least: for their bytes at {gpu.bandwidth:g} GB/s, to issue the instructions on "
        f"{gpu.multiprocessors} multiprocessors at {gpu.ghz:g} GHz; the floor is the longer one. "
        "Not a measurement.",
        ["dtype", "classes", "implementation"],
        [
            *("logits\nread", "gradient\nwritten", "bytes\nread", "bytes\nwritten"),
            *("of it\nlogits", "of it\ngradient", "instruc-\ntions"),
            *("bytes\nms", "issue\nms", "floor\nms"),
        ],
        [
            [
                *(s.dtype, f"{s.classes:,}", s.implementation),
                *(f"{s.logits_read:.2f}x", f"{s.grad_written:.2f}x"),
                *(f"{s.read_bytes:.2f}", f"{s.written_bytes:.2f}"),
                *(f"{s.read_efficiency:.0%}", f"{s.write_efficiency:.0%}"),
                *(f"{s.instructions:.1f}", f"{s.memory_ms:.2f}", f"{s.issue_ms:.2f}"),
                f"{s.floor_ms:.2f}",
            ]
            for s in steps
        ],
    )


def kernel_sheet(steps: list[Counted]) -> Sheet:
    return Sheet(
        "Kernels",
        "Registers of a thread, threads and shared memory of a block; from them blocks and warps "
        "that fit a multiprocessor. Instructions of the machine and of PTX for each logit. Bank "
        "conflicts: extra passes over shared memory.",
        ["implementation", "kernel", "GPU", "code", "dtype", "classes"],
        [
            *("registers", "stack", "threads", "cluster", "shared\nbytes"),
            *("blocks", "warps", "instruc-\ntions", "PTX", "bank\nconflicts"),
        ],
        [
            [
                *(s.implementation, k.name, s.gpu, k.code, s.dtype, f"{s.classes:,}"),
                *(f"{k.registers}", f"{k.stack}", f"{k.threads}", f"{k.cluster}"),
                *(f"{k.shared_bytes:,}", f"{k.blocks_per_multiprocessor}"),
                *(f"{k.warps_per_multiprocessor}", f"{k.instructions:.1f}"),
                *(f"{k.ptx_instructions:.1f}", f"{k.bank_conflicts}"),
            ]
            for s in steps
            for k in s.kernels
        ],
    )


# ---- the command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES, metavar="C")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--archs", nargs="+", type=int, choices=GPUS, default=list(GPUS))
    parser.add_argument("--json", type=Path, default=RESULTS / "traffic.json")


def run(args: argparse.Namespace) -> None:
    cases = [
        (name, Case(arch, dtype, classes))
        for arch in args.archs
        for dtype in args.dtypes
        for classes in args.classes
        for name in available()
    ]
    console = Console(stderr=True)
    steps = [count(*case) for case in track(cases, "simulating", console=console, transient=True)]
    about: dict[str, Any] = {"labelsmooth": labelsmooth.__version__, "torch": torch.__version__}
    for module in ("triton", "liger_kernel"):
        if installed(module):
            about[module] = version(module.replace("_", "-"))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "steps": [asdict(step) for step in steps]}
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    made = sheets(steps)
    report.show(Console(), made)
    report.write_markdown(args.json, about, made)
