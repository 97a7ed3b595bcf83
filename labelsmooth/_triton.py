"""Triton's kernel as a backend: the same operators as csrc/ops.cpp, in the namespace
labelsmooth_triton.

For GPUs without the CUDA extension, AMD's included; on CPU tensors under TRITON_INTERPRET=1.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from . import _ops
from ._problem import Inputs, Options, Outputs
from ._triton_kernels import loss_kernel

# Elements of a tile. A tile of one row is the longest row that is held in registers.
WHOLE_ELEMENTS = {torch.float64: 8192}
WHOLE_ELEMENTS_DEFAULT = 32768
LOOP_ELEMENTS = 8192
LEAST_ELEMENTS = 2048


class Tile(NamedTuple):
    """How a matrix is divided: the kernel's ROWS and BLOCK, and warps a program."""

    rows: int
    block: int
    warps: int
    whole: bool  # a tile holds all classes of its rows


def tile_of(classes: int, inner: int, class_stride: int, dtype: torch.dtype) -> Tile:
    """Adjacent classes: as many of them as there are, and rows to fill a tile of small ones.
    Strided classes: adjacent rows, which makes the reads of a warp adjacent too."""
    limit = WHOLE_ELEMENTS.get(dtype, WHOLE_ELEMENTS_DEFAULT)
    rows = 1 if class_stride == 1 else min(32, triton.next_power_of_2(inner))
    block = triton.next_power_of_2(classes)
    whole = rows * block <= limit
    if not whole:
        block = LOOP_ELEMENTS // rows
    rows = max(rows, LEAST_ELEMENTS // block)
    elements_a_thread = limit // 1024
    warps = max(4, rows * block // (32 * elements_a_thread))
    return Tile(rows, block, warps, whole)
