"""The structures that the CUDA launchers are called with, and a problem as they get it."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from ptxsim import Device
from torch import Tensor

from labelsmooth._backends.native import SMOOTH_OVER
from labelsmooth._call.problem import Inputs, Options, class_range

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # DType of kernels.h


def _fields(kind: Any, *names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


class Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *_fields(ctypes.c_int64, "outer_stride", "class_stride", "inner_stride"),
    ]

    @staticmethod
    def of(tensor: Tensor) -> Matrix:
        return Matrix(tensor.data_ptr(), *tensor.stride(), *([0] if tensor.dim() == 2 else []))


class _ClassSums(ctypes.Structure):
    _fields_ = _fields(ctypes.c_double, "coef", "coef_log", "prior")


class _LossOptions(ctypes.Structure):
    _fields_ = [
        *_fields(ctypes.c_double, "smoothing", "lse_square_scale", "logit_scale"),
        *_fields(ctypes.c_double, "softcap", "lowest"),
        ("smooth_over", ctypes.c_int),
        *_fields(ctypes.c_bool, "weight_over_target", "kl_div", "from_log_probs"),
    ]


class LossProblem(ctypes.Structure):
    """csrc/kernels.h."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        *_fields(ctypes.c_int64, "rows", "classes", "inner", "class_offset", "all_classes"),
        *_fields(Matrix, "logits", "grad_logits"),
        ("target", ctypes.c_void_p),
        ("target_classes", ctypes.c_int64),
        ("sparse_probs", ctypes.c_void_p),
        ("target_probs", Matrix),
        ("probs_dtype", ctypes.c_int),
        ("ignore_index", ctypes.c_int64),
        ("row_weight", ctypes.c_void_p),
        *_fields(ctypes.c_void_p, "weight", "prior", "class_coef"),
        ("class_sums", _ClassSums),
        ("options", _LossOptions),
        ("grad_loss", ctypes.c_void_p),
        ("grad_loss_stride", ctypes.c_int64),
        *_fields(ctypes.c_void_p, "denominator", "parts", "ranks_parts"),
        *_fields(ctypes.c_int64, "ranks", "rank_stride"),
        ("with_stats", ctypes.c_bool),
        *_fields(ctypes.c_void_p, "loss", "row_shift", "row_sum_exp", "row_mass", "row_beta"),
        *_fields(ctypes.c_void_p, "lse", "nll", "predicted", "workers"),
    ]


class DeviceLimits(ctypes.Structure):
    """csrc/cuda/plan.h."""

    _fields_ = [
        *_fields(ctypes.c_int, "multiprocessors", "shared_per_block", "shared_per_multiprocessor"),
        *_fields(ctypes.c_bool, "clusters", "large_clusters"),
    ]

    @staticmethod
    def of(arch: int) -> DeviceLimits:
        device = Device.of(arch)
        return DeviceLimits(
            device.multiprocessors,
            device.shared_per_block,
            device.shared_per_multiprocessor,
            arch >= 90,
            arch in (90, 100),
        )


class Plan(ctypes.Structure):
    """csrc/cuda/plan.h."""

    _fields_ = [
        *_fields(
            ctypes.c_int, "kernel_number", "lanes", "cluster", "threads", "capacity", "positions"
        ),
        ("shared_bytes", ctypes.c_int64),
        *_fields(ctypes.c_int, "parts", "chunks_a_part"),
        ("most_shared_bytes", ctypes.c_int64),
    ]

    @property
    def kernel(self) -> str:
        return ("warp", "cluster", "parts", "strided")[self.kernel_number]


def rows_of(inputs: Inputs) -> Tensor:
    """A tensor of the shape of the rows."""
    return inputs.logits[:, 0]


def problem_of(inputs: Inputs, options: Options) -> LossProblem:
    """Without the memory that a call allocates."""
    logits, target = inputs.logits, inputs.target
    classes = class_range(logits.shape[1], options)
    problem = LossProblem(
        dtype=DTYPES.index(logits.dtype),
        rows=rows_of(inputs).numel(),
        classes=classes.count,
        class_offset=classes.first,
        all_classes=classes.all,
        ranks=1,
        inner=logits.shape[2] if logits.dim() == 3 else 1,
        logits=Matrix.of(logits),
        target_classes=1,
        ignore_index=options.ignore_index,
    )
    if target.is_floating_point():
        problem.target_probs = Matrix.of(target)
        problem.probs_dtype = DTYPES.index(target.dtype)
    problem.options = _LossOptions(
        options.label_smoothing,
        options.lse_square_scale,
        options.logit_scale,
        options.softcap or 0.0,
        torch.finfo(logits.dtype).min,
        SMOOTH_OVER[options.smooth_over],
        options.weight_over == "target",
        options.objective == "kl_div",
        options.from_log_probs,
    )
    return problem
