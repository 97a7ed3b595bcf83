"""Sizes around every edge a vector kernel has, and every way that rows can lie in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check, run
from torch import Tensor

from labelsmooth import label_smoothing_loss

# 1..70: every remainder of vectors of 4 to 64 lanes, and of two of them at a time. The edges of
# 128 and 256, a round number, and the edges of blocks of a row.
CLASSES = [*range(1, 71), 127, 128, 129, 255, 256, 257, 1000, 8191, 8192, 8193, 16384, 16385]


def problem(classes: int, dtype: torch.dtype, rows: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, classes).to(dtype), torch.randint(classes, (rows,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_number_of_classes(classes: int, dtype: torch.dtype, backend: str) -> None:
    """With the constant and with the vector of class coefficients, in one step and in two."""
    logits, target = problem(classes, dtype)
    target[0] = classes - 1
    weight = (torch.rand(classes) + 0.5).to(dtype)
    for reduction in ("mean", "none"):
        for options in ({}, {"weight": weight}):
            check(
                logits,
                target,
                reduction=reduction,
                label_smoothing=0.1,
                backend=backend,
                **options,
            )


@pytest.mark.parametrize("classes", CLASSES)
def test_number_of_classes_with_softcap(classes: int, backend: str) -> None:
    """The softcap of a lane past the row's end is finite: such lanes must stay out of the sum."""
    logits, target = problem(classes, torch.float32)
    check(logits, target, softcap=0.5, logit_scale=0.5, label_smoothing=0.1, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 37, 8193])
@pytest.mark.parametrize("offset", [1, 3])  # elements: rows that start off every alignment
@pytest.mark.parametrize("gap", [0, 1, 5])  # elements between rows: each row aligned differently
def test_unaligned_rows(
    gap: int, offset: int, classes: int, dtype: torch.dtype, backend: str
) -> None:
    row = classes + gap
    base = torch.full((5 * row + offset,), torch.nan, dtype=dtype)  # a read outside would show
    logits = base.as_strided((5, classes), (row, 1), offset)
    logits.copy_(torch.randn(5, classes))
    target = torch.randint(classes, (5,))
    for reduction in ("mean", "none"):
        check(logits, target, reduction=reduction, label_smoothing=0.1, backend=backend)


def transposed(logits: Tensor) -> Tensor:
    return logits.t().contiguous().t()


def every_second_class(logits: Tensor) -> Tensor:
    return torch.stack([logits, logits.new_full(logits.shape, torch.nan)], 2).flatten(1)[:, ::2]


def every_second_row(logits: Tensor) -> Tensor:
    return torch.stack([logits, logits.new_full(logits.shape, torch.nan)], 1).flatten(0, 1)[::2]


def expanded_row(logits: Tensor) -> Tensor:
    return logits[:1].expand(logits.shape)


def expanded_class(logits: Tensor) -> Tensor:
    return logits[:, :1].expand(logits.shape)


LAYOUTS = [transposed, every_second_class, every_second_row, expanded_row, expanded_class]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
# More rows than lanes and fewer, more classes than lanes and fewer
@pytest.mark.parametrize(("rows", "classes"), [(3, 70), (70, 3), (33, 65)])
def test_layouts(
    rows: int,
    classes: int,
    layout: Callable[[Tensor], Tensor],
    reduction: str,
    dtype: torch.dtype,
    backend: str,
) -> None:
    logits, target = problem(classes, dtype, rows)
    laid_out = layout(logits)
    before = laid_out.clone()
    check(laid_out, target, reduction=reduction, label_smoothing=0.1, backend=backend)
    assert torch.equal(laid_out, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
# Positions around the lanes of a vector, as one axis and as two
@pytest.mark.parametrize("positions", [(1,), (15,), (16,), (67,), (5, 7)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_class_axis_in_the_middle(
    channels_last: bool,
    positions: tuple[int, ...],
    reduction: str,
    dtype: torch.dtype,
    backend: str,
) -> None:
    logits = torch.randn(2, 21, *positions).to(dtype)
    if channels_last:
        logits = logits.movedim(1, -1).contiguous().movedim(-1, 1)
    target = torch.randint(21, (2, *positions))
    target.view(-1)[0] = -100
    check(logits, target, reduction=reduction, label_smoothing=0.1, backend=backend)


@pytest.mark.parametrize("probabilities", [False, True])
def test_classes_side_by_side_are_rows(probabilities: bool, backend: str) -> None:
    """The path of (N S, C): the same bits."""
    rows, weight = torch.randn(6, 300), torch.rand(2, 3)
    target = torch.rand(2, 3, 300) if probabilities else torch.randint(300, (2, 3))
    options = {"label_smoothing": 0.1, "reduction": "none", "backend": backend}
    of_rows = run(rows, target.flatten(0, 1), row_weight=weight.flatten(), **options)
    seen = target.movedim(-1, 1) if probabilities else target
    made = run(rows.view(2, 3, 300).movedim(-1, 1), seen, row_weight=weight, **options)
    assert torch.equal(made.loss.flatten(), of_rows.loss)
    assert torch.equal(made.grad_logits.movedim(1, -1).flatten(0, 1), of_rows.grad_logits)


@pytest.mark.parametrize("probabilities", [False, True])
def test_positions_that_lie_apart(probabilities: bool, backend: str) -> None:
    """A crop of an image."""
    logits = torch.randn(2, 21, 9, 9)[:, :, 1:8, 2:6]
    target = torch.randint(21, (2, 9, 9))[:, 1:8, 2:6]
    if probabilities:
        target = torch.rand(2, 21, 9, 9)[:, :, 1:8, 2:6]
    check(logits, target, label_smoothing=0.1, backend=backend)
    check(logits.transpose(2, 3), target.transpose(-1, -2), label_smoothing=0.1, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("rows", "classes", "gap"), [(4, 37, 3), (4, 64, 0), (1, 8193, 1)])
def test_in_place_writes_its_rows_and_nothing_else(
    rows: int, classes: int, gap: int, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    leaf = torch.randn(rows, classes + gap).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,))
    options = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
    expected = check(leaf[:, :classes], target, **options)

    work = leaf * 1
    loss = label_smoothing_loss(work[:, :classes], target, **options, inplace=True)
    loss.sum().backward()
    assert torch.equal(loss, expected.loss)
    assert torch.equal(leaf.grad[:, :classes], expected.grad_logits)
    assert not leaf.grad[:, classes:].any()
    assert torch.equal(work[:, classes:], leaf[:, classes:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_class_costs_nothing(dtype: torch.dtype, backend: str) -> None:
    logits, target = problem(1, dtype)
    loss, grad = check(logits, target, label_smoothing=0.1, reduction="none", backend=backend)
    assert not loss.any()
    assert (grad.abs() <= 2**-23).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_class_axis_last(reduction: str, backend: str) -> None:
    """Moved, which is a view; in place its memory takes the gradient, so nothing of that size was
    copied."""
    leaf, target = torch.randn(2, 5, 37, requires_grad=True), torch.randint(37, (2, 5))
    options = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
    expected = check(leaf.detach().movedim(-1, 1), target, **options)
    logits = leaf * 1
    loss = label_smoothing_loss(logits.movedim(-1, 1), target, **options, inplace=True)
    loss.sum().backward()
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(leaf.grad, expected.grad_logits.movedim(1, -1))
    assert torch.equal(logits, leaf.grad)
