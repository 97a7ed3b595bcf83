"""Triton's kernel as a backend: the operators of csrc/torch, in a namespace labelsmooth_triton.

For GPUs without the CUDA extension, AMD's included; on CPU tensors under TRITON_INTERPRET=1.
"""

import inspect
from collections.abc import Callable
from types import GenericAlias
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from ..._call.problem import Inputs, Options, Outputs
from .. import native
from .call import Call, strides_of
from .kernels import loss_kernel, scale_kernel
from .plan import Tile, gpu_of, tile_of


def _call(name: str, traced: bool, *arguments: object) -> Any:
    if traced:  # label_smoothing is a tensor then, see native.py
        name = f"traced_{name}"
    return getattr(torch.ops.labelsmooth_triton, name).default(*arguments)


def forward(inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
    """Loss, statistics and, with_grad, the gradient of the loss for an incoming gradient of 1."""
    return native.forward(inputs, options, with_grad=with_grad, call=_call)


def backward(
    grad_loss: Tensor, row_stats: Tensor, inputs: Inputs, options: Options, *, inplace: bool
) -> Tensor:
    """The gradient of the logits, from the statistics that forward left."""
    return native.backward(grad_loss, row_stats, inputs, options, inplace=inplace, call=_call)


def scaled_(grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
    """As eager.scaled_; the GPU decides by itself whether to."""
    if not grad_logits.is_contiguous():
        return grad_logits.mul_(grad_loss)
    torch.ops.labelsmooth_triton.scale_.default(grad_logits, grad_loss)
    return grad_logits


# ---- launches ------------------------------------------------------------------------------------


def _launch(
    call: Call,
    stage: str,
    tile: Tile,
    parts: int,
    outputs: dict[str, Tensor],
    grad_logits: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    """`parts` programs for each `tile.rows` rows."""
    if call.rows == 0:
        return
    row_stats = outputs["row_stats"]
    grid = (call.outer * triton.cdiv(call.inner, tile.rows), parts)
    wrap_triton(loss_kernel)[grid](
        *call.arguments,
        grad_logits,
        *((0, 0, 0) if grad_logits is None else strides_of(grad_logits)),
        None if scale is None else scale.contiguous(),
        0 if scale is None or scale.dim() == 0 else 1,
        outputs.get("loss"),
        row_stats,
        outputs.get("predicted"),
        outputs.get("parts"),
        WITH_STATS=call.with_stats,
        STAGE=stage,
        PARTS=call.plan.parts,
        ENTRIES=call.entries,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=tile.threads // call.gpu.warp,
    )


def _run_forward(call: Call, grad_logits: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    logits, rows = call.logits, (call.logits.shape[0], *call.logits.shape[2:])
    tile, whole, parts = call.plan
    loss = logits.new_empty(rows, dtype=call.dtype)
    row_stats = logits.new_empty((6 if call.with_stats else 4, call.rows), dtype=call.dtype)
    predicted = logits.new_empty(rows if call.with_stats else 0, dtype=torch.int64)
    outputs = {"loss": loss, "row_stats": row_stats, "predicted": predicted}
    scale = None if grad_logits is None else call.scale(None)
    if parts == 1:
        _launch(call, "whole" if whole else "rows", tile, 1, outputs, grad_logits, scale)
    else:
        outputs["parts"] = logits.new_empty((12, call.rows, parts), dtype=torch.float64)
        _launch(call, "parts", tile, parts, outputs)
        _launch(call, "combine", tile, 1, outputs)
        if grad_logits is not None:
            _launch_gradient(call, row_stats, grad_logits, scale)
    if call.reduction != native.REDUCTIONS["none"]:
        loss = loss.sum()
        if call.denominator is not None:
            loss = loss / call.denominator
    return loss, row_stats, predicted


def _launch_gradient(
    call: Call, row_stats: Tensor, grad_logits: Tensor, scale: Tensor | None
) -> None:
    tile = tile_of(call.plan.tile.rows, call.classes, 4096, call.logits.dtype)
    parts = triton.cdiv(call.classes, tile.block)
    _launch(call, "gradient", tile, parts, {"row_stats": row_stats}, grad_logits, scale)


def _run_backward(call: Call, grad_loss: Tensor, row_stats: Tensor, grad_logits: Tensor) -> None:
    _launch_gradient(call, row_stats, grad_logits, call.scale(grad_loss.to(call.dtype)))


# ---- operators, of the schemas of csrc/torch/ops.cpp ---------------------------------------------


def _forward(*arguments):  # type: ignore[no-untyped-def]
    *shared, with_grad, with_stats = arguments
    call = Call(*shared, with_stats=with_stats)
    grad_logits = torch.empty_like(call.logits) if with_grad else None
    made = _run_forward(call, grad_logits)
    return *made, call.logits.new_empty(0) if grad_logits is None else grad_logits


def _forward_(*arguments):  # type: ignore[no-untyped-def]
    *shared, with_stats = arguments
    call = Call(*shared, with_stats=with_stats)
    return _run_forward(call, call.logits)


def _backward(grad_loss, logits, target, target_probs, row_stats, *options):  # type: ignore[no-untyped-def]
    grad_logits = torch.empty_like(logits)
    call = Call(logits, target, target_probs, *options)
    _run_backward(call, grad_loss, row_stats, grad_logits)
    return grad_logits


def _backward_(grad_loss, logits, target, target_probs, row_stats, *options):  # type: ignore[no-untyped-def]
    _run_backward(Call(logits, target, target_probs, *options), grad_loss, row_stats, logits)


def _scale_(grad_logits, grad_loss):  # type: ignore[no-untyped-def]
    block = 2048
    blocks = triton.cdiv(grad_logits.numel(), block)
    if blocks == 0:
        return
    grid = (min(blocks, 16 * gpu_of(grad_logits.device).processors),)
    wrap_triton(scale_kernel)[grid](
        grad_logits, grad_logits.numel(), grad_loss, BLOCK=block, num_warps=4
    )


_ANNOTATIONS = {
    "Tensor": Tensor,
    "Optional[Tensor]": Tensor | None,
    "int": int,
    "float": float,
    "bool": bool,
}


def _signature(schema: torch.FunctionSchema, **other: Any) -> inspect.Signature:
    """The schema as annotations, from which triton_op reads it; other: those that differ."""

    def annotation(of: torch.Argument) -> Any:
        return other.get(of.name, _ANNOTATIONS[str(of.type)])

    parameters = [
        inspect.Parameter(a.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation(a))
        for a in schema.arguments
    ]
    made = [annotation(a) for a in schema.returns]
    returns = made[0] if len(made) == 1 else GenericAlias(tuple, tuple(made)) if made else None
    return inspect.Signature(parameters, return_annotation=returns)


def _define(function: Any, fake: Callable[..., Any]) -> None:
    """The operator; and the one that torch.compile takes, where it differs."""
    name = function.__name__.removeprefix("_")
    schema = getattr(torch.ops.labelsmooth, name).default._schema
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    kinds: dict[str, dict[str, Any]] = {name: {}}
    if "label_smoothing" in (a.name for a in schema.arguments):
        kinds[f"traced_{name}"] = {"label_smoothing": Tensor}
    for defined, other in kinds.items():
        function.__signature__ = _signature(schema, **other)
        operator: Any = triton_op(f"labelsmooth_triton::{defined}", function, mutates_args=written)
        operator.register_fake(fake)
    del function.__signature__


_define(_forward, native.FAKES["forward"])
_define(_forward_, native.FAKES["forward_"])
_define(_backward, native.FAKES["backward"])
_define(_backward_, native.FAKES["backward_"])
_define(_scale_, lambda grad_logits, grad_loss: None)
