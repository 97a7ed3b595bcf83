"""Classes masked by -inf: never NaN, finite where it can be, +inf where the loss truly is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check, run
from torch import Tensor

from labelsmooth import label_smoothing_loss

INF = math.inf
N, C = 4, 1000

# Masks of a row of 1000: a vector kernel goes through it in blocks, each with a maximum of its own
MASKS = {
    "the first lane": slice(0, 1),
    "the first block": slice(0, 512),
    "all but the last hundred": slice(0, 900),
    "a block in the middle": slice(256, 512),
    "the last block": slice(500, 890),
    "every second class": slice(0, 900, 2),
}


def targets() -> Tensor:
    return torch.tensor([900, 901, 950, 999])  # none of them masked below


def masked(mask: slice, dtype: torch.dtype = torch.float32) -> Tensor:
    logits = torch.randn(N, C)
    logits[:, mask] = -INF
    return logits.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("mask", MASKS)
def test_unsmoothed_loss_is_finite(
    mask: str, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    """A masked class carries no mass."""
    logits = masked(MASKS[mask], dtype)
    loss, grad = check(logits, targets(), reduction=reduction, backend=backend)
    assert loss.isfinite().all()
    assert not grad[:, MASKS[mask]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("by", ["weight", "prior"])
@pytest.mark.parametrize("smooth_over", ["all", "others"])
def test_smoothing_around_the_masked_classes(
    smooth_over: str, by: str, mask: str, dtype: torch.dtype, backend: str
) -> None:
    """Of weight or prior 0, and 0 times infinity is 0 here."""
    vector = torch.ones(C, dtype=torch.float64)
    vector[MASKS[mask]] = 0.0
    if by == "prior":
        vector = vector / vector.sum()
    options: dict[str, Any] = {"label_smoothing": 0.1, "smooth_over": smooth_over, by: vector}
    for reduction in ("mean", "none"):
        loss, grad = check(
            masked(MASKS[mask], dtype), targets(), reduction=reduction, backend=backend, **options
        )
        assert loss.isfinite().all()
        assert not grad[:, MASKS[mask]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("smooth_over", ["all", "others"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_smoothing_over_masked_classes_is_infinite(
    reduction: str, smooth_over: str, mask: str, dtype: torch.dtype, backend: str
) -> None:
    """The target asks for mass where there can be none: +inf, with the finite gradient p - q."""
    options = {"label_smoothing": 0.1, "smooth_over": smooth_over, "reduction": reduction}
    loss, grad = check(masked(MASKS[mask], dtype), targets(), backend=backend, **options)
    assert (loss == INF).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("smooth_over", ["all", "others"])
def test_masked_target_is_infinite(
    smooth_over: str, smoothing: float, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    logits = torch.randn(N, C).to(dtype)
    logits[torch.arange(N), targets()] = -INF
    options = {"label_smoothing": smoothing, "smooth_over": smooth_over, "reduction": reduction}
    loss, grad = check(logits, targets(), backend=backend, **options)
    assert (loss == INF).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", [slice(0, 1), slice(0, 512)])
def test_masked_target_without_weight_costs_nothing(
    mask: slice, dtype: torch.dtype, backend: str
) -> None:
    weight = torch.ones(C)
    weight[mask] = 0.0
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "sum"}
    target = torch.tensor([0, 950, 0, 999])
    loss, _ = check(masked(mask, dtype), target, backend=backend, **options)
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("smoothing", "infinite"), [(0.9, True), (1.0, False)])
def test_little_mass_on_a_masked_target(
    smoothing: float, infinite: bool, dtype: torch.dtype, backend: str
) -> None:
    """Over the others: from 6/7 on the target has less mass than each other class, and at 1 none.

    Where it is written as a share of the prior less a correction, the two are infinite apart.
    """
    logits = torch.randn(N, 7).to(dtype)
    logits[:, 2] = -INF
    options = {"label_smoothing": smoothing, "smooth_over": "others", "reduction": "none"}
    loss, grad = check(logits, torch.full((N,), 2), backend=backend, **options)
    assert (loss == INF).tolist() == [infinite] * N
    assert grad.isfinite().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_probabilities_beside_masked_classes(reduction: str, backend: str) -> None:
    logits = masked(MASKS["the first block"])
    target = torch.rand(N, C)
    target[:, MASKS["the first block"]] = 0.0
    loss, _ = check(logits, target, reduction=reduction, backend=backend)
    assert loss.isfinite().all()
    target[:, 3] = 0.5
    loss, grad = check(logits, target, reduction=reduction, backend=backend)
    assert (loss == INF).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("objective", ["cross_entropy", "kl_div"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_log_probabilities_of_zero(smoothing: float, objective: str, backend: str) -> None:
    logits = masked(MASKS["the first block"])
    logits[1] = -INF  # a row without any mass: its target is impossible too
    loss, grad = check(
        logits,
        targets(),
        from_log_probs=True,
        objective=objective,
        label_smoothing=smoothing,
        reduction="none",
        backend=backend,
    )
    assert loss.isinf().tolist() == [smoothing > 0, True, smoothing > 0, smoothing > 0]
    assert grad.isfinite().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_softcap_bounds_the_masked_classes(reduction: str, backend: str) -> None:
    """-inf becomes -softcap, whose gradient is 0: tanh is flat there."""
    loss, grad = check(
        masked(MASKS["the first block"]),
        targets(),
        softcap=3.0,
        label_smoothing=0.1,
        reduction=reduction,
        backend=backend,
    )
    assert loss.isfinite().all()
    assert not grad[:, MASKS["the first block"]].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position", [0, 17, 999])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nan_is_not_hidden(reduction: str, position: int, dtype: torch.dtype, backend: str) -> None:
    """The maximum of a vector unit may drop a NaN."""
    logits = torch.randn(N, C).to(dtype)
    logits[2, position] = math.nan
    grad_loss = torch.ones(N) if reduction == "none" else None
    loss, grad = run(
        logits,
        targets(),
        label_smoothing=0.1,
        reduction=reduction,
        grad_loss=grad_loss,
        backend=backend,
    )
    if reduction == "none":
        assert loss.isnan().tolist() == [False, False, True, False]
    else:
        assert loss.isnan()
    assert grad.isnan().any(1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("position", [0, 17, 950])  # the last one is the target
def test_overflow_is_not_hidden(
    position: int, smoothing: float, dtype: torch.dtype, backend: str
) -> None:
    """Of +inf: NaN stands where the logit's gradient should."""
    logits = torch.randn(N, C).to(dtype)
    logits[2, position] = INF
    options = {"label_smoothing": smoothing, "reduction": "none", "backend": backend}
    loss, grad = run(logits, targets(), grad_loss=torch.ones(N), **options)
    assert loss.isfinite().tolist() == [True, True, False, True]
    assert grad[2, position].isnan()
    assert grad[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("garbage", [math.nan, INF, -INF])
def test_an_ignored_row_may_hold_anything(
    garbage: float, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    logits = torch.randn(N, C).to(dtype)
    logits[2] = garbage
    target = targets().clone()
    target[2] = -100
    options = {"label_smoothing": 0.1, "reduction": reduction, "backend": backend}
    _, grad = check(logits, target, **options)
    assert not grad[2].any()


def test_infinite_loss_in_place(backend: str) -> None:
    leaf = masked(MASKS["the first block"]).requires_grad_()
    loss = label_smoothing_loss(
        leaf.clone(), targets(), label_smoothing=0.1, inplace=True, backend=backend
    )
    loss.backward()
    assert loss.item() == INF
    assert leaf.grad.isfinite().all()
