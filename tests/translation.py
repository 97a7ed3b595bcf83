"""What tests of drop-ins for translation share: batches and a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import drop_ins
import torch
from torch import Tensor


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
    return list(drop_ins.outcome(lambda x: loss(x, *args, **kwargs), x))


def assert_truth(ours: list[Tensor], truth: list[Tensor]) -> None:
    """Within what the dtypes of ours allow."""
    for got, expected in zip(ours, truth, strict=True):
        drop_ins.assert_near(got.double(), expected.double(), drop_ins.TOLERANCE[got.dtype])
