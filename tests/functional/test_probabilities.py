"""Class probabilities of any floating-point dtype beside logits of any other, read as they are."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, check, run
from torch import Tensor

from labelsmooth import label_smoothing_loss


def probabilities(*shape: int) -> Tensor:
    probs = (2 * torch.randn(shape)).softmax(1)
    return probs.masked_fill(torch.rand(shape) < 0.2, 0.0)


@pytest.mark.parametrize("of", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 77), (2, 9, 13)], ids=str)
def test_each_pair_of_dtypes(
    shape: tuple[int, ...], dtype: torch.dtype, of: torch.dtype, backend: str
) -> None:
    """As exact as beside float32 logits: `check` allows no rounding of the probabilities."""
    logits, target = torch.randn(shape).to(dtype), probabilities(*shape).to(of)
    for reduction in ("mean", "none"):
        check(logits, target, reduction=reduction, label_smoothing=0.1, backend=backend)


def test_the_gradient_has_the_logits_dtype_and_that_of_the_probabilities(backend: str) -> None:
    logits = torch.randn(3, 7, dtype=torch.bfloat16, requires_grad=True)
    target = probabilities(3, 7).requires_grad_()
    loss = label_smoothing_loss(logits, target, backend=backend)
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    assert target.grad is not None
    assert target.grad.dtype == torch.float32


@pytest.mark.parametrize("of", DTYPES)
def test_in_any_memory(of: torch.dtype, backend: str) -> None:
    """Each tensor has strides of its own."""
    logits = torch.randn(3, 77)
    buffer = torch.randn(77, 4).softmax(0).to(of)
    for target in (buffer.t()[:3], buffer.flatten()[1 : 1 + 3 * 77].view(3, 77)):
        check(logits, target, label_smoothing=0.1, backend=backend)


def test_inplace_takes_the_logits_memory(backend: str) -> None:
    """It was a widened copy's, where the probabilities were the wider."""
    leaf = torch.randn(4, 9).bfloat16().requires_grad_()
    target = probabilities(4, 9)
    logits = leaf.clone()
    loss = label_smoothing_loss(logits, target, inplace=True, backend=backend)
    loss.backward()
    assert torch.equal(logits.detach(), leaf.grad)
    torch.testing.assert_close(leaf.grad, run(leaf, target, backend=backend).grad_logits)


def test_rows_left_out(backend: str) -> None:
    """Rows without a target, their probabilities all 0: by row_weight, with smoothing too."""
    logits, target = torch.randn(5, 9), probabilities(5, 9)
    target[1], target[3] = 0.0, 0.0
    kept = [0, 2, 4]
    logits[1] = torch.nan  # padding holds anything
    ours = run(logits, target, row_weight=target.sum(1) > 0, label_smoothing=0.1, backend=backend)
    theirs = run(logits[kept], target[kept], label_smoothing=0.1, backend=backend)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.grad_logits[kept], theirs.grad_logits)
    assert not ours.grad_logits[[1, 3]].any()
