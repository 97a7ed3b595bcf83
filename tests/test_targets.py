"""SparseTarget.mix, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

Y1, Y2 = torch.tensor([3, 0, 2]), torch.tensor([1, 0, -100])


@pytest.mark.parametrize("lam", [0.25, torch.tensor(0.25)], ids=["number", "0-d"])
def test_one_share_for_all_rows(lam: Tensor | float) -> None:
    made = SparseTarget.mix(Y1, Y2, lam)
    assert made.classes.tolist() == [[3, 1], [0, 0], [2, -100]]
    torch.testing.assert_close(made.probs, torch.tensor([[0.25, 0.75]] * 3))


def test_a_share_for_each_row() -> None:
    lam = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    made = SparseTarget.mix(Y1, Y2, lam)
    expected = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(made.probs, expected)


def test_rows_of_several_axes_and_of_none() -> None:
    """The classes' axis stands where the logits have theirs."""
    made = SparseTarget.mix(Y1.expand(4, 3), Y2.expand(4, 3), torch.rand(4))
    assert made.classes.shape == made.probs.shape == (4, 2, 3)
    torch.testing.assert_close(made.probs.sum(1), torch.ones(4, 3))
    assert SparseTarget.mix(Y1[0], Y2[0], 0.5).classes.tolist() == [3, 1]


@pytest.mark.parametrize("lam", [0.3, torch.tensor(0.3), torch.tensor([0.3, 0.9, 0.5])], ids=str)
def test_is_the_mean_of_two_losses(lam: Tensor | float, backend: str) -> None:
    """As mixup is written by hand: lam times the one loss and the rest of the other."""
    logits, y2 = torch.randn(3, 5, dtype=torch.float64), torch.tensor([1, 0, 4])
    loss, first, second = (
        label_smoothing_loss(logits, target, label_smoothing=0.1, reduction="none", backend=backend)
        for target in (SparseTarget.mix(Y1, y2, lam), Y1, y2)
    )
    by_hand = lam * first + (1 - lam) * second
    torch.testing.assert_close(loss, by_hand, rtol=1e-6, atol=1e-6)  # lam may be float32


def test_share_gets_its_gradient(backend: str) -> None:
    logits, y2 = torch.randn(3, 5, dtype=torch.float64), torch.tensor([1, 4, 4])

    def loss(lam: Tensor) -> Tensor:
        target = SparseTarget.mix(Y1, y2, lam)
        return label_smoothing_loss(logits, target, label_smoothing=0.1, backend=backend)

    lam = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, lam)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Y1.float(), Y2, 0.5), TypeError, "y1: expected class indices"),
        ((Y1, [1, 2, 3], 0.5), TypeError, "y2: expected class indices, got list"),
        ((Y1, Y2[:2], 0.5), ValueError, "y2: expected shape (3,)"),
        ((Y1, Y2, 1.5), ValueError, "lam: expected a number in [0, 1], got 1.5"),
        ((Y1, Y2, torch.rand(2)), ValueError, "lam: expected shape () or (3,)"),
        ((Y1, Y2, torch.rand(3, device="meta")), ValueError, "lam: expected device cpu, got meta"),
        ((Y1[0], Y2[0], torch.rand(1)), ValueError, "lam: expected shape (), got"),
        ((Y1, Y2, torch.ones(3).long()), TypeError, "lam: expected a number or a floating-point"),
        ((Y1, Y2, torch.tensor(1)), TypeError, "lam: expected a number or a floating-point"),
        ((Y1 + 0j, Y2, 0.5), TypeError, "y1: expected class indices"),
        ((Y1, Y2, "half"), TypeError, "lam: expected a number, got 'half'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_errors(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        SparseTarget.mix(*arguments)
