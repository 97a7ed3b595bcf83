"""The projection and the loss by the eager formulas, chunk by chunk: second derivatives,
torch.func, forward mode, and the gradients of weight, prior, probabilities and row weights.

Everything is made of one function of a chunk's tensors, the losses of its rows. Its derivatives are
taken when they are asked for, so that no more than one chunk's logits exist at once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from .._backends import eager
from .._backends.linear.sizes import bias_in, from_logits, rows_of_chunk
from .._backends.target import without_unused
from .._call.check_call import check_targets
from .._call.problem import Inputs, LinearInputs, LinearOptions, Outputs, accumulate_dtype
from .derivatives import jvp, vjp

# A chunk is a function of all tensors but the normalizer, some of which have an entry for each row.
NAMES = tuple(name for name in LinearInputs._fields if name != "normalizer")
OF_ROWS = tuple(name in ("hidden", "target", "target_probs", "row_weight") for name in NAMES)
COUNT = len(NAMES)


def loss(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, row_stats and predicted; the loss has every derivative, in every input."""
    tensors = tuple(getattr(inputs, name) for name in NAMES)
    if torch.compiler.is_compiling():  # takes derivatives of the graph: the formula, in one piece
        parts = [_Formula(options, dtype, step=1).forward(*tensors)]
        result = parts[0].loss
    else:
        formula = _formula(inputs, options, dtype)
        result = _RowLosses.apply(*tensors, formula)
        with torch.no_grad():
            chunks = formula.parts(tensors, inputs.hidden.shape[0]) if options.return_stats else ()
            parts = [formula.forward(*chunk) for chunk in chunks]
    if options.reduction != "none":
        result = eager.divided(result.sum(), _denominator(inputs, options, dtype))
    if not options.return_stats:
        return result, result.new_empty(0), result.new_empty(0)
    row_stats = torch.cat([part.row_stats for part in parts], 1).detach()
    return result, row_stats, torch.cat([part.predicted for part in parts])


def gradients(
    grad_loss: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> list[Tensor | None]:
    """Of hidden, linear_weight and linear_bias, with derivatives themselves."""
    formula = replace(_formula(inputs, options, dtype), wanted=(*needed, *(False,) * (COUNT - 3)))
    cotangent = eager.divided(grad_loss, _denominator(inputs, options, dtype))
    cotangent = cotangent.expand(inputs.hidden.shape[0])
    made = _RowGradients.apply(cotangent, *(getattr(inputs, name) for name in NAMES), formula)
    return _placed(made, needed)


def _denominator(inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype) -> Tensor | None:
    return eager.denominator(from_logits(inputs, dtype), options)


# ---- one chunk -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Formula:
    """Of the tensors of a chunk; and how rows are cut into chunks."""

    options: LinearOptions
    dtype: torch.dtype
    step: int
    wanted: tuple[bool, ...] = ()  # gradients of which of the tensors

    def forward(self, *tensors: Any) -> Outputs:
        chunk = _inputs_of(tensors)
        bias = bias_in(chunk.linear_bias, self.dtype, self.options)
        hidden, linear_weight = chunk.hidden.to(self.dtype), chunk.linear_weight.to(self.dtype)
        inputs = Inputs(F.linear(hidden, linear_weight, bias), *chunk[3:])
        return eager.forward(inputs, self.options.of_logits(reduction="none"), with_grad=False)

    def losses(self, *tensors: Any) -> Tensor:
        hidden, *others = tensors
        of_logits = from_logits(_inputs_of(tensors), self.dtype)
        return self.forward(without_unused(hidden, of_logits, self.options), *others).loss

    def gradient(self, cotangent: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
        """Those wanted, of the losses times the cotangent; what chunks add up, in the dtype of
        sums."""
        found = vjp(self.losses, tensors, self.wanted, cotangent)
        return tuple(map(_for_sums, _chosen(found, self.wanted), _chosen(OF_ROWS, self.wanted)))

    def parts(
        self, tensors: Any, rows: int, of_rows: tuple[bool, ...] = OF_ROWS
    ) -> Iterator[list[Any]]:
        """Chunks of the tensors with an entry for each row, beside the others as they are."""
        for start in range(0, max(rows, 1), self.step):
            yield [
                t[start : start + self.step] if of_row and t is not None else t
                for t, of_row in zip(tensors, of_rows, strict=True)
            ]


def _formula(inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype) -> _Formula:
    rows, features = inputs.hidden.shape
    step = rows_of_chunk(rows, features, dtype, inputs.hidden.device, options.chunk_rows)
    return _Formula(options, dtype, step)


def _inputs_of(tensors: Any) -> LinearInputs:
    return LinearInputs(normalizer=None, **dict(zip(NAMES, tensors, strict=True)))


def _for_sums(tensor: Tensor, of_row: bool) -> Tensor:
    return tensor if of_row else tensor.to(accumulate_dtype(tensor))


def _chosen(values: Any, chosen: Any) -> tuple[Any, ...]:
    return tuple(value for value, choose in zip(values, chosen, strict=True) if choose)


def _placed(values: Any, places: Any) -> list[Any]:
    """The values where there is a place for them, None elsewhere."""
    given = iter(values)
    return [next(given) if place else None for place in places]


def _joined(parts: Iterable[Any], of_rows: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """Of all chunks: rows one after the other, all else added up."""
    joined: list[Any] = [[] if of_row else None for of_row in of_rows]
    for part in parts:
        for place, (piece, of_row) in enumerate(zip(part, of_rows, strict=True)):
            if of_row:
                joined[place].append(piece)
            else:
                joined[place] = piece if joined[place] is None else joined[place] + piece
    return tuple(
        torch.cat(made) if of_row else made for made, of_row in zip(joined, of_rows, strict=True)
    )


# ---- all chunks ----------------------------------------------------------------------------------


class _RowLosses(Function):
    """The losses (N,) of the tensors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        *tensors, formula = arguments
        inputs = _inputs_of(tensors)
        check_targets(from_logits(inputs, formula.dtype), formula.options)
        return torch.cat(
            [formula.losses(*part) for part in formula.parts(tensors, tensors[0].shape[0])]
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.formula = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[:COUNT])
        formula = replace(ctx.formula, wanted=wanted)
        made = _RowGradients.apply(cotangent, *ctx.saved_tensors, formula)
        return (*_placed(made, wanted), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        formula, tensors = ctx.formula, ctx.saved_tensors
        parts = (formula.parts(of, tensors[0].shape[0]) for of in (tensors, tangents[:COUNT]))
        return torch.cat([jvp(formula.losses, *part) for part in zip(*parts, strict=True)])


class _RowGradients(Function):
    """The gradients that are wanted, of a cotangent (N,) and the tensors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, formula = arguments
        parts = formula.parts(tensors, tensors[0].shape[0], (True, *OF_ROWS))
        return _in_own_dtypes((formula.gradient(*part) for part in parts), tensors, formula)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.formula = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors, formula, needed = ctx.saved_tensors, ctx.formula, ctx.needs_input_grad[: COUNT + 1]
        rows, of_rows = tensors[0].shape[0], _chosen(OF_ROWS, formula.wanted)
        given = tuple(map(_for_sums, cotangents, of_rows))
        parts = zip(
            formula.parts(tensors, rows, (True, *OF_ROWS)),
            formula.parts(given, rows, of_rows),
            strict=True,
        )
        found = (_chosen(vjp(formula.gradient, p, needed, tuple(g)), needed) for p, g in parts)
        made = _joined(found, _chosen((True, *OF_ROWS), needed))
        return (*_placed(made, needed), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        tensors, formula = ctx.saved_tensors, ctx.formula
        both = (tensors, tangents[: COUNT + 1])
        parts = (formula.parts(of, tensors[0].shape[0], (True, *OF_ROWS)) for of in both)
        moved = (jvp(formula.gradient, *part) for part in zip(*parts, strict=True))
        return _in_own_dtypes(moved, tensors, formula)


def _in_own_dtypes(parts: Iterable[Any], tensors: Any, formula: _Formula) -> tuple[Tensor, ...]:
    """All chunks' gradients, in the dtypes of what they are gradients of."""
    made = _joined(parts, _chosen(OF_ROWS, formula.wanted))
    of = _chosen(tensors[1:], formula.wanted)
    return tuple(grad.to(t.dtype) for grad, t in zip(made, of, strict=True))
