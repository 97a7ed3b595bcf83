"""The swap beside JoeyNMT's loss, whose smoothed target is float32 for log-probabilities of any
dtype: ours of float64 is more exact."""

from __future__ import annotations

import pytest
import torch
from drop_ins import DTYPES, assert_same
from joeynmt.loss import XentLoss

from labelsmooth.compat import joeynmt

TARGET = torch.tensor([[3, 1, 5, 1], [2, 2, 0, 1], [4, 1, 1, 1]])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pad_index", [0, 1, 5])
@pytest.mark.parametrize("smoothing", [-1.0, 0.0, 0.1, 1.0])
def test_the_swap(smoothing: float, pad_index: int, dtype: torch.dtype) -> None:
    old, new = (kind(pad_index, smoothing) for kind in (XentLoss, joeynmt.XentLoss))
    assert repr(old) == repr(new)
    x = (3 * torch.randn(3, 4, 11)).log_softmax(-1).to(dtype)
    exact = {"rtol": 1e-6} if smoothing > 0 and dtype == torch.float64 else {}
    assert_same(lambda x: new(x, trg=TARGET), lambda x: old(x, trg=TARGET), x, **exact)
    padding = torch.full_like(TARGET, pad_index)
    assert_same(lambda x: new(x, trg=padding), lambda x: old(x, trg=padding), x)
