"""Autocast: the projection in its dtype, as F.linear does it; gradients in their owners' dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from checks import REDUCTIONS, ROUNDING
from linear_checks import error, projection, targets, truth
from torch import Tensor

from labelsmooth import FusedLinearLabelSmoothingLoss, linear_label_smoothing_loss

N, D, C = 40, 16, 50


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_dtypes_and_values(
    recompute: bool, reduction: str, hidden_dtype: torch.dtype, to: torch.dtype, backend: str
) -> None:
    given, target = projection(N, D, C, bias=True, dtype=torch.float32), targets(N, C)
    given = given._replace(hidden=given.hidden.to(hidden_dtype)).leaves()
    expected = truth(given, target, reduction=reduction)
    results = []
    for ours in (True, False):
        with torch.autocast("cpu", dtype=to):
            if ours:
                loss = linear_label_smoothing_loss(
                    given.hidden,
                    given.linear_weight,
                    target,
                    linear_bias=given.linear_bias,
                    reduction=reduction,
                    recompute=recompute,
                    chunk_rows=16,
                    backend=backend,
                )
            else:
                loss = F.cross_entropy(F.linear(*given), target, reduction=reduction)
        grads = torch.autograd.grad(loss.sum(), given.tensors())
        assert loss.dtype == torch.float32
        assert [g.dtype for g in grads] == [t.dtype for t in given]
        results.append(grads)
    for our, their, true in zip(*results, expected.grads, strict=True):
        assert error(our, true) <= error(their, true) + ROUNDING[to]


def test_second_derivatives_are_of_the_same_projection() -> None:
    """The formulas project in autocast's dtype too."""
    given, target = projection(N, D, C, dtype=torch.float32).leaves(), targets(N, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_label_smoothing_loss(*given[:2], target, chunk_rows=16)
        formula = torch.func.vmap(lambda h: linear_label_smoothing_loss(h, given[1], target))(
            given.hidden[None]
        )
    torch.testing.assert_close(loss, formula[0], rtol=2e-3, atol=0)
    exact = linear_label_smoothing_loss(*given[:2], target)
    assert (formula[0] - loss).abs() < (formula[0] - exact).abs()  # whose logits are not rounded
    grads = torch.autograd.grad(loss, given[:2], create_graph=True)
    assert [grad.dtype for grad in grads] == [torch.float32] * 2
    torch.autograd.grad(grads[0].sum(), given[1])


def test_float64_is_left_alone() -> None:
    given, target = projection(N, D, C), targets(N, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_label_smoothing_loss(given.hidden, given.linear_weight, target)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, F.cross_entropy(F.linear(*given), target))


def test_backward_inside_of_autocast() -> None:
    given, target = projection(N, D, C, dtype=torch.float32).leaves(), targets(N, C)
    grads: list[Tensor] = []
    for inside in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = linear_label_smoothing_loss(
                given.hidden, given.linear_weight, target, reduction="none", chunk_rows=16
            ).sum()
            if inside:
                grads += torch.autograd.grad(loss, given[:2])
        if not inside:
            grads += torch.autograd.grad(loss, given[:2])
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


def test_loss_scaler_of_float16() -> None:
    """Gradients arrive in the parameters' dtypes, times the scaler's factor."""
    module = FusedLinearLabelSmoothingLoss(D, C, label_smoothing=0.1)
    hidden, target = torch.randn(N, D), targets(N, C)
    grads = []
    for factor in (1.0, 65536.0):
        module.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = module(hidden, target)
        (loss * factor).backward()
        assert module.linear.weight.grad is not None
        grads.append(module.linear.weight.grad / factor)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-8)
