"""The swap beside ESPnet's and FunASR's losses. FunASR's file is loaded by itself: the package
wants more than is installed here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drop_ins import DTYPES, assert_same
from espnet.nets.pytorch_backend.transformer.label_smoothing_loss import LabelSmoothingLoss
from integrations.original import load

from labelsmooth.compat import espnet, funasr

FROM_FUNASR = load(
    "funasr.losses.label_smoothing_loss", {"funasr.models.transformer.utils.nets_utils": None}
)
PAIRS = [
    pytest.param(LabelSmoothingLoss, espnet.LabelSmoothingLoss, id="espnet"),
    pytest.param(FROM_FUNASR.LabelSmoothingLoss, funasr.LabelSmoothingLoss, id="funasr"),
]
TARGET = torch.tensor([[3, 0, 5, 1], [2, 2, 0, 0], [4, 0, 0, 0]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding_idx", [-1, 0, 5])
@pytest.mark.parametrize("arguments", [(0.1,), (0.0, True), (0.3, False), (1.0, True)])
@pytest.mark.parametrize(("original", "ours"), PAIRS)
def test_the_swap(
    original: Any, ours: Any, arguments: tuple[Any, ...], padding_idx: int, dtype: torch.dtype
) -> None:
    target = TARGET.masked_fill(TARGET == 0, padding_idx)
    old, new = (kind(11, padding_idx, *arguments) for kind in (original, ours))
    x = 3 * torch.randn(3, 4, 11, dtype=dtype)
    assert_same(lambda x: new(x, target), lambda x: old(x, target), x)


@pytest.mark.parametrize("normalize_length", [False, True])
@pytest.mark.parametrize(("original", "ours"), PAIRS)
def test_nothing_but_padding(original: Any, ours: Any, normalize_length: bool) -> None:
    target = torch.full((3, 4), -1)
    old, new = (kind(11, -1, 0.1, normalize_length) for kind in (original, ours))
    assert_same(lambda x: new(x, target), lambda x: old(x, target), torch.randn(3, 4, 11))


@pytest.mark.parametrize(("original", "ours"), PAIRS)
def test_attributes(original: Any, ours: Any) -> None:
    old, new = (kind(11, 0, smoothing=0.1) for kind in (original, ours))
    for name in ("size", "padding_idx", "smoothing", "confidence", "normalize_length", "true_dist"):
        assert getattr(old, name) == getattr(new, name)
    assert repr(old.criterion) == repr(new.criterion)
    ours(11, 0, 0.1, False, old.criterion)


@pytest.mark.parametrize(("original", "ours"), PAIRS)
def test_autocast(original: Any, ours: Any) -> None:
    """The losses of bfloat16 logits are float32 in both."""
    old, new = (kind(11, 0, 0.1) for kind in (original, ours))
    x = torch.randn(3, 4, 11, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert old(x, TARGET).dtype == new(x, TARGET).dtype
