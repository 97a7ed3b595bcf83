"""The two older classes, exactly, on the examples of their authors: numbers to check by hand."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from labelsmooth.compat import LabelSmoothing, LabelSmoothingLoss

LOGITS = torch.tensor(
    [
        [0.1796, -0.0440, 0.4484],
        [-0.2746, 0.1361, 0.3606],
        [-0.1053, 0.0179, 0.4667],
        [-0.0686, -0.2447, 0.4115],
        [-0.0467, 0.3776, 0.0937],
    ]
)
LOG_PROBS = torch.tensor(  # of LOGITS, to four places
    [
        [-1.1340, -1.3576, -0.8652],
        [-1.4805, -1.0699, -0.8453],
        [-1.3617, -1.2385, -0.7897],
        [-1.2398, -1.4159, -0.7597],
        [-1.3027, -0.8784, -1.1623],
    ]
)
TARGET = torch.tensor([0, 1, 2, 1, 0])
ROW_LOSS = torch.tensor(  # 0.99 of the target's -log p, 0.005 of the two others'
    [
        0.99 * 1.1340 + 0.005 * (1.3576 + 0.8652),  # 1.13377
        0.99 * 1.0699 + 0.005 * (1.4805 + 0.8453),  # 1.07083
        0.99 * 0.7897 + 0.005 * (1.3617 + 1.2385),  # 0.79480
        0.99 * 1.4159 + 0.005 * (1.2398 + 0.7597),  # 1.41174
        0.99 * 1.3027 + 0.005 * (0.8784 + 1.1623),  # 1.29988
    ]
)
# Seed 1's own input: rows that do not sum to 1 and hold log 0
UNNORMALISED = torch.tensor(
    [[0.0, 0.2, 0.7, 0.1, 0.0], [0.0, 0.9, 0.2, 0.1, 0.0], [1.0, 0.2, 0.7, 0.1, 0.0]]
)


def test_the_table_of_log_probabilities() -> None:
    torch.testing.assert_close(LOGITS.log_softmax(1), LOG_PROBS, rtol=0, atol=1e-4)


def test_seed_1_true_dist() -> None:
    criterion = LabelSmoothing(size=5, smoothing=0.1)
    criterion(UNNORMALISED.log(), torch.tensor([2, 1, 0]))
    rest = 0.025  # 0.1 / 4
    expected = [
        [rest, rest, 0.9, rest, rest],
        [rest, 0.9, rest, rest, rest],
        [0.9, rest, rest, rest, rest],
    ]
    torch.testing.assert_close(criterion.true_dist, torch.tensor(expected))
    criterion(UNNORMALISED.log(), torch.tensor([4, 4, 4]))  # follows the latest call
    torch.testing.assert_close(criterion.true_dist, torch.tensor([[rest] * 4 + [0.9]] * 3))

    criterion = LabelSmoothing(size=3, smoothing=0.01)
    criterion(LOG_PROBS, TARGET)
    expected = [[0.005] * 3 for _ in range(5)]
    for row, y in enumerate(TARGET.tolist()):
        expected[row][y] = 0.99
    torch.testing.assert_close(criterion.true_dist, torch.tensor(expected))


def test_seed_1_is_infinite_where_a_class_with_mass_is_impossible() -> None:
    log_probs = UNNORMALISED.log().requires_grad_()
    criterion = LabelSmoothing(size=5, smoothing=0.1)
    loss = criterion(log_probs, torch.tensor([2, 1, 0]))
    assert loss.item() == math.inf
    loss.backward()
    torch.testing.assert_close(log_probs.grad, -criterion.true_dist)


def test_seed_1_sums_the_divergence() -> None:
    """Uniform rows: each costs 0.9 log 0.9 + 0.1 log 0.025 + log 5 = 1.1457255."""
    uniform = torch.full((3, 5), 0.2).log()
    loss = LabelSmoothing(size=5, smoothing=0.1)(uniform, torch.tensor([2, 1, 0]))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(3 * 1.1457255, rel=1e-6)

    entropy = -(0.99 * math.log(0.99) + 2 * 0.005 * math.log(0.005))
    loss = LabelSmoothing(size=3, smoothing=0.01)(LOG_PROBS, TARGET)
    assert loss.item() == pytest.approx(ROW_LOSS.sum().item() - 5 * entropy, rel=1e-5)


def test_seed_1_unsmoothed_is_the_summed_negative_log_likelihood() -> None:
    """An impossible class that is nobody's target costs nothing."""
    loss = LabelSmoothing(size=5)(UNNORMALISED.log(), torch.tensor([2, 1, 0]))
    assert loss.item() == pytest.approx(-math.log(0.7) - math.log(0.9), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.8, 1.0])
def test_seed_1_against_its_formula(smoothing: float) -> None:
    log_probs = torch.randn(7, 11).log_softmax(1).requires_grad_()
    target = torch.randint(11, (7,))
    q = torch.full((7, 11), smoothing / 10).scatter_(1, target[:, None], 1 - smoothing)
    criterion = LabelSmoothing(11, smoothing)
    loss = criterion(log_probs, target)
    loss.backward()
    torch.testing.assert_close(loss, F.kl_div(log_probs, q, reduction="sum"))
    torch.testing.assert_close(log_probs.grad, -q)
    torch.testing.assert_close(criterion.true_dist, q)
    assert not criterion.true_dist.requires_grad


def test_seed_2_by_hand() -> None:
    """Without a weight every class weighs 1/classes: the mean over rows, divided by 3 once more."""
    loss = LabelSmoothingLoss(classes=3, smoothing=0.01)(LOGITS, TARGET)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(0.3807349, abs=3e-5)
    assert loss.item() == pytest.approx(ROW_LOSS.mean().item() / 3, abs=3e-5)

    ones = LabelSmoothingLoss(classes=3, smoothing=0.01, weight=torch.ones(3))(LOGITS, TARGET)
    assert ones.item() == pytest.approx(1.1422047, abs=6e-5)


def test_seed_2_weighs_classes_but_divides_by_rows() -> None:
    """Weight 2 on class 0 alone: rows 0 and 4 keep their target's term, the rest 0.005 of it."""
    weight = torch.tensor([2.0, 0.0, 0.0])
    loss = LabelSmoothingLoss(classes=3, smoothing=0.01, weight=weight)(LOGITS, TARGET)
    rows = 0.99 * (1.1340 + 1.3027) + 0.005 * (1.4805 + 1.3617 + 1.2398)
    assert loss.item() == pytest.approx(2 * rows / 5, abs=6e-5)


@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.8, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_seed_2_against_its_formula(weighted: bool, smoothing: float, dim: int) -> None:
    logits = torch.randn(7, 11, requires_grad=True)
    target = torch.randint(11, (7,))
    weight = torch.rand(11) if weighted else None
    q = torch.full((7, 11), smoothing / 10).scatter_(1, target[:, None], 1 - smoothing)
    w = torch.full((11,), 1 / 11) if weight is None else weight
    expected = (-q * logits.log_softmax(1) * w).sum(1).mean()
    (expected_grad,) = torch.autograd.grad(expected, logits)

    loss = LabelSmoothingLoss(11, smoothing, dim=dim, weight=weight)(logits, target)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits.grad, expected_grad)


def test_seed_2_has_one_class_axis() -> None:
    with pytest.raises(ValueError, match="dim"):
        LabelSmoothingLoss(classes=3, dim=0)


def test_neither_ignores_a_row() -> None:
    target = torch.tensor([0, -100])
    with pytest.raises(IndexError, match="row 1 is -100"):
        LabelSmoothing(3, 0.1)(torch.zeros(2, 3), target)
    with pytest.raises(IndexError, match="row 1 is -100"):
        LabelSmoothingLoss(3, 0.1)(torch.zeros(2, 3), target)


def test_true_dist_is_that_of_the_call() -> None:
    """Also where the target's memory is reused."""
    criterion, target = LabelSmoothing(3, 0.1), torch.tensor([2, 1])
    criterion(torch.zeros(2, 3), target)
    target.zero_()
    assert criterion.true_dist is not None
    assert criterion.true_dist.argmax(1).tolist() == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((5, 0, 0.1), {}),
        ((5, 0), {}),  # no smoothing, or padding that is class 0
        ((5, 1), {}),
        ((5, 0), {"smoothing": 0.1}),
        ((5,), {"padding_idx": 0, "smoothing": 0.1}),
        ((), {"size": 5, "padding_idx": 0}),
        ((5, 0.1), {"padding_idx": 0}),
        ((5, 0.1, 0), {}),
    ],
)
def test_seed_1_is_told_from_the_other_class_of_its_name(
    arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match=r"compat\.annotated_transformer\.LabelSmoothing"):
        LabelSmoothing(*arguments, **named)


def test_seed_1_takes_what_is_its_own() -> None:
    made = [
        LabelSmoothing(5),
        LabelSmoothing(5, 0.0),
        LabelSmoothing(5, smoothing=0),
        LabelSmoothing(size=5, smoothing=0.0),
        LabelSmoothing(smoothing=0, size=5),
        copy.deepcopy(LabelSmoothing(5)),
    ]
    assert [(m.size, m.smoothing) for m in made] == [(5, 0.0)] * len(made)
    assert str(inspect.signature(LabelSmoothing)) == "(size: int, smoothing: float = 0.0) -> None"
    for arguments in ((0.1, 5), (), (0.1,)):
        with pytest.raises(TypeError):
            LabelSmoothing(*arguments)
