"""The CUDA kernels called as ops.cpp calls them, on CPU tensors, through the simulator.

`simulated_cuda(arch)` is a backend, with the package's pair of functions, that runs the compiled
launchers on the PTX of the built extension. The simulator raises if an output is read before it is
written; here it is checked that every element is written in the end.
"""

from __future__ import annotations

import ctypes
import functools
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import ROOT, loss_dtype
from cuda_problem import DTYPES, DeviceLimits, LossProblem, Matrix, Plan, problem_of, rows_of
from ptxsim import CudaLibrary, Device, build_library
from ptxsim.counters import Report
from ptxsim.cuda_runtime import Gpu
from torch import Tensor

import labelsmooth
from labelsmooth._backends import eager
from labelsmooth._backends.native import REDUCTIONS, can_read_once
from labelsmooth._backends.parts import field_count, has
from labelsmooth._call.problem import Inputs, Options, Outputs

CSRC = ROOT / "csrc"
SHIM = ROOT / "tests" / "cpp" / "cuda_launchers.cpp"
EXTENSION = Path(labelsmooth.__file__).parent / "_C.abi3.so"
OBJECTS = ROOT / "build" / "inplace" / "cuda"
ARCHS = (80, 90, 100, 120)  # as setup.py

needs_cuda = pytest.mark.skipif(
    not labelsmooth._C.cuda_architectures, reason="the extension was built without nvcc"
)


@functools.cache
def built_library() -> CudaLibrary:
    """The launchers and the PTX of the extension as it is built in place.

    The extension has a real CUDA runtime in it; so its kernels' objects are linked once more, with
    the simulator's.
    """
    objects = sorted(OBJECTS.glob("*.o"))
    assert objects, f"no kernels in {OBJECTS}: the extension was not built in place"
    folder = tempfile.mkdtemp(prefix="labelsmooth-launchers-")
    sources = [*objects, CSRC / "cuda" / "plan.cpp", SHIM]
    path = build_library(sources, folder, flags=(f"-I{CSRC}",))
    library = CudaLibrary(path, ptx_from=EXTENSION)
    assert library.function("problem_bytes")() == ctypes.sizeof(LossProblem)
    assert library.function("plan_bytes")() == ctypes.sizeof(Plan)
    return library


def make_plan(problem: LossProblem, arch: int, largest_cluster: int = 16) -> Plan:
    plan, limits = Plan(), DeviceLimits.of(arch)
    make = built_library().function("make_plan")
    room = ctypes.c_int64(largest_cluster)
    make(ctypes.byref(problem), ctypes.byref(limits), room, ctypes.byref(plan))
    return plan


def simulated_cuda(arch: int, **options: Any) -> SimulatedCuda:
    return SimulatedCuda(built_library().on(Device.of(arch), **options))


def kernel_of(report: Report) -> str:
    """ "warp", "cluster", "sums", "finish", "gradient", "strided", "rank", "sum" or "scale"."""
    [name] = re.findall(r"\d([a-z]+)_kernel", report.kernel)
    return str(name)


class SimulatedCuda:
    """The functions that labelsmooth._backends.native has, on one simulated GPU.

    `inputs` and `grad_logits` are those of the last call, whose traffic is in `reports`.
    """

    inputs: Inputs
    grad_logits: Tensor

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu

    @property
    def logits(self) -> Tensor:
        return self.inputs.logits

    @property
    def reports(self) -> list[Report]:
        return self.gpu.reports

    def forward(self, inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
        if not can_read_once(inputs, options):
            return eager.forward(inputs, options, with_grad=with_grad)
        grad = torch.empty(0)
        if with_grad:
            grad = inputs.logits if options.inplace else torch.empty_like(inputs.logits)
        self.inputs, self.grad_logits = inputs, grad
        call = _Call(self.gpu, inputs, options)
        if with_grad:
            call.write_gradient_to(grad)
        return Outputs(*call.run_reduced("launch_run"), grad)

    def partial(self, inputs: Inputs, options: Options) -> Tensor:
        fields = field_count(*has(options))
        parts = torch.empty(fields, rows_of(inputs).numel(), dtype=loss_dtype(inputs.logits))
        self.inputs, self.grad_logits = inputs, torch.empty(0)
        call = _Call(self.gpu, inputs, replace(options, reduction="none"))
        call.problem.parts = call.output(parts)
        call.problem.with_stats = options.return_stats
        call.run("launch_run", None)
        return parts

    def combine(
        self, parts: Tensor, inputs: Inputs, options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.inputs, self.grad_logits = inputs, torch.empty(0)
        call = _Call(self.gpu, inputs, options)
        call.problem.ranks_parts = call.input(parts)
        call.problem.ranks, call.problem.rank_stride = parts.shape[0], parts.stride(0)
        return call.run_reduced("launch_combine")

    def backward(
        self,
        grad_loss: Tensor,
        row_stats: Tensor,
        inputs: Inputs,
        options: Options,
        *,
        inplace: bool,
    ) -> Tensor:
        grad = inputs.logits if inplace else torch.empty_like(inputs.logits)
        self.inputs, self.grad_logits = inputs, grad
        call = _Call(self.gpu, inputs, options)
        call.problem.grad_loss = call.input(grad_loss.contiguous())
        call.problem.grad_loss_stride = int(options.reduction == "none")
        call.take_stats(row_stats, self.gpu.tensor)
        call.write_gradient_to(grad)
        call.run("launch_run", None)
        return grad

    def scale(self, values: Tensor, factor: Tensor) -> None:
        dtype = DTYPES.index(values.dtype)
        status = self.gpu.call("launch_scale", dtype, values, values.numel(), factor)
        assert status == 0, f"cudaError_t {status}"


class _Call:
    """A LossProblem made of tensors, all of them known to the simulator."""

    def __init__(self, gpu: Gpu, inputs: Inputs, options: Options) -> None:
        self.gpu, self.inputs, self.options = gpu, inputs, options
        self.outputs = list[Tensor]()
        gpu.tensor(inputs.logits)
        self.problem = problem_of(inputs, options)
        if inputs.target.is_floating_point():
            gpu.tensor(inputs.target)
        else:
            self.problem.target = self.input(inputs.target.long().contiguous())
        if inputs.target_probs is not None:
            self.problem.target_classes = inputs.target.shape[1]
            probs = inputs.target_probs.to(loss_dtype(inputs.logits))
            self.problem.sparse_probs = self.input(probs.contiguous())
        for name in ("weight", "prior", "row_weight"):
            if (vector := getattr(inputs, name)) is not None:
                vector = vector.to(loss_dtype(inputs.logits)).contiguous()
                first = 0 if name == "row_weight" else self.problem.class_offset
                setattr(self.problem, name, self.input(vector) + first * vector.itemsize)
        self.normalizer = inputs.normalizer if options.reduction == "mean" else None

    def input(self, tensor: Tensor) -> int:
        self.gpu.tensor(tensor)  # which also keeps it alive
        return tensor.data_ptr()

    def output(self, tensor: Tensor) -> int:
        self.gpu.output(tensor)
        self.outputs.append(tensor)
        return tensor.data_ptr()

    def take_stats(self, row_stats: Tensor, register: Any) -> None:
        register(row_stats)
        names = ("row_shift", "row_sum_exp", "row_mass", "row_beta", "lse", "nll")
        for name, row in zip(names, row_stats, strict=False):
            setattr(self.problem, name, row.data_ptr())

    def write_gradient_to(self, grad: Tensor) -> None:
        if grad.data_ptr() != self.problem.logits.data:
            self.output(grad)
        self.problem.grad_logits = Matrix.of(grad)

    def run_reduced(self, launcher: str) -> tuple[Tensor, Tensor, Tensor]:
        rows, dtype = rows_of(self.inputs).shape, loss_dtype(self.inputs.logits)
        with_stats = self.options.return_stats
        loss = torch.empty(rows, dtype=dtype)
        row_stats = torch.empty(6 if with_stats else 4, loss.numel(), dtype=dtype)
        predicted = torch.empty(rows if with_stats else 0, dtype=torch.int64)
        self.problem.loss = self.output(loss)
        self.problem.with_stats = with_stats
        self.take_stats(row_stats, self.output)
        if with_stats:
            self.problem.predicted = self.output(predicted)
        if self.options.reduction == "none":
            self.run(launcher, None)
            return loss, row_stats, predicted
        reduced = torch.empty((), dtype=dtype)
        self.run(launcher, reduced)
        return reduced, row_stats, predicted

    def run(self, launcher: str, reduced_loss: Tensor | None) -> None:
        bytes_needed = ctypes.c_int64()
        problem, reduction = ctypes.byref(self.problem), REDUCTIONS[self.options.reduction]
        self.gpu.call("workspace_bytes", problem, ctypes.byref(bytes_needed))
        workspace = torch.empty(bytes_needed.value, dtype=torch.uint8)
        self.gpu.output(workspace)
        if reduced_loss is not None:
            self.output(reduced_loss)
        status = self.gpu.call(
            launcher, problem, reduction, self.normalizer, reduced_loss, workspace
        )
        assert status == 0, f"cudaError_t {status}"
        for output in self.outputs:
            unwritten = output.numel() > 0 and not self.gpu.written(output)
            assert not unwritten, "not all of an output is written"
