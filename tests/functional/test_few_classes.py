"""Few classes, many rows: rows share vectors, and none may notice its neighbours.

The kernels choose their way by the number of classes: tiles (to 24, and to 64 where the target is
more than one class), groups of rows (to 4096), rows one by one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import DTYPES, check, run
from reference import Target
from torch import Tensor

from labelsmooth import SparseTarget

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
    """Rows of all kinds: ignored ones, and those whose sums must be taken again from another point."""
    logits = 2 * torch.randn(ROWS, classes, dtype=torch.float64)
    target = torch.randint(classes, (ROWS,))
    target[3::7] = -100
    logits[5] *= 20
    logits[17, target[17]] -= 60
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
    """The same bits, whatever the other rows hold."""
    logits, target = problem(classes, dtype)
    logits[8] = float("nan")
    logits[9, 0] = float("-inf")
    logits[10, target[10].clamp(0)] = float("-inf")
    options: dict[str, Any] = {"reduction": "none", "label_smoothing": 0.1, "backend": "cpu"}
    together = run(logits.clone(), target, inplace=inplace, **options)
    for row in range(ROWS):
        alone = run(logits[row : row + 1].clone(), target[row : row + 1], **options)
        assert torch.equal(bits(together.loss[row]), bits(alone.loss[0])), row
        assert torch.equal(bits(together.grad_logits[row]), bits(alone.grad_logits[0])), row


@pytest.mark.parametrize("classes", [10, 21, 100])
def test_rows_with_gaps(classes: int) -> None:
    """What lies between the rows is neither read nor written."""
    wide = torch.full((ROWS, classes + 5), float("nan"))
    logits, target = problem(classes, torch.float32)
    wide[:, :classes] = logits
    expected = run(logits, target, label_smoothing=0.1)
    view = wide[:, :classes]
    outcome = run(view, target, label_smoothing=0.1, inplace=True)
    assert torch.equal(outcome.loss, expected.loss)
    assert torch.equal(view, expected.grad_logits)
    assert wide[:, classes:].isnan().all()


@pytest.mark.parametrize("classes", [10, 21, 100])
def test_channels_last(classes: int) -> None:
    """(N, C, H, W) whose classes are adjacent in memory."""
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
    """NaN, too, equal to itself."""
    return torch.nan_to_num(values, nan=-12345.0)
