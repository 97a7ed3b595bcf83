"""What tests of drop-ins for translation share: batches, a formula, and how results compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Relative, by the dtype of the result: float16 and bfloat16 are rounded once.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}


def batch(dtype: torch.dtype, *shape: int, strided: bool = False) -> Tensor:
    """Log-probabilities (*shape), of contiguous memory or every second class of twice as many."""
    *rows, classes = shape
    x = torch.randn(*rows, classes, generator=torch.Generator().manual_seed(classes))
    x = x.double().log_softmax(-1).to(dtype)
    return x.repeat_interleave(2, -1)[..., ::2] if strided else x


def divergence(x: Tensor, target: Tensor, padding: int, smoothing: float) -> Tensor:
    """Sum of q (log q - x) over rows (N, C), with q written out: for whoever reads, in float64."""
    total = x.new_zeros((), dtype=torch.float64)
    classes = x.shape[-1]
    for row, y in zip(x.double(), target.tolist(), strict=True):
        if y == padding:
            continue
        q = torch.full((classes,), smoothing / (classes - 2), dtype=torch.float64)
        q[y], q[padding] = 1 - smoothing, 0
        some = q > 0
        total = total + (q[some] * (q[some].log() - row[some])).sum()
    return total


def outcome(loss: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The loss and its gradient, each row of it weighed by another number."""
    x = x.detach().requires_grad_()
    value = loss(x, *args, **kwargs)
    (grad,) = torch.autograd.grad(value, x, torch.linspace(1, 2, value.numel()).view_as(value))
    return [value.detach(), grad]


def assert_same(ours: list[Tensor], truth: list[Tensor]) -> None:
    """Within what the dtypes of ours allow; of gradients, in units of the largest."""
    for got, expected in zip(ours, truth, strict=True):
        assert got.shape == expected.shape
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        rtol = TOLERANCE[got.dtype]
        torch.testing.assert_close(
            got.double(), expected.double(), rtol=rtol, atol=rtol * largest, equal_nan=True
        )


def assert_no_worse(ours: list[Tensor], originals: list[Tensor], truth: list[Tensor]) -> None:
    """In dtype and shape the original's; of its error against the truth a hair more at most."""
    for got, original, expected in zip(ours, originals, truth, strict=True):
        assert (got.dtype, got.shape) == (original.dtype, original.shape)
        scale = float(expected.abs().max())
        error, allowed = ((r.double() - expected).abs().max() for r in (got, original))
        assert error <= allowed + 1e-6 * scale
