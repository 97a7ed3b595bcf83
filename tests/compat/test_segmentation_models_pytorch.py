"""SoftCrossEntropyLoss, that of pytorch_toolbelt too, against its formula."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from drop_ins import DTYPES, assert_is
from torch import Tensor

from labelsmooth.compat import pytorch_toolbelt
from labelsmooth.compat import segmentation_models_pytorch as smp

REDUCTIONS = ["mean", "sum", "none"]


def formula(x: Tensor, y: Tensor, a: float, ignore_index: int | None, reduction: str) -> Tensor:
    """Of x (N, C, H, W), pixel by pixel; without reduction (N, H, W)."""
    log_p = x.log_softmax(1)
    pixels = []
    for n, h, w in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        of, target = log_p[n, :, h, w], int(y[n, h, w])
        counts = target != ignore_index
        pixels.append(-(1 - a) * of[target] - a * of.mean() if counts else 0 * of[0])
    rows = torch.stack(pixels)
    return rows.view(y.shape) if reduction == "none" else getattr(rows, reduction)()


def test_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4 and the targets 0, 1 and one that is ignored: a mean of three."""
    x = torch.tensor([2.0, 1.0, 1.0]).log().view(1, 3, 1, 1).expand(1, 3, 1, 3)
    y = torch.tensor([[[0, 1, -100]]])
    rows = [0.9 * 1 + 0.1 * 5 / 3, 0.9 * 2 + 0.1 * 5 / 3, 0.0]  # of log 2
    loss = smp.SoftCrossEntropyLoss(smooth_factor=0.1)(x, y)
    assert loss.item() == pytest.approx(sum(rows) / 3 * math.log(2), rel=1e-6)
    loss = smp.SoftCrossEntropyLoss("none", 0.1)(x, y)
    torch.testing.assert_close(loss, torch.tensor([[[rows]]]) * math.log(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, 3, None])
@pytest.mark.parametrize("dim", [1, -1, 0])
def test_against_the_formula(
    dim: int, ignore_index: int | None, reduction: str, dtype: torch.dtype
) -> None:
    x = torch.randn(3, 5, 1, 11, dtype=dtype).movedim(1, dim)
    y = torch.randint(5, (3, 1, 11))
    if ignore_index == -100:
        y[1] = -100
    keeps_axis = reduction == "none" and ignore_index is not None

    def expected(x: Tensor) -> Tensor:
        loss = formula(x.movedim(dim, 1), y, 0.1, ignore_index, reduction)
        return loss.unsqueeze(dim) if keeps_axis else loss

    loss = smp.SoftCrossEntropyLoss(reduction, 0.1, ignore_index, dim)
    assert_is(lambda x: loss(x, y), expected, x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_pixels_reach_nothing(reduction: str) -> None:
    """Not even by NaN; where all are ignored the loss is 0."""
    x = torch.full((1, 3, 1, 2), torch.nan, requires_grad=True)
    loss = smp.SoftCrossEntropyLoss(reduction, 0.1)(x, torch.full((1, 1, 2), -100))
    assert not loss.any()
    assert not torch.autograd.grad(loss.sum(), x)[0].any()


def test_a_target_with_the_axis() -> None:
    x, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    loss = smp.SoftCrossEntropyLoss(smooth_factor=0.1)
    assert torch.equal(loss(x, y[:, None]), loss(x, y))


def test_another_reduction_is_none() -> None:
    x, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    assert smp.SoftCrossEntropyLoss("batchwise_mean", 0.1)(x, y).shape == (2, 1, 3, 4)


def test_names_and_defaults() -> None:
    """The two differ in a default and in the names at the call. None is no smoothing."""
    x, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    expected = torch.nn.functional.cross_entropy(x, y)
    torch.testing.assert_close(smp.SoftCrossEntropyLoss()(y_pred=x, y_true=y), expected)
    toolbelt = pytorch_toolbelt.SoftCrossEntropyLoss()
    torch.testing.assert_close(toolbelt(input=x, target=y), expected)
    for of, default in ((smp, None), (pytorch_toolbelt, 0.0)):
        arguments = inspect.signature(of.SoftCrossEntropyLoss).parameters
        assert [(p.name, p.default) for p in arguments.values()] == [
            ("reduction", "mean"),
            ("smooth_factor", default),
            ("ignore_index", -100),
            ("dim", 1),
        ]


def test_errors() -> None:
    x = torch.zeros(1, 3, 1, 2)
    with pytest.raises(IndexError, match="row 1 is 3"):
        smp.SoftCrossEntropyLoss()(x, torch.tensor([[[0, 3]]]))
    with pytest.raises(IndexError, match="row 0 is -100"):
        smp.SoftCrossEntropyLoss(ignore_index=None)(x, torch.tensor([[[-100, 0]]]))
    with pytest.raises(ValueError, match="target"):
        smp.SoftCrossEntropyLoss()(x, torch.tensor([[[0]]]))
    with pytest.raises(IndexError, match="imension"):
        smp.SoftCrossEntropyLoss(dim=4)(x, torch.tensor([[[0, 0]]]))
    with pytest.raises(ValueError, match="label_smoothing"):
        smp.SoftCrossEntropyLoss(smooth_factor=1.5)(x, torch.tensor([[[0, 0]]]))
