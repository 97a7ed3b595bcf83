"""labelsmooth's loss as the cross-entropy of monai's losses of two parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drop_ins import assert_same
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet

import labelsmooth
from labelsmooth import FusedLabelSmoothingLoss
from labelsmooth.which import matching

(LINE,) = (row.write for row in matching(["monai"]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
def test_dice_and_cross_entropy(weighted: bool, one_hot: bool, dtype: torch.dtype) -> None:
    """Class indices (N, 1, H, W, D), or a target of the logits' shape."""
    weight = torch.rand(4, dtype=dtype) if weighted else None
    y = torch.randint(4, (2, 1, 3, 5, 2))
    options: dict[str, Any] = {"to_onehot_y": not one_hot, "softmax": True, "weight": weight}
    if one_hot:
        y = torch.zeros(2, 4, 3, 5, 2, dtype=dtype).scatter_(1, y, 1.0)
    original = DiceCELoss(label_smoothing=0.1, **options)
    loss = DiceCELoss(**options)
    exec(LINE, {"loss": loss, "labelsmooth": labelsmooth})
    x = torch.randn(2, 4, 3, 5, 2, dtype=dtype)
    assert_same(lambda x: loss(x, y), lambda x: original(x, y), x)


def test_a_model() -> None:
    model = BasicUNet(spatial_dims=2, out_channels=3, features=(4, 4, 4, 8, 8, 4))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    loss.cross_entropy = FusedLabelSmoothingLoss(label_smoothing=0.1)
    loss(model(torch.randn(2, 1, 32, 32)), torch.randint(3, (2, 1, 32, 32))).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
