"""Gradients of the fused projection: added up chunk by chunk, and handed out."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._call.problem import LinearInputs, accumulate_dtype
from . import sizes

Rows = slice | Tensor  # of a chunk: adjacent ones, or their numbers
BLOCK = 1 << 20  # elements of a temporary, where a product or a sum is taken in blocks of classes


class Gradients(NamedTuple):
    hidden: Tensor
    linear_weight: Tensor
    linear_bias: Tensor


class Sums:
    """Of those that are needed; `alpha` undoes what G is scaled by.

    In float32: several chunks of a 16-bit weight's gradient, and the hidden states' over ranks.
    """

    def __init__(
        self,
        inputs: LinearInputs,
        needed: list[bool],
        *,
        step: int,
        alpha: float,
        over_ranks: bool,
    ) -> None:
        hidden, linear_weight, *_ = inputs
        self._needed, self._alpha, self._first = needed, alpha, True
        self._over_ranks = over_ranks
        self.hidden, self.linear_weight, self.linear_bias = (hidden.new_empty(0) for _ in range(3))
        if needed[0]:
            dtype = accumulate_dtype(hidden) if over_ranks else hidden.dtype
            self.hidden = hidden.new_zeros(hidden.shape, dtype=dtype)
        if needed[1]:
            dtype = sizes.dtype_of_sums(linear_weight.dtype, len(hidden) > step)
            shape = tuple(linear_weight.shape)
            self.linear_weight = sizes.new_empty(shape, dtype, hidden.device)
        if needed[2]:
            dtype = accumulate_dtype(linear_weight)
            self.linear_bias = hidden.new_zeros(len(linear_weight), dtype=dtype)

    def add(self, rows: Rows, hidden: Tensor, linear_weight: Tensor, grad_logits: Tensor) -> None:
        """The products of a chunk's G, in the dtype of hidden and linear_weight."""
        if self._needed[0]:
            self._write_hidden(rows, grad_logits, linear_weight)
        if self._needed[1]:
            self._add_to_weight(grad_logits.t(), hidden)
        if self._needed[2]:
            for classes in _blocks(grad_logits.t()):  # or it would be widened whole
                sums = grad_logits[:, classes].sum(0, dtype=self.linear_bias.dtype)
                self.linear_bias[classes].add_(sums, alpha=self._alpha)
        self._first = False

    def gradients(self) -> Gradients:
        if self._needed[1] and self._first:  # no chunk came
            self.linear_weight.zero_()
        return Gradients(self.hidden, self.linear_weight, self.linear_bias)

    def _write_hidden(self, rows: Rows, grad_logits: Tensor, linear_weight: Tensor) -> None:
        if isinstance(rows, slice) and self.hidden.dtype == grad_logits.dtype:
            self.hidden[rows].addmm_(grad_logits, linear_weight, beta=0, alpha=self._alpha)
        elif self._over_ranks and _adds_in_float32(grad_logits):
            product = torch.mm(grad_logits, linear_weight, out_dtype=torch.float32)
            self.hidden[rows] = product * self._alpha
        else:
            product = grad_logits.new_empty(len(grad_logits), linear_weight.shape[1])
            product.addmm_(grad_logits, linear_weight, beta=0, alpha=self._alpha)
            self.hidden[rows] = product.to(self.hidden.dtype)

    def _add_to_weight(self, grad_logits: Tensor, hidden: Tensor) -> None:
        sums, beta = self.linear_weight, 0 if self._first else 1
        if sums.dtype == grad_logits.dtype:
            sums.addmm_(grad_logits, hidden, beta=beta, alpha=self._alpha)
        elif _adds_in_float32(grad_logits):
            torch.addmm(
                *(sums, grad_logits, hidden),
                out_dtype=sums.dtype,
                beta=beta,
                alpha=self._alpha,
                out=sums,
            )
        else:
            if grad_logits.dtype == torch.float16:  # which could not hold the scaled product
                grad_logits, hidden = grad_logits.float(), hidden.float()
            for classes in _blocks(sums):
                if self._first:
                    sums[classes].zero_()
                product = torch.mm(grad_logits[classes], hidden)
                sums[classes].add_(product, alpha=self._alpha)


def _blocks(matrix: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, matrix.shape[1]))
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _adds_in_float32(factor: Tensor) -> bool:
    """Whether its product with another 16-bit matrix can be had in float32."""
    return factor.dtype.itemsize == 2 and factor.is_cuda and torch.version.hip is None


def finish(
    made: Gradients, scale: Tensor, inputs: LinearInputs, *, keep: bool, backend: Any
) -> Gradients:
    """The sums times the scale, rounded once to the dtypes of what they are gradients of; in place
    unless they are to be kept."""

    def finished(grad: Tensor, of: Tensor | None) -> Tensor:
        if of is None or grad.numel() == 0:
            return grad
        if keep:
            return (grad * scale).to(of.dtype)
        if grad.dtype == of.dtype:
            scaled: Tensor = backend.scaled_(grad, scale)
            return scaled
        out = sizes.new_empty(tuple(grad.shape), of.dtype, grad.device)
        if not grad.is_cpu or grad.dim() == 1:
            return torch.mul(grad, scale, out=out)
        for classes in _blocks(grad):  # or the CPU would make the product whole
            out[classes] = grad[classes] * scale
        return out

    return Gradients(*map(finished, made, inputs[:3]))
