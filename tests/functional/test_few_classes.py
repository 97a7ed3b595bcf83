"""Few classes, many rows: rows share vectors, and none may notice its neighbours.

The kernels choose their way by the number of classes: tiles (below 24, and to 64 where the target
is more than one class), groups of rows (to 4096), rows one by one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import DTYPES, check, run
from reference import Target
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

CLASSES = [1, 2, 7, 10, 16, 21, 23, 24, 25, 33, 48, 64, 65, 100, 200, 511, 513, 1000, 4096, 4097]
ROWS = 37  # more than one group of 16, and a part of one
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "others": {"smooth_over": "others"},
    "softcap": {"softcap": 5.0},
    "scale": {"logit_scale": 0.5},
    "lse_square": {"lse_square_scale": 0.1},
    "kl_div": {"objective": "kl_div"},
    "unmasked": {"smooth_over": "unmasked"},
    "no_smoothing": {"label_smoothing": 0.0},
}


def problem(classes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of all kinds: ignored ones, and some that must be summed again from another point."""
    logits = 2 * torch.randn(ROWS, classes, dtype=torch.float64)
    target = torch.randint(classes, (ROWS,))
    target[3::7] = -100
    logits[5] *= 20
    logits[18, target[18]] -= 60
    logits[20] += 300
    return logits.to(dtype), target


def targets(classes: int, target: Tensor, kind: str) -> Target:
    if kind == "classes":
        return target
    if kind == "sparse":
        return SparseTarget(torch.randint(classes, (ROWS, 3)), torch.rand(ROWS, 3))
    return torch.rand(ROWS, classes).softmax(1)


@pytest.mark.parametrize("kind", ["classes", "sparse", "dense"])
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reference(dtype: torch.dtype, classes: int, kind: str) -> None:
    logits, target = problem(classes, dtype)
    check(logits, targets(classes, target, kind), backend="cpu", label_smoothing=0.1)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("classes", [10, 21, 48, 100, 1000])
def test_options(option: str, classes: int) -> None:
    options = {"label_smoothing": 0.1, **OPTIONS[option]}
    logits, target = problem(classes, torch.float32)
    check(logits, target, backend="cpu", **options)
    weight, row_weight = torch.rand(classes), torch.rand(ROWS)
    weight[0], row_weight[4] = 0, 0
    check(logits, target, backend="cpu", weight=weight, row_weight=row_weight, **options)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_rows_alone_and_together(classes: int, dtype: torch.dtype, inplace: bool) -> None:
    logits, target = problem(classes, dtype)
    logits[8] = float("nan")
    logits[9, 0] = float("-inf")
    logits[11, target[11]] = float("-inf")
    together = run(logits, target, label_smoothing=0.1, reduction="none")
    made = gradient_in_forward(logits, target, inplace=inplace)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = run(logits[one], target[one], label_smoothing=0.1, reduction="none")
        assert torch.equal(bits(together.loss[one]), bits(alone.loss)), row
        assert torch.equal(bits(together.grad_logits[one]), bits(alone.grad_logits)), row
        made_alone = gradient_in_forward(logits[one], target[one], inplace=inplace)
        assert torch.equal(bits(made[one]), bits(made_alone)), row


def gradient_in_forward(logits: Tensor, target: Tensor, *, inplace: bool, gap: int = 0) -> Tensor:
    """`gap`: how many elements, which are NaN, lie between the rows."""
    leaf = logits.clone().requires_grad_()
    buffer = torch.cat([leaf, leaf.new_full((len(leaf), gap), float("nan"))], 1)
    loss = label_smoothing_loss(
        buffer[:, : logits.shape[1]],
        target,
        label_smoothing=0.1,
        reduction="sum",
        inplace=inplace,
        backend="cpu",
    )
    (grad,) = torch.autograd.grad(loss, leaf)
    assert buffer[:, logits.shape[1] :].isnan().all()
    return grad


@pytest.mark.parametrize("classes", [3, 10, 21, 100])
def test_rows_with_gaps(classes: int) -> None:
    logits, target = problem(classes, torch.float32)
    expected = gradient_in_forward(logits, target, inplace=False)
    outcome = gradient_in_forward(logits, target, inplace=True, gap=5)
    assert torch.equal(outcome, expected)


@pytest.mark.parametrize("classes", [10, 21, 100])
def test_channels_last(classes: int) -> None:
    """(N, C, H, W)."""
    logits = torch.randn(2, classes, 5, 7).to(memory_format=torch.channels_last)
    target = torch.randint(classes, (2, 5, 7))
    outcome = run(logits, target, label_smoothing=0.1, reduction="none")
    rows = run(
        logits.movedim(1, -1).reshape(-1, classes),
        target.reshape(-1),
        label_smoothing=0.1,
        reduction="none",
    )
    assert torch.equal(outcome.loss.reshape(-1), rows.loss)
    assert torch.equal(outcome.grad_logits.movedim(1, -1).reshape(-1, classes), rows.grad_logits)


def bits(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, nan=-12345.0)
