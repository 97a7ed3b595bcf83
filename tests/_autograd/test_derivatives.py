"""Gradient, forward mode, Jacobians and Hessians by torch.func, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _autograd.samples import C, N, each_option, each_reduction, problem, summed, truth
from checks import FORWARD_MODE, assert_gradient
from reference import reference
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from labelsmooth import SparseTarget, label_smoothing_loss

pytestmark = FORWARD_MODE


@each_option
@each_reduction
def test_gradient(reduction: str, options: dict[str, Any], backend: str) -> None:
    logits, target = problem()
    options = {**options, "reduction": reduction}
    ours = grad(summed(**options, backend=backend))(logits[0], target[0])
    assert_gradient(ours, truth(logits[0], target[0], **options))


@each_option
@each_reduction
def test_forward_mode(reduction: str, options: dict[str, Any], backend: str) -> None:
    """The derivative along a tangent is the gradient's product with it, both ways to ask for it."""
    logits, target = problem(dtype=torch.float64)
    options = {**options, "reduction": reduction}
    loss = summed(**options, backend=backend)
    primal, tangent = logits[0], torch.randn(N, C, dtype=torch.float64)
    expected = (truth(primal, target[0], **options).grad_logits * tangent).sum()
    value, derivative = jvp(lambda x: loss(x, target[0]), (primal,), (tangent,))
    torch.testing.assert_close(value, loss(primal, target[0]))
    torch.testing.assert_close(derivative, expected)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(primal, tangent), target[0])
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)


@pytest.mark.parametrize("name", ["target", "weight", "prior", "normalizer"])
def test_forward_mode_of_the_other_inputs(name: str, backend: str) -> None:
    inputs = {
        "logits": torch.randn(N, C, dtype=torch.float64),
        "target": torch.rand(N, C, dtype=torch.float64),
        "weight": torch.rand(C, dtype=torch.float64),
        "prior": torch.rand(C, dtype=torch.float64).softmax(0),
        "normalizer": torch.tensor(2.5, dtype=torch.float64),
    }

    def loss(value: Tensor) -> Tensor:
        return label_smoothing_loss(**{**inputs, name: value}, label_smoothing=0.3, backend=backend)

    gradient = grad(loss)(inputs[name])
    tangent = torch.randn_like(gradient)
    _, derivative = jvp(loss, (inputs[name],), (tangent,))
    torch.testing.assert_close(derivative, (gradient * tangent).sum())


@each_reduction
def test_jacobians(reduction: str, backend: str) -> None:
    """Row by row, column by column, and as a batch of incoming gradients."""
    logits, target = problem(dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return label_smoothing_loss(
            x, target[0], reduction=reduction, label_smoothing=0.1, backend=backend
        )

    rows = loss(logits[0]).shape.numel()
    expected = torch.stack(
        [
            reference(
                logits[0],
                target[0],
                reduction=reduction,
                label_smoothing=0.1,
                grad_loss=torch.eye(rows)[row].reshape(loss(logits[0]).shape),
            ).grad_logits
            for row in range(rows)
        ]
    ).view(*loss(logits[0]).shape, N, C)
    torch.testing.assert_close(jacrev(loss)(logits[0]), expected)
    torch.testing.assert_close(jacfwd(loss)(logits[0]), expected)
    jacobian = torch.autograd.functional.jacobian(loss, logits[0], vectorize=True)
    torch.testing.assert_close(jacobian, expected)


@each_option
@each_reduction
def test_hessians(reduction: str, options: dict[str, Any], backend: str) -> None:
    """Every order of forward and reverse mode agrees with finite differences of the gradient."""
    logits, target = problem(dtype=torch.float64)
    options = {**options, "reduction": reduction}
    function = summed(**options, backend=backend)
    primal, step = logits[0], 1e-6

    def loss(x: Tensor) -> Tensor:
        return function(x, target[0])

    columns = []
    for index in range(N * C):
        moved = torch.zeros(N * C, dtype=torch.float64)
        moved[index] = step
        ahead, behind = (
            truth(primal + sign * moved.view(N, C), target[0], **options).grad_logits
            for sign in (1, -1)
        )
        columns.append((ahead - behind) / (2 * step))
    expected = torch.stack(columns).view(N, C, N, C)
    for ours in (hessian(loss), jacrev(jacrev(loss)), jacrev(jacfwd(loss))):
        torch.testing.assert_close(ours(primal), expected, rtol=1e-5, atol=1e-7)


LOSS_OF: dict[str, dict[str, Any]] = {
    "logits": {},
    "weight": {"label_smoothing": 0.1},
    "prior": {"label_smoothing": 0.1, "smooth_over": "others", "objective": "kl_div"},
    "target": {"label_smoothing": 0.1},
    "normalizer": {},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of", LOSS_OF)
@each_reduction
def test_dtypes(reduction: str, of: str, dtype: torch.dtype, backend: str) -> None:
    """Of whatever is made from the loss, also where it is 0-d, which under torch.func a Python
    number would make float64."""
    if of == "normalizer" and reduction != "mean":
        return
    logits, target = problem(dtype=dtype, probabilities=of == "target")
    inputs = {"logits": logits[0], "target": target[0]}
    vectors = {"weight": torch.rand(C), "prior": torch.rand(C).softmax(0)}
    vectors["normalizer"] = torch.tensor(2.5)
    inputs |= {of: vectors[of]} if of in vectors else {}
    at = inputs[of]

    def loss(value: Tensor) -> Tensor:
        result = label_smoothing_loss(
            **{**inputs, of: value}, **LOSS_OF[of], reduction=reduction, backend=backend
        )
        assert result.dtype == torch.float32
        return result.sum()

    one, along = torch.ones(()), torch.ones_like(at)
    assert grad(loss)(at).dtype == at.dtype
    assert jvp(loss, (at,), (along,))[1].dtype == torch.float32
    assert jvp(grad(loss), (at,), (along,))[1].dtype == at.dtype
    assert jvp(grad(lambda v: loss(v) ** 2), (at,), (along,))[1].dtype == at.dtype
    if of != "normalizer":  # of which torch asserts "escaped?"
        assert jvp(lambda c: vjp(loss, at)[1](c)[0], (one,), (one,))[1].dtype == at.dtype
    assert jvp(lambda c: jvp(loss, (at,), (c * along,))[1], (one,), (one,))[1].dtype == one.dtype
    several = torch.stack([at, at])
    assert vmap(loss)(several).dtype == torch.float32
    assert vmap(grad(lambda v: loss(v) ** 2))(several).dtype == at.dtype
    assert grad(lambda v: (vmap(loss)(v) ** 2).sum())(several).dtype == at.dtype
    double = torch.stack([at, at]).double() if of == "normalizer" else several
    assert vmap(loss)(double).dtype == torch.float32


def test_forward_mode_of_several_classes_and_row_weights(backend: str) -> None:
    logits, probs, rows = (torch.rand(shape).double() for shape in ((N, C), (N, 3), (N,)))
    classes = torch.randint(C, (N, 3))

    def loss(logits: Tensor, probs: Tensor, rows: Tensor) -> Tensor:
        made = label_smoothing_loss(
            logits, SparseTarget(classes, probs), row_weight=rows, label_smoothing=0.1,
            backend=backend,
        )  # fmt: skip
        assert isinstance(made, Tensor)
        return made

    primals = (logits, probs, rows)
    forward, reverse = (
        transform(loss, argnums=(0, 1, 2))(*primals) for transform in (jacfwd, jacrev)
    )
    torch.testing.assert_close(forward, reverse)
