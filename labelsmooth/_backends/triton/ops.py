"""Triton's kernel as a backend: the operators of csrc/torch, in a namespace labelsmooth_triton.

To torch.compile they are as closed as those: Inductor would copy a kernel's source without the
classes that it names.

For GPUs without the CUDA extension, AMD's included; on CPU tensors under TRITON_INTERPRET=1.
"""

import inspect
import math
from collections.abc import Callable
from types import GenericAlias
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import custom_op

from ..._call.problem import Inputs, Options, Outputs
from .. import native
from ..parts import field_count
from .call import Call, strides_of
from .gradient import scale_kernel
from .kernels import loss_kernel
from .plan import STAGES, Tile, accesses_of, gpu_of, tile_of
from .rank_rows import combine_kernel


def _call(name: str, traced: bool, *arguments: object) -> Any:
    if traced:  # label_smoothing is a tensor then, see native.py
        name = f"traced_{name}"
    return getattr(torch.ops.labelsmooth_triton, name).default(*arguments)


def forward(inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
    return native.forward(inputs, options, with_grad=with_grad, call=_call)


def backward(
    grad_loss: Tensor, row_stats: Tensor, inputs: Inputs, options: Options, *, inplace: bool
) -> Tensor:
    return native.backward(grad_loss, row_stats, inputs, options, inplace=inplace, call=_call)


def partial(inputs: Inputs, options: Options) -> Tensor:
    return native.partial(inputs, options, call=_call)


def combine(parts: Tensor, inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    return native.combine(parts, inputs, options, call=_call)


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
    width, edges = accesses_of(call.logits, grad_logits, call.classes.count, tile)
    unit = 1 if edges else width
    threads = max(call.gpu.warp, tile.threads)
    loss_kernel[grid](
        *call.arguments(unit),
        grad_logits,
        *((0, 0, 0) if grad_logits is None else strides_of(grad_logits, unit)),
        None if scale is None else scale.contiguous(),
        0 if scale is None or scale.dim() == 0 else 1,
        outputs.get("loss"),
        row_stats,
        outputs.get("predicted"),
        outputs.get("parts"),
        PARTIAL=call.partial,
        WITH_STATS=call.with_stats,
        STAGE=stage,
        PARTS=call.plan.parts,
        ENTRIES=call.entries,
        ROWS=tile.rows,
        BLOCK=tile.block,
        LANES=1 if tile.rows > 1 and width == 1 else min(threads, tile.block // width),
        WIDTH=width,
        EDGES=edges,
        # Of adjacent rows; of others their number, which changes with the batch, means nothing.
        UNIT=1 if call.logits.stride(1) == 1 else math.gcd(call.inner, 16),
        STAGES=1 if call.dense or call.vectors else STAGES,
        num_warps=threads // call.gpu.warp,
    )


def _launch_rows(
    call: Call,
    outputs: dict[str, Tensor],
    grad_logits: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    tile, whole, parts = call.plan
    if parts == 1:
        _launch(call, "whole" if whole else "rows", tile, 1, outputs, grad_logits, scale)
    else:
        sums = call.logits.new_empty((12, call.rows, parts), dtype=torch.float64)
        _launch(call, "parts", tile, parts, {**outputs, "parts": sums})
        _launch(call, "combine", tile, 1, {**outputs, "parts": sums})
        if grad_logits is not None:
            _launch_gradient(call, outputs["row_stats"], grad_logits, scale)


def _outputs(call: Call) -> dict[str, Tensor]:
    """Of rows, before they are reduced."""
    rows, new_empty = call.shape_of_rows, call.logits.new_empty
    return {
        "loss": new_empty(rows, dtype=call.dtype),
        "row_stats": new_empty((6 if call.with_stats else 4, call.rows), dtype=call.dtype),
        "predicted": new_empty(rows if call.with_stats else 0, dtype=torch.int64),
    }


def _reduced(
    call: Call, loss: Tensor, row_stats: Tensor, predicted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if call.reduction != native.REDUCTIONS["none"]:
        loss = loss.sum()
        if call.denominator is not None:
            loss = loss / call.denominator
    return loss, row_stats, predicted


def _run_forward(call: Call, grad_logits: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(call)
    scale = None if grad_logits is None else call.scale(None)
    _launch_rows(call, outputs, grad_logits, scale)
    return _reduced(call, **outputs)


def _launch_gradient(
    call: Call, row_stats: Tensor, grad_logits: Tensor, scale: Tensor | None
) -> None:
    classes = call.classes.count
    tile = tile_of(call.plan.tile.rows, classes, 4096, call.logits.dtype)
    parts = triton.cdiv(classes, tile.block)
    _launch(call, "gradient", tile, parts, {"row_stats": row_stats}, grad_logits, scale)


def _run_backward(call: Call, grad_loss: Tensor, row_stats: Tensor, grad_logits: Tensor) -> None:
    _launch_gradient(call, row_stats, grad_logits, call.scale(grad_loss.to(call.dtype)))
    _zero_padding(call, grad_logits)


def _run_combine(call: Call, parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    outputs, block = _outputs(call), 128
    if not parts[0].is_contiguous():
        parts = parts.contiguous()
    if call.rows > 0:
        combine_kernel[(triton.cdiv(call.rows, block),)](
            *(parts, parts.stride(0), parts.shape[0]),
            *call.combine_arguments,
            *outputs.values(),
            WITH_STATS=call.with_stats,
            BLOCK=block,
            num_warps=block // call.gpu.warp,
        )
    return _reduced(call, **outputs)


def _zero_padding(call: Call, grad_logits: Tensor) -> Tensor:
    """Of columns behind the last class."""
    if call.classes.count < grad_logits.shape[1]:
        grad_logits[:, call.classes.count :].zero_()
    return grad_logits


# ---- operators, of the schemas of csrc/torch/ops.cpp ---------------------------------------------


def _forward(*arguments):  # type: ignore[no-untyped-def]
    *shared, with_grad, with_stats = arguments
    call = Call(*shared, with_stats=with_stats)
    if not with_grad:
        return *_run_forward(call, None), call.logits.new_empty(0)
    grad_logits = torch.empty_like(call.logits)
    return *_run_forward(call, grad_logits), _zero_padding(call, grad_logits)


def _forward_(*arguments):  # type: ignore[no-untyped-def]
    *shared, with_stats = arguments
    call = Call(*shared, with_stats=with_stats)
    made = _run_forward(call, call.logits)
    _zero_padding(call, call.logits)
    return made


def _backward(grad_loss, logits, target, target_probs, row_stats, *options):  # type: ignore[no-untyped-def]
    grad_logits = torch.empty_like(logits)
    call = Call(logits, target, target_probs, *options)
    _run_backward(call, grad_loss, row_stats, grad_logits)
    return grad_logits


def _backward_(grad_loss, logits, target, target_probs, row_stats, *options):  # type: ignore[no-untyped-def]
    _run_backward(Call(logits, target, target_probs, *options), grad_loss, row_stats, logits)


def _partial(*arguments):  # type: ignore[no-untyped-def]
    *shared, with_stats = arguments
    call = Call(*shared, with_stats=with_stats, partial=True)
    fields = field_count(call.unmasked, call.kl_div, with_stats)
    parts = call.logits.new_empty((fields, call.rows), dtype=call.dtype)
    _launch_rows(call, {"row_stats": parts})
    return parts


def _combine(parts, *arguments):  # type: ignore[no-untyped-def]
    *shared, with_stats = arguments
    return _run_combine(Call(*shared, with_stats=with_stats), parts)


def _scale_(grad_logits, grad_loss):  # type: ignore[no-untyped-def]
    block = 2048
    blocks = triton.cdiv(grad_logits.numel(), block)
    if blocks == 0:
        return
    grid = (min(blocks, 16 * gpu_of(grad_logits.device).processors),)
    scale_kernel[grid](grad_logits, grad_logits.numel(), grad_loss, BLOCK=block, num_warps=4)


_ANNOTATIONS = {
    "Tensor": Tensor,
    "Optional[Tensor]": Tensor | None,
    "int": int,
    "float": float,
    "bool": bool,
}


def _signature(schema: torch.FunctionSchema, **other: Any) -> inspect.Signature:
    """The schema as annotations, from which custom_op reads it; other: those that differ."""

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
        operator: Any = custom_op(f"labelsmooth_triton::{defined}", function, mutates_args=written)
        operator.register_fake(fake)
    del function.__signature__


_define(_forward, native.FAKES["forward"])
_define(_forward_, native.FAKES["forward_"])
_define(_backward, native.FAKES["backward"])
_define(_backward_, native.FAKES["backward_"])
_define(_partial, native.FAKES["partial"])
_define(_combine, native.FAKES["combine"])
_define(_scale_, lambda grad_logits, grad_loss: None)
