"""weight_over="target": class weights on the target's term alone."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

N, C = 6, 23


def kinds() -> dict[str, Tensor | SparseTarget]:
    return {
        "indices": torch.randint(C, (N,)),
        "sparse": SparseTarget(torch.randint(C, (N, 3)), torch.rand(N, 3)),
        "probabilities": torch.randn(N, C).softmax(1),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["indices", "sparse", "probabilities"])
def test_each_dtype(kind: str, reduction: str, dtype: torch.dtype, backend: str) -> None:
    weight = torch.rand(C) + 0.5
    weight[3] = 0.0
    check(
        torch.randn(N, C).to(dtype), kinds()[kind], weight=weight, weight_over="target",
        reduction=reduction, label_smoothing=0.3, backend=backend,
    )  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_as_it_is_written_by_hand(reduction: str, backend: str) -> None:
    """eps / C sum_c -log p_c + (1 - eps) w_y (-log p_y): what users mean who weight the target, as
    pytorch #104776 asks for. The mean divides by the sum of w_y."""
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    weight, a = torch.rand(C) + 0.5, 0.2
    log_probs = logits.log_softmax(1)
    rows = a * -log_probs.mean(1) - (1 - a) * (weight * log_probs)[range(N), target]
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / weight[target].sum()}
    loss = label_smoothing_loss(
        logits, target, weight, reduction=reduction, label_smoothing=a, weight_over="target",
        backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected[reduction])


def test_without_smoothing_it_changes_nothing(backend: str) -> None:
    logits, target, weight = torch.randn(N, C), torch.randint(C, (N,)), torch.rand(C)
    losses = [
        label_smoothing_loss(logits, target, weight, weight_over=over, backend=backend)
        for over in ("all", "target")
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("weight_of_unused", [torch.inf, torch.nan])
def test_a_class_that_is_no_target_needs_no_weight(weight_of_unused: float, backend: str) -> None:
    """With "all" such a weight reaches every row through the smoothing."""
    logits, target = torch.randn(N, C), torch.randint(1, C, (N,))
    weight = torch.rand(C) + 0.5
    weight[0] = weight_of_unused
    for kind in (target, SparseTarget(target[:, None], torch.ones(N, 1))):
        check(
            logits, kind, weight=weight, weight_over="target", label_smoothing=0.1, backend=backend
        )
