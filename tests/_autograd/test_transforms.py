"""torch.func and forward mode: per-sample gradients, Jacobians and Hessians, against the reference.

Transforms nest, and each nesting takes another way through the autograd.Function.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS, assert_gradient
from reference import reference
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from labelsmooth import SparseTarget, label_smoothing_loss

# torch's own, where its forward mode starts up; the second is that of 2.13
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

B, N, C = 3, 4, 7
OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2, "ignore_index": 2, "weight": torch.rand(C) + 0.5},
    {"label_smoothing": 0.2, "smooth_over": "others", "objective": "kl_div", "softcap": 3.0},
]
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
each_option = pytest.mark.parametrize("options", OPTIONS, ids=["plain", "weighted", "others"])


def problem(
    *positions: int, dtype: torch.dtype = torch.float32, probabilities: bool = False
) -> tuple[Tensor, Tensor]:
    """B samples; where class 2 is ignored, some rows are."""
    logits = torch.randn(B, N, C, *positions).to(dtype)
    if probabilities:
        return logits, torch.rand(B, N, C, *positions).to(dtype)
    target = torch.randint(C, (B, N, *positions))
    target[:, 0], target[:, 1] = 1, 2
    return logits, target


def summed(**options: Any) -> Callable[..., Tensor]:
    """A scalar to differentiate: the loss of the rows, each counted as often as its number."""

    def function(logits: Tensor, target: Tensor) -> Tensor:
        loss = label_smoothing_loss(logits, target, **options)
        return (loss * row_numbers(loss.shape, loss.dtype)).sum()

    return function


def row_numbers(shape: torch.Size, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.arange(1, shape.numel() + 1, dtype=dtype).reshape(shape)


def truth(logits: Tensor, target: Tensor, **options: Any) -> Any:
    shape = reference(logits, target, **options).loss.shape
    return reference(logits, target, grad_loss=row_numbers(shape), **options)


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


@each_option
@each_reduction
def test_batch_axes_anywhere(reduction: str, options: dict[str, Any], backend: str) -> None:
    """The batch of each argument at another place, or in one argument only."""
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
    """Two vmaps, down to (C,) and ()."""
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


@each_option
@each_reduction
def test_gradient(reduction: str, options: dict[str, Any], backend: str) -> None:
    logits, target = problem()
    options = {**options, "reduction": reduction}
    ours = grad(summed(**options, backend=backend))(logits[0], target[0])
    assert_gradient(ours, truth(logits[0], target[0], **options))


@each_reduction
def test_gradient_of_a_batch_of_losses(reduction: str, backend: str) -> None:
    """The other way around: vmap inside of the gradient."""
    logits, target = problem()
    loss = summed(reduction=reduction, backend=backend)
    ours = grad(lambda x: vmap(loss)(x, target).sum())(logits)
    for sample in range(B):
        expected = truth(logits[sample], target[sample], reduction=reduction)
        assert_gradient(ours[sample], expected)


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


@each_reduction
def test_in_place_is_a_permission(reduction: str, backend: str) -> None:
    """A transform has other uses for the logits: they stay, and the result is the same."""
    logits, target = problem()
    options: dict[str, Any] = {"reduction": reduction, "backend": backend}

    def loss(x: Tensor, y: Tensor, inplace: bool) -> Tensor:
        return label_smoothing_loss(x * 1, y, **options, inplace=inplace).sum()

    of_one, of_each = grad(loss), vmap(grad(loss), in_dims=(0, 0, None))
    one = logits[0], target[0]
    assert torch.equal(of_one(*one, True), of_one(*one, False))
    assert torch.equal(of_each(logits, target, True), of_each(logits, target, False))
