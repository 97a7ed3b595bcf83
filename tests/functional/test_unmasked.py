"""smooth_over="unmasked": a masked class gets no smoothing mass, each row its own mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check, run
from reference import reference
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

N, C = 6, 45


def masked_rows(dtype: torch.dtype, value: float = -torch.inf) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.randint(C, (N,))
    mask = torch.rand(N, C) < 0.4
    mask[range(N), target] = False
    mask[0] = False
    return torch.randn(N, C).to(dtype).masked_fill(mask, value), target, mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("lowest", [False, True])
def test_each_dtype(lowest: bool, reduction: str, dtype: torch.dtype, backend: str) -> None:
    """By -inf, and by the lowest finite number of the logits' dtype."""
    value = torch.finfo(dtype).min if lowest else -torch.inf
    logits, target, mask = masked_rows(dtype, value)
    ours = check(
        logits, target, smooth_over="unmasked", reduction=reduction, label_smoothing=0.1,
        backend=backend,
    )  # fmt: skip
    assert ours.loss.isfinite().all()
    assert not ours.grad_logits[mask].any()


def test_is_the_loss_over_the_classes_that_are_left(backend: str) -> None:
    logits, target, mask = masked_rows(torch.float64)
    loss = label_smoothing_loss(
        logits, target, reduction="none", label_smoothing=0.1, smooth_over="unmasked",
        backend=backend,
    )  # fmt: skip
    for row in range(N):
        kept = (~mask[row]).nonzero().squeeze(1)
        y = int((kept == target[row]).nonzero())
        expected = torch.nn.functional.cross_entropy(
            logits[row, kept], torch.tensor(y), label_smoothing=0.1
        )
        torch.testing.assert_close(loss[row], expected)


def test_smoothing_over_all_is_infinite_there(backend: str) -> None:
    logits, target, _ = masked_rows(torch.float32)
    loss = label_smoothing_loss(logits, target, label_smoothing=0.1, backend=backend)
    assert loss == torch.inf


def test_without_masks_it_is_smoothing_over_all(backend: str) -> None:
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    ours, theirs = (
        run(logits, target, label_smoothing=0.1, smooth_over=over, backend=backend)
        for over in ("unmasked", "all")
    )
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.grad_logits, theirs.grad_logits)


@pytest.mark.parametrize("kind", ["sparse", "probabilities"])
@pytest.mark.parametrize("objective", ["cross_entropy", "kl_div"])
@pytest.mark.parametrize("value", [torch.finfo(torch.float64).min, -torch.inf])
def test_several_classes(value: float, kind: str, objective: str, backend: str) -> None:
    logits, target, mask = masked_rows(torch.float64, value)
    mask[1:, 0], mask[1:, 1] = True, False  # class 0, but in the first row
    target[target == 0], logits[1:, 0], logits[1:, 1] = 1, value, 0.5
    probs = torch.randn(N, C, dtype=torch.float64).masked_fill(mask, -torch.inf).softmax(1)
    several: Tensor | SparseTarget = probs
    if kind == "sparse":
        classes = torch.stack([target, probs.argmax(1)], 1)
        several = SparseTarget(classes, torch.rand(N, 2, dtype=torch.float64))
    weight = torch.rand(C, dtype=torch.float64) + 0.5
    prior = torch.rand(C, dtype=torch.float64).softmax(0)
    for options in ({}, {"weight": weight}, {"prior": prior, "weight": weight}):
        for reduction in ("mean", "none"):
            check(
                logits, several, smooth_over="unmasked", objective=objective,
                label_smoothing=0.2, reduction=reduction, backend=backend, **options,
            )  # fmt: skip


def test_classes_apart_in_memory(backend: str) -> None:
    logits, target, _ = masked_rows(torch.float32)
    across = logits.t().contiguous().t()
    for more in ({}, {"logit_scale": 0.5}, {"softcap": 5.0}):
        check(across, target, smooth_over="unmasked", label_smoothing=0.1, backend=backend, **more)


@pytest.mark.parametrize("value", [torch.finfo(torch.float64).min, -torch.inf])
def test_a_learned_scale_leaves_masks_masked(value: float, backend: str) -> None:
    """The lowest number times the scale would be a number like another, 0 times -inf NaN."""
    logits, target, mask = masked_rows(torch.float64, value)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    options = {"smooth_over": "unmasked", "label_smoothing": 0.1, "backend": backend}
    loss = label_smoothing_loss(logits, target, logit_scale=scale, **options)
    expected = label_smoothing_loss(0.5 * logits.masked_fill(mask, -torch.inf), target, **options)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, scale)
    assert grad.isfinite()


def test_a_target_that_is_masked_has_an_infinite_loss_and_a_finite_gradient(backend: str) -> None:
    logits, target, _ = masked_rows(torch.float32)
    logits[2, target[2]] = -torch.inf
    ours = run(
        logits, target, smooth_over="unmasked", label_smoothing=0.1, reduction="none",
        backend=backend,
    )  # fmt: skip
    assert ours.loss[2] == torch.inf
    assert ours.loss[[0, 1, 3, 4, 5]].isfinite().all()
    assert ours.grad_logits.isfinite().all()


def test_a_row_that_is_all_masked_spreads_nothing(backend: str) -> None:
    """All equal, at the lowest finite number: the loss of a uniform distribution, times 1 - a."""
    logits = torch.full((1, 4), torch.finfo(torch.float32).min)
    loss = label_smoothing_loss(
        logits, torch.tensor([1]), smooth_over="unmasked", label_smoothing=0.25, backend=backend
    )
    torch.testing.assert_close(loss, 0.75 * torch.tensor(4.0).log())


@pytest.mark.parametrize("value", [-1e4, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("kind", ["indices", "sparse", "probabilities"])
def test_a_mask_is_no_point_that_differences_are_taken_to(
    kind: str, value: float, backend: str
) -> None:
    """A first class, or a target, that is masked by any number and has no part in the loss: it
    would cost the others all their digits."""
    logits = torch.randn(3, C)
    logits[:, :2] = value
    target: Tensor | SparseTarget = torch.zeros(3, dtype=torch.int64)
    weight = torch.ones(C)
    weight[0] = 0.0
    options: dict[str, Any] = {"weight": weight, "reduction": "sum"}
    if kind == "indices":  # the target counts nothing, and others are smoothed over
        prior = torch.ones(C)
        prior[:2] = 0.0
        options |= {"label_smoothing": 0.1, "prior": prior / prior.sum()}
    elif kind == "sparse":
        target = SparseTarget(torch.tensor([[0, 3], [1, 4], [5, 6]]), torch.rand(3, 2))
        target.probs[:2, 0] = 0.0
    else:
        target = torch.randn(3, C).masked_fill(torch.arange(C) < 2, -torch.inf).softmax(1)
    check(logits, target, backend=backend, **options)
    for name, size in (("row_weight", 3), ("weight", C)):  # by the formulas
        leaf = torch.ones(size).where(torch.arange(size) > 0, float(name == "row_weight"))
        leaf.requires_grad_()
        loss = label_smoothing_loss(logits, target, backend=backend, **options | {name: leaf})
        (grad,) = torch.autograd.grad(loss, leaf)
        exact = reference(logits, target, **options | {name: leaf.detach()}).loss
        torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-5, atol=1e-5)
        assert grad[3 if name == "weight" else 2].abs() < 1e3


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_a_masked_target_of_no_weight_beside_other_masks(smoothing: float, backend: str) -> None:
    logits = torch.tensor([[-torch.inf, -torch.inf, 1.0, 2.0]])
    options: dict[str, Any] = {"smooth_over": "unmasked", "reduction": "sum"}
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    for weights in ({}, {"weight": weight}, {"weight": weight, "weight_over": "target"}):
        if smoothing < 1 and not weights:
            continue
        ours = check(
            logits, torch.tensor([0]), label_smoothing=smoothing, backend=backend,
            **options, **weights,
        )  # fmt: skip
        assert ours.loss.isfinite()
