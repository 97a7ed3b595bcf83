"""Bitwise the same each run and for each number of threads: loss, gradient and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS
from torch import Tensor

from labelsmooth import label_smoothing_loss

# Shapes that are split differently among threads: many short rows (more than 32,768, from where
# torch's own sum over them depends on the threads), few long ones, one, and a strided class axis
SHAPES = [(70_001, 5), (65, 8193), (1, 100_003), (3, 21, 50, 51)]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def outputs(
    logits: Tensor, target: Tensor, grad_loss: Tensor, **options: Any
) -> tuple[Tensor, ...]:
    leaf = logits.detach().requires_grad_()
    loss, stats = label_smoothing_loss(leaf, target, return_stats=True, backend="cpu", **options)
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss)
    return (loss.detach(), grad, *stats)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_threads_and_runs(
    weighted: bool, shape: tuple[int, ...], reduction: str, dtype: torch.dtype
) -> None:
    rows = shape[:1] + shape[2:]
    logits, target = torch.randn(shape).to(dtype), torch.randint(shape[1], rows)
    target.view(-1)[::7] = -100
    if len(target) == 1:
        target.fill_(3)
    weight = torch.rand(shape[1]).to(dtype) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    grad_loss = torch.randn(rows if reduction == "none" else ())
    if dtype == torch.float64:
        grad_loss = grad_loss.double()

    torch.set_num_threads(1)
    expected = outputs(logits, target, grad_loss, **options)
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        again = outputs(logits, target, grad_loss, **options)
        assert all(map(torch.equal, again, expected))


def test_rows_do_not_depend_on_their_neighbours() -> None:
    """A row alone has the same bits as the row in a batch, wherever in the batch it stands."""
    logits, target = torch.randn(40, 1001), torch.randint(1001, (40,))
    batch = outputs(logits, target, torch.ones(40), reduction="none", label_smoothing=0.1)
    for row in (0, 1, 17, 39):
        alone = outputs(
            logits[row : row + 1],
            target[row : row + 1],
            torch.ones(1),
            reduction="none",
            label_smoothing=0.1,
        )
        assert all(
            torch.equal(one, many[row : row + 1]) for one, many in zip(alone, batch, strict=True)
        )
