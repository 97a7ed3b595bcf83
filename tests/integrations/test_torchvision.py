"""labelsmooth's loss with what torchvision makes: mixed targets, a segmentation model's logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drop_ins import DTYPES, assert_same
from torchvision.models.segmentation import lraspp_mobilenet_v3_large
from torchvision.transforms import v2

from labelsmooth import FusedLabelSmoothingLoss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mixing", [v2.MixUp, v2.CutMix])
def test_mixed_targets(mixing: Any, dtype: torch.dtype) -> None:
    """Dense ones, in float32."""
    _, target = mixing(num_classes=10)(torch.rand(6, 3, 8, 8), torch.randint(10, (6,)))
    assert target.shape == (6, 10)
    ours = FusedLabelSmoothingLoss(label_smoothing=0.1)
    torchs = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    assert_same(
        lambda x: ours(x, target).to(dtype),  # for bfloat16 logits ours is float32
        lambda x: torchs(x, target.to(x.dtype)),
        torch.randn(6, 10, dtype=dtype),
        **({"rtol": 1e-6} if dtype == torch.float64 else {}),
    )


def test_a_segmentation_model() -> None:
    """(N, C, H, W), and 255 on borders that count nothing."""
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    image, mask = torch.randn(2, 3, 32, 32), torch.randint(5, (2, 32, 32))
    mask[:, :2] = 255
    logits = model(image)["out"]
    assert logits.shape == (2, 5, 32, 32)
    ours = FusedLabelSmoothingLoss(ignore_index=255, label_smoothing=0.1)
    torchs = torch.nn.CrossEntropyLoss(ignore_index=255, label_smoothing=0.1)
    assert_same(lambda x: ours(x, mask), lambda x: torchs(x, mask), logits)
    ours(logits, mask).backward()
    assert all(p.grad.isfinite().all() for p in model.classifier.parameters())
