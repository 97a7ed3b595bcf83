"""OpenNMT-py's older loss: by hand, its formula, and an ignore_index that counts from the end."""

from __future__ import annotations

import pytest
import torch
from translation import assert_truth, batch, divergence, outcome

from labelsmooth.compat.opennmt import LabelSmoothingLoss


def test_by_hand() -> None:
    """Of probabilities 1/4, each of two rows costs 0.8 log(0.8 * 4) + 2 * 0.1 log(0.1 * 4)
    = 0.7472624."""
    x = torch.full((3, 4), 0.25).log()
    loss = LabelSmoothingLoss(0.2, 4, ignore_index=1)(x, torch.tensor([0, 3, 1]))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2 * 0.7472624, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@pytest.mark.parametrize("strided", [False, True])
def test_its_formula(strided: bool, smoothing: float, dtype: torch.dtype) -> None:
    x = batch(dtype, 9, 7, strided=strided)
    target = torch.tensor([0, 1, 2, 3, 4, 5, 6, 2, 3])
    ours = outcome(LabelSmoothingLoss(smoothing, 7, 2), x, target)
    assert [t.dtype for t in ours] == [torch.promote_types(dtype, torch.float32), dtype]
    assert_truth(ours, outcome(divergence, x.double(), target, 2, smoothing))


def test_by_default_the_class_a_hundred_from_the_end_gets_no_mass() -> None:
    """Class 5 of 105; one of -100 is ignored."""
    x = batch(torch.float64, 3, 105).requires_grad_()
    LabelSmoothingLoss(0.1, 105)(x, torch.tensor([0, 5, -100])).backward()
    q = torch.full((3, 105), 0.1 / 103, dtype=torch.float64)
    q[0, 0], q[0, 5] = 0.9, 0
    q[1] = 0.1 / 104
    q[1, 5] = 0.9
    q[2] = 0
    torch.testing.assert_close(x.grad, -q, rtol=1e-12, atol=1e-15)


def test_nothing_but_padding_costs_nothing() -> None:
    loss, grad = outcome(
        LabelSmoothingLoss(0.1, 5, 1), batch(torch.float32, 3, 5), torch.ones(3, dtype=torch.long)
    )
    assert loss == 0
    assert not grad.any()


def test_attributes() -> None:
    criterion = LabelSmoothingLoss(0.3, 5, 1)
    torch.testing.assert_close(criterion.one_hot, torch.tensor([[0.1, 0.0, 0.1, 0.1, 0.1]]))
    assert list(criterion.state_dict()) == ["one_hot"]
    assert (criterion.ignore_index, criterion.confidence) == (1, 0.7)
    half = criterion.bfloat16()  # whose q is bfloat16 then
    assert half(torch.zeros(1, 5).bfloat16(), torch.tensor([0])).dtype == torch.bfloat16


def test_errors() -> None:
    for smoothing in (0.0, 1.5):
        with pytest.raises(ValueError, match="label_smoothing"):
            LabelSmoothingLoss(smoothing, 5, 0)
    with pytest.raises(ValueError, match="tgt_vocab_size"):
        LabelSmoothingLoss(0.1, 2, 0)
    with pytest.raises(IndexError, match="ignore_index: expected a class of 5"):
        LabelSmoothingLoss(0.1, 5)
    with pytest.raises(ValueError, match=r"output: expected shape \(N, 5\)"):
        LabelSmoothingLoss(0.1, 5, 0)(torch.zeros(2, 4), torch.tensor([1, 2]))
    with pytest.raises(IndexError, match="row 1 is 5"):
        LabelSmoothingLoss(0.1, 5, 0)(torch.zeros(2, 5), torch.tensor([1, 5]))
