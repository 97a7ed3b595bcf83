"""Shapes of hidden states and targets; empty batches; memory that does not lie in rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from linear_checks import IGNORED, Projection, assert_exact, projection, run, targets, truth

from labelsmooth import linear_label_smoothing_loss
from labelsmooth._backends.linear import loop, sizes

D, C = 5, 11


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (2, 1, 3), (0,), (2, 0)])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_leading_axes(lead: tuple[int, ...], soft: bool, reduction: str, backend: str) -> None:
    given = projection(torch.Size(lead).numel(), D, C, bias=True)
    rows = given.hidden.shape[0]
    target = torch.rand(rows, C).softmax(1) if soft else torch.randint(C, (rows,))
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    flat = run(given, target, backend=backend, **options)
    shaped = given._replace(hidden=given.hidden.reshape(*lead, D))
    ours = run(shaped, target.reshape(lead + target.shape[1:]), backend=backend, **options)
    assert ours.loss.shape == (lead if reduction == "none" else ())
    assert ours.grads[0].shape == (*lead, D)
    torch.testing.assert_close(ours.loss.reshape(flat.loss.shape), flat.loss)
    for grad, expected in zip(ours.grads, truth(given, target, **options).grads, strict=True):
        torch.testing.assert_close(grad.reshape(expected.shape), expected)


def test_integer_targets_of_any_width(backend: str) -> None:
    given, target = projection(9, D, C), torch.randint(C, (9,))
    expected = run(given, target, backend=backend)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(run(given, target.to(dtype), backend=backend).loss, expected.loss)


@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_strides(chunk_rows: int | None, backend: str) -> None:
    """A transposed weight, every other row of the hidden states, features from the right."""
    given = projection(7, D, C, bias=True)
    strided = Projection(
        torch.randn(14, 2 * D, dtype=torch.float64)[::2, ::2].copy_(given.hidden),
        torch.empty(D, C, dtype=torch.float64).t().copy_(given.linear_weight),
        torch.empty(2 * C, dtype=torch.float64)[::2].copy_(given.linear_bias),
    )
    target = targets(7, C)
    options = {"label_smoothing": 0.1, "chunk_rows": chunk_rows, "backend": backend}
    ours = run(strided, target, **options)
    assert_exact(ours, truth(given, target, label_smoothing=0.1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("on_a_gpu", [False, True])
def test_no_rows_that_count(
    on_a_gpu: bool,
    dtype: torch.dtype,
    reduction: str,
    recompute: bool,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As F.cross_entropy has it: the mean of nothing is NaN, its gradients are 0."""
    if on_a_gpu:  # its products, and no row left out
        monkeypatch.setattr(sizes, "product_dtype", lambda dtype, device: dtype)
        monkeypatch.setattr(loop._Call, "_rows_that_count", lambda call: None)
    given, target = projection(6, D, C, bias=True, dtype=dtype), torch.full((6,), IGNORED)
    ours = run(
        given,
        target,
        reduction=reduction,
        recompute=recompute,
        backend=backend,
    )
    if reduction == "mean":
        assert ours.loss.isnan()
    else:
        assert (ours.loss == 0).all()
    assert all((grad == 0).all() for grad in ours.grads)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows_at_all(reduction: str, backend: str) -> None:
    hidden, weight, bias = projection(0, D, C, bias=True).leaves()
    target = torch.zeros(0, dtype=torch.int64)
    loss = linear_label_smoothing_loss(
        hidden, weight, target, linear_bias=bias, reduction=reduction, backend=backend
    )
    assert loss.shape == ((0,) if reduction == "none" else ())
    loss.sum().backward()
    for leaf in (hidden, weight, bias):
        assert leaf.grad is not None
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()


def test_no_features(backend: str) -> None:
    """All logits are the bias."""
    given, target = projection(4, 0, C, bias=True), torch.randint(C, (4,))
    assert_exact(run(given, target, backend=backend), truth(given, target))


def test_one_class(backend: str) -> None:
    ours = run(projection(4, D, 1), torch.zeros(4, dtype=torch.int64), backend=backend)
    assert ours.loss == 0
    assert all((grad == 0).all() for grad in ours.grads)
