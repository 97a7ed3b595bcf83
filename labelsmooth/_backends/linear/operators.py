"""The two loops as operators: `linear_forward` and `linear_backward`, as loop.py has them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._call.problem import LinearInputs, LinearOptions, accumulate_dtype
from ..._call.schema import keywords_of, overload_of, schema_of, tensors_of
from . import loop, sizes
from .loop import LinearOutputs
from .sums import Gradients

KEYWORDS = keywords_of(LinearOptions)
TENSORS = tensors_of(LinearInputs)
MORE = "ScalarType dtype, bool need_hidden, bool need_linear_weight, bool need_linear_bias"
GRADIENTS = "Tensor grad_hidden, Tensor grad_linear_weight, Tensor grad_linear_bias"


def forward(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> LinearOutputs:
    return LinearOutputs._make(_call("linear_forward", inputs, options, dtype, needed))


def backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> Gradients:
    tensors = (grad_loss, row_stats, *inputs)
    return Gradients._make(_call("linear_backward", tensors, options, dtype, needed))


def _call(
    name: str, tensors: Any, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> Any:
    operator, values = overload_of(getattr(torch.ops.labelsmooth, name), options, KEYWORDS)
    return operator(*tensors, *values.values(), dtype, *needed)


# ---- fake versions: shapes, for torch.compile and the meta device --------------------------------


def _fake_forward(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> LinearOutputs:
    hidden, linear_weight, *_ = inputs
    rows, per_row, stats = hidden.shape[0], options.reduction == "none", options.return_stats
    accumulate = accumulate_dtype(hidden.new_empty(0, dtype=dtype))
    grads = list(_fake_backward(hidden, hidden, inputs, options, dtype, needed))
    if needed[1]:
        _, features = hidden.shape
        chunk = sizes.rows_of_chunk(rows, features, dtype, hidden.device, options.chunk_rows)
        grads[1] = grads[1].to(sizes.dtype_of_sums(linear_weight.dtype, rows > chunk))
    dtypes = (hidden.dtype, linear_weight.dtype, sizes.product_dtype(dtype, hidden.device))
    pending = hidden.new_empty(0)
    if any(needed) and torch.float16 in dtypes:
        pending = hidden.new_empty((), dtype=torch.float32)
    return LinearOutputs(
        hidden.new_empty(rows if per_row else (), dtype=accumulate),
        hidden.new_empty((6 if stats else 4, rows), dtype=accumulate),
        hidden.new_empty(rows if stats else 0, dtype=torch.int64),
        *(grads[0], grads[1], grads[2].to(accumulate) if needed[2] else grads[2]),
        pending,
    )


def _fake_backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> Gradients:
    return Gradients(
        *(
            of.new_empty(of.shape) if of is not None and need else inputs.hidden.new_empty(0)
            for of, need in zip(inputs[:3], needed, strict=True)
        )
    )


# ---- registration --------------------------------------------------------------------------------


def _define(
    name: str, first: str, returns: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Both overloads: with label_smoothing a number, and a tensor on the CPU."""
    count = first.count("Tensor")

    def of(function: Callable[..., Any], *arguments: Any) -> Any:
        before, (inputs, options, *more) = arguments[:count], parsed(*arguments[count:])
        return tuple(function(*before, inputs, options, *more))

    def real(*arguments: Any) -> Any:
        device = arguments[count].device.type
        if not torch.is_autocast_enabled(device):
            return of(run, *arguments)
        with torch.autocast(device, enabled=False):  # the dtypes are chosen already
            return of(run, *arguments)

    for overload in (name, f"{name}.traced"):
        options = schema_of(LinearOptions, KEYWORDS, traced=overload != name)
        schema = f"({first}{TENSORS}, {options}, {MORE}) -> ({returns})"
        torch.library.define(f"labelsmooth::{overload}", schema)
        torch.library.impl(f"labelsmooth::{overload}", "CompositeExplicitAutograd", real)
        torch.library.register_fake(f"labelsmooth::{overload}", partial(of, fake))


def parsed(*arguments: Any) -> tuple[LinearInputs, LinearOptions, torch.dtype, list[bool]]:
    """What follows the operators' first tensors, in the order of their schema."""
    count = len(LinearInputs._fields)
    tensors, values, (dtype, *needed) = arguments[:count], arguments[count:-4], arguments[-4:]
    options = LinearOptions(**dict(zip(KEYWORDS, values, strict=True)))
    return LinearInputs(*tensors), options, dtype, needed


_define(
    "linear_forward",
    "",
    f"Tensor loss, Tensor row_stats, Tensor predicted, {GRADIENTS}, Tensor pending",
    loop.forward,
    _fake_forward,
)
_define(
    "linear_backward",
    "Tensor grad_loss, Tensor row_stats, ",
    GRADIENTS,
    loop.backward,
    _fake_backward,
)
