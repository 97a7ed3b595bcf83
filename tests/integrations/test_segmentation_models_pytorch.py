"""SoftCrossEntropyLoss beside that of segmentation_models_pytorch and that of pytorch_toolbelt, of
which two files are loaded: the package wants OpenCV."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from drop_ins import DTYPES, assert_same
from integrations.original import load

from labelsmooth.compat import pytorch_toolbelt
from labelsmooth.compat import segmentation_models_pytorch as ours

FUNCTIONAL = load("pytorch_toolbelt.losses.functional", {"pytorch_toolbelt.utils": None})
TOOLBELT = load(
    "pytorch_toolbelt.losses.soft_ce", {"pytorch_toolbelt.losses.functional": FUNCTIONAL}
)
PAIRS = [
    pytest.param(smp.losses.SoftCrossEntropyLoss, ours.SoftCrossEntropyLoss, id="smp"),
    pytest.param(
        TOOLBELT.SoftCrossEntropyLoss, pytorch_toolbelt.SoftCrossEntropyLoss, id="toolbelt"
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchwise_mean"])
@pytest.mark.parametrize("ignore_index", [-100, 3, None])
@pytest.mark.parametrize("dim", [1, -1, 0])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize(("original", "drop_in"), PAIRS)
def test_the_swap(
    original: Any,
    drop_in: Any,
    smoothing: float,
    dim: int,
    ignore_index: int | None,
    reduction: str,
    dtype: torch.dtype,
) -> None:
    x, y = torch.randn(3, 5, 1, 11, dtype=dtype).movedim(1, dim), torch.randint(5, (3, 1, 11))
    if ignore_index == -100:
        y[1] = -100
    old, new = (kind(reduction, smoothing, ignore_index, dim) for kind in (original, drop_in))
    assert_same(lambda x: new(x, y), lambda x: old(x, y), x)
    assert_same(lambda x: new(x, y.unsqueeze(dim)), lambda x: old(x, y.unsqueeze(dim)), x)


@pytest.mark.parametrize(("original", "drop_in"), PAIRS)
def test_nothing_but_ignored_pixels(original: Any, drop_in: Any) -> None:
    x, y = torch.randn(2, 5, 3, 4), torch.full((2, 3, 4), 255)
    old, new = (kind(smooth_factor=0.1, ignore_index=255) for kind in (original, drop_in))
    assert_same(lambda x: new(x, y), lambda x: old(x, y), x)


@pytest.mark.parametrize(("original", "drop_in"), PAIRS)
def test_the_original_fails_without_a_factor(original: Any, drop_in: Any) -> None:
    x, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    with pytest.raises(TypeError):
        original(smooth_factor=None)(x, y)
    torch.testing.assert_close(
        drop_in(smooth_factor=None)(x, y), drop_in(smooth_factor=0.0)(x, y), rtol=0, atol=0
    )


def test_a_model() -> None:
    """A step of a small Unet."""
    model = smp.Unet("resnet18", encoder_weights=None, classes=4, decoder_channels=(16, 8, 8, 4, 4))
    image, mask = torch.randn(2, 3, 32, 32), torch.randint(4, (2, 32, 32))
    grads = []
    for kind in (smp.losses.SoftCrossEntropyLoss, ours.SoftCrossEntropyLoss):
        model.zero_grad()
        kind(smooth_factor=0.1)(model(image), mask).backward()
        grads.append(model.segmentation_head[0].weight.grad)
    torch.testing.assert_close(*grads)
