"""return_stats: what a training loop logs, one value a row, beside whatever the loss is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import ACCUMULATION, DTYPES, REDUCTIONS, loss_dtype, run
from reference import reference
from torch import Tensor

from labelsmooth import FusedLabelSmoothingLoss, LossStats, label_smoothing_loss

C = 37
SHAPES = [(C,), (5, C), (2, C, 3), (2, C, 3, 2), (0, C)]


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    return torch.randn(shape).to(dtype), torch.randint(C, rows)


def statistics(logits: Tensor, target: Tensor, **options: Any) -> LossStats:
    _, stats = label_smoothing_loss(logits, target, return_stats=True, **options)
    assert isinstance(stats, LossStats)
    return stats


@pytest.mark.parametrize("needs_grad", [False, True])  # the two forward kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values(
    shape: tuple[int, ...], reduction: str, dtype: torch.dtype, needs_grad: bool, backend: str
) -> None:
    logits, target = problem(shape, dtype)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    truth = reference(logits, target, **options)
    stats = statistics(logits.requires_grad_(needs_grad), target, **options, backend=backend)
    assert stats._fields == ("nll", "lse", "predicted")
    tolerance = ACCUMULATION[dtype]
    for ours, expected in ((stats.nll, truth.nll), (stats.lse, truth.lse)):
        assert ours.dtype == loss_dtype(logits)
        assert not ours.requires_grad
        torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)
    assert stats.predicted.dtype == torch.int64
    assert torch.equal(stats.predicted, logits.argmax(1 if len(shape) > 1 else 0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_is_neither_smoothed_nor_weighted(reduction: str, backend: str) -> None:
    """Perplexity is exp of its mean, whatever the loss adds."""
    logits, target = problem((5, C))
    expected = F.cross_entropy(logits, target, reduction="none")
    for options in (
        {"label_smoothing": 0.3, "smooth_over": "others", "objective": "kl_div"},
        {"label_smoothing": 0.3, "weight": torch.rand(C), "lse_square_scale": 0.1},
        {"label_smoothing": 0.3, "prior": torch.rand(C).softmax(0)},
    ):
        nll = statistics(logits, target, **options, reduction=reduction, backend=backend).nll
        torch.testing.assert_close(nll, expected)


def test_logits_after_scale_and_softcap(backend: str) -> None:
    logits, target = problem((5, C))
    options: dict[str, Any] = {"logit_scale": -0.7, "softcap": 1.5}
    stats = statistics(logits, target, **options, backend=backend)
    truth = reference(logits, target, **options)
    torch.testing.assert_close(stats.nll.double(), truth.nll, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.lse.double(), truth.lse, rtol=1e-6, atol=1e-6)
    assert torch.equal(stats.predicted, truth.predicted)


def test_log_probabilities(backend: str) -> None:
    logits, target = problem((5, C))
    log_probs = logits.log_softmax(1)
    stats = statistics(log_probs, target, from_log_probs=True, backend=backend)
    torch.testing.assert_close(stats.nll, F.nll_loss(log_probs, target, reduction="none"))
    assert not stats.lse.any()


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows(reduction: str, needs_grad: bool, backend: str) -> None:
    logits, target = problem((5, C))
    target[1] = target[4] = -100
    stats = statistics(
        logits.requires_grad_(needs_grad), target, reduction=reduction, backend=backend
    )
    assert (stats.nll == 0).tolist() == [False, True, False, False, True]
    # memory is poisoned before each call: these were written
    assert stats.lse.isfinite().all()
    assert (stats.predicted >= 0).all()
    assert (stats.predicted < C).all()


def test_masked_classes_are_not_predicted(backend: str) -> None:
    logits, target = problem((5, C))
    logits[:, :36] = -torch.inf
    target[0] = 36
    stats = statistics(logits, target, backend=backend)
    assert stats.predicted.tolist() == [36] * 5
    assert stats.nll[0].item() == 0


@pytest.mark.parametrize("shape", [(5, C), (2, C, 3)])
def test_class_probabilities(shape: tuple[int, ...], backend: str) -> None:
    """nll is the cross-entropy with the given probabilities, before smoothing and weights."""
    logits, target = problem(shape)[0], torch.randn(shape).softmax(1)
    weight = torch.rand(C)
    stats = statistics(logits, target, weight=weight, label_smoothing=0.1, backend=backend)
    torch.testing.assert_close(stats.nll, F.cross_entropy(logits, target, reduction="none"))
    torch.testing.assert_close(stats.lse, logits.logsumexp(1))
    assert torch.equal(stats.predicted, logits.argmax(1))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_loss_and_its_gradient_are_the_same(
    reduction: str, inplace: bool, backend: str
) -> None:
    logits, target = problem((5, C))
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
    grad_loss = torch.randn(5 if reduction == "none" else ())
    expected = run(logits, target, grad_loss=grad_loss, **options)
    leaf = logits.requires_grad_()
    loss, stats = label_smoothing_loss(
        leaf.clone(), target, return_stats=True, inplace=inplace, **options
    )
    kept = [stat.clone() for stat in stats]
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss)
    if backend == "triton":  # which divides a row among other threads with statistics
        torch.testing.assert_close(loss, expected.loss)
        torch.testing.assert_close(grad, expected.grad_logits)
    else:
        assert torch.equal(loss, expected.loss)
        assert torch.equal(grad, expected.grad_logits)
    assert all(map(torch.equal, stats, kept))


def test_the_module_returns_them_too(backend: str) -> None:
    logits, target = problem((5, C))
    result = FusedLabelSmoothingLoss(return_stats=True, backend=backend)(logits, target)
    loss, (nll, lse, predicted) = result
    torch.testing.assert_close(loss, nll.mean())
    torch.testing.assert_close(lse, logits.logsumexp(1))
    assert torch.equal(predicted, logits.argmax(1))
