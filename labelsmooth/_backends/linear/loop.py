"""The projection and the loss in one: rows in chunks through one slab of logits, (R, C).

Of each chunk's hidden states h, with the linear weight W and bias b:

    X = h W^T + b         into the slab
    G = mass p - coef     the backend's kernel, in the place of X: the gradient of the rows' losses,
                          divided by the loss's denominator in float32, then rounded to the slab
    grad_hidden  = G W
    grad_weight += G^T h
    grad_bias   += sum of the rows of G
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..._call.check_call import check_targets
from ..._call.problem import Inputs, LinearInputs, LinearOptions, Options, accumulate_dtype
from .. import eager
from ..exchange import together
from ..ranks import summed
from ..sharded import backend_of
from ..target import counting_rows
from . import sizes
from .sums import Gradients, Rows, Sums, finish

# What a float16 slab holds is so many times the gradient: a/C = 7.8e-7 of 128k classes would be
# subnormal. The products undo it.
FLOAT16_SCALE = 1024.0
LARGE_LSE = 128.0  # beyond which it may still be 64 times as large


class LinearOutputs(NamedTuple):
    """What forward returns.

    loss, row_stats, predicted as in Outputs; the gradients, the weight's and the bias's in the
    dtype of their sums; pending (), what they are still to be multiplied by. What was not asked for
    is empty.
    """

    loss: Tensor
    row_stats: Tensor
    predicted: Tensor
    grad_hidden: Tensor
    grad_linear_weight: Tensor
    grad_linear_bias: Tensor
    pending: Tensor


class _Scale(NamedTuple):
    """A gradient's factors: the kernel divides G by `divisor`, the products multiply it by `alpha`,
    and `pending` is left for the end."""

    divisor: Tensor | None
    pending: Tensor | None = None
    alpha: float = 1.0


def forward(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> LinearOutputs:
    """Loss, statistics and the gradients that are needed; `dtype` is that of the projection."""
    with together(options.process_group, inputs.hidden):
        return _forward(inputs, options, dtype, needed)


def _forward(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> LinearOutputs:
    check_targets(sizes.from_logits(inputs, dtype), options)
    call = _Call(inputs, options, dtype, needed)
    rows, with_grad = len(inputs.hidden), any(needed)
    scale = call.scale() if with_grad else _Scale(call.denominator)
    sums = call.sums(needed, scale)
    per_row, fields = options.reduction == "none", 6 if options.return_stats else 4
    row_loss = inputs.hidden.new_zeros(rows if per_row else 0, dtype=call.accumulate_dtype)
    row_stats = inputs.hidden.new_zeros(fields, rows, dtype=call.accumulate_dtype)
    predicted = inputs.target.new_zeros(rows if options.return_stats else 0, dtype=torch.int64)
    chunk_losses = [row_loss.new_zeros(())]
    call.agree_if_empty()
    for chunk, hidden, logits in call.chunks():
        kernel = call.of_kernel(logits, chunk, scale.divisor)
        outputs = call.backend.forward(*kernel, with_grad=with_grad)
        row_stats[:, chunk] = outputs.row_stats
        if options.return_stats:
            predicted[chunk] = outputs.predicted
        if per_row:
            row_loss[chunk] = outputs.loss
        else:
            chunk_losses.append(outputs.loss)
        if with_grad:
            sums.add(chunk, hidden, call.linear_weight, logits)
    loss = row_loss
    if not per_row:
        loss = torch.stack(chunk_losses).sum()
        if call.is_empty:
            loss = eager.divided(loss, call.denominator)
        elif scale.pending is not None:
            loss = loss if scale.divisor is None else loss * scale.divisor
            loss = eager.divided(loss, call.denominator)
    pending = inputs.hidden.new_empty(0) if scale.pending is None else scale.pending
    return LinearOutputs(loss, row_stats, predicted, *call.gradients(sums), pending)


def backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> Gradients:
    """The gradients that are needed, from forward's statistics."""
    call = _Call(inputs, options, dtype, needed)
    scale = call.scale(grad_loss)
    sums = call.sums(needed, scale)
    per_row = options.reduction == "none"
    if per_row and scale.divisor is not None:
        grad_loss = grad_loss / scale.divisor
    for chunk, hidden, logits in call.chunks():
        kernel = call.of_kernel(logits, chunk, scale.divisor)
        grad = grad_loss[chunk] if per_row else grad_loss
        stats = row_stats[:4, chunk].contiguous()
        call.backend.backward(grad, stats, *kernel, inplace=True)
        sums.add(chunk, hidden, call.linear_weight, logits)
    one = torch.ones((), device=inputs.hidden.device)
    pending = one if scale.pending is None else scale.pending
    return finish(call.gradients(sums), pending, inputs, keep=False, backend=call.backend)


class _Call:
    """What all chunks of a call share."""

    def __init__(
        self,
        inputs: LinearInputs,
        options: LinearOptions,
        dtype: torch.dtype,
        needed: list[bool],
    ) -> None:
        hidden, linear_weight, linear_bias, *_ = inputs
        self._inputs, self._options = inputs, options
        self._dtype = dtype = sizes.product_dtype(dtype, hidden.device)
        self.linear_weight = linear_weight
        if linear_weight.dtype != dtype:
            shape = tuple(linear_weight.shape)
            self.linear_weight = sizes.new_empty(shape, dtype, hidden.device).copy_(linear_weight)
        self._linear_bias = sizes.bias_in(linear_bias, dtype, options)
        self._whole = sizes.from_logits(inputs, dtype)
        of_hidden = needed[0] + 2 * hidden.requires_grad  # which the ranks sum together
        self.backend = backend_of(self._whole, options, grad_of_hidden=of_hidden)
        self.denominator = eager.denominator(self._whole, options)
        self.accumulate_dtype = accumulate_dtype(self._whole.logits)
        rows, features = hidden.shape
        self._step = sizes.rows_of_chunk(rows, features, dtype, hidden.device, options.chunk_rows)
        self._counted = self._rows_that_count()
        self.is_empty = len(hidden if self._counted is None else self._counted) == 0

    def _rows_that_count(self) -> Tensor | None:
        """Their numbers, unless all do, or to ask would mean to wait, or statistics are wanted."""
        if not self._inputs.target.is_cpu or self._options.return_stats:
            return None
        counts = self._counting
        return None if bool(counts.all()) else counts.nonzero().squeeze(1)

    def _of_products(self, rows: Rows, hidden: Tensor) -> Tensor:
        """As the weight's gradient takes them: 0 times what a row that counts nothing holds must
        not be NaN."""
        left_out = hidden.is_cpu and not self._options.return_stats
        if left_out or not (self._options.return_stats or self._inputs.row_weight is not None):
            return hidden
        return hidden.masked_fill(~self._counting[rows].unsqueeze(1), 0.0)

    @cached_property
    def _counting(self) -> Tensor:
        """Which rows do."""
        return counting_rows(self._whole, self._options)

    def chunks(self) -> Iterator[tuple[Rows, Tensor, Tensor]]:
        """The rows of each, their hidden states, and their logits in the slab."""
        if self.is_empty:
            return
        weight, slab = self.linear_weight, None
        for rows in self._rows():
            hidden = self._inputs.hidden[rows].to(weight.dtype)
            if slab is None:
                slab = sizes.new_empty((len(hidden), len(weight)), weight.dtype, hidden.device)
            logits = slab[: len(hidden)]
            if self._linear_bias is None:
                torch.mm(hidden, weight.t(), out=logits)
            else:
                torch.addmm(self._linear_bias, hidden, weight.t(), out=logits)
            yield rows, self._of_products(rows, hidden), logits

    def _rows(self) -> Iterator[Rows]:
        if self._counted is not None:
            yield from torch.split(self._counted, self._step)
        else:
            rows = len(self._inputs.hidden)
            for start in range(0, rows, self._step):
                yield slice(start, min(start + self._step, rows))

    def of_kernel(
        self, logits: Tensor, rows: Rows, divisor: Tensor | None
    ) -> tuple[Inputs, Options]:
        """A chunk as the backend takes it; its gradient, over the divisor, replaces the logits."""
        whole = Inputs(logits, *self._inputs[3:])
        probs, row_weight = whole.target_probs, whole.row_weight
        inputs = whole._replace(
            target=whole.target[rows],
            target_probs=None if probs is None else probs[rows],
            normalizer=divisor,
            row_weight=None if row_weight is None else row_weight[rows],
        )
        reduction = "sum" if divisor is None else "mean"
        if self._options.reduction == "none":
            reduction = "none"
        return inputs, self._options.of_logits(reduction=reduction, inplace=True)

    def agree_if_empty(self) -> None:
        """Without a chunk the ranks would not see that they differ."""
        if self.is_empty and self._options.process_group is not None:
            nothing = self.linear_weight.new_empty(1, 0, dtype=self.accumulate_dtype)
            self.backend.gather(nothing, with_targets=False)

    def sums(self, needed: list[bool], scale: _Scale) -> Sums:
        return Sums(
            self._inputs,
            needed,
            step=self._step,
            alpha=scale.alpha,
            over_ranks=self._sums_hidden,
        )

    @property
    def _sums_hidden(self) -> bool:
        """Whether the gradient of the hidden states is summed over the ranks."""
        options = self._options
        return options.process_group is not None and not options.partial_hidden_grad

    def gradients(self, sums: Sums) -> Gradients:
        made = sums.gradients()
        if not self._sums_hidden or made.hidden.numel() == 0:
            return made
        return made._replace(hidden=summed(made.hidden, str(self._options.process_group)))

    def scale(self, grad_loss: Tensor | None = None) -> _Scale:
        """By the denominator in the kernel; but in float16 at the end, times the loss scaler's
        factor. And where the slab is float16, by what keeps its elements from overflow and
        underflow."""
        hidden, linear_weight, *_ = self._inputs
        if torch.float16 not in (hidden.dtype, linear_weight.dtype, self._dtype):
            return _Scale(self.denominator)
        headroom = torch.ones((), device=hidden.device)
        divisor, alpha = None, 1.0
        if torch.float16 in (hidden.dtype, self._dtype):
            headroom = self._headroom()
            if grad_loss is not None and grad_loss.numel():
                smallest = torch.finfo(torch.float32).tiny
                headroom = headroom * grad_loss.abs().amax().clamp_min(smallest)
            alpha = 1 / FLOAT16_SCALE if self._dtype == torch.float16 else 1.0
            divisor = headroom * alpha
        return _Scale(divisor, eager.divided(headroom, self._denominator_of_gradients()), alpha)

    def _denominator_of_gradients(self) -> Tensor | None:
        """Where no row counts it is NaN, but the gradients are 0."""
        if self.denominator is None:
            return None
        return self.denominator.where(self._counting.any(), 1.0)

    def _headroom(self) -> Tensor:
        """About how large an element of a row's gradient may be."""
        largest = torch.ones((), device=self._inputs.hidden.device)
        if self._inputs.weight is not None:
            weight = self._inputs.weight.float()
            largest = weight.where(weight.isfinite(), 1.0).amax().clamp(1.0, FLOAT16_SCALE)
        row_weight = self._inputs.row_weight
        if row_weight is not None and row_weight.numel():
            of_rows = row_weight.float().abs().where(self._counting, 0.0).amax()
            largest = largest * of_rows.clamp_min(torch.finfo(torch.float32).tiny)
        largest = largest + 2 * abs(self._options.lse_square_scale) * LARGE_LSE
        return largest * max(1.0, abs(self._options.logit_scale))
