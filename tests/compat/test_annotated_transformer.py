"""The Annotated Transformer's class: its own example by hand, then its formula."""

from __future__ import annotations

import math

import pytest
import torch
from translation import assert_truth, batch, divergence, outcome

from labelsmooth import compat
from labelsmooth.compat.annotated_transformer import LabelSmoothing

EXAMPLE = torch.tensor([[0, 0.2, 0.7, 0.1, 0]] * 3).log()


def test_its_example_by_hand() -> None:
    """0.4 / 3 on each of three classes that are neither padding, 0, nor the target."""
    criterion = LabelSmoothing(5, 0, 0.4)
    assert criterion.true_dist is None
    loss = criterion(EXAMPLE, torch.tensor([2, 1, 0]))
    rest = 0.4 / 3
    expected = [[0, rest, 0.6, rest, rest], [0, 0.6, rest, rest, rest], [0.0] * 5]
    torch.testing.assert_close(criterion.true_dist, torch.tensor(expected))
    assert loss.item() == math.inf  # class 4 has mass, and is impossible


def test_by_hand() -> None:
    """Padding is class 1, and the last row. Each of the others costs, of probabilities 1/4,
    0.8 log(0.8 * 4) + 2 * 0.1 log(0.1 * 4) = 0.7472624."""
    x = torch.full((3, 4), 0.25).log()
    loss = LabelSmoothing(size=4, padding_idx=1, smoothing=0.2)(x, torch.tensor([0, 3, 1]))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(2 * 0.7472624, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("strided", [False, True])
def test_its_formula(strided: bool, smoothing: float, dtype: torch.dtype) -> None:
    x = batch(dtype, 9, 7, strided=strided)
    target = torch.tensor([0, 1, 2, 3, 4, 5, 6, 2, 3])
    criterion = LabelSmoothing(7, 2, smoothing)
    ours = outcome(criterion, x, target)
    assert [t.dtype for t in ours] == [dtype, dtype]
    assert_truth(ours, outcome(divergence, x.double(), target, 2, smoothing))
    leaf = x.double().requires_grad_()
    divergence(leaf, target, 2, smoothing).backward()
    assert_truth([criterion.true_dist], [-leaf.grad])


def test_nothing_but_padding_costs_nothing() -> None:
    criterion = LabelSmoothing(5, 0, 0.4)
    loss, grad = outcome(criterion, EXAMPLE, torch.zeros(3, dtype=torch.long))
    assert loss == 0
    assert not grad.any()
    assert not criterion.true_dist.any()


def test_a_masked_padding_class_costs_nothing() -> None:
    """Where the original has 0 * inf."""
    x = batch(torch.float64, 3, 5)
    target = torch.tensor([1, 2, 0])
    masked = x.masked_fill(torch.arange(5) == 0, -math.inf)
    assert_truth(
        outcome(LabelSmoothing(5, 0, 0.4), masked, target),
        outcome(LabelSmoothing(5, 0, 0.4), x, target),
    )


def test_attributes() -> None:
    criterion = LabelSmoothing(5, 0, 0.4)
    named = criterion.size, criterion.padding_idx, criterion.smoothing, criterion.confidence
    assert named == (5, 0, 0.4, 0.6)
    assert isinstance(criterion.criterion, torch.nn.KLDivLoss)
    assert repr(criterion).startswith("LabelSmoothing(\n  size=5, padding_idx=0, smoothing=0.4")
    assert not criterion.state_dict()


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ((5, 0.1), TypeError, r"labelsmooth\.compat\.LabelSmoothing"),
        ((5, 0.1, 0), TypeError, r"labelsmooth\.compat\.LabelSmoothing"),
        ((5, -1, 0.1), ValueError, "padding_idx: expected a class in .0, 5., got -1"),
        ((5, 5, 0.1), ValueError, "padding_idx"),
        ((5, 0, 1.5), ValueError, "smoothing"),
        ((2, 0, 0.1), ValueError, "size: expected at least 3, got 2"),
    ],
)
def test_errors(arguments: tuple[float, ...], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        LabelSmoothing(*arguments)


def test_errors_of_a_call() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 5\)"):
        LabelSmoothing(5, 0, 0.1)(torch.zeros(2, 4), torch.tensor([1, 2]))
    with pytest.raises(IndexError, match="row 1 is 5"):
        LabelSmoothing(5, 0, 0.1)(torch.zeros(2, 5), torch.tensor([1, 5]))


def test_the_other_class_of_the_name_spreads_over_the_padding_too() -> None:
    x, target = batch(torch.float64, 4, 5), torch.tensor([1, 2, 3, 4])
    both = compat.LabelSmoothing(5, 0.1)(x, target), LabelSmoothing(5, 0, 0.1)(x, target)
    assert both[0] != both[1]
