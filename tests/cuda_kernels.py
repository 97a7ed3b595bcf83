"""The CUDA kernels called as ops.cpp calls them, on CPU tensors, through the simulator.

`simulated(...)` gives a Gpu that has the compiled launchers and the PTX of the built extension;
`loss_step(gpu, ...)` is one call of the loss: every output is poisoned by the simulator, which
raises if an element is read before it is written, and checked to be written.
"""

from __future__ import annotations

import ctypes
import functools
import tempfile
from pathlib import Path

import torch
from ptxsim import CudaLibrary, build_library

import labelsmooth

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
EXTENSION = Path(labelsmooth.__file__).parent / "_C.abi3.so"
ARCHS = (80, 90, 100, 120)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["none", "mean", "sum"]


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((n, ctypes.c_int64) for n in ("outer", "cls", "inner")),
    ]


class _ClassSums(ctypes.Structure):
    _fields_ = [("coef", ctypes.c_double), ("coef_log", ctypes.c_double)]


class _LossOptions(ctypes.Structure):
    _fields_ = [
        *(
            (n, ctypes.c_double)
            for n in ("smoothing", "lse_square_scale", "logit_scale", "softcap")
        ),
        *((n, ctypes.c_bool) for n in ("over_others", "kl_div", "from_log_probs")),
    ]


class LossProblem(ctypes.Structure):
    """csrc/kernels.h."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        ("rows", ctypes.c_int64),
        ("classes", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("logits", _Matrix),
        ("grad_logits", _Matrix),
        ("target", ctypes.c_void_p),
        ("target_probs", _Matrix),
        ("ignore_index", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("prior", ctypes.c_void_p),
        ("class_coef", ctypes.c_void_p),
        ("class_sums", _ClassSums),
        ("options", _LossOptions),
        ("grad_loss", ctypes.c_void_p),
        ("grad_loss_stride", ctypes.c_int64),
        ("denominator", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
        ("row_shift", ctypes.c_void_p),
        ("row_sum_exp", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("nll", ctypes.c_void_p),
        ("predicted", ctypes.c_void_p),
    ]


@functools.cache
def library() -> CudaLibrary:
    """The launchers compiled for the stand-in runtime; the PTX is what the extension ships."""
    folder = tempfile.mkdtemp(prefix="labelsmooth-launchers-")
    sources = [*CSRC.glob("cuda/*.cu"), *CSRC.glob("cuda/*.cpp")]
    path = build_library(sources, folder, archs=(90,), flags=(f"-I{CSRC}",))
    return CudaLibrary(path, ptx_from=EXTENSION)
