"""fastai's LabelSmoothingCrossEntropy, alone and flat, against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from drop_ins import DTYPES, assert_is
from torch import Tensor

from labelsmooth.compat.fastai import LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropyFlat

REDUCTIONS = ["mean", "sum", "none"]
UNIFORM = torch.tensor([2.0, 1.0, 1.0]).log().expand(3, 3)  # probabilities 1/2, 1/4, 1/4


def formula(x: Tensor, y: Tensor, eps: float, weight: Tensor | None, reduction: str) -> Tensor:
    """Of x (N, C): the two terms of a row, and the two denominators of the mean."""
    log_p, kept = x.log_softmax(1), y != -100
    w = torch.ones(x.shape[1], dtype=x.dtype) if weight is None else weight.to(x.dtype)
    spread = -eps * log_p.mean(1)
    w_y = torch.where(kept, w[y.where(kept, 0)], 0.0)
    own = -(1 - eps) * w_y * log_p.gather(1, y.where(kept, 0)[:, None])[:, 0]
    if reduction == "mean":
        return spread.mean() + own.sum() / w_y.sum()
    return spread + own if reduction == "none" else (spread + own).sum()


def test_by_hand() -> None:
    """Targets 0 and 1 of weight 3 and 1, and one ignored: its smoothing counts all the same."""
    loss = LabelSmoothingCrossEntropy(0.1, torch.tensor([3.0, 1.0, 7.0]))
    spread, own = 0.1 * 5 / 3, [0.9 * 3 * 1, 0.9 * 1 * 2, 0.0]  # of log 2
    y = torch.tensor([0, 1, -100])
    mean = loss(UNIFORM, y)
    assert mean.item() == pytest.approx((spread + sum(own) / 4) * math.log(2), rel=1e-6)
    loss.reduction = "none"
    expected = torch.tensor([spread + of for of in own]) * math.log(2)
    torch.testing.assert_close(loss(UNIFORM, y), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_against_the_formula(
    shape: tuple[int, ...], weighted: bool, reduction: str, dtype: torch.dtype
) -> None:
    x = torch.randn(*shape, 5, dtype=dtype).movedim(-1, 1)
    y = torch.randint(5, shape)
    y[0] = -100
    weight = torch.rand(5, dtype=torch.float64) if weighted else None

    def expected(x: Tensor) -> Tensor:
        loss = formula(x.movedim(1, -1).flatten(0, -2), y.flatten(), 0.2, weight, reduction)
        return loss.view(shape) if reduction == "none" else loss

    loss = LabelSmoothingCrossEntropy(0.2, weight, reduction)
    assert_is(lambda x: loss(x, y), expected, x)


def test_without_a_target_the_mean_is_nan_and_its_gradient_the_smoothing() -> None:
    x, y = torch.randn(3, 4, requires_grad=True), torch.full((3,), -100)
    loss = LabelSmoothingCrossEntropy()(x, y)
    assert loss.isnan()
    expected = 0.1 * (x.softmax(1) - 0.25) / 3
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.parametrize("axis", [-1, 1, 0, 2, -2])
def test_flat_takes_any_axis(axis: int) -> None:
    x, y = torch.randn(2, 3, 4, 5), torch.randint(5, (2, 3, 4))
    weight = torch.rand(5)
    loss = LabelSmoothingCrossEntropyFlat(0.2, axis=axis, weight=weight)
    expected = formula(x.flatten(0, 2), y.flatten(), 0.2, weight, "mean")
    torch.testing.assert_close(loss(x.movedim(-1, axis), y), expected)
    torch.testing.assert_close(loss(x.movedim(-1, axis), y.unsqueeze(axis)), expected)


def test_flat_without_reduction_has_rows_as_the_target_transposed() -> None:
    x, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    rows = formula(x.movedim(1, -1).flatten(0, 2), y.flatten(), 0.1, None, "none")
    loss = LabelSmoothingCrossEntropyFlat(axis=1, reduction="none")(x, y)
    torch.testing.assert_close(loss, rows.view(2, 3, 4).transpose(1, -1).flatten())
    last = LabelSmoothingCrossEntropyFlat(reduction="none")(x.movedim(1, -1), y)
    torch.testing.assert_close(last, rows)
    assert LabelSmoothingCrossEntropyFlat(reduction="none")(x[0, :, 0, 0], y[0, 0, 0]).shape == (1,)


def test_what_a_learner_asks_for() -> None:
    flat = LabelSmoothingCrossEntropyFlat(eps=0.3, reduction="sum")
    for loss in (flat, flat.func):
        assert loss.y_int
        torch.testing.assert_close(loss.activation(UNIFORM), UNIFORM.exp() / 4)
        assert loss.decodes(UNIFORM).tolist() == [0, 0, 0]
    assert (flat.func.eps, flat.reduction) == (0.3, "sum")
    flat.reduction = "none"
    assert flat.func.reduction == "none"
    flat.to(torch.device("cpu"))
    assert "axis=-1" in repr(flat)
    y = torch.tensor([0.0, 1.0, 2.0])  # of a floating dtype
    torch.testing.assert_close(flat(UNIFORM, y), flat(UNIFORM, y.long()))
    unflat = LabelSmoothingCrossEntropyFlat(flatten=False)
    assert torch.equal(unflat(UNIFORM, y), unflat.func(UNIFORM, y))


def test_errors() -> None:
    y = torch.tensor([0, 3, 1])
    for weight in (None, torch.ones(3)):
        with pytest.raises(IndexError, match="row 1 is 3"):
            LabelSmoothingCrossEntropy(weight=weight)(UNIFORM, y)
    with pytest.raises(ValueError, match="weight"):
        LabelSmoothingCrossEntropy(weight=torch.ones(4))(UNIFORM, y)
    with pytest.raises(ValueError, match="reduction"):
        LabelSmoothingCrossEntropy(reduction="median")(UNIFORM, y)
    with pytest.raises(ValueError, match="target"):
        LabelSmoothingCrossEntropy()(UNIFORM, y[:2])
    with pytest.raises(ValueError, match="is_2d"):
        LabelSmoothingCrossEntropyFlat(is_2d=False)
