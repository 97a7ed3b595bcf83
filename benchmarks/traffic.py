"""What a training step moves and executes on a GPU, counted without one.

The compiled PTX of the kernels runs in the simulator of tests/ptxsim, which counts instructions and
the 32-byte sectors of global memory that each access of a warp touches. Bytes here are those of the
sectors. One step is forward with gradient, mean, label_smoothing 0.1. Compared are labelsmooth's
CUDA kernels, its Triton kernel, and Liger's where liger-kernel is installed. "Over ranks" is what
one of 8 ranks does, whose classes the logits are: its part of the rows, and after those of all are
combined, its gradient.

The bytes at the bandwidth of a GPU's data sheet give a time. It is a floor, not a measurement: no
step that asks memory for these bytes is faster, and what else takes time is not in it. It holds
where every byte comes from memory; a row that is read again soon may come from the L2 cache.

Counts for each logit do not depend on the number of rows, so a few rows are run, on a device of one
multiprocessor: for that the kernels are chosen as for many rows on a large one. Kernels that touch
neither logits nor gradient (sums over N numbers) are left out.

Needs this repository with the CUDA kernels built in place. Writes JSON, and beside it the tables as
Markdown. Takes some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

import labelsmooth
from benchmarks import report
from benchmarks.report import Sheet

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from cuda_kernels import SimulatedCuda, built_library  # noqa: E402
from ptxsim import Device, Report  # noqa: E402
from ptxsim.counters import SECTOR  # noqa: E402

from benchmarks.occupancy import (  # noqa: E402
    WARP,
    Resources,
    blocks_per_multiprocessor,
    resource_usage,
    resources_of_ptx,
)
from labelsmooth._call.problem import Inputs, Options  # noqa: E402

RESULTS = Path(__file__).parent / "results"
SMOOTHING = 0.1
CLASSES = [1000, 32768, 131072, 262144]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FLOOR_LOGITS = 1 << 28  # 8192 rows of 32768 classes

# Memory bandwidth in GB/s, from NVIDIA's data sheets: A100 80GB SXM, H100 SXM, B200.
BANDWIDTH = {80: ("A100", 2039), 90: ("H100", 3350), 100: ("B200", 8000)}


@dataclass(frozen=True)
class Kernel:
    """One launch. Counts are for each logit of the call."""

    name: str
    threads: int
    cluster: int
    shared_bytes: int  # a block, static and dynamic
    registers: int
    stack: int
    blocks_per_multiprocessor: int
    warps_per_multiprocessor: int
    read_bytes: float
    written_bytes: float
    instructions: float  # of warps, times 32
    bank_conflicts: int


@dataclass(frozen=True)
class Step:
    """One forward with gradient."""

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
    floor_ms: float  # of FLOOR_LOGITS logits, at the bandwidth of the data sheet


@dataclass
class Ran:
    """What an implementation launched, and what the compiler says of each kernel."""

    logits: Tensor
    grad_logits: Tensor
    reports: list[Report]
    resources: Callable[[int], Resources]  # of the report of this number


# ---- implementations: device, logits (N, C), target (N,) -> Ran ----------------------------------


def labelsmooth_cuda(device: Device, logits: Tensor, target: Tensor) -> Ran:
    return with_cuda(device, logits, target, whole_rows)


def labelsmooth_cuda_over_ranks(device: Device, logits: Tensor, target: Tensor) -> Ran:
    return with_cuda(device, logits, target, one_rank)


def with_cuda(device: Device, logits: Tensor, target: Tensor, step: StepOf) -> Ran:
    gpu = SimulatedCuda(built_library().on(device, races=False))
    grad_logits = step(gpu, inputs(logits, target))
    known = resource_usage(Path(labelsmooth.__file__).parent / "_C.abi3.so")

    def resources(number: int) -> Resources:
        return known[device.arch, gpu.reports[number].kernel]

    return Ran(logits, grad_logits, gpu.reports, resources)


def labelsmooth_triton(device: Device, logits: Tensor, target: Tensor) -> Ran:
    from labelsmooth._backends.triton import ops

    return with_triton(device, logits, lambda: whole_rows(ops, inputs(logits, target)))


def labelsmooth_triton_over_ranks(device: Device, logits: Tensor, target: Tensor) -> Ran:
    from labelsmooth._backends.triton import ops

    return with_triton(device, logits, lambda: one_rank(ops, inputs(logits, target)))


def liger(device: Device, logits: Tensor, target: Tensor) -> Ran:
    """Its gradient overwrites the logits."""
    from liger_kernel.ops import cross_entropy

    logits.requires_grad_()

    def step() -> Tensor:
        # It asks torch for the GPU's generation, from which it takes the number of warps.
        generation = "blackwell" if device.arch >= 100 else "hopper or older"
        asked = mock.patch.object(cross_entropy, "infer_device_arch", return_value=generation)
        with asked:
            cross_entropy.cross_entropy_forward(
                logits, target, None, -100, 0.0, SMOOTHING, "mean", None, False
            )
        return logits

    return with_triton(device, logits, step)


IMPLEMENTATIONS = {
    "labelsmooth, CUDA": (labelsmooth_cuda, "labelsmooth"),
    "labelsmooth, CUDA, over ranks": (labelsmooth_cuda_over_ranks, "labelsmooth"),
    "labelsmooth, Triton": (labelsmooth_triton, "triton"),
    "labelsmooth, Triton, over ranks": (labelsmooth_triton_over_ranks, "triton"),
    "Liger": (liger, "liger_kernel"),
}
OPTIONS = Options(label_smoothing=SMOOTHING)
RANKS = 8
StepOf = Callable[[Any, Inputs], Tensor]  # of a backend; returns the gradient


def whole_rows(backend: Any, inputs: Inputs) -> Tensor:
    grad_logits: Tensor = backend.forward(inputs, OPTIONS, with_grad=True).grad_logits
    return grad_logits


def one_rank(backend: Any, inputs: Inputs) -> Tensor:
    """The logits are those of one of the ranks."""
    options = replace(OPTIONS, class_offset=0, num_classes=RANKS * inputs.logits.shape[1])
    parts = torch.stack([backend.partial(inputs, options)] * RANKS)
    loss, row_stats, _ = backend.combine(parts, inputs, options)
    one = torch.ones_like(loss)
    grad_logits: Tensor = backend.backward(one, row_stats, inputs, options, inplace=False)
    return grad_logits


def inputs(logits: Tensor, target: Tensor) -> Inputs:
    return Inputs(logits, target)


def with_triton(device: Device, logits: Tensor, step: Callable[[], Tensor]) -> Ran:
    """`step` returns the gradient."""
    from ptxsim.triton_driver import simulated_triton

    with simulated_triton(device, races=False) as gpu:
        grad_logits = step()

    def resources(number: int) -> Resources:
        return resources_of_ptx(gpu.compiled[number].asm["ptx"])

    return Ran(logits, grad_logits, gpu.reports, resources)


# ---- counting ------------------------------------------------------------------------------------


def count(name: str, arch: int, dtype: str, rows: int, classes: int) -> Step:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, classes, generator=generator).to(DTYPES[dtype])
    target = torch.randint(classes, (rows,), generator=generator)
    device = replace(Device.of(arch), multiprocessors=1)
    ran = IMPLEMENTATIONS[name][0](device, logits, target)

    touching = [n for n, r in enumerate(ran.reports) if touches(r, ran)]
    launched = [ran.reports[n] for n in touching]
    kernels = [describe(ran.reports[n], ran.resources(n), device, logits.numel()) for n in touching]
    logits_read = passes(launched, ran.logits, "read_bytes")
    grad_written = passes(launched, ran.grad_logits, "written_bytes")
    read_bytes = sum(k.read_bytes for k in kernels)
    written_bytes = sum(k.written_bytes for k in kernels)
    gpu, bandwidth = BANDWIDTH[arch]
    return Step(
        implementation=name,
        arch=arch,
        gpu=gpu,
        dtype=dtype,
        rows=rows,
        classes=classes,
        kernels=kernels,
        logits_read=logits_read,
        grad_written=grad_written,
        read_bytes=read_bytes,
        written_bytes=written_bytes,
        read_efficiency=logits_read * logits.itemsize / read_bytes,
        write_efficiency=grad_written * logits.itemsize / written_bytes,
        instructions=sum(k.instructions for k in kernels),
        floor_ms=(read_bytes + written_bytes) * FLOOR_LOGITS / (bandwidth * 1e9) * 1e3,
    )


def touches(launch: Report, ran: Ran) -> bool:
    """Whether a launch passes over the logits or their gradient."""
    made = [launch.traffic.get(t.data_ptr()) for t in (ran.logits, ran.grad_logits)]
    return any(t is not None and t.read_bytes + t.written_bytes > 0 for t in made)


def passes(launched: list[Report], tensor: Tensor, what: str) -> float:
    """How often each element of a tensor is read or written."""
    known = [r.tensor(tensor) for r in launched if tensor.data_ptr() in r.traffic]
    return sum(getattr(t, what) for t in known) / (tensor.numel() * tensor.itemsize)


def sector_bytes(launch: Report, *, write: bool) -> int:
    chosen = (a for a in launch.accesses if a.space == "global" and a.write == write)
    return SECTOR * sum(a.sectors for a in chosen)


def describe(launch: Report, needed: Resources, device: Device, logits: int) -> Kernel:
    threads = launch.block[0] * launch.block[1] * launch.block[2]
    blocks = blocks_per_multiprocessor(device, threads, needed.registers, launch.shared_bytes)
    return Kernel(
        name=plain(launch.kernel),
        threads=threads,
        cluster=launch.cluster[0],
        shared_bytes=launch.shared_bytes,
        registers=needed.registers,
        stack=needed.stack,
        blocks_per_multiprocessor=blocks,
        warps_per_multiprocessor=blocks * threads // WARP,
        read_bytes=sector_bytes(launch, write=False) / logits,
        written_bytes=sector_bytes(launch, write=True) / logits,
        instructions=launch.instructions * WARP / logits,
        bank_conflicts=launch.bank_conflicts,
    )


def plain(name: str) -> str:
    """The function's name, of a mangled one."""
    if not name.startswith("_ZN"):
        return name
    rest, parts = name[3:], []
    while rest[:1].isdigit():
        length = int("".join(c for c in rest[:3] if c.isdigit()))
        rest = rest[len(str(length)) :]
        parts.append(rest[:length])
        rest = rest[length:]
    return parts[-1]


# ---- tables --------------------------------------------------------------------------------------


def sheets(steps: list[Step]) -> list[Sheet]:
    return [
        *(step_sheet([s for s in steps if s.arch == arch]) for arch in {s.arch: 0 for s in steps}),
        kernel_sheet(steps),
    ]


def step_sheet(steps: list[Step]) -> Sheet:
    gpu, bandwidth = BANDWIDTH[steps[0].arch]
    millions = FLOOR_LOGITS >> 20
    return Sheet(
        f"sm_{steps[0].arch}",
        f"Bytes and instructions for each logit. Floor: the time that the bytes of {millions}M "
        f"logits need at the {bandwidth} GB/s of the data sheet of {gpu}. Not a measurement.",
        ["dtype", "classes", "implementation"],
        [
            *("logits\nread", "gradient\nwritten", "bytes\nread", "bytes\nwritten"),
            *("of it\nlogits", "of it\ngradient", "instruc-\ntions", "floor\nms"),
        ],
        [
            [
                *(s.dtype, f"{s.classes:,}", s.implementation),
                *(f"{s.logits_read:.2f}x", f"{s.grad_written:.2f}x"),
                *(f"{s.read_bytes:.2f}", f"{s.written_bytes:.2f}"),
                *(f"{s.read_efficiency:.0%}", f"{s.write_efficiency:.0%}"),
                *(f"{s.instructions:.1f}", f"{s.floor_ms:.2f}"),
            ]
            for s in steps
        ],
    )


def kernel_sheet(steps: list[Step]) -> Sheet:
    return Sheet(
        "Kernels",
        "Registers of a thread, threads and shared memory of a block; from them blocks and warps "
        "that fit a multiprocessor. Bank conflicts: extra passes over shared memory.",
        ["implementation", "kernel", "arch", "dtype", "classes"],
        [
            *("registers", "stack", "threads", "cluster", "shared\nbytes"),
            *("blocks", "warps", "bank\nconflicts"),
        ],
        [
            [
                *(s.implementation, k.name, f"sm_{s.arch}", s.dtype, f"{s.classes:,}"),
                *(f"{k.registers}", f"{k.stack}", f"{k.threads}", f"{k.cluster}"),
                *(f"{k.shared_bytes:,}", f"{k.blocks_per_multiprocessor}"),
                *(f"{k.warps_per_multiprocessor}", f"{k.bank_conflicts}"),
            ]
            for s in steps
            for k in s.kernels
        ],
    )


# ---- the command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES, metavar="C")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--archs", nargs="+", type=int, choices=BANDWIDTH, default=list(BANDWIDTH))
    parser.add_argument("--json", type=Path, default=RESULTS / "traffic.json")


def run(args: argparse.Namespace) -> None:
    if not labelsmooth._C.cuda_architectures:
        raise SystemExit("benchmarks traffic: the CUDA kernels are not built")
    names = [name for name, (_, module) in IMPLEMENTATIONS.items() if installed(module)]
    cases = [
        (name, arch, dtype, 16 if classes < 4096 else 2, classes)
        for arch in args.archs
        for dtype in args.dtypes
        for classes in args.classes
        for name in names
    ]
    console = Console(stderr=True)
    steps = [count(*case) for case in track(cases, "simulating", console=console, transient=True)]
    about: dict[str, Any] = {"labelsmooth": labelsmooth.__version__, "torch": torch.__version__}
    for module in ("triton", "liger_kernel"):
        if installed(module):
            about[module] = version_of(module)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "steps": [asdict(step) for step in steps]}
    args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    made = sheets(steps)
    report.show(Console(), made)
    report.write_markdown(args.json, about, made)


def installed(module: str) -> bool:
    with contextlib.suppress(ImportError):
        __import__(module)
        return True
    return False


def version_of(module: str) -> str:
    from importlib.metadata import version

    return version(module.replace("_", "-"))
