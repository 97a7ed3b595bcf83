"""The fused projection under autograd: higher derivatives, all inputs, transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import FORWARD_MODE, REDUCTIONS
from linear_checks import SMOOTHING, C, D, N, Projection, loss_of, plain, targets
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from labelsmooth import label_smoothing_loss

pytestmark = FORWARD_MODE


def weights() -> tuple[Tensor, Tensor]:
    return torch.rand(C).double() + 0.5, torch.rand(C).double().softmax(0)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recompute": {"recompute": True},
    "all options": {
        "smooth_over": "others",
        "objective": "kl_div",
        "lse_square_scale": 0.1,
        "softcap": 3.0,
        "logit_scale": 0.7,
    },
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant: str, reduction: str, given: Projection, target: Tensor) -> None:
    weight, prior = weights()

    def function(*leaves: Tensor) -> Any:
        options = {"weight": weight, "prior": prior, "reduction": reduction, **VARIANTS[variant]}
        return loss_of(Projection(*leaves), target, **options)

    assert gradcheck(function, tuple(given), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tuple(given), check_fwd_over_rev=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_gradients_of_all_other_inputs(soft: bool, reduction: str, given: Projection) -> None:
    weight, prior = (t.requires_grad_() for t in weights())
    target = torch.rand(N, C).double().softmax(1).requires_grad_() if soft else targets(N, C)
    normalizer = torch.tensor(3.0).double().requires_grad_()

    def function(
        hidden: Tensor, weight: Tensor, prior: Tensor, normalizer: Tensor, *target: Tensor
    ) -> Any:
        return loss_of(
            given._replace(hidden=hidden),
            target[0] if soft else indices,
            weight=weight,
            prior=prior,
            normalizer=normalizer if reduction == "mean" else None,
            reduction=reduction,
        )

    indices = target
    leaves = (given.hidden, weight, prior, normalizer, *([target] if soft else []))
    loss = function(*leaves).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    logits = F.linear(*given).detach().requires_grad_()
    dense = label_smoothing_loss(
        logits,
        target,
        weight,
        prior=prior,
        normalizer=normalizer if reduction == "mean" else None,
        reduction=reduction,
        label_smoothing=SMOOTHING,
        backend="eager",
    ).sum()
    expected = torch.autograd.grad(dense, (logits, *leaves[1:]), allow_unused=True)
    torch.testing.assert_close(grads[0], expected[0] @ given.linear_weight)
    for ours, theirs in zip(grads[1:], expected[1:], strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs)


def test_torch_func(given: Projection, target: Tensor) -> None:
    def ours(hidden: Tensor, weight: Tensor) -> Any:
        return loss_of(Projection(hidden, weight, None), target)

    def theirs(hidden: Tensor, weight: Tensor) -> Tensor:
        return plain(Projection(hidden, weight, None), target)

    hidden, weight = (t.detach() for t in given[:2])
    batch = torch.randn(4, N, D, dtype=torch.float64)
    for transformed in (
        lambda f: grad(f, (0, 1))(hidden, weight),
        lambda f: hessian(f, 1)(hidden, weight),
        lambda f: jacfwd(jacrev(f, 1), 0)(hidden, weight),
        lambda f: jvp(f, (hidden, weight), (hidden, weight)),
        lambda f: vmap(f, (0, None))(batch, weight),
        lambda f: vmap(grad(f, 1), (0, None))(batch, weight),
        lambda f: grad(lambda w: vmap(f, (0, None))(batch, w).sum())(weight),
    ):
        torch.testing.assert_close(transformed(ours), transformed(theirs))


def test_statistics_under_a_transform(given: Projection, target: Tensor) -> None:
    def both(hidden: Tensor) -> Any:
        leaves = Projection(hidden, given.linear_weight.detach(), None)
        loss, stats = loss_of(leaves, target, return_stats=True)
        return loss, stats.lse

    hidden = given.hidden.detach()
    _, lse = torch.func.grad(both, has_aux=True)(hidden)
    torch.testing.assert_close(lse, (hidden @ given.linear_weight.T).logsumexp(1).detach())
