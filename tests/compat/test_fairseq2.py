"""fairseq2's function: by hand, then its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from translation import assert_truth, batch, outcome

from labelsmooth.compat.fairseq2 import cross_entropy

TARGETS = torch.tensor([[0, 2, 3, 1], [6, 5, 1, 1]])
MASK = torch.tensor([[True, True, False, True], [True, False, True, False]])


def formula(
    logits: Tensor,
    targets: Tensor,
    pad_idx: int | None,
    *,
    label_smoothing: float,
    target_mask: Tensor | None,
    reduction: str,
) -> Tensor:
    """Positions one by one; what counts is what the mask has and is not padding."""
    counts = torch.ones_like(targets, dtype=torch.bool) if target_mask is None else target_mask
    counts = counts & (targets != pad_idx) if pad_idx is not None else counts
    log_p = logits.log_softmax(-1)
    of_target = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    of_others = (log_p.sum(-1) - of_target) / (logits.shape[-1] - 1)
    loss = -(1 - label_smoothing) * of_target - label_smoothing * of_others
    loss = torch.where(counts, loss, torch.zeros_like(loss))
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / counts.sum()}[reduction]


def test_by_hand() -> None:
    """Of logits log 4, 0, 0, 0, with p = 4/7, 1/7, 1/7, 1/7; the last position is padding."""
    logits = torch.tensor([[4.0, 1, 1, 1]]).log().repeat(3, 1)
    rows = cross_entropy(logits, torch.tensor([0, 1, 2]), 2, label_smoothing=0.3, reduction="none")
    first = 0.7 * math.log(7 / 4) + 0.3 * math.log(7)
    second = 0.7 * math.log(7) + 0.1 * math.log(7 / 4) + 0.2 * math.log(7)
    torch.testing.assert_close(rows, torch.tensor([first, second, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("pad_idx", [1, None])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_its_formula(
    label_smoothing: float, pad_idx: int | None, mask: Tensor | None, reduction: Any, dtype: Any
) -> None:
    options = {"label_smoothing": label_smoothing, "target_mask": mask, "reduction": reduction}
    for strided in (False, True):
        x = batch(dtype, 2, 4, 7, strided=strided)
        loss, grad = outcome(cross_entropy, x, TARGETS, pad_idx, **options)
        assert (loss.dtype, grad.dtype) == (torch.float32, dtype)
        truth = outcome(formula, x.double(), TARGETS, pad_idx, **options)
        assert_truth([loss, grad], truth)


def test_shapes() -> None:
    """(S, T), and positions of the targets in one row beside logits in several."""
    x = batch(torch.float32, 2, 4, 7)
    rows = cross_entropy(x, TARGETS, 1, target_mask=MASK, reduction="none")
    assert rows.shape == (2, 4)
    flat = TARGETS.flatten(), MASK.flatten()
    for logits, shape in ((x, (2, 4)), (x.flatten(0, 1), (8,))):
        loss = cross_entropy(logits, flat[0], 1, target_mask=flat[1], reduction="none")
        assert loss.shape == shape
        torch.testing.assert_close(loss.flatten(), rows.flatten())
    assert cross_entropy(x, TARGETS, 1).dim() == 0  # a sum


def test_without_smoothing_no_padding_is_minus_a_hundred() -> None:
    x, targets = batch(torch.float32, 2, 5), torch.tensor([3, -100])
    assert cross_entropy(x, targets, None, reduction="mean").item() == pytest.approx(
        -x[0, 3].item(), rel=1e-5
    )
    with pytest.raises(IndexError, match="row 1 is -100"):
        cross_entropy(x, targets, None, label_smoothing=0.1)


def test_the_mean_of_nothing_is_nan() -> None:
    x = batch(torch.float32, 2, 5)
    targets = torch.tensor([1, 1])
    for smoothing in (0.0, 0.1):
        loss, grad = outcome(
            cross_entropy, x, targets, 1, label_smoothing=smoothing, reduction="mean"
        )
        assert loss.isnan()
        assert not grad.any()
        assert cross_entropy(x, targets, 1, label_smoothing=smoothing) == 0


def test_masked_classes() -> None:
    """Infinite where they have mass, nothing without smoothing."""
    x = batch(torch.float32, 1, 5).masked_fill(torch.arange(5) == 4, -math.inf)
    assert cross_entropy(x, torch.tensor([1]), 0).isfinite()
    assert cross_entropy(x, torch.tensor([1]), 0, label_smoothing=0.1) == math.inf


def test_errors() -> None:
    x, targets = torch.zeros(2, 5), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="reduction"):
        cross_entropy(x, targets, 0, reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label_smoothing"):
        cross_entropy(x, targets, 0, label_smoothing=1.5)
    with pytest.raises(IndexError, match="row 1 is 5"):
        cross_entropy(x, torch.tensor([1, 5]), 0)
