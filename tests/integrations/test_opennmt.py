"""The swap beside the loss that OpenNMT-py had up to 3.0.2, whose smoothed target is float32: ours
of float64 is more exact. Its file is loaded by itself: the package wants more than is installed
here."""

from __future__ import annotations

import pytest
import torch
from drop_ins import DTYPES, assert_same
from integrations.original import load

from labelsmooth.compat.opennmt import LabelSmoothingLoss

UNUSED = ["onmt", "onmt.constants", "onmt.modules.sparse_activations", "onmt.modules.sparse_losses"]
ORIGINAL = load("onmt.utils.loss", dict.fromkeys(UNUSED)).LabelSmoothingLoss
TARGET = torch.tensor([3, 1, 5, 0, 2, 2, 1, 4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ignore_index", [0, 1, 10, -1])
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
def test_the_swap(label_smoothing: float, ignore_index: int, dtype: torch.dtype) -> None:
    old, new = (kind(label_smoothing, 11, ignore_index) for kind in (ORIGINAL, LabelSmoothingLoss))
    x = (3 * torch.randn(8, 11)).log_softmax(-1).to(dtype)
    exact = {"rtol": 1e-6} if dtype == torch.float64 else {}
    assert_same(lambda x: new(x, TARGET), lambda x: old(x, TARGET), x, **exact)


def test_by_default_class_and_buffer_are_those_of_the_original() -> None:
    """Class 50 of 150 has no mass, and none of these rows has it for its target."""
    old, new = (kind(0.1, 150) for kind in (ORIGINAL, LabelSmoothingLoss))
    x = torch.randn(8, 150).log_softmax(-1)
    assert_same(lambda x: new(x, TARGET), lambda x: old(x, TARGET), x)
    new.load_state_dict(old.state_dict())
    assert torch.equal(old.one_hot, new.one_hot)


def test_in_16_bits() -> None:
    old, new = (kind(0.1, 11, 1).bfloat16() for kind in (ORIGINAL, LabelSmoothingLoss))
    x = torch.randn(8, 11).log_softmax(-1)
    assert new(x.bfloat16(), TARGET).dtype == old(x.bfloat16(), TARGET).dtype == torch.bfloat16
    assert new(x, TARGET).dtype == old(x, TARGET).dtype == torch.float32
