"""vmap: gradients of each sample, batches of anything along any axis, against the reference.

Transforms nest, and each nesting takes another way through the autograd.Function.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from _autograd.samples import B, C, N, each_option, each_reduction, problem, summed, truth
from checks import DTYPES, FORWARD_MODE, REDUCTIONS, assert_gradient
from torch import Tensor
from torch.func import grad, vmap

from labelsmooth import SparseTarget, label_smoothing_loss

pytestmark = FORWARD_MODE


@each_option
@each_reduction
@pytest.mark.parametrize("positions", [(), (5,), (2, 3)])
def test_per_sample_gradients(
    positions: tuple[int, ...], reduction: str, options: dict[str, Any], backend: str
) -> None:
    logits, target = problem(*positions)
    options = {**options, "reduction": reduction}
    grads = vmap(grad(summed(**options, backend=backend)))(logits, target)
    for sample in range(B):
        assert_gradient(grads[sample], truth(logits[sample], target[sample], **options))


@pytest.mark.parametrize("dtype", DTYPES)
@each_reduction
def test_per_sample_gradients_of_class_probabilities(
    reduction: str, dtype: torch.dtype, backend: str
) -> None:
    logits, target = problem(5, dtype=dtype, probabilities=True)
    options: dict[str, Any] = {"label_smoothing": 0.1, "reduction": reduction}
    grads = vmap(grad(summed(**options, backend=backend)))(logits, target)
    for sample in range(B):
        assert_gradient(grads[sample], truth(logits[sample], target[sample], **options))


SEVERAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"weight": torch.rand(C, dtype=torch.float64) + 0.5, "weight_over": "target"},
    "unmasked": {"smooth_over": "unmasked"},
    "kl_div": {"objective": "kl_div", "prior": torch.rand(C, dtype=torch.float64).softmax(0)},
}


@pytest.mark.parametrize("options", SEVERAL.values(), ids=list(SEVERAL))
@each_reduction
def test_per_sample_gradients_of_several_classes_and_row_weights(
    reduction: str, options: dict[str, Any], backend: str
) -> None:
    """Of the logits, the probabilities and the row weights at once, beside a loop over samples."""
    logits = torch.randn(B, N, C, 2, dtype=torch.float64)
    classes = torch.randint(C, (B, N, 3, 2))
    classes[:, 1, 0], classes[:, 2] = -100, -100
    probs, rows = torch.rand(B, N, 3, 2).double(), torch.rand(B, N, 2).double()

    def loss(logits: Tensor, probs: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        made = label_smoothing_loss(
            logits, SparseTarget(classes, probs), label_smoothing=0.2, row_weight=rows,
            reduction=reduction, backend=backend, **options,
        )  # fmt: skip
        assert isinstance(made, Tensor)
        return made.sum()

    of_sample = grad(loss, argnums=(0, 1, 2))
    grads = vmap(of_sample)(logits, probs, rows, classes)
    for sample in range(B):
        leaves = [t[sample].clone().requires_grad_() for t in (logits, probs, rows)]
        loss(*leaves, classes[sample]).backward()
        for ours, leaf in zip(grads, leaves, strict=True):
            torch.testing.assert_close(ours[sample], leaf.grad)


@each_option
@each_reduction
def test_batch_axes_anywhere(reduction: str, options: dict[str, Any], backend: str) -> None:
    logits, target = problem()
    loss = summed(**options, reduction=reduction, backend=backend)
    expected = torch.stack([loss(logits[i], target[i]) for i in range(B)])
    torch.testing.assert_close(vmap(loss)(logits, target), expected)
    moved = vmap(loss, in_dims=(2, 1))(logits.movedim(0, 2), target.movedim(0, 1))
    torch.testing.assert_close(moved, expected)
    of_logits = torch.stack([loss(logits[i], target[0]) for i in range(B)])
    torch.testing.assert_close(vmap(loss, in_dims=(0, None))(logits, target[0]), of_logits)
    of_target = torch.stack([loss(logits[0], target[i]) for i in range(B)])
    torch.testing.assert_close(vmap(loss, in_dims=(None, 0))(logits[0], target), of_target)


def test_samples_of_one_row(backend: str) -> None:
    logits, target = problem()
    options: dict[str, Any] = {"label_smoothing": 0.1, "backend": backend}
    loss = vmap(vmap(lambda x, y: label_smoothing_loss(x, y, **options)))(logits, target)
    expected = label_smoothing_loss(
        logits.flatten(0, 1), target.flatten(), reduction="none", **options
    )
    torch.testing.assert_close(loss, expected.view(B, N))


def test_no_rows_in_the_samples(backend: str) -> None:
    logits, target = torch.randn(B, 0, C), torch.zeros(B, 0, dtype=torch.int64)
    loss = summed(reduction="sum", backend=backend)
    assert vmap(loss)(logits, target).tolist() == [0.0] * B
    assert vmap(grad(loss))(logits, target).shape == logits.shape


@each_reduction
def test_statistics_of_samples(reduction: str, backend: str) -> None:
    logits, target = problem(5)

    def stats(x: Tensor, y: Tensor) -> Any:
        return label_smoothing_loss(x, y, reduction=reduction, return_stats=True, backend=backend)[
            1
        ]

    ours = vmap(stats)(logits, target)
    for sample in range(B):
        expected = stats(logits[sample], target[sample])
        for name in ("nll", "lse", "predicted"):
            torch.testing.assert_close(getattr(ours, name)[sample], getattr(expected, name))


@pytest.mark.parametrize(
    ("name", "reduction"),
    [*product(["weight", "prior"], REDUCTIONS), ("normalizer", "mean")],
)
def test_a_vector_for_each_sample(name: str, reduction: str, backend: str) -> None:
    logits, target = problem()
    batched = torch.rand(B) + 1 if name == "normalizer" else torch.rand(B, C).softmax(1)
    options: dict[str, Any] = {"label_smoothing": 0.3, "reduction": reduction}

    def loss(x: Tensor, y: Tensor, vector: Tensor) -> Tensor:
        return summed(**options, **{name: vector}, backend=backend)(x, y)

    losses = vmap(loss)(logits, target, batched)
    grads = vmap(grad(loss, argnums=(0, 2)))(logits, target, batched)
    for i in range(B):
        vector = batched[i].clone().requires_grad_()
        torch.testing.assert_close(losses[i], loss(logits[i], target[i], vector))
        expected = truth(logits[i], target[i], **options, **{name: batched[i]})
        torch.testing.assert_close(grads[0][i].double(), expected.grad_logits, rtol=1e-5, atol=1e-6)
        (of_vector,) = torch.autograd.grad(loss(logits[i], target[i], vector), vector)
        torch.testing.assert_close(grads[1][i], of_vector)


@each_reduction
def test_gradient_of_a_batch_of_losses(reduction: str, backend: str) -> None:
    """vmap inside of the gradient."""
    logits, target = problem()
    loss = summed(reduction=reduction, backend=backend)
    ours = grad(lambda x: vmap(loss)(x, target).sum())(logits)
    for sample in range(B):
        expected = truth(logits[sample], target[sample], reduction=reduction)
        assert_gradient(ours[sample], expected)


@each_reduction
def test_in_place_is_a_permission(reduction: str, backend: str) -> None:
    """The logits stay, and the result is the same."""
    logits, target = problem()
    options: dict[str, Any] = {"reduction": reduction, "backend": backend}

    def loss(x: Tensor, y: Tensor, inplace: bool) -> Tensor:
        return label_smoothing_loss(x * 1, y, **options, inplace=inplace).sum()

    of_one, of_each = grad(loss), vmap(grad(loss), in_dims=(0, 0, None))
    one = logits[0], target[0]
    assert torch.equal(of_one(*one, True), of_one(*one, False))
    assert torch.equal(of_each(logits, target, True), of_each(logits, target, False))
