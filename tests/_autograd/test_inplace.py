"""inplace=True: the gradient takes the logits' memory, and autograd knows that it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS
from torch import Tensor

from labelsmooth import label_smoothing_loss

N, C = 5, 37


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    target = torch.randint(C, (N,))
    target[1] = -100
    return torch.randn(N, C).to(dtype).requires_grad_(), target


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("incoming", [1.0, 0.3])
@pytest.mark.parametrize("shape", [(C,), (N, C), (2, C, 4)])
def test_equals_the_fresh_gradient(
    shape: tuple[int, ...], incoming: float, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    leaf = torch.randn(shape).to(dtype).requires_grad_()
    target = torch.randint(C, shape[:1] + shape[2:] if len(shape) > 1 else ())
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}
    grads, losses = [], []
    for inplace in (False, True):
        loss = label_smoothing_loss(leaf * 1, target, **options, inplace=inplace)
        grads += torch.autograd.grad(loss, leaf, torch.full_like(loss, incoming))
        losses.append(loss)
    assert torch.equal(*losses)
    assert torch.equal(*grads)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_gradient_lies_where_the_logits_lay(
    dtype: torch.dtype, reduction: str, backend: str
) -> None:
    leaf, target = problem(dtype)
    seen: list[int] = []
    work = leaf * 1
    address = work.data_ptr()
    work.register_hook(lambda grad: seen.append(grad.data_ptr()))
    loss = label_smoothing_loss(work, target, reduction=reduction, inplace=True, backend=backend)
    loss.sum().backward()
    assert seen == [address]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_leaf_cannot_be_overwritten(reduction: str, backend: str) -> None:
    leaf, target = problem()
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="leaf"):
        label_smoothing_loss(leaf, target, reduction=reduction, inplace=True, backend=backend)
    assert torch.equal(leaf, before)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("view", [lambda x: x.view(N, C), lambda x: x[1:4], lambda x: x.t().t()])
def test_a_view_of_a_leaf_cannot_be_overwritten(view: Any, reduction: str, backend: str) -> None:
    """A parameter's values would be gone."""
    leaf, _ = problem()
    before = leaf.detach().clone()
    logits = view(leaf)
    target = torch.randint(C, (len(logits),))
    with pytest.raises(RuntimeError, match="leaf"):
        label_smoothing_loss(logits, target, reduction=reduction, inplace=True, backend=backend)
    assert torch.equal(leaf, before)


def exp_keeps_its_result(leaf: Tensor) -> tuple[Tensor, Tensor]:
    logits = leaf.exp()
    return logits, logits.new_zeros(())


def square_keeps_its_input(leaf: Tensor) -> tuple[Tensor, Tensor]:
    logits = leaf * 1
    return logits, logits.square().sum()


def argmax_needs_nothing(leaf: Tensor) -> tuple[Tensor, Tensor]:
    """No gradient flows through it."""
    logits = leaf * 1
    return logits, (logits.argmax(1) == 0).float().sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("user", [exp_keeps_its_result, square_keeps_its_input])
def test_logits_that_another_node_needs(
    user: Callable[[Tensor], tuple[Tensor, Tensor]],
    dtype: torch.dtype,
    reduction: str,
    backend: str,
) -> None:
    """Autograd's own error, or, where the other node came first in backward, the right gradient."""
    leaf, target = problem(dtype)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1, "backend": backend}

    def gradient(inplace: bool) -> Tensor:
        logits, other = user(leaf)
        loss = label_smoothing_loss(logits, target, **options, inplace=inplace).sum()
        return torch.autograd.grad(loss + other.to(loss.dtype), leaf)[0]

    expected = gradient(inplace=False)
    try:
        ours = gradient(inplace=True)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("user", [exp_keeps_its_result, square_keeps_its_input])
def test_one_step_always_raises(
    user: Callable[[Tensor], tuple[Tensor, Tensor]], reduction: str, backend: str
) -> None:
    """Whoever needs the logits in backward finds out."""
    leaf, target = problem()
    logits, other = user(leaf)
    loss = label_smoothing_loss(logits, target, reduction=reduction, inplace=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_that_nobody_else_needs(reduction: str, backend: str) -> None:
    leaf, target = problem()
    logits, correct = argmax_needs_nothing(leaf)
    loss = label_smoothing_loss(logits, target, reduction=reduction, inplace=True, backend=backend)
    (ours,) = torch.autograd.grad(loss.sum(), leaf)
    loss = label_smoothing_loss(leaf, target, reduction=reduction, backend=backend)
    assert torch.equal(ours, torch.autograd.grad(loss.sum(), leaf)[0])
    assert correct.item() == (leaf.argmax(1) == 0).sum()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("incoming", [1.0, 3.0])
def test_second_backward_is_right_or_raises(
    incoming: float, dtype: torch.dtype, reduction: str, backend: str
) -> None:
    leaf, target = problem(dtype)
    options: dict[str, Any] = {"reduction": reduction, "backend": backend}
    loss = label_smoothing_loss(leaf, target, **options)
    grad_loss = torch.full_like(loss, incoming)
    (expected,) = torch.autograd.grad(loss, leaf, grad_loss)

    loss = label_smoothing_loss(leaf * 1, target, **options, inplace=True)
    (first,) = torch.autograd.grad(loss, leaf, grad_loss, retain_graph=True)
    torch.testing.assert_close(first, expected)
    try:
        (second,) = torch.autograd.grad(loss, leaf, grad_loss)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(second, expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_two_losses_of_the_same_logits(reduction: str, backend: str) -> None:
    """One would read the other's gradient for logits: never silently."""
    leaf, target = problem()
    options: dict[str, Any] = {"reduction": reduction, "backend": backend}
    first = label_smoothing_loss(leaf, target, **options).sum()
    (once,) = torch.autograd.grad(first, leaf)

    work = leaf * 1
    kept = label_smoothing_loss(work, target, **options).sum()
    taken = label_smoothing_loss(work, target, **options, inplace=True).sum()
    try:
        (both,) = torch.autograd.grad(kept + taken, leaf)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(both, 2 * once)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_a_gradient_nothing_is_written(reduction: str, backend: str) -> None:
    leaf, target = problem()
    options: dict[str, Any] = {"reduction": reduction, "inplace": True, "backend": backend}
    before = leaf.detach().clone()
    with torch.no_grad():
        label_smoothing_loss(leaf, target, **options)
    assert torch.equal(leaf, before)
    label_smoothing_loss(leaf.detach(), target, **options)
    assert torch.equal(leaf, before)
