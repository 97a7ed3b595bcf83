"""The GPU kernels that one step launches, run in the simulator of tests/ptxsim.

A step is forward with gradient, mean, label_smoothing 0.1: of labelsmooth's CUDA kernels, of its
Triton kernel, and of Liger's where liger-kernel is installed. "Over ranks" is what one of 8 ranks
does, whose classes the logits are: its part of the rows, and after those of all are combined, its
gradient.

Counts for each logit do not depend on the number of rows: a few are run, on a device of one
multiprocessor, for which the kernels are chosen as for many rows on a large one. Kernels that touch
neither logits nor gradient (sums over N numbers) are left out.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import labelsmooth

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cuda_kernels import EXTENSION, SimulatedCuda, built_library
from ptxsim import Device, Report
from ptxsim.counters import SECTOR as SECTOR
from ptxsim.executed import machine_instructions

from benchmarks.occupancy import WARP, Resources, assembler, resource_usage, resources_of_ptx
from labelsmooth._call.problem import Inputs, Options

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RANKS = 8
SMOOTHING = 0.1

# What may be asked for beside the plain step.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stats": {"return_stats": True},
    "weight": {},
    "softcap": {"softcap": 30.0},
}


@dataclass(frozen=True)
class Case:
    arch: int
    dtype: str
    classes: int
    variant: str = "plain"

    def __str__(self) -> str:
        return f"sm_{self.arch} {self.dtype} {self.classes} {self.variant}"

    @property
    def device(self) -> Device:
        return replace(Device.of(self.arch), multiprocessors=1)

    @property
    def rows(self) -> int:
        return 64 if self.classes < 4096 else 2

    @property
    def options(self) -> Options:
        return Options(label_smoothing=SMOOTHING, **VARIANTS[self.variant])

    def inputs(self) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(self.rows, self.classes, generator=generator).to(DTYPES[self.dtype])
        target = torch.randint(self.classes, (self.rows,), generator=generator)
        weight = torch.rand(self.classes, generator=generator)
        return Inputs(logits, target, weight=weight if self.variant == "weight" else None)


@dataclass
class Launch:
    """A kernel over the logits or their gradient."""

    report: Report
    resources: Resources
    ptxas: str  # of the kernel's compiler

    @property
    def instructions(self) -> int:
        """Of the machine, of warps, times 32."""
        return machine_instructions(self.report, self.ptxas) * WARP


@dataclass
class Step:
    logits: Tensor
    grad_logits: Tensor
    launches: list[Launch]


def labelsmooth_cuda(case: Case, inputs: Inputs) -> Step:
    return with_cuda(case, inputs, whole_rows)


def labelsmooth_cuda_over_ranks(case: Case, inputs: Inputs) -> Step:
    return with_cuda(case, inputs, one_rank)


def with_cuda(case: Case, inputs: Inputs, step: StepOf) -> Step:
    gpu = SimulatedCuda(built_library().on(case.device, races=False))
    grad_logits = step(gpu, inputs, case.options)
    known = resources_of_extension()
    launches = [
        Launch(report, known[report.module.arch, report.kernel], assembler())
        for report in gpu.reports
    ]
    return over_logits(inputs.logits, grad_logits, launches)


@functools.cache
def resources_of_extension() -> dict[tuple[int, str], Resources]:
    return resource_usage(EXTENSION)


def labelsmooth_triton(case: Case, inputs: Inputs) -> Step:
    from labelsmooth._backends.triton import ops

    return with_triton(case, inputs, lambda: whole_rows(ops, inputs, case.options))


def labelsmooth_triton_over_ranks(case: Case, inputs: Inputs) -> Step:
    from labelsmooth._backends.triton import ops

    return with_triton(case, inputs, lambda: one_rank(ops, inputs, case.options))


def liger(case: Case, inputs: Inputs) -> Step:
    """Its gradient overwrites the logits. It has no statistics."""
    from liger_kernel.ops import cross_entropy

    logits = inputs.logits.requires_grad_()

    def step() -> Tensor:
        # It asks torch for the GPU's generation, from which it takes the number of warps.
        generation = "blackwell" if case.arch >= 100 else "hopper or older"
        with mock.patch.object(cross_entropy, "infer_device_arch", return_value=generation):
            cross_entropy.cross_entropy_forward(
                *(logits, inputs.target, inputs.weight, -100, 0.0, SMOOTHING, "mean"),
                *(case.options.softcap, False),
            )
        return logits

    return with_triton(case, inputs, step)


def with_triton(case: Case, inputs: Inputs, step: Callable[[], Tensor]) -> Step:
    """`step` returns the gradient."""
    from ptxsim.triton_driver import simulated_triton

    with simulated_triton(case.device, races=False) as gpu:
        grad_logits = step()
    ptxas = assembler(triton_for=case.arch)
    launches = [
        Launch(report, resources_of_ptx(compiled.asm["ptx"], ptxas), ptxas)
        for report, compiled in zip(gpu.reports, gpu.compiled, strict=True)
    ]
    return over_logits(inputs.logits, grad_logits, launches)


StepOf = Callable[[Any, Inputs, Options], Tensor]  # of a backend; returns the gradient


def whole_rows(backend: Any, inputs: Inputs, options: Options) -> Tensor:
    grad_logits: Tensor = backend.forward(inputs, options, with_grad=True).grad_logits
    return grad_logits


def one_rank(backend: Any, inputs: Inputs, options: Options) -> Tensor:
    """The logits are those of one of the ranks."""
    options = replace(options, class_offset=0, num_classes=RANKS * inputs.logits.shape[1])
    parts = torch.stack([backend.partial(inputs, options)] * RANKS)
    loss, row_stats, _ = backend.combine(parts, inputs, options)
    one = torch.ones_like(loss)
    grad_logits: Tensor = backend.backward(one, row_stats, inputs, options, inplace=False)
    return grad_logits


def over_logits(logits: Tensor, grad_logits: Tensor, launches: list[Launch]) -> Step:
    def touches(launch: Launch) -> bool:
        made = [launch.report.traffic.get(t.data_ptr()) for t in (logits, grad_logits)]
        return any(t is not None and t.read_bytes + t.written_bytes > 0 for t in made)

    return Step(logits, grad_logits, [launch for launch in launches if touches(launch)])


IMPLEMENTATIONS: dict[str, tuple[Callable[[Case, Inputs], Step], str]] = {
    "labelsmooth, CUDA": (labelsmooth_cuda, "labelsmooth"),
    "labelsmooth, CUDA, over ranks": (labelsmooth_cuda_over_ranks, "labelsmooth"),
    "labelsmooth, Triton": (labelsmooth_triton, "triton"),
    "labelsmooth, Triton, over ranks": (labelsmooth_triton_over_ranks, "triton"),
    "Liger": (liger, "liger_kernel"),
}


def available() -> list[str]:
    """The implementations that can be run here."""
    if not labelsmooth._C.cuda_architectures:
        raise SystemExit("benchmarks: the CUDA kernels are not built")
    return [name for name, (_, module) in IMPLEMENTATIONS.items() if installed(module)]


def installed(module: str) -> bool:
    with contextlib.suppress(ImportError):
        __import__(module)
        return True
    return False


def run_step(name: str, case: Case) -> Step:
    return IMPLEMENTATIONS[name][0](case, case.inputs())


def plain_name(name: str) -> str:
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
