"""The loss as autograd sees it: gradients in one step or in two, and every other derivative.

Kernels give the loss and the gradient of the logits. All else is taken of the eager formulas when
it is asked for: the gradients of weight, prior, probabilities, normalizer and row weights, second
derivatives, forward mode.
"""

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .._backends import eager, native
from .._call.check_call import check_targets
from .._call.checks import base_of, has_values
from .._call.problem import Inputs, Options, Outputs
from .derivatives import forward_of, gradient_of, jvp, loss_of, vjp
from .overwritten import can_be_overwritten, mark_overwritten
from .sharded import FIRST_ALONE, check_derivatives
from .vmap import Samples, has_class_vectors, with_batch

TENSORS = len(Inputs._fields)


def apply(inputs: Inputs, options: Options, backend: Any) -> Outputs:
    """The backend's forward, as a node of autograd's graph where there is one."""
    if options.process_group is not None:
        others = dict(zip(Inputs._fields[1:], inputs[1:], strict=True))
        check_derivatives(others, transformed=in_transform())
    if in_transform():
        return Outputs(*_TransformedLoss.apply(*inputs, options, backend, False))
    if options.inplace and not can_be_overwritten(inputs.logits):
        options = replace(options, inplace=False)
    one_step = _is_one_step(inputs, options)
    outputs = Outputs(*_Loss.apply(*inputs, options, backend, one_step))
    if one_step and options.inplace:
        mark_overwritten(inputs.logits)
    return outputs


def _is_one_step(inputs: Inputs, options: Options) -> bool:
    """Whether forward makes the gradient too, in the same pass.

    Not in float16, whose gradients would underflow before the loss scaler's factor is known; not
    where backward needs the logits for other gradients too. In a compiled graph, which cannot ask
    whether the incoming gradient is 1 and would multiply, only in place, where two steps would need
    memory.
    """
    logits, *others = inputs
    return (
        logits.requires_grad
        and options.reduction != "none"
        and logits.dtype != torch.float16
        and torch.is_grad_enabled()
        and (options.inplace or has_values(logits))
        and not any(tensor is not None and tensor.requires_grad for tensor in others)
    )


def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    *tensors, options, backend, one_step = arguments
    inputs = Inputs(*tensors)
    looks = backend is native and inputs.target.is_cpu  # its kernels do
    if not looks and options.process_group is None:  # whose ranks are told first
        check_targets(inputs, options)
    outputs = backend.forward(inputs, options, with_grad=one_step)
    if one_step and options.inplace:
        torch.autograd.graph.increment_version(inputs.logits)
        return (*outputs[:3], inputs.logits.new_empty(0))
    return tuple(outputs)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.options, ctx.backend, ctx.one_step = inputs
    _, row_stats, predicted, grad_logits = output
    ctx.mark_non_differentiable(row_stats, predicted, grad_logits)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, row_stats, grad_logits)
    if ctx.options.inplace and not ctx.one_step:
        ctx.written_to = [weakref.ref(t) for t in (tensors[0], base_of(tensors[0]))]


class _Loss(Function):
    """With `one_step`, forward makes the gradient too and backward hands it out; without, backward
    makes it from the logits and the row statistics."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = _forward(*inputs)
        _save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * (TENSORS + 3)
        *tensors, row_stats, stored = ctx.saved_tensors
        others: list[Tensor | None] = [None] * (TENSORS - 1)
        if any(ctx.needs_input_grad[1:TENSORS]):
            needed = (False, *ctx.needs_input_grad[1:TENSORS])
            others = vjp(loss_of(ctx.options), tensors, needed, grad_loss)[1:]
        grad_logits = None
        if ctx.needs_input_grad[0]:
            grad_logits = _gradient(ctx, grad_loss, row_stats, Inputs(*tensors), stored)
        return grad_logits, *others, None, None, None


class _TransformedLoss(_Loss):
    """For torch.func and forward mode. Apart because a setup_context takes autograd as long as all
    else."""

    forward = staticmethod(_forward)  # type: ignore[assignment]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:TENSORS])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        tangent = jvp(loss_of(ctx.options), ctx.saved_tensors[:TENSORS], tangents[:TENSORS])
        return tangent, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, tuple[Any, ...]]:
        *tensors, options, backend, _ = arguments
        if has_class_vectors(in_dims):  # a weight or prior of each sample: no kernel has that
            forward = torch.vmap(forward_of(options), in_dims[:TENSORS], (0, 1, 0, 0))
            return forward(*tensors), (0, 1, 0, 0)
        samples = Samples(info.batch_size, in_dims, tensors, options)
        loss, row_stats, predicted, empty = apply(samples.rows, samples.row_options, backend)
        loss = samples.unfold(loss)
        if options.reduction != "none":
            loss = eager.divided(loss.flatten(1).sum(1), samples.denominator())
        row_stats = row_stats.reshape(len(row_stats), *samples.shape).flatten(2)
        if options.return_stats:
            predicted = samples.unfold(predicted)
        out_dims = (0, 1, 0 if options.return_stats else None, None)
        return (loss, row_stats, predicted, empty), out_dims


def _gradient(
    ctx: Any, grad_loss: Tensor, row_stats: Tensor, inputs: Inputs, stored: Tensor
) -> Tensor:
    """The gradient of the logits, in whatever mode backward runs."""
    options: Options = ctx.options
    overwritten = ctx.one_step and options.inplace
    if torch.is_grad_enabled() or in_transform():
        if options.process_group is not None:
            raise RuntimeError(FIRST_ALONE)
        if overwritten:
            raise RuntimeError(
                "create_graph=True needs the logits, which inplace=True has overwritten"
            )
        result: Tensor = _Gradient.apply(grad_loss, row_stats, *inputs, options, ctx.backend)
        return result
    again = is_needed_again(grad_loss)
    if ctx.one_step:
        made = inputs.logits if overwritten else stored
        if again or not has_values(made):
            return made * grad_loss
        scaled: Tensor = ctx.backend.scaled_(made, grad_loss)
        return scaled
    inplace = options.inplace and not again
    result = ctx.backend.backward(grad_loss, row_stats, inputs, options, inplace=inplace)
    if inplace:
        torch.autograd.graph.increment_version(inputs.logits)
        written_to = next((t for ref in ctx.written_to if (t := ref()) is not None), None)
        if written_to is not None and has_values(written_to):  # somebody else holds it
            with torch.enable_grad():
                mark_overwritten(written_to)
    return result


class _Gradient(Function):
    """The gradient of the logits, with derivatives itself."""

    @staticmethod
    def forward(grad_loss: Tensor, row_stats: Tensor, *arguments: Any) -> Tensor:
        *tensors, options, backend = arguments
        inputs = Inputs(*tensors)
        grad: Tensor = backend.backward(grad_loss, row_stats, inputs, options, inplace=False)
        return grad

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_loss, _, *tensors, ctx.options, _ = inputs
        ctx.save_for_backward(grad_loss, *tensors)
        ctx.save_for_forward(grad_loss, *tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        function = gradient_of(ctx.options)
        grads = vjp(function, ctx.saved_tensors, (needed[0], *needed[2:-2]), cotangent)
        return grads[0], None, *grads[1:], None, None

    @staticmethod
    def jvp(ctx: Any, grad_loss: Any, _: Any, *tangents: Any) -> Tensor:
        moves = (grad_loss, *tangents[:TENSORS])
        tangent: Tensor = jvp(gradient_of(ctx.options), ctx.saved_tensors, moves)
        return tangent

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        grad_loss: Tensor,
        row_stats: Tensor,
        *arguments: Any,
    ) -> tuple[Tensor, int]:
        *tensors, options, backend = arguments
        grad_dim, stats_dim, *dims = in_dims
        if has_class_vectors(dims):
            gradient = torch.vmap(gradient_of(options), (grad_dim, *dims[:TENSORS]))
            return gradient(grad_loss, *tensors), 0
        samples = Samples(info.batch_size, dims, tensors, options)
        grad_loss = with_batch(grad_loss, grad_dim, 0, info.batch_size)
        if options.reduction != "none":
            scale = eager.divided(grad_loss, samples.denominator())
            grad_loss = scale.view(-1, *(1,) * (len(samples.shape) - 1)).expand(samples.shape)
        row_stats = with_batch(row_stats, stats_dim, 1, info.batch_size).flatten(1)
        arguments = (*samples.rows, samples.row_options, backend)
        grad_logits = _Gradient.apply(grad_loss.flatten(0, 1), row_stats, *arguments)
        return samples.unfold(grad_logits), 0


# ---- modes of torch ------------------------------------------------------------------------------


def in_transform() -> bool:
    """Whether torch.func or forward mode is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_needed_again(grad_loss: Tensor) -> bool:
    """Whether another backward may follow (retain_graph=True), or this one stands for many
    (is_grads_batched=True)."""
    return (
        torch._C._autograd._get_current_graph_task_keep_graph()
        or torch._C._functorch.is_legacy_batchedtensor(grad_loss)
    )
