"""Rows whose classes lie apart in memory, (N, C, d1, ...): a kernel of their own, all options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check, run
from functional.test_options import EACH, call, name
from torch import Tensor

from labelsmooth import label_smoothing_loss

INF = math.inf


def apart(rows: Tensor) -> Tensor:
    """(N, C) as it is, but with a row's classes N elements apart."""
    return rows.t().contiguous().t()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("changes", "reduction"), EACH, ids=name)
def test_each_option(
    changes: tuple[tuple[str, Any], ...], reduction: str, dtype: torch.dtype, backend: str
) -> None:
    arguments = call(changes, dtype)
    arguments["logits"] = apart(arguments["logits"])
    check(**arguments, reduction=reduction, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("classes", "positions"),
    [
        (3, 2000),  # several tiles, the last one of 464 rows
        (3, 511),
        (3, 513),
        (1000, 300),  # tiles of fewer rows
        (257, 5),  # two blocks of a sum
        (40_000, 3),  # more classes than a tile holds
    ],
)
def test_tiles(
    classes: int, positions: int, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    logits, target = torch.randn(2, classes, positions), torch.randint(classes, (2, positions))
    target[0, 1] = -100
    check(logits.to(dtype), target, label_smoothing=0.1, reduction=reduction, backend=backend)


@pytest.mark.parametrize("target_apart", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_probabilities(reduction: str, target_apart: bool, backend: str) -> None:
    logits, target = torch.randn(50, 21), torch.randn(50, 21).softmax(1)
    check(
        apart(logits),
        apart(target) if target_apart else target,
        weight=torch.rand(21),
        label_smoothing=0.1,
        reduction=reduction,
        backend=backend,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("positions", [5, 600])
def test_in_place(positions: int, reduction: str, dtype: torch.dtype, backend: str) -> None:
    leaf = torch.randn(2, 21, positions).to(dtype).requires_grad_()
    target = torch.randint(21, (2, positions))
    options = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
    expected = check(leaf, target, **options)
    loss = label_smoothing_loss(leaf * 1, target, **options, inplace=True)
    loss.sum().backward()
    assert torch.equal(loss, expected.loss)
    assert torch.equal(leaf.grad, expected.grad_logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_statistics(needs_grad: bool, dtype: torch.dtype, backend: str) -> None:
    """The first of equal logits is predicted."""
    logits, target = torch.randn(40, 21).to(dtype), torch.randint(21, (40,))
    target[3] = -100
    logits[4, 5] = logits[4, 11] = 9.0
    logits[5] = -INF
    logits[6, 7] = logits[6, 9] = math.nan
    options: dict[str, Any] = {"return_stats": True, "label_smoothing": 0.1, "backend": backend}
    _, expected = label_smoothing_loss(logits, target, **options)
    _, stats = label_smoothing_loss(apart(logits).requires_grad_(needs_grad), target, **options)
    torch.testing.assert_close(stats, expected, equal_nan=True)
    assert stats.predicted[4:7].tolist() == [5, 0, 7]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smooth_over", ["all", "others"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_masked_classes(reduction: str, smooth_over: str, dtype: torch.dtype, backend: str) -> None:
    logits, target = torch.randn(20, 21).to(dtype), torch.arange(20) + 1
    logits[:, 0] = -INF
    options = {"smooth_over": smooth_over, "reduction": reduction, "backend": backend}
    loss, grad = check(apart(logits), target, label_smoothing=0.1, **options)
    assert (loss == INF).all()
    assert grad.isfinite().all()
    weight = torch.ones(21)
    weight[0] = 0.0
    target[5] = 0  # without weight it costs nothing, though it is masked
    loss, grad = check(apart(logits), target, label_smoothing=0.1, weight=weight, **options)
    assert loss.isfinite().all()
    assert not grad[:, 0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("garbage", [math.nan, INF, -INF])
def test_rows_keep_to_themselves(
    garbage: float, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    """Seen in that row alone, and if it is ignored not at all."""
    logits, target = torch.randn(20, 21).to(dtype), torch.randint(21, (20,))
    logits[7] = garbage
    target[7] = -100
    options = {"label_smoothing": 0.1, "reduction": reduction, "backend": backend}
    _, grad = check(apart(logits), target, **options)
    assert not grad[7].any()
    logits[7, 1:] = 0.0
    logits[7, 0] = math.nan
    target[7] = 3
    loss, grad = run(apart(logits), target, **options)
    assert loss.isnan().sum() == 1
    assert grad.isnan().any(1).tolist() == [row == 7 for row in range(20)]
