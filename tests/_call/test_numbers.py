"""Numbers among the arguments: of whichever type, in the bounds of a float or of 64 bits, and
without a gradient that would be lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _call.calls import NUMBERS, C, N, call
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), torch.tensor(0.5).double()]
)
def test_numbers_become_numbers(name: str, value: Any) -> None:
    assert torch.equal(*(_loss_of(name, v) for v in (0.5, value)))
    if name != "normalizer":
        module = FusedLabelSmoothingLoss(**{name: value})
        assert type(getattr(module, name)) is float


def _loss_of(name: str, value: Any) -> Tensor:
    torch.manual_seed(0)
    return call("function", **{name: value})


@pytest.mark.parametrize(
    "value", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3])]
)
def test_what_torch_takes_for_ignore_index(value: Any) -> None:
    logits, target = torch.randn(N, C), torch.arange(N)
    expected = F.cross_entropy(logits, target, ignore_index=value)
    module = FusedLabelSmoothingLoss(ignore_index=value)
    torch.testing.assert_close(module(logits, target), expected)
    assert type(module.ignore_index) is int


@pytest.mark.parametrize("value", [None, 1.5, 1.0, "1", True, np.True_, np.ones(2), torch.ones(())])
def test_what_torch_does_not(value: Any) -> None:
    logits, target = torch.randn(N, C), torch.arange(N)
    with pytest.raises(TypeError, match="ignore_index"):
        F.cross_entropy(logits, target, ignore_index=value)
    with pytest.raises(TypeError, match="ignore_index: expected an integer, got"):
        label_smoothing_loss(logits, target, ignore_index=value)


@pytest.mark.filterwarnings("ignore:.torch.jit.\\w+. is deprecated")
@pytest.mark.parametrize("name", ["label_smoothing", "lse_square_scale", "softcap"])
def test_no_gradient_is_lost(name: str) -> None:
    """Where a number has no gradient, a tensor that wants one is an error, in any mode of it."""

    logits, target = torch.randn(N, C), torch.arange(N)

    def loss(value: Tensor) -> Any:
        return label_smoothing_loss(logits, target, **{name: value})

    half = torch.tensor(0.5)
    requires_grad = f"{name}: expected a number, got a tensor that requires grad"
    with pytest.raises(TypeError, match=requires_grad):
        loss(half.clone().requires_grad_())
    with pytest.raises(TypeError, match=requires_grad):
        torch.func.grad(loss)(half)
    for transformed in (
        lambda: torch.func.jvp(loss, (half,), (half,)),
        lambda: torch.vmap(loss)(half.expand(2)),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected a number, got a tensor that torch"):
            transformed()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="tangent"):
        loss(torch.autograd.forward_ad.make_dual(half, half))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_no_float_holds(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a number"):
        call("function", **{name: 10**400})


def test_indices_that_64_bits_do_not_hold(backend: str) -> None:
    for value in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match="ignore_index: expected an integer of 64 bits"):
            call("function", ignore_index=value, backend=backend)
    call("function", ignore_index=-(2**63), backend=backend)


def test_the_module_holds_no_parameter_for_a_number() -> None:
    scale = nn.Parameter(torch.ones(()))
    module = FusedLabelSmoothingLoss()
    for attempt in (
        lambda: FusedLabelSmoothingLoss(logit_scale=scale),  # type: ignore[arg-type]
        lambda: setattr(module, "logit_scale", scale),
    ):
        with pytest.raises(TypeError, match=r"logit_scale: .* requires grad.*given at the call"):
            attempt()
    assert module.logit_scale == 1.0
    assert list(module.parameters()) == []
