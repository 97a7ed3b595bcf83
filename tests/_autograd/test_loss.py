"""What autograd asks of the loss: any incoming gradient, repeated backward, double backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check, run
from reference import reference
from torch import Tensor

from labelsmooth import label_smoothing_loss

N, C = 5, 37


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    target = torch.randint(C, (N,))
    target[1] = -100
    return torch.randn(N, C).to(dtype), target


def row_gradients() -> dict[str, Tensor]:
    """In every layout that autograd hands over."""
    return {
        "uniform": torch.ones(N),
        "one number, stride 0": torch.tensor(0.3).expand(N),
        "non-uniform": torch.randn(N),
        "every second number": torch.randn(2 * N)[::2],
        "zeros": torch.zeros(N),
        "some zeros": torch.tensor([0.0, 1.0, 0.0, -2.0, 0.5]),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", row_gradients())
def test_gradients_of_rows(kind: str, dtype: torch.dtype, backend: str) -> None:
    logits, target = problem(dtype)
    grad_loss = row_gradients()[kind]
    if dtype == torch.float64:
        grad_loss = grad_loss.double()
    before = grad_loss.clone()
    options: dict[str, Any] = {"reduction": "none", "label_smoothing": 0.1, "backend": backend}
    check(logits, target, grad_loss=grad_loss, **options)
    assert torch.equal(grad_loss, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("incoming", [1.0, 0.0, -1.0, 0.3, 1024.0])
def test_gradient_of_the_reduced_loss(
    incoming: float, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    logits, target = problem(dtype)
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    grad_loss = torch.tensor(incoming, dtype=loss_dtype)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
    check(logits, target, grad_loss=grad_loss, roundings=2, **options)
    assert grad_loss.item() == torch.tensor(incoming, dtype=loss_dtype).item()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_expanded_loss(inplace: bool, reduction: str, backend: str) -> None:
    """The incoming gradient is the number of copies."""
    logits, target = problem()
    leaf = logits.clone().requires_grad_()
    loss = label_smoothing_loss(
        leaf * 1, target, reduction=reduction, inplace=inplace, backend=backend
    )
    loss.expand(4, *loss.shape).sum().backward()
    truth = reference(logits, target, reduction=reduction)
    torch.testing.assert_close(leaf.grad.double(), 4 * truth.grad_logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("incoming", [1.0, 3.0])
def test_second_backward(incoming: float, reduction: str, dtype: torch.dtype, backend: str) -> None:
    """retain_graph: gradients add up in the leaf."""
    logits, target = problem(dtype)
    leaf = logits.requires_grad_()
    loss = label_smoothing_loss(leaf, target, reduction=reduction, backend=backend)
    grad_loss = torch.full_like(loss, incoming)
    (once,) = torch.autograd.grad(loss, leaf, grad_loss, retain_graph=True)
    kept = once.clone()
    (doubled,) = torch.autograd.grad(loss, leaf, 2 * grad_loss, retain_graph=True)
    torch.testing.assert_close(doubled, 2 * kept)
    loss.backward(grad_loss, retain_graph=True)
    assert torch.equal(leaf.grad, kept)
    loss.backward(grad_loss)
    torch.testing.assert_close(leaf.grad, 2 * kept)
    assert torch.equal(once, kept)  # nobody wrote over what was handed out


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_who_changes_a_gradient_changes_no_other(reduction: str, backend: str) -> None:
    """Clipping, say: the gradient of the next backward is right, or autograd raises."""
    logits, target = problem()
    leaf = logits.requires_grad_()
    loss = label_smoothing_loss(leaf, target, reduction=reduction, backend=backend).sum()
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept = first.clone()
    first.zero_()
    try:
        (second,) = torch.autograd.grad(loss, leaf)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        assert torch.equal(second, kept)


CONVENTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2},
    {"label_smoothing": 0.2, "smooth_over": "others", "objective": "kl_div"},
    {"label_smoothing": 0.2, "prior": torch.arange(1.0, 5.0).double() / 10},
    {"label_smoothing": 0.2, "weight": torch.tensor([0.5, 0.0, 2.0, 1.0]).double()},
    {"label_smoothing": 0.2, "lse_square_scale": 0.1, "logit_scale": 0.7, "softcap": 2.0},
    {"label_smoothing": 0.2, "from_log_probs": True},
    {"label_smoothing": 0.2, "ignore_index": 1},
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("convention", range(len(CONVENTIONS)))
def test_gradcheck_and_gradgradcheck(convention: int, reduction: str, backend: str) -> None:
    options = {**CONVENTIONS[convention], "reduction": reduction, "backend": backend}
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2, 1, 0])

    def loss(x: Tensor) -> Tensor:
        return label_smoothing_loss(x, target, **options)

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_class_probabilities(reduction: str, backend: str) -> None:
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 4, 3, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return label_smoothing_loss(
            x, target, reduction=reduction, label_smoothing=0.2, backend=backend
        )

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("name", ["target", "weight", "prior", "normalizer"])
def test_gradients_of_the_other_inputs(name: str, backend: str) -> None:
    """A teacher's probabilities, say."""
    inputs = {
        "logits": torch.randn(3, 4, dtype=torch.float64, requires_grad=True),
        "target": torch.rand(3, 4, dtype=torch.float64),
        "weight": torch.rand(4, dtype=torch.float64),
        "prior": torch.rand(4, dtype=torch.float64).softmax(0),
        "normalizer": torch.tensor(2.5, dtype=torch.float64),
    }
    inputs[name].requires_grad_()

    def loss(*tensors: Tensor) -> Tensor:
        given = dict(zip(inputs, tensors, strict=True))
        return label_smoothing_loss(**given, label_smoothing=0.3, backend=backend)

    assert torch.autograd.gradcheck(loss, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(loss, tuple(inputs.values()))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_in_place_beside_other_gradients(reduction: str, backend: str) -> None:
    """They need the logits too, which the gradient then overwrites in backward at the earliest."""
    leaf, target = problem()
    weight = torch.rand(C, requires_grad=True)
    grads = []
    for inplace in (False, True):
        loss = label_smoothing_loss(
            leaf.requires_grad_() * 1,
            target,
            weight,
            reduction=reduction,
            label_smoothing=0.1,
            inplace=inplace,
            backend=backend,
        )
        grads.append(torch.autograd.grad(loss.sum(), (leaf, weight)))
    torch.testing.assert_close(*grads)


def test_create_graph_gives_the_same_first_gradient(backend: str) -> None:
    logits, target = problem(torch.float64)
    leaf = logits.requires_grad_()
    loss = label_smoothing_loss(leaf, target, label_smoothing=0.1, backend=backend)
    (plain,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (graph,) = torch.autograd.grad(loss, leaf, create_graph=True)
    assert graph.requires_grad
    torch.testing.assert_close(graph.detach(), plain)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_flows_on(reduction: str, backend: str) -> None:
    hidden = torch.randn(N, 8, requires_grad=True)
    projection = torch.randn(C, 8, requires_grad=True)
    _, target = problem()
    logits = hidden @ projection.t()
    loss = label_smoothing_loss(logits, target, reduction=reduction, backend=backend)
    loss.sum().backward()
    expected = reference(logits, target, reduction=reduction).grad_logits.float()
    torch.testing.assert_close(hidden.grad, expected @ projection.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        projection.grad, expected.t() @ hidden.detach(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_grad_mode(mode: Any, reduction: str, backend: str) -> None:
    logits, target = problem()
    expected = run(logits, target, reduction=reduction, backend=backend).loss
    leaf = logits.requires_grad_()
    with mode():
        loss = label_smoothing_loss(leaf, target, reduction=reduction, backend=backend)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_that_need_no_gradient(reduction: str, backend: str) -> None:
    logits, target = problem()
    before = logits.clone()
    loss = label_smoothing_loss(logits, target, reduction=reduction, backend=backend)
    assert not loss.requires_grad
    assert torch.equal(logits, before)
