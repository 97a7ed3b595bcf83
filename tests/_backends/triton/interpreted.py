"""Triton's interpreter, which runs a kernel program by program in numpy, made stricter and right.

It follows any pointer; here an access to what is no element of a tensor of the launch raises
IndexError. It cuts bfloat16 off; here it rounds, as the GPUs do, and a fused multiply-add rounds
once. It fits triton.language to itself
at each call of a function; here once a launch and module, which takes half the time off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


class Memory(NamedTuple):
    """Of a tensor, from its first element to its last."""

    address: int
    element_size: int
    reachable: np.ndarray  # of each element in between, some of which strides may leave out


@contextmanager
def strict_interpreter() -> Iterator[None]:
    """For the launches within the context."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    cast, arguments = InterpreterBuilder.cast_impl, GridExecutor._init_args_hst
    fit_language = interpreter._patch_lang
    launched: list[Memory] = []
    fitted: set[int] = set()

    def noted_arguments(self: Any, positional: Any, keywords: Any) -> Any:
        made = arguments(self, positional, keywords)
        values = (*made[0], *made[1].values())
        fitted.clear()
        launched[:] = [_memory_of(v) for v in values if isinstance(v, torch.Tensor) and v.numel()]
        return made

    def fit_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in fitted:
            return None
        fitted.add(module)
        return fit_language(function)

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask, launched)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check(pointers, mask, launched)
        return store(self, pointers, value, mask, *rest)

    def rounding_cast(self: Any, value: Any, to: Any) -> Any:
        if value.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.ascontiguousarray(value.data)).bfloat16()
            return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
        return cast(self, value, to)

    def fused(self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = x.data.astype(np.longdouble) * y.data + z.data
        return TensorHandle(exact.astype(z.data.dtype), z.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GridExecutor, "_init_args_hst", noted_arguments)
        patch.setattr(interpreter, "_patch_lang", fit_once)
        patch.setattr(InterpreterBuilder, "create_masked_load", checked_load)
        patch.setattr(InterpreterBuilder, "create_masked_store", checked_store)
        patch.setattr(InterpreterBuilder, "cast_impl", rounding_cast)
        patch.setattr(InterpreterBuilder, "create_fma", fused)
        yield


def _memory_of(tensor: torch.Tensor) -> Memory:
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    reachable = torch.zeros(last + 1, dtype=torch.bool)
    reachable.as_strided(tensor.shape, tensor.stride()).fill_(True)
    return Memory(tensor.data_ptr(), tensor.element_size(), reachable.numpy())


def _check(pointers: Any, mask: Any, launched: list[Memory]) -> None:
    size = pointers.get_element_ty().primitive_bitwidth // 8
    # Of a single row they are scalars, of no or of one dimension.
    places, chosen = np.broadcast_arrays(pointers.data, mask.data)
    addresses = places[chosen.astype(bool)].astype(np.int64)
    for memory in launched:
        element, rest = np.divmod(addresses - memory.address, size)
        inside = (rest == 0) & (element >= 0) & (element < len(memory.reachable))
        if size == memory.element_size:
            inside[inside] = memory.reachable[element[inside]]
            addresses = addresses[~inside]
    if len(addresses):
        raise IndexError(f"{len(addresses)} accesses outside the tensors of the launch")
