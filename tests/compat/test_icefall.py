"""icefall's loss: numbers to check by hand, the formula."""

from __future__ import annotations

import math

import pytest
import torch
from drop_ins import DTYPES, assert_is
from torch import Tensor

from labelsmooth.compat.icefall import LabelSmoothingLoss

TARGET = torch.tensor([[3, 0, 5, 1], [2, 2, -1, -1], [4, -1, -1, -1]])


def formula(x: Tensor, target: Tensor, smoothing: float, reduction: str) -> Tensor:
    kept = target != -1
    log_probs = x.log_softmax(-1)
    nll = -log_probs.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    rows = ((1 - smoothing) * nll - smoothing * log_probs.mean(-1)) * kept
    if reduction == "none":
        return rows.flatten()
    return rows.sum() / kept.sum() if reduction == "mean" else rows.sum()


def test_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4: 0.9 of the target's -log p and 0.1 of the mean of log 2, log 4
    and log 4, which is 5/3 log 2."""
    x = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 3, 3)
    rows = LabelSmoothingLoss(reduction="none")(x, torch.tensor([[0, 2, -1]]))
    first, second = 0.9 + 0.1 * 5 / 3, 0.9 * 2 + 0.1 * 5 / 3
    expected = torch.tensor([first, second, 0.0]) * math.log(2)
    torch.testing.assert_close(rows, expected)
    loss = LabelSmoothingLoss()(x, torch.tensor([[0, 2, -1]]))
    torch.testing.assert_close(loss, expected.sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_formula(smoothing: float, reduction: str, dtype: torch.dtype) -> None:
    criterion = LabelSmoothingLoss(label_smoothing=smoothing, reduction=reduction)
    assert_is(
        lambda x: criterion(x, TARGET),
        lambda x: formula(x, TARGET, smoothing, reduction),
        2 * torch.randn(3, 4, 6, dtype=dtype),
    )


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_logits_as_they_lie(reduction: str) -> None:
    x = torch.randn(4, 3, 6).transpose(0, 1)
    target = TARGET.masked_fill(TARGET == -1, 100).int()
    criterion = LabelSmoothingLoss(100, reduction=reduction)
    assert_is(lambda x: criterion(x, target), lambda x: formula(x, TARGET, 0.1, reduction), x)


def test_nothing_but_ignored_tokens() -> None:
    x, target = torch.randn(2, 3, 4, requires_grad=True), torch.full((2, 3), -1)
    assert LabelSmoothingLoss()(x, target) == 0
    assert not LabelSmoothingLoss(reduction="none")(x, target).any()
    loss = LabelSmoothingLoss(reduction="mean")(x, target)
    loss.backward()
    assert loss.isnan()
    assert x.grad is not None
    assert not x.grad.any()


def test_a_masked_class_makes_it_infinite() -> None:
    """It has smoothing mass; without smoothing it costs nothing, where 0 * inf makes NaN there."""
    x = torch.randn(3, 4, 6)
    x[..., 5] = -torch.inf
    target = TARGET.masked_fill(TARGET == 5, 0)
    assert LabelSmoothingLoss()(x, target) == torch.inf
    unsmoothed = LabelSmoothingLoss(label_smoothing=0.0)(x, target)
    torch.testing.assert_close(unsmoothed, formula(x[..., :5], target, 0.0, "sum"))


def test_errors() -> None:
    x = torch.zeros(3, 4, 6)
    with pytest.raises(ValueError, match=r"label_smoothing: expected a number in \[0, 1\), got 1"):
        LabelSmoothingLoss(label_smoothing=1.0)
    with pytest.raises(ValueError, match="got 'batchmean'"):
        LabelSmoothingLoss(reduction="batchmean")
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, C\), got \(12, 6\)"):
        LabelSmoothingLoss()(x.view(12, 6), TARGET.view(12))
    with pytest.raises(ValueError, match=r"target: expected shape \(3, 4\), got \(12,\)"):
        LabelSmoothingLoss()(x, TARGET.view(12))
    with pytest.raises(IndexError, match="is -1"):
        LabelSmoothingLoss(0)(x, TARGET)
