"""The same results as torch.nn.functional.cross_entropy, so that changing the import is enough."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import DTYPES, REDUCTIONS, loss_dtype, run
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss

C = 7
# Each shape of the logits that torch documents: one row, rows, and rows with 1, 2 or 3 more axes.
SHAPES = [(C,), (5, C), (3, C, 4), (2, C, 3, 4), (2, C, 2, 1, 3)]


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def assert_same(logits: Tensor, target: Tensor, backend: str, **options: Any) -> None:
    """Loss and gradient of a weighted sum of it, in shape, dtype and value."""
    leaf = logits.detach().requires_grad_()
    expected = F.cross_entropy(leaf, target, **options)
    loss = label_smoothing_loss(leaf, target, **options, backend=backend)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    grad_loss = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad_loss)
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss)
    torch.testing.assert_close(grad, expected_grad, equal_nan=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_class_indices(
    shape: tuple[int, ...], weighted: bool, reduction: str, smoothing: float, backend: str
) -> None:
    target = torch.randint(C, row_shape(shape))
    weight = torch.rand(C) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    assert_same(torch.randn(shape), target, backend, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_class_probabilities(
    shape: tuple[int, ...], weighted: bool, reduction: str, smoothing: float, backend: str
) -> None:
    target = torch.randn(shape).softmax(1 if len(shape) > 1 else 0)
    weight = torch.rand(C) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    assert_same(torch.randn(shape), target, backend, **options)


def test_class_probabilities_need_not_sum_to_1(backend: str) -> None:
    """Multi-hot targets, say."""
    target = torch.randint(2, (5, C)).float()
    assert_same(torch.randn(5, C), target, backend, label_smoothing=0.2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("target_dtype", DTYPES)
@pytest.mark.parametrize("logits_dtype", DTYPES)
def test_class_probabilities_of_another_dtype(
    logits_dtype: torch.dtype, target_dtype: torch.dtype, reduction: str, backend: str
) -> None:
    """Neither rounded to the other's dtype; gradients in each one's own."""
    logits = torch.randn(5, C).to(logits_dtype).requires_grad_()
    target = torch.rand(5, C).to(target_dtype).requires_grad_()
    wide = logits.to(loss_dtype(logits)), target.to(loss_dtype(logits))
    options = {"reduction": reduction, "label_smoothing": 0.2}
    expected = F.cross_entropy(*wide, **options)
    loss = label_smoothing_loss(logits, target, **options, backend=backend)
    torch.testing.assert_close(loss, expected)
    for ours, theirs, tensor in zip(
        torch.autograd.grad(loss.sum(), (logits, target)),
        torch.autograd.grad(expected.sum(), (logits, target)),
        (logits, target),
        strict=True,
    ):
        assert ours.dtype == tensor.dtype
        if tensor.dtype == torch.float64:  # computed in float32 beside narrower logits
            ours, theirs = ours.to(loss.dtype), theirs.to(loss.dtype)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_in_place_beside_wider_class_probabilities(reduction: str, backend: str) -> None:
    """The widened copy is overwritten; or the logits, where they are the wider."""
    target = torch.rand(5, C)
    for dtype in (torch.bfloat16, torch.float64):
        leaf = torch.randn(5, C).to(dtype).requires_grad_()
        grads = [
            torch.autograd.grad(
                label_smoothing_loss(
                    leaf * 1, target, reduction=reduction, inplace=inplace, backend=backend
                ).sum(),
                leaf,
            )[0]
            for inplace in (False, True)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
# Outside [0, C) on either side, and a class among the others whose rows are then left out
@pytest.mark.parametrize("ignore_index", [-100, C, 255, 0, 3])
@pytest.mark.parametrize("shape", [(12, C), (3, C, 4)])
def test_ignored_rows(
    shape: tuple[int, ...], ignore_index: int, weighted: bool, reduction: str, backend: str
) -> None:
    target = torch.randint(C, row_shape(shape))
    target.view(-1)[::3] = ignore_index
    weight = torch.rand(C) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.2}
    assert_same(torch.randn(shape), target, backend, ignore_index=ignore_index, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_all_rows_ignored(smoothing: float, reduction: str, backend: str) -> None:
    options = {"reduction": reduction, "label_smoothing": smoothing}
    target = torch.full((5,), -100)
    assert_same(torch.randn(5, C), target, backend, **options)
    loss = label_smoothing_loss(torch.randn(5, C), target, **options, backend=backend)
    assert loss.isnan().all() if reduction == "mean" else (loss == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(0, C), (0, C, 3), (2, C, 0)])
@pytest.mark.parametrize("probabilities", [False, True])
def test_no_rows(probabilities: bool, shape: tuple[int, ...], reduction: str, backend: str) -> None:
    target = torch.rand(shape) if probabilities else torch.randint(C, row_shape(shape))
    options = {"reduction": reduction, "label_smoothing": 0.2}
    assert_same(torch.randn(shape), target, backend, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_targets_whose_weight_is_zero(smoothing: float, reduction: str, backend: str) -> None:
    """0/0: the mean's gradient is NaN but in the rows that are ignored."""
    weight = torch.tensor([0.0] + [1.0] * (C - 1))
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}
    target = torch.tensor([0, 0, -100, 0, 0])
    assert_same(torch.randn(5, C), target, backend, **options)


@pytest.mark.parametrize(
    "options", [{"from_log_probs": True}, {"softcap": 5.0}, {"smooth_over": "others"}], ids=str
)
def test_a_mean_over_no_weight(options: dict[str, Any], backend: str) -> None:
    """NaN also with options that torch does not have."""
    weight, target = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, -100, 1])
    leaf = torch.randn(3, 3, requires_grad=True)
    loss = label_smoothing_loss(
        leaf, target, weight, label_smoothing=0.2, backend=backend, **options
    )
    loss.backward()
    assert loss.isnan()
    kept = target >= 0
    assert leaf.grad[kept].isnan().all()
    assert (leaf.grad[~kept] == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_integer_targets(dtype: torch.dtype, backend: str) -> None:
    """torch takes int64 and uint8."""
    logits, target = torch.randn(9, C), torch.randint(C, (9,))
    for ignore_index in (-100, 3, 100):
        options = {"ignore_index": ignore_index, "label_smoothing": 0.2}
        expected = F.cross_entropy(logits, target, **options)
        loss = label_smoothing_loss(logits, target.to(dtype), **options, backend=backend)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("dtype", "classes", "ignore_index"),
    [
        (torch.uint8, 256, -100),
        (torch.uint8, 300, -100),
        (torch.int8, 1000, 3),
        (torch.int16, 40_000, -100),
        (torch.int32, C, 2**32),
    ],
)
def test_more_classes_than_the_integer_type_counts(
    dtype: torch.dtype, classes: int, ignore_index: int, backend: str
) -> None:
    """156 of 8 bits is -100, and 2^32 of 32 bits 0, where numbers wrap around."""
    logits = torch.randn(4, classes)
    largest = min(torch.iinfo(dtype).max, classes - 1)
    target = torch.tensor([0, 3, min(156, largest), largest])
    options = {"ignore_index": ignore_index, "label_smoothing": 0.1, "backend": backend}
    expected = run(logits, target, **options)
    for one, other in zip(run(logits, target.to(dtype), **options), expected, strict=True):
        assert torch.equal(one, other)


def test_targets_may_lie_anyhow(backend: str) -> None:
    logits, target = torch.randn(6, C), torch.randint(C, (6, 5))
    assert_same(logits, target[:, 2], backend, label_smoothing=0.2)
    assert_same(logits, target[:1, :1].expand(6, 1)[:, 0], backend, label_smoothing=0.2)
    probabilities = torch.rand(C, 6).t()
    assert_same(logits, probabilities, backend, label_smoothing=0.2)
    assert_same(logits, torch.rand(6, 2 * C)[:, ::2], backend, label_smoothing=0.2)


def test_the_same_keywords_and_defaults() -> None:
    ours = inspect.signature(label_smoothing_loss).parameters
    module = inspect.signature(FusedLabelSmoothingLoss).parameters
    for name, theirs in inspect.signature(F.cross_entropy).parameters.items():
        if name not in ("input", "target", "size_average", "reduce"):  # the last two: deprecated
            assert ours[name].default == theirs.default
    for name, theirs in inspect.signature(nn.CrossEntropyLoss).parameters.items():
        if name not in ("size_average", "reduce"):
            assert module[name].default == theirs.default


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_module_is_torchs_module(reduction: str, backend: str) -> None:
    logits, target, weight = torch.randn(9, C), torch.randint(C, (9,)), torch.rand(C)
    options = {"ignore_index": 2, "reduction": reduction, "label_smoothing": 0.1}
    expected = nn.CrossEntropyLoss(weight, **options)(logits, target)
    ours = FusedLabelSmoothingLoss(weight, **options, backend=backend)(logits, target)
    torch.testing.assert_close(ours, expected)
