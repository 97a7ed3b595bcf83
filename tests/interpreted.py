"""Triton's interpreter, which runs a kernel program by program in numpy, made stricter and right.

It follows any pointer; here an access outside the tensors of its launch raises IndexError. It cuts
bfloat16 off; here it rounds, as the GPUs do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

_bounds: list[tuple[int, int]] = []  # first address, and the one after the last, of each tensor


def make_strict() -> None:
    """For the rest of the process."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    cast, arguments = InterpreterBuilder.cast_impl, GridExecutor._init_args_hst

    def checked_arguments(self: Any, positional: Any, keywords: Any) -> Any:
        made = arguments(self, positional, keywords)
        tensors = [t for t in (*made[0], *made[1].values()) if isinstance(t, torch.Tensor)]
        _bounds[:] = [_extent(tensor) for tensor in tensors if tensor.numel()]
        return made

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def rounding_cast(self: Any, value: Any, to: Any) -> Any:
        if value.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(value.data)).bfloat16()
            return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        return cast(self, value, to)

    GridExecutor._init_args_hst = checked_arguments
    interpreter.InterpreterBuilder.create_masked_load = checked_load
    interpreter.InterpreterBuilder.create_masked_store = checked_store
    interpreter.InterpreterBuilder.cast_impl = rounding_cast


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.data_ptr()
    return first, first + (last + 1) * tensor.element_size()


def _check(pointers: Any, mask: Any) -> None:
    size = pointers.get_element_ty().primitive_bitwidth // 8
    addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
    inside = np.zeros(addresses.shape, bool)
    for first, end in _bounds:
        inside |= (addresses >= first) & (addresses + size <= end)
    if not inside.all():
        raise IndexError(f"{(~inside).sum()} accesses outside the tensors of the launch")
