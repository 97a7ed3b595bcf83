"""SpeechBrain's two losses: numbers to check by hand, the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from drop_ins import DTYPES, assert_is
from torch import Tensor

from labelsmooth.compat.speechbrain import kldiv_loss, nll_loss

TARGETS = torch.tensor([[3, 0, 5, 1], [2, 2, 0, 0], [4, 0, 0, 0]])
TARGETS_OR_100 = TARGETS.where(TARGETS != 5, -100)  # torch's index of rows to be ignored
LENGTH = torch.tensor([1.0, 0.5, 0.25])  # 4, 2 and 1 frames
FRAMES = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.0, 3.0])
REDUCTIONS = ["mean", "batch", "batchmean", "sum", "none"]


def log_probs(dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(3, 4, 6)).log_softmax(-1).to(dtype)


def nll(x: Tensor, weight: Tensor, mask: Tensor, a: float, reduction: str) -> Tensor:
    """A target of -100 has no term, but a place in the mask."""
    y = TARGETS_OR_100.clamp(min=0)
    known = TARGETS_OR_100 >= 0
    target = -x.gather(-1, y.unsqueeze(-1)).squeeze(-1) * weight[y] * known
    rows = mask * ((1 - a) * target - a * x.mean(-1))
    if reduction == "mean":
        return rows.sum() / mask.sum()
    if reduction == "batch":
        return rows.sum(1) / mask.sum(1)
    return rows.sum() / 3 if reduction == "batchmean" else rows


def terms(x: Tensor, a: float, pad_idx: int) -> Tensor:
    q = torch.full((3, 4, 6), a / 5, dtype=x.dtype).scatter_(-1, TARGETS.unsqueeze(-1), 1 - a)
    return (torch.special.xlogy(q, q) - q * x) * TARGETS.ne(pad_idx).unsqueeze(-1)


def test_nll_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4 in all frames, of which the second does not count."""
    x, targets = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 2, 3), torch.tensor([[2, 0]])
    first = (0.9 * 2 + 0.1 * 5 / 3) * math.log(2)
    loss = nll_loss(x, targets, torch.tensor([0.5]), label_smoothing=0.1)
    assert loss.item() == pytest.approx(first)
    both = nll_loss(x, targets)
    assert both.item() == pytest.approx(1.5 * math.log(2))


def test_kldiv_by_hand() -> None:
    """Class 0 is padding, so one frame counts: 0.9 log(0.9 / 0.25) + 0.05 log(0.05 / 0.5) +
    0.05 log(0.05 / 0.25) = 0.9572390; "mean" is the sum."""
    x, targets = torch.tensor([0.5, 0.25, 0.25]).log().expand(1, 2, 3), torch.tensor([[2, 0]])
    row = 0.9 * math.log(0.9 / 0.25) + 0.05 * math.log(0.05 / 0.5) + 0.05 * math.log(0.05 / 0.25)
    assert row == pytest.approx(0.9572390)
    assert kldiv_loss(x, targets, label_smoothing=0.1).item() == pytest.approx(row)
    twice = kldiv_loss(x, targets, torch.tensor([0.5]), 0.1, reduction="batch")
    assert twice.item() == pytest.approx(2 * row)  # divided by the share 0.5, not by a frame


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_nll(
    weighted: bool, masked: bool, label_smoothing: float, reduction: str, dtype: torch.dtype
) -> None:
    options = {"weight": WEIGHT if weighted else None, "reduction": reduction}
    w, mask = WEIGHT if weighted else torch.ones(6), FRAMES if masked else torch.ones(3, 4)
    length = LENGTH if masked else None
    assert_is(
        lambda x: nll_loss(x, TARGETS_OR_100, length, label_smoothing, **options),
        lambda x: nll(x, w.double(), mask, label_smoothing, reduction),
        log_probs(dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
@pytest.mark.parametrize("pad_idx", [0, 2])
def test_kldiv(pad_idx: int, label_smoothing: float, reduction: str, dtype: torch.dtype) -> None:
    def formula(x: Tensor) -> Tensor:
        each = terms(x, label_smoothing, pad_idx)
        if reduction == "none":
            return each.view(12, 6)
        if reduction == "batch":
            return each.sum((1, 2)) / LENGTH
        return each.sum() / (3 if reduction == "batchmean" else 1)

    def ours(x: Tensor) -> Tensor:
        return kldiv_loss(x, TARGETS, LENGTH, label_smoothing, 3, pad_idx, reduction)

    by_length = torch.promote_types(dtype, torch.float32) if reduction == "batch" else dtype
    roundings = 3 if reduction == "none" else 1  # plain torch: also q, and log q - x
    assert_is(ours, formula, log_probs(dtype), by_length, roundings)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kldiv_unsmoothed_is_nll(reduction: str) -> None:
    """It knows no padding, and masks by length."""
    x = log_probs()
    loss = kldiv_loss(x, TARGETS, LENGTH, pad_idx=2, reduction=reduction)
    assert torch.equal(loss, nll_loss(x, TARGETS, LENGTH, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_log_probabilities_as_they_lie(reduction: str) -> None:
    x = log_probs().transpose(0, 1).contiguous().transpose(0, 1)
    for loss in (nll_loss, kldiv_loss):
        how = {"length": LENGTH, "label_smoothing": 0.1, "reduction": reduction}
        torch.testing.assert_close(loss(x, TARGETS, **how), loss(x.contiguous(), TARGETS, **how))
        how["length"] = torch.ones(3) if loss is kldiv_loss else None
        frame, targets = x[:, 0], TARGETS[:, 0]
        expected = loss(x[:, :1], targets.unsqueeze(1), **how)
        alone = loss(frame, targets, **how)
        torch.testing.assert_close(alone, expected.view(alone.shape))


def test_the_longer_is_cut() -> None:
    x = log_probs()
    cut = nll_loss(x[:, :3], TARGETS[:, :3], LENGTH, 0.1)
    assert nll_loss(x, TARGETS[:, :3], LENGTH, 0.1) == cut
    assert nll_loss(x[:, :3], TARGETS, LENGTH, 0.1) == cut


def test_impossible_classes_where_nothing_counts() -> None:
    """0 * inf there."""
    x = log_probs()
    expected = nll_loss(x, TARGETS, LENGTH, 0.1), kldiv_loss(x, TARGETS, None, 0.1)
    x[FRAMES == 0] = -torch.inf
    assert nll_loss(x, TARGETS, LENGTH, 0.1) == expected[0]
    x[TARGETS == 0] = -torch.inf
    assert kldiv_loss(x, TARGETS, None, 0.1) == expected[1]

    x.requires_grad_()
    for reduction in ("mean", "batch"):  # 0 / 0, but no gradient
        loss = nll_loss(x, TARGETS, LENGTH * 0, 0.1, reduction=reduction)
        assert loss.isnan().all()
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert not grad.any()


def test_errors() -> None:
    x = log_probs()
    with pytest.raises(ValueError, match="allowed_len_diff=2, got 1"):
        nll_loss(x, TARGETS[:, :1], allowed_len_diff=2)
    with pytest.raises(ValueError, match=r"targets: expected shape \(3, 4\), got \(3,\)"):
        nll_loss(x, TARGETS[:, 0])
    with pytest.raises(ValueError, match=r"length: expected None for \(B, C\)"):
        nll_loss(x[:, 0], TARGETS[:, 0], LENGTH)
    with pytest.raises(ValueError, match=r"length: expected shape \(3,\), got a tensor of \(2,\)"):
        nll_loss(x, TARGETS, LENGTH[:2])
    with pytest.raises(ValueError, match=r"targets: expected shape \(3, 4\), got \(3, 3\)"):
        kldiv_loss(x, TARGETS[:, :3], label_smoothing=0.1)
    with pytest.raises(TypeError, match="length: expected a tensor"):
        kldiv_loss(x, TARGETS, label_smoothing=0.1, reduction="batch")
    for loss in (nll_loss, kldiv_loss):
        with pytest.raises(IndexError, match="is 7"):
            loss(x, TARGETS + 2, label_smoothing=0.1)
        with pytest.raises(ValueError, match="log_probabilities: expected shape"):
            loss(x[0, 0], TARGETS[0, 0], label_smoothing=0.1)
