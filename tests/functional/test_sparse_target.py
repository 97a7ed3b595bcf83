"""A few classes a row and their probabilities, against the dense target that they stand for."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check, run
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

N, C = 5, 70


def dense(target: SparseTarget, classes: int = C) -> Tensor:
    made = torch.zeros(len(target.probs), classes, dtype=target.probs.dtype)
    return made.scatter_add(1, target.classes, target.probs)


def top(rows: int, count: int, classes: int = C) -> SparseTarget:
    probs, indices = torch.randn(rows, classes).softmax(1).topk(count)
    return SparseTarget(indices, probs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("count", [1, 2, 65, 1100])
def test_each_dtype(reduction: str, dtype: torch.dtype, count: int, backend: str) -> None:
    """More entries than a warp has lanes; and many times as many as there are classes."""
    logits = torch.randn(N, C).to(dtype)
    target = SparseTarget(torch.randint(C, (N, count)), torch.rand(N, count) / count)
    check(logits, target, reduction=reduction, label_smoothing=0.1, backend=backend)


@pytest.mark.parametrize("layout", ["rows", "positions", "one row"])
def test_shapes(layout: str, backend: str) -> None:
    shape, rows = {
        "rows": ((N, C), (N, 3)),
        "positions": ((2, 11, 4, 3), (2, 3, 4, 3)),
        "one row": ((C,), (3,)),
    }[layout]
    target = SparseTarget(torch.randint(11, rows).int(), torch.rand(rows, dtype=torch.float64))
    for reduction in REDUCTIONS:
        check(torch.randn(shape), target, reduction=reduction, backend=backend)


@pytest.mark.parametrize("options", [{}, {"weight": torch.linspace(0.5, 2, C)}], ids=str)
def test_is_the_dense_target(options: dict[str, Tensor], backend: str) -> None:
    """Its mean divides by the number of rows, as torch's."""
    logits, target = torch.randn(N, C), top(N, 7)
    ours = run(logits, target, label_smoothing=0.2, backend=backend, **options)
    theirs = run(logits, dense(target), label_smoothing=0.2, backend=backend, **options)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.grad_logits, theirs.grad_logits)


def test_one_certain_class_is_a_class_index(backend: str) -> None:
    logits, y = torch.randn(N, C), torch.randint(C, (N,))
    ours = run(logits, SparseTarget(y[:, None], torch.ones(N, 1)), backend=backend)
    theirs = run(logits, y, backend=backend)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.grad_logits, theirs.grad_logits)


def test_classes_that_come_twice_add_up(backend: str) -> None:
    logits = torch.randn(1, C)
    twice = SparseTarget(torch.tensor([[4, 9, 4]]), torch.tensor([[0.3, 0.2, 0.5]]))
    once = SparseTarget(torch.tensor([[4, 9]]), torch.tensor([[0.8, 0.2]]))
    for objective in ("cross_entropy", "kl_div"):
        ours = run(logits, twice, objective=objective, label_smoothing=0.1, backend=backend)
        theirs = run(logits, once, objective=objective, label_smoothing=0.1, backend=backend)
        torch.testing.assert_close(ours.loss, theirs.loss)
        torch.testing.assert_close(ours.grad_logits, theirs.grad_logits)


@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_ignored_entries_and_rows(ignore_index: int, backend: str) -> None:
    """An ignored entry counts nothing, whatever stands beside it; a row of none but these is out of
    loss, gradient and mean, and not even its NaN counts."""
    classes = torch.tensor([[5, ignore_index], [ignore_index, ignore_index], [7, 8]])
    probs = torch.tensor([[0.6, torch.nan], [0.5, 0.5], [0.3, 0.7]])
    logits = torch.randn(3, C)
    logits[1] = torch.nan
    target = SparseTarget(classes, probs)
    ours = run(logits, target, ignore_index=ignore_index, label_smoothing=0.1, backend=backend)
    kept = [0, 2]
    valid = SparseTarget(torch.tensor([[5, 6], [7, 8]]), torch.tensor([[0.6, 0.0], [0.3, 0.7]]))
    theirs = run(logits[kept], valid, label_smoothing=0.1, backend=backend)
    torch.testing.assert_close(ours.loss, theirs.loss)
    torch.testing.assert_close(ours.grad_logits[kept], theirs.grad_logits)
    assert not ours.grad_logits[1].any()


def test_all_rows_ignored(backend: str) -> None:
    target = SparseTarget(torch.full((2, 3), -100), torch.rand(2, 3))
    loss = label_smoothing_loss(torch.randn(2, C), target, backend=backend)
    assert loss.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_of_the_probabilities(reduction: str, dtype: torch.dtype, backend: str) -> None:
    """A student whose teacher learns too."""
    logits = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([[0, 3, 0], [6, -100, 2], [1, 1, 1]])
    probs = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)

    def loss(logits: Tensor, probs: Tensor) -> Tensor:
        target = SparseTarget(classes, probs)
        made = label_smoothing_loss(
            logits, target, reduction=reduction, label_smoothing=0.1, backend=backend
        )
        assert isinstance(made, Tensor)
        return made

    assert torch.autograd.gradcheck(loss, (logits, probs))
    assert torch.autograd.gradgradcheck(loss, (logits, probs))
    leaf = probs.detach().to(dtype).requires_grad_()
    loss(logits.detach().float(), leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_in_place_and_statistics(reduction: str, inplace: bool, backend: str) -> None:
    leaf = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    target = SparseTarget(torch.randint(C, (N, 4)), torch.rand(N, 4, dtype=torch.float64))
    loss, stats = label_smoothing_loss(
        leaf.clone(), target, reduction=reduction, label_smoothing=0.1,
        inplace=inplace, return_stats=True, backend=backend,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    expected = run(leaf, target, reduction=reduction, label_smoothing=0.1, backend="eager")
    torch.testing.assert_close(grad, expected.grad_logits)
    log_probs = leaf.detach().log_softmax(1)
    torch.testing.assert_close(stats.nll, -(dense(target) * log_probs).sum(1))
    assert torch.equal(stats.predicted, leaf.argmax(1))


def test_no_tensor_of_all_classes_is_made(backend: str) -> None:
    """But the gradient: of forward alone nothing as large as the logits is left, and the target's
    own tensors are all that autograd keeps beside them."""
    logits = torch.randn(64, 5000, requires_grad=True)
    target = top(64, 2, 5000)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        label_smoothing_loss(logits, target, reduction="none", backend=backend)
    assert sum(size >= 64 * 5000 for size in saved) == 1  # the logits
