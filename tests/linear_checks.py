"""How the tests call the fused projection and compare it with the truth, which is dense, in
float64, and shares no code with it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from reference import Target, reference
from torch import Tensor

from labelsmooth import linear_label_smoothing_loss

IGNORED = -100

# A small problem under autograd, and torch's own answer to it.
N, D, C = 7, 3, 5
SMOOTHING = 0.1


class Projection(NamedTuple):
    hidden: Tensor  # (N, D)
    linear_weight: Tensor  # (C, D)
    linear_bias: Tensor | None  # (C,)

    def to(self, dtype: torch.dtype) -> Projection:
        return Projection(*(None if t is None else t.detach().to(dtype) for t in self))

    def leaves(self) -> Projection:
        return Projection(*(None if t is None else t.detach().requires_grad_() for t in self))

    def tensors(self) -> list[Tensor]:
        return [t for t in self if t is not None]


class Outcome(NamedTuple):
    loss: Tensor
    grads: list[Tensor]  # of hidden, linear_weight and, where there is one, linear_bias


def projection(
    rows: int,
    features: int,
    classes: int,
    *,
    bias: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Projection:
    """Logits of variance 1, as a layer that is initialised well has them."""
    weight = torch.randn(classes, features, dtype=torch.float64) / features**0.5
    made = Projection(
        torch.randn(rows, features, dtype=torch.float64),
        weight,
        torch.randn(classes, dtype=torch.float64) if bias else None,
    )
    return made.to(dtype)


def targets(rows: int, classes: int) -> Tensor:
    """Every fifth is ignored."""
    target = torch.randint(classes, (rows,))
    target[::5] = IGNORED
    return target


def loss_of(given: Projection, target: Target, **options: Any) -> Any:
    """In three chunks."""
    hidden, weight, bias = given
    options = {"label_smoothing": SMOOTHING, "chunk_rows": 3} | options
    return linear_label_smoothing_loss(hidden, weight, target, linear_bias=bias, **options)


def plain(given: Projection, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(F.linear(*given), target, label_smoothing=SMOOTHING, **options)


def run(
    given: Projection, target: Target, *, grad_loss: Tensor | None = None, **options: Any
) -> Outcome:
    leaves = given.leaves()
    hidden, linear_weight, linear_bias = leaves
    loss = linear_label_smoothing_loss(
        hidden, linear_weight, target, linear_bias=linear_bias, **options
    )
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss.to(loss.dtype)
    grads = torch.autograd.grad(loss, leaves.tensors(), grad_loss)
    return Outcome(loss.detach().cpu(), [grad.cpu() for grad in grads])


def truth(
    given: Projection, target: Target, *, grad_loss: Tensor | None = None, **options: Any
) -> Outcome:
    """By the dense reference of the loss, and the three products written out."""
    hidden, linear_weight, linear_bias = (
        None if t is None else t.detach().cpu().double() for t in given
    )
    logits = hidden @ linear_weight.T
    if linear_bias is not None:
        logits = logits + linear_bias
    made = reference(logits, target, grad_loss=grad_loss, **options)
    grad_logits = made.grad_logits
    grads = [grad_logits @ linear_weight, grad_logits.T @ hidden]
    if linear_bias is not None:
        grads.append(grad_logits.sum(0))
    return Outcome(made.loss, grads)


def assert_exact(ours: Outcome, true: Outcome) -> None:
    """In float64: both sides round in their last digits alone."""
    torch.testing.assert_close(ours.loss, true.loss, rtol=1e-12, atol=1e-12)
    for grad, expected in zip(ours.grads, true.grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-12)


def error(ours: Tensor, true: Tensor) -> float:
    """Root mean square, in units of the truth's."""
    return ((ours.double() - true).norm() / true.norm()).item()
