"""The projection and the loss as autograd sees them: gradients in forward or in backward, and every
other derivative by the formulas, chunk by chunk."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._backends.choose import choose_backend
from .._backends.linear import operators
from .._backends.linear.sums import Gradients, finish
from .._call.checks import has_values
from .._call.problem import LinearInputs, LinearOptions
from . import chunked
from .loss import is_needed_again
from .operator import in_transform
from .sharded import FIRST_ALONE, check_derivatives

TENSORS = len(LinearInputs._fields)


def apply(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, row_stats and predicted; `dtype` is that of the projection."""
    if not torch.compiler.is_compiling():  # there the operator does, when it runs
        choose_backend(options.backend, inputs.hidden.device)
    others = inputs[3:]
    if options.process_group is not None:
        named = dict(zip(LinearInputs._fields[3:], others, strict=True))
        check_derivatives(named, transformed=in_transform())
    if in_transform() or any(t is not None and t.requires_grad for t in others):
        return chunked.loss(inputs, options, dtype)
    if not has_values(inputs.hidden):  # an operator, which has a gradient of its own
        outputs = operators.forward(inputs, options, dtype, [False] * 3)
        return outputs.loss, outputs.row_stats, outputs.predicted
    with_grad = torch.is_grad_enabled()
    needed = [with_grad and t is not None and t.requires_grad for t in inputs[:3]]
    one_step = any(needed) and options.reduction != "none" and not options.recompute
    result: tuple[Tensor, Tensor, Tensor] = _Linear.apply(
        *inputs, options, dtype, needed if one_step else [False] * 3
    )
    return result


class _Linear(Function):
    """Forward makes the gradients that are `needed`, and backward hands them out; else backward
    makes them, from four numbers a row."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        *tensors, ctx.options, ctx.dtype, needed = arguments
        inputs = LinearInputs(*tensors)
        outputs = operators.forward(inputs, ctx.options, ctx.dtype, needed)
        loss, row_stats, predicted, *made = outputs
        ctx.one_step = any(needed)
        ctx.mark_non_differentiable(row_stats, predicted)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, row_stats, *made)
        return loss, row_stats, predicted

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * (TENSORS + 3)
        *tensors, row_stats, grad_hidden, grad_weight, grad_bias, pending = ctx.saved_tensors
        inputs = LinearInputs(*tensors)
        needed: list[bool] = list(ctx.needs_input_grad[:3])
        if torch.is_grad_enabled():
            if ctx.options.process_group is not None:
                raise RuntimeError(FIRST_ALONE)
            found = chunked.gradients(grad_loss, inputs, ctx.options, ctx.dtype, needed)
            return (*found, *(None,) * TENSORS)
        if ctx.one_step:
            scale = grad_loss * pending if pending.numel() else grad_loss
            backend = choose_backend(ctx.options.backend, inputs.hidden.device)
            made = Gradients(grad_hidden, grad_weight, grad_bias)
            keep = is_needed_again(grad_loss)
            grads = finish(made, scale, inputs, keep=keep, backend=backend)
        else:
            grads = operators.backward(grad_loss, row_stats, inputs, ctx.options, ctx.dtype, needed)
        return (*_where_needed(grads, needed), *(None,) * TENSORS)


def _where_needed(grads: Gradients, needed: list[bool]) -> list[Tensor | None]:
    return [grad if need else None for grad, need in zip(grads, needed, strict=True)]


# ---- the gradient of the operator, for graphs that are compiled or exported ----------------------


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors = [(i, value) for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    ctx.places, saved = zip(*tensors, strict=True)
    ctx.arguments = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*saved, output[1])


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    none: tuple[None, ...] = (None,) * len(ctx.arguments)
    if grad_loss is None:
        return none
    *saved, row_stats = ctx.saved_tensors
    arguments: list[Any] = list(ctx.arguments)
    for place, tensor in zip(ctx.places, saved, strict=True):
        arguments[place] = tensor
    inputs, options, dtype = operators.parsed(*arguments)[:3]
    wanted = list(ctx.needs_input_grad[:3])
    grads = operators.backward(grad_loss, row_stats, inputs, options, dtype, wanted)
    return (*_where_needed(grads, wanted), *none[3:])


for _overload in ("linear_forward", "linear_forward.traced"):
    torch.library.register_autograd(f"labelsmooth::{_overload}", _backward, setup_context=_set_up)
