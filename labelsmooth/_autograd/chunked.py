"""The projection and the loss by the eager formulas, chunk by chunk: second derivatives, torch.func,
forward mode, and the gradients of weight, prior and class probabilities.

Everything is made of one function of a chunk's tensors, the losses of its rows. Derivatives are
taken of that function when they are asked for, a chunk at a time, so that no more than one chunk's
logits exist at once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._backends import eager
from .._backends.linear import rows_of_chunk
from .._call.problem import Inputs, LinearInputs, LinearOptions, accumulate_dtype, in_one_dtype
from .derivatives import jvp, vjp

OF_ROWS = (True, False, False, True, False, False)  # which tensors have one entry a row


def loss(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, row_stats and predicted; the loss differentiable in every input, any number of times."""
    hidden, linear_weight, _, target, weight, _, normalizer = inputs
    step = _step(inputs, options)
    row_loss: Tensor = _RowLosses.apply(*inputs[:6], options, dtype, step)
    logits = hidden.new_empty(1, dtype=dtype).expand(len(hidden), len(linear_weight))
    denominator = eager.denominator(
        Inputs(logits, target, weight, None, normalizer), options.of_logits()
    )
    reduced = row_loss
    if options.reduction != "none":
        reduced = eager.divided(row_loss.sum(), denominator)
    with torch.no_grad():
        parts = _parts(inputs[:6], len(hidden), step) if options.return_stats else ()
        stats = [_forward_of(options, dtype)(*part) for part in parts]
    if not stats:
        return reduced, row_loss.new_empty(0), row_loss.new_empty(0)
    row_stats = torch.cat([outputs.row_stats for outputs in stats], 1)
    return reduced, row_stats, torch.cat([outputs.predicted for outputs in stats])


def gradients(
    grad_loss: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> list[Tensor | None]:
    """Of hidden, linear_weight and linear_bias, as functions that have derivatives themselves."""
    hidden, linear_weight, _, target, weight, _, normalizer = inputs
    logits = hidden.new_empty(1, dtype=dtype).expand(len(hidden), len(linear_weight))
    whole = Inputs(logits, target, weight, None, normalizer)
    cotangent = eager.divided(grad_loss, eager.denominator(whole, options.of_logits()))
    cotangent = cotangent.expand(len(hidden))
    wanted = (*needed, False, False, False)
    step = _step(inputs, options)
    made = _RowGradients.apply(cotangent, *inputs[:6], options, dtype, step, wanted)
    given = iter(made)
    return [next(given) if need else None for need in needed]


# ---- one chunk -----------------------------------------------------------------------------------


def _forward_of(options: LinearOptions, dtype: torch.dtype) -> Callable[..., Any]:
    def forward(
        hidden: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        prior: Tensor | None,
    ) -> Any:
        linear_bias = None if linear_bias is None else linear_bias.to(dtype)
        logits = F.linear(hidden.to(dtype), linear_weight.to(dtype), linear_bias)
        inputs = Inputs(*in_one_dtype(logits, target), weight, prior, None)
        return eager.forward(inputs, options.of_logits(reduction="none"), with_grad=False)

    return forward


def _losses_of(options: LinearOptions, dtype: torch.dtype) -> Callable[..., Tensor]:
    forward = _forward_of(options, dtype)
    return lambda *tensors: forward(*tensors).loss


def _gradient_of(
    options: LinearOptions, dtype: torch.dtype, wanted: tuple[bool, ...]
) -> Callable[..., tuple[Tensor, ...]]:
    """The gradients that are wanted, of the chunk's losses times a cotangent; in the dtype of sums,
    where chunks are to be added up."""
    losses = _losses_of(options, dtype)

    def gradient(cotangent: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = vjp(losses, tensors, wanted, cotangent)
        return tuple(
            grad if of_row else grad.to(accumulate_dtype(grad))
            for grad, of_row in zip(found, OF_ROWS, strict=True)
            if grad is not None
        )

    return gradient


# ---- all chunks ----------------------------------------------------------------------------------


def _step(inputs: LinearInputs, options: LinearOptions) -> int:
    rows, features = inputs.hidden.shape
    if torch.compiler.is_compiling():  # one piece: their number would be a constant of the graph
        return max(rows, 1)
    return rows_of_chunk(rows, features, inputs.hidden.device, options.chunk_rows)


def _parts(
    tensors: Any, rows: int, step: int, of_rows: tuple[bool, ...] = OF_ROWS
) -> Iterator[list[Any]]:
    """The chunks of those that have an entry a row, beside the others as they are."""
    for start in range(0, max(rows, 1), step):
        yield [
            t[start : start + step] if of_row and t is not None else t
            for t, of_row in zip(tensors, of_rows, strict=True)
        ]


def _joined(parts: list[Any], of_rows: tuple[bool, ...]) -> tuple[Any, ...]:
    """Entries a row one after the other, the others added up."""
    return tuple(
        torch.cat(pieces) if of_row else sum(pieces[1:], start=pieces[0])
        for pieces, of_row in zip(zip(*parts, strict=True), of_rows, strict=True)
    )


class _RowLosses(Function):
    """(N,) of the six tensors, options, dtype, step."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        *tensors, options, dtype, step = arguments
        losses = _losses_of(options, dtype)
        return torch.cat([losses(*part) for part in _parts(tensors, len(tensors[0]), step)])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.options, ctx.dtype, ctx.step = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[:6])
        arguments = (*ctx.saved_tensors, ctx.options, ctx.dtype, ctx.step, wanted)
        given = iter(_RowGradients.apply(cotangent, *arguments))
        return (*(next(given) if want else None for want in wanted), None, None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        losses, tensors = _losses_of(ctx.options, ctx.dtype), ctx.saved_tensors
        rows = len(tensors[0])
        parts = (_parts(of, rows, ctx.step) for of in (tensors, tangents[:6]))
        return torch.cat([jvp(losses, *part) for part in zip(*parts, strict=True)])


class _RowGradients(Function):
    """Those of the gradients that are wanted, of a cotangent (N,), the six tensors, options, dtype,
    step, wanted."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, options, dtype, step, wanted = arguments
        gradient = _gradient_of(options, dtype, wanted)
        parts = _parts(tensors, len(tensors[0]), step, (True, *OF_ROWS))
        made = _joined([gradient(*part) for part in parts], _wanted(OF_ROWS, wanted))
        of = _wanted(tensors[1:], wanted)
        return tuple(grad.to(t.dtype) for grad, t in zip(made, of, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.options, ctx.dtype, ctx.step, ctx.wanted = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[:7]
        gradient, rows = _gradient_of(ctx.options, ctx.dtype, ctx.wanted), len(tensors[0])
        of_rows = _wanted(OF_ROWS, ctx.wanted)
        cotangents = tuple(
            cotangent if of_row else cotangent.to(accumulate_dtype(cotangent))
            for cotangent, of_row in zip(cotangents, of_rows, strict=True)
        )
        made = _joined(
            [
                [grad for grad in vjp(gradient, part, needed, tuple(given)) if grad is not None]
                for part, given in zip(
                    _parts(tensors, rows, ctx.step, (True, *OF_ROWS)),
                    _parts(cotangents, rows, ctx.step, of_rows),
                    strict=True,
                )
            ],
            _wanted((True, *OF_ROWS), needed),
        )
        grads = iter(made)
        return (*(next(grads) if need else None for need in needed), *(None,) * 4)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        gradient, tensors = _gradient_of(ctx.options, ctx.dtype, ctx.wanted), ctx.saved_tensors
        of_rows = (True, *OF_ROWS)
        parts = (_parts(of, len(tensors[0]), ctx.step, of_rows) for of in (tensors, tangents[:7]))
        moved = [jvp(gradient, *part) for part in zip(*parts, strict=True)]
        made = _joined(moved, _wanted(OF_ROWS, ctx.wanted))
        of = _wanted(tensors[1:], ctx.wanted)
        return tuple(grad.to(t.dtype) for grad, t in zip(made, of, strict=True))


def _wanted(values: Any, wanted: Any) -> tuple[Any, ...]:
    return tuple(value for value, want in zip(values, wanted, strict=True) if want)
