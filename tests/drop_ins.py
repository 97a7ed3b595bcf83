"""How a drop-in is held against the mathematics, and against the loss that it stands in for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor], Tensor]  # of the logits or log-probabilities, all else given
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}  # relative


def outcome(loss: Loss, x: Tensor) -> tuple[Tensor, Tensor]:
    """For incoming gradients that differ from row to row."""
    leaf = x.detach().requires_grad_()
    value = loss(leaf)
    incoming = 0.5 + torch.arange(value.numel()).remainder(5) / 4  # the same in every dtype
    (grad,) = torch.autograd.grad(value, leaf, incoming.to(value.dtype).view(value.shape))
    return value.detach(), grad


def assert_is(
    ours: Loss, formula: Loss, x: Tensor, dtype: torch.dtype | None = None, roundings: int = 1
) -> None:
    """The loss of x, of this dtype, is the formula's in float64."""
    tolerance = roundings * TOLERANCE[x.dtype]
    value, grad = outcome(ours, x)
    true_value, true_grad = outcome(formula, x.double())
    assert value.dtype == (dtype or x.dtype)
    assert grad.dtype == x.dtype
    assert_near(value.double(), true_value, tolerance)
    assert_near(grad.double(), true_grad, tolerance)


def assert_same(ours: Loss, original: Loss, x: Tensor, **tolerance: Any) -> None:
    """What the original makes of x; in bfloat16 no further from what that makes in float64 than the
    original, and a rounding."""
    value, grad = outcome(ours, x)
    its_value, its_grad = outcome(original, x)
    assert (value.dtype, value.shape) == (its_value.dtype, its_value.shape)
    if x.dtype != torch.bfloat16:
        assert_near(value, its_value, **{"rtol": TOLERANCE[x.dtype]} | tolerance)
        assert_near(grad, its_grad, **{"rtol": TOLERANCE[x.dtype]} | tolerance)
        return
    truths = outcome(original, x.double())
    for mine, its, true in zip((value, grad), (its_value, its_grad), truths, strict=True):
        hair = torch.finfo(x.dtype).eps * true.abs().max()
        assert distance(mine, true) <= distance(its, true) + hair


def assert_near(value: Tensor, expected: Tensor, rtol: float) -> None:
    """Within rtol of the largest element: q - p cancels, so not of each."""
    largest = expected.nan_to_num(0, 0, 0).abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(value, expected, rtol=0, atol=rtol * largest, equal_nan=True)


def distance(value: Tensor, expected: Tensor) -> Tensor:
    return (value.double() - expected.double()).abs().max()
