"""A batch of samples for torch.func: of each its rows, its loss as a number, and the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from reference import reference
from torch import Tensor

from labelsmooth import label_smoothing_loss

B, N, C = 3, 4, 7
OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2, "ignore_index": 2, "weight": torch.rand(C) + 0.5},
    {"label_smoothing": 0.2, "smooth_over": "others", "objective": "kl_div", "softcap": 3.0},
]
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
each_option = pytest.mark.parametrize("options", OPTIONS, ids=["plain", "weighted", "others"])


def problem(
    *positions: int, dtype: torch.dtype = torch.float32, probabilities: bool = False
) -> tuple[Tensor, Tensor]:
    """B samples; where class 2 is ignored, some rows are."""
    logits = torch.randn(B, N, C, *positions).to(dtype)
    if probabilities:
        return logits, torch.rand(B, N, C, *positions).to(dtype)
    target = torch.randint(C, (B, N, *positions))
    target[:, 0], target[:, 1] = 1, 2
    return logits, target


def summed(**options: Any) -> Callable[..., Tensor]:
    """A scalar to differentiate: the loss of the rows, each counted as often as its number."""

    def function(logits: Tensor, target: Tensor) -> Tensor:
        loss = label_smoothing_loss(logits, target, **options)
        return (loss * row_numbers(loss.shape, loss.dtype)).sum()

    return function


def row_numbers(shape: torch.Size, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.arange(1, shape.numel() + 1, dtype=dtype).reshape(shape)


def truth(logits: Tensor, target: Tensor, **options: Any) -> Any:
    shape = reference(logits, target, **options).loss.shape
    return reference(logits, target, grad_loss=row_numbers(shape), **options)
