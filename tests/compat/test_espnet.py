"""ESPnet's loss, and FunASR's and WeNet's, which are it: numbers to check by hand, the formula."""

from __future__ import annotations

import math

import pytest
import torch
from drop_ins import DTYPES, assert_is
from torch import Tensor, nn

from labelsmooth.compat import espnet, funasr, wenet
from labelsmooth.compat.espnet import LabelSmoothingLoss

PADDING = -1
TARGET = torch.tensor([[3, 0, 5, 1], [2, 2, PADDING, PADDING], [4, PADDING, PADDING, PADDING]])


def formula(x: Tensor, target: Tensor, smoothing: float, normalize_length: bool) -> Tensor:
    """Over B, or the 7 tokens."""
    classes, kept = x.shape[-1], target != PADDING
    q = torch.full_like(x, smoothing / (classes - 1), requires_grad=False)
    q.scatter_(-1, target.clamp(min=0).unsqueeze(-1), 1 - smoothing)
    rows = (torch.special.xlogy(q, q) - q * x.log_softmax(-1)).sum(-1)[kept]
    return rows.sum() / (kept.sum() if normalize_length else x.shape[0])


def test_by_hand() -> None:
    """Two utterances, three tokens, logits of 0 over four classes: each token costs
    log 4 + 0.9 log 0.9 + 0.1 log(0.1 / 3) = 0.9513493."""
    x, target = torch.zeros(2, 2, 4), torch.tensor([[1, 3], [0, -1]])
    row = math.log(4) + 0.9 * math.log(0.9) + 0.1 * math.log(0.1 / 3)
    assert row == pytest.approx(0.9513493)
    loss = LabelSmoothingLoss(4, -1, 0.1)(x, target)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(3 * row / 2)
    assert LabelSmoothingLoss(4, -1, 0.1, True)(x, target).item() == pytest.approx(row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalize_length", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_formula(smoothing: float, normalize_length: bool, dtype: torch.dtype) -> None:
    criterion = LabelSmoothingLoss(6, PADDING, smoothing, normalize_length)
    assert_is(
        lambda x: criterion(x, TARGET),
        lambda x: formula(x, TARGET, smoothing, normalize_length),
        2 * torch.randn(3, 4, 6, dtype=dtype),
    )


@pytest.mark.parametrize("axes", [(1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_logits_as_they_lie(axes: tuple[int, int, int]) -> None:
    shape = [(3, 4, 6)[axis] for axis in axes]
    x = torch.randn(shape).permute([axes.index(axis) for axis in range(3)])
    target = TARGET.int().t().contiguous().t()
    criterion = LabelSmoothingLoss(6, PADDING, 0.1)
    assert_is(lambda x: criterion(x, target), lambda x: formula(x, TARGET, 0.1, False), x)


def test_nothing_but_padding() -> None:
    """0 tokens over B, or over none, which is NaN; the gradient is 0."""
    target = torch.full((2, 3), PADDING)
    for normalize_length in (False, True):
        x = torch.randn(2, 3, 4, requires_grad=True)
        loss = LabelSmoothingLoss(4, PADDING, 0.1, normalize_length)(x, target)
        loss.backward()
        assert loss.isnan() if normalize_length else loss == 0
        assert x.grad is not None
        assert not x.grad.any()


def test_padding_may_hold_anything() -> None:
    x = torch.randn(3, 4, 6)
    criterion = LabelSmoothingLoss(6, PADDING, 0.1, True)
    expected = criterion(x, TARGET)
    x[TARGET == PADDING] = torch.nan
    assert criterion(x, TARGET) == expected


def test_a_masked_class_makes_it_infinite() -> None:
    """It has smoothing mass; without smoothing it costs nothing, where 0 * inf makes NaN there."""
    x = torch.randn(3, 4, 6)
    x[..., 5] = -torch.inf
    target = TARGET.masked_fill(TARGET == 5, 0)
    assert LabelSmoothingLoss(6, PADDING, 0.1)(x, target) == torch.inf
    unsmoothed = LabelSmoothingLoss(6, PADDING, 0.0)(x, target)
    torch.testing.assert_close(unsmoothed, formula(x[..., :5], target, 0.0, False))


def test_attributes() -> None:
    criterion = LabelSmoothingLoss(6, PADDING, 0.1, normalize_length=True)
    assert (criterion.size, criterion.padding_idx, criterion.smoothing) == (6, PADDING, 0.1)
    assert criterion.normalize_length is True
    assert criterion.confidence == 0.9
    assert criterion.true_dist is None
    assert isinstance(criterion.criterion, nn.KLDivLoss)
    assert not criterion.state_dict()
    criterion.smoothing = 0.0  # as a schedule might
    assert criterion.confidence == 1.0


def test_funasr_and_wenet_have_the_same() -> None:
    assert funasr.LabelSmoothingLoss is wenet.LabelSmoothingLoss is espnet.LabelSmoothingLoss


@pytest.mark.parametrize(
    ("criterion", "came"),
    [
        (nn.KLDivLoss(), "reduction='mean'"),
        (nn.KLDivLoss(reduction="none", log_target=True), "log_target=True"),
        (nn.CrossEntropyLoss(reduction="none"), "CrossEntropyLoss"),
    ],
)
def test_one_criterion(criterion: nn.Module, came: str) -> None:
    with pytest.raises(TypeError, match=f"expected torch.nn.KLDivLoss.*got .*{came}"):
        LabelSmoothingLoss(6, PADDING, 0.1, False, criterion)
    LabelSmoothingLoss(6, PADDING, 0.1, False, nn.KLDivLoss(reduction="none"))


def test_errors() -> None:
    x = torch.zeros(3, 4, 6)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, 5\), got \(3, 4, 6\)"):
        LabelSmoothingLoss(5, PADDING, 0.1)(x, TARGET)
    with pytest.raises(ValueError, match="target"):
        LabelSmoothingLoss(6, PADDING, 0.1)(x, TARGET[:, :2])
    with pytest.raises(ValueError, match="label_smoothing"):
        LabelSmoothingLoss(6, PADDING, 1.1)(x, TARGET)
    with pytest.raises(IndexError, match="is -1"):
        LabelSmoothingLoss(6, 0, 0.1)(x, TARGET)
