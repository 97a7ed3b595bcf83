"""NeMo's two losses: numbers to check by hand, the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from drop_ins import DTYPES, assert_is
from torch import Tensor

from labelsmooth.compat.nemo import SmoothedCrossEntropyLoss, SmoothedNLLLoss

LABELS = torch.tensor([[3, 0, 5, 1], [2, 2, 0, 0], [4, 0, 0, 0]])
MASK = torch.tensor([[1.0, 0.5, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]])  # of halves too
LENGTHS = torch.tensor([4, 2, 1])
BEFORE_END = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
EPS = 2**-10  # which sums of the mask hold in float32
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.0, 3.0])


def log_probs(dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(3, 4, 6)).log_softmax(-1).to(dtype)


def test_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4: 0.9 of the target's -log p, 0.05 of the others'. One token
    counts, so the denominator is 1 + 1e-6."""
    x, labels = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 2, 3), torch.tensor([[2, 1]])
    row = (0.9 * 2 + 0.05 * 1 + 0.05 * 2) * math.log(2)
    loss = SmoothedCrossEntropyLoss(pad_id=1, label_smoothing=0.1)(log_probs=x, labels=labels)
    assert loss.item() == pytest.approx(row / (1 + 1e-6), rel=1e-7)
    rows = SmoothedCrossEntropyLoss(1, 0.1, per_token_reduction=False)(x, labels)
    torch.testing.assert_close(rows, torch.tensor([[row, 0.0]]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("last", [0, 2, 9, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_smoothed_cross_entropy(
    masked: bool, last: int, label_smoothing: float, per_token: bool, dtype: torch.dtype
) -> None:
    def formula(x: Tensor) -> Tensor:
        m = MASK.double() if masked else (LABELS != 0).double()
        q = torch.full((3, 4, 6), label_smoothing / 5, dtype=x.dtype)
        q.scatter_(-1, LABELS.unsqueeze(-1), 1 - label_smoothing)
        seen = {0: range(4), 2: range(2, 4), 9: range(4), -1: range(1, 4)}[last]
        rows, m = (-m * (q * x).sum(-1))[:, seen], m[:, seen]
        return rows.sum() / (m.sum() + 1e-6) if per_token else rows

    criterion = SmoothedCrossEntropyLoss(0, label_smoothing, last, per_token_reduction=per_token)
    mask = MASK.to(dtype) if masked else None
    x = log_probs(dtype)
    assert_is(lambda x: criterion(log_probs=x, labels=LABELS, output_mask=mask), formula, x)


@pytest.mark.parametrize("mask", [MASK.bool(), MASK.long(), MASK.double().ceil()])
def test_masks_of_any_dtype(mask: Tensor) -> None:
    x = log_probs()
    criterion = SmoothedCrossEntropyLoss(label_smoothing=0.1)
    expected = criterion(x, LABELS, mask.float())
    assert criterion(x.transpose(0, 1).contiguous().transpose(0, 1), LABELS, mask) == expected


def test_nothing_counts() -> None:
    x, mask = log_probs().requires_grad_(), torch.zeros(3, 4)
    for loss in (
        SmoothedCrossEntropyLoss(7, 0.1)(x, torch.full((3, 4), 7)),  # 7 is no class
        SmoothedCrossEntropyLoss(None, 0.1)(x, LABELS, mask),
        SmoothedNLLLoss(label_smoothing=0.1)(x, LABELS, mask),
        SmoothedNLLLoss("batch", 0.1)(x, LABELS, lengths=LENGTHS * 0).sum(),
    ):
        assert loss == 0
        (grad,) = torch.autograd.grad(loss, x)
        assert not grad.any()


def test_what_does_not_count_may_hold_anything() -> None:
    x = log_probs()
    losses = [SmoothedCrossEntropyLoss(None, 0.1), SmoothedNLLLoss("batchmean", 0.1)]
    expected = [loss(x, LABELS, MASK) for loss in losses]
    x[MASK == 0] = -torch.inf
    assert [loss(x, LABELS, MASK) for loss in losses] == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "batch", "batchmean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("which", ["all", "mask", "lengths"])
def test_smoothed_nll(
    which: str, label_smoothing: float, reduction: str, dtype: torch.dtype
) -> None:
    """Class 3 is ignored, which leaves out its target's term alone."""
    m = {"all": torch.ones(3, 4), "mask": MASK, "lengths": BEFORE_END}[which].double()

    def formula(x: Tensor) -> Tensor:
        weight = WEIGHT.double() * (torch.arange(6) != 3)
        nll = -x.gather(-1, LABELS.unsqueeze(-1)).squeeze(-1) * weight[LABELS]
        rows = m * ((1 - label_smoothing) * nll - label_smoothing * x.mean(-1))
        if reduction == "batch":
            return rows.sum(1) / (m.sum(1) + EPS)
        if reduction == "mean":
            return rows.sum() / (m.sum() + EPS)
        return rows.sum() / 3 if reduction == "batchmean" else rows

    given = {"all": {}, "mask": {"output_mask": MASK}, "lengths": {"lengths": LENGTHS}}[which]
    criterion = SmoothedNLLLoss(reduction, label_smoothing, EPS, weight=WEIGHT, ignore_index=3)
    assert_is(
        lambda x: criterion(log_probs=x, labels=LABELS, **given),
        formula,
        log_probs(dtype),
        torch.promote_types(dtype, torch.float32),  # of the mask
    )


def test_errors() -> None:
    x = log_probs()
    with pytest.raises(ValueError, match="output_mask: expected a tensor, since pad_id is None"):
        SmoothedCrossEntropyLoss()(log_probs=x, labels=LABELS)
    with pytest.raises(IndexError, match="is 6"):
        SmoothedCrossEntropyLoss(0)(log_probs=x, labels=LABELS + 1)
    for loss in (SmoothedCrossEntropyLoss(0), SmoothedNLLLoss()):
        with pytest.raises(ValueError, match=r"labels: expected shape \(3, 4\), got \(12,\)"):
            loss(log_probs=x, labels=LABELS.view(12))
        with pytest.raises(ValueError, match=r"log_probs: expected shape \(B, T, C\)"):
            loss(log_probs=x[0], labels=LABELS[0])
        with pytest.raises(ValueError, match="output_mask: expected shape"):
            loss(log_probs=x, labels=LABELS, output_mask=MASK[:, :1])
