"""JoeyNMT's loss: by hand, then its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from translation import assert_truth, batch, divergence, outcome

from labelsmooth.compat.joeynmt import XentLoss

TARGET = torch.tensor([[0, 2, 3, 1], [6, 5, 1, 1]])  # 1 is padding


def in_rows(x: Tensor, smoothing: float) -> Tensor:
    return divergence(x.flatten(0, 1), TARGET.flatten(), 1, max(smoothing, 0.0))


def test_by_hand() -> None:
    """Of probabilities 1/4, each of two tokens costs 0.8 log(0.8 * 4) + 2 * 0.1 log(0.1 * 4)
    = 0.7472624, and log 4 without smoothing."""
    x, trg = torch.full((1, 3, 4), 0.25).log(), torch.tensor([[0, 3, 1]])
    loss = XentLoss(pad_index=1, smoothing=0.2)(x, trg=trg)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2 * 0.7472624, rel=1e-6)
    assert XentLoss(1)(x, trg=trg).item() == pytest.approx(2 * math.log(4), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [-1.0, 0.0, 0.1, 1.0])
@pytest.mark.parametrize("strided", [False, True])
def test_its_formula(strided: bool, smoothing: float, dtype: torch.dtype) -> None:
    x = batch(dtype, 2, 4, 7, strided=strided)
    ours = outcome(lambda x: XentLoss(1, smoothing)(x, trg=TARGET, trg_mask=None), x)
    wide = torch.promote_types(dtype, torch.float32)
    assert [t.dtype for t in ours] == [wide if smoothing > 0 else dtype, dtype]
    assert_truth(ours, outcome(in_rows, x.double(), smoothing))


def test_shapes() -> None:
    """Sentences cut short, and rows one below the other."""
    x = batch(torch.float64, 2, 4, 7)
    whole = XentLoss(1, 0.1)(x, trg=TARGET)
    torch.testing.assert_close(
        XentLoss(1, 0.1)(x.flatten(0, 1), trg=TARGET.flatten()), whole, rtol=1e-12, atol=0
    )
    cut = XentLoss(1, 0.1)(x[:, :-1], trg=TARGET[:, :-1])
    rows = divergence(x[:, :-1].flatten(0, 1), TARGET[:, :-1].flatten(), 1, 0.1)
    torch.testing.assert_close(cut, rows, rtol=1e-12, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_but_padding_costs_nothing(smoothing: float) -> None:
    x = batch(torch.float32, 2, 3, 5)
    trg = torch.ones(2, 3, dtype=torch.long)
    loss, grad = outcome(lambda x: XentLoss(1, smoothing)(x, trg=trg), x)
    assert loss == 0
    assert not grad.any()


def test_attributes() -> None:
    assert repr(XentLoss(1)) == "XentLoss(criterion=NLLLoss(), smoothing=0.0)"
    assert repr(XentLoss(1, 0.1)) == "XentLoss(criterion=KLDivLoss(), smoothing=0.1)"
    assert XentLoss(1, 0.1).pad_index == 1


def test_errors() -> None:
    with pytest.raises(TypeError, match="trg"):
        XentLoss(1, 0.1)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="pad_index: expected a class, got -1"):
        XentLoss(-1, 0.1)
    with pytest.raises(ValueError, match="smoothing"):
        XentLoss(1, 1.5)
    with pytest.raises(ValueError, match="at least three classes"):
        XentLoss(1, 0.1)(torch.zeros(3, 2), trg=torch.zeros(3, dtype=torch.long))
    with pytest.raises(IndexError, match="row 0 is 4"):
        XentLoss(1, 0.1)(torch.zeros(1, 4), trg=torch.tensor([4]))
