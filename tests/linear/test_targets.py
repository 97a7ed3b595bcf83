"""Targets of several classes, row weights and masked classes, projected in chunks."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from linear.projected_rows import Rows
from linear_checks import IGNORED, Outcome, assert_exact, error, projection, run, targets, truth
from torch import Tensor

from labelsmooth import FusedLinearLabelSmoothingLoss, SparseTarget, linear_label_smoothing_loss
from labelsmooth._backends.linear import sizes

N, D, C, K = 23, 5, 11, 3


def sparse(*rows: int) -> SparseTarget:
    classes = torch.randint(C, (*rows, K))
    classes.view(-1, K)[2], classes.view(-1, K)[4, 1] = IGNORED, IGNORED
    return SparseTarget(classes, torch.rand(*rows, K))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_rows_of_several_axes(recompute: bool, reduction: str, backend: str) -> None:
    given, target, rows = projection(6, D, C), sparse(2, 3), torch.rand(2, 3, dtype=torch.float64)
    flat = SparseTarget(*(t.flatten(0, 1) for t in target))
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    folded = given._replace(hidden=given.hidden.view(2, 3, D))
    ours = run(
        folded, target, row_weight=rows, chunk_rows=2, recompute=recompute, backend=backend,
        **options,
    )  # fmt: skip
    true = truth(given, flat, row_weight=rows.flatten(), **options)
    ours.grads[0] = ours.grads[0].view(6, D)
    assert_exact(ours._replace(loss=ours.loss.reshape(true.loss.shape)), true)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_that_count_nothing_are_left_out(
    reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hidden states may be NaN."""
    given, target = projection(N, D, C), sparse(N)
    target.classes[:6] = IGNORED
    weight = torch.rand(N, dtype=torch.float64)
    weight[6:19] = 0.0
    spoilt = given.hidden.clone()
    spoilt[:19] = torch.nan
    seen = Rows(monkeypatch).seen
    ours = run(
        given._replace(hidden=spoilt), target, reduction=reduction, row_weight=weight,
        chunk_rows=3, backend="cpu",
    )  # fmt: skip
    assert seen == ([3, 1] if reduction != "none" else [3, 1, 3, 1])
    assert_exact(ours, truth(given, target, reduction=reduction, row_weight=weight))


@pytest.mark.parametrize("how", ["statistics", "recompute", "row weight's gradient"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_in_rows_that_count_nothing(how: str, reduction: str, backend: str) -> None:
    """Also where they are projected, for their statistics or by the formulas."""
    given, target = projection(N, D, C), sparse(N)
    target.classes[3] = IGNORED
    weight = torch.rand(N, dtype=torch.float64)
    weight[7], weight[3] = 0.0, torch.inf  # one over the length of a sequence of none
    spoilt = given.hidden.clone()
    spoilt[[3, 7]] = torch.nan
    leaves = given._replace(hidden=spoilt).leaves()
    more = {"return_stats": how == "statistics", "recompute": how == "recompute"}
    made = linear_label_smoothing_loss(
        *leaves[:2], target, row_weight=weight.clone().requires_grad_(how.endswith("gradient")),
        reduction=reduction, chunk_rows=4, backend=backend, **more,
    )  # fmt: skip
    loss = made[0] if isinstance(made, tuple) else made
    grads = list(torch.autograd.grad(loss.sum(), leaves[:2]))
    true = truth(given, target, reduction=reduction, row_weight=weight.nan_to_num(posinf=0.0))
    assert_exact(Outcome(loss.detach(), grads), true)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_scale_of_all_row_weights_does_not_matter(scale: float, backend: str) -> None:
    """To a mean; in float16 gradients may not come to nothing on the way."""
    given = projection(N, D, C, dtype=torch.float16)
    target, rows = targets(N, C), torch.rand(N) + 0.5
    expected = truth(given, target, row_weight=rows)
    ours = run(given, target, row_weight=scale * rows, chunk_rows=8, backend=backend)
    for grad, true in zip(ours.grads, expected.grads, strict=True):
        assert error(grad, true) < 2 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["sparse", "probabilities"])
def test_half_precision(kind: str, reduction: str, dtype: torch.dtype, backend: str) -> None:
    """Float32 targets beside 16-bit projections; row weights that float16 could overflow by."""
    given = projection(N, D, C, bias=True, dtype=dtype)
    target: Any = sparse(N) if kind == "sparse" else torch.randn(N, C).softmax(1)
    rows = 2.0 ** torch.randint(-6, 12, (N,))
    options: dict[str, Any] = {"row_weight": rows, "reduction": reduction, "label_smoothing": 0.1}
    grad_loss = torch.full((N,) if reduction == "none" else (), 2.0**-11)
    true = truth(given, target, grad_loss=grad_loss, **options)
    for recompute in (False, True):
        ours = run(
            given, target, grad_loss=grad_loss, recompute=recompute, chunk_rows=8,
            backend=backend, **options,
        )  # fmt: skip
        for grad, expected in zip(ours.grads, true.grads, strict=True):
            assert error(grad, expected) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("formulas", [False, True])
def test_a_bias_that_masks(
    formulas: bool,
    wide: bool,
    dtype: torch.dtype,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the lowest number of its dtype, where the products are made in a wider one too, and where
    a product as large as float16 has it would bring a logit back from there."""
    product = torch.float32 if wide else dtype
    monkeypatch.setattr(sizes, "product_dtype", lambda dtype, device: product)
    given = projection(N, D, C, bias=True, dtype=dtype)
    assert given.linear_bias is not None
    given.linear_bias[[1, 4]] = torch.finfo(dtype).min
    given.hidden.mul_(4)
    given.linear_weight[[1, 4]] *= 4
    target = targets(N, C)
    target[(target == 1) | (target == 4)] = 0
    options: dict[str, Any] = {"smooth_over": "unmasked", "label_smoothing": 0.1}
    more = {"row_weight": torch.ones(N, requires_grad=True)} if formulas else {}
    ours = run(given, target, chunk_rows=8, backend=backend, **options, **more)
    masked = given.linear_bias.where(given.linear_bias > torch.finfo(dtype).min, -torch.inf)
    true = truth(given._replace(linear_bias=masked), target, **options)
    torch.testing.assert_close(ours.loss.double(), true.loss, rtol=2e-2, atol=0)
    for grad, expected in zip(ours.grads, true.grads, strict=True):
        assert error(grad, expected) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_of_probabilities_and_row_weights(reduction: str, backend: str) -> None:
    given, target = projection(6, D, C), sparse(6)
    probs = target.probs.double().requires_grad_()
    rows = torch.rand(6, dtype=torch.float64, requires_grad=True)

    def loss(hidden: Tensor, weight: Tensor, probs: Tensor, rows: Tensor) -> Tensor:
        made = linear_label_smoothing_loss(
            hidden, weight, SparseTarget(target.classes, probs), row_weight=rows,
            reduction=reduction, label_smoothing=0.1, chunk_rows=4, backend=backend,
        )  # fmt: skip
        assert isinstance(made, Tensor)
        return made

    leaves = given.leaves()
    arguments = (leaves.hidden, leaves.linear_weight, probs, rows)
    assert torch.autograd.gradcheck(loss, arguments)
    assert torch.autograd.gradgradcheck(loss, arguments)


@pytest.mark.parametrize("device_dtype", [torch.bfloat16, torch.float16])
def test_mixup_under_autocast(device_dtype: torch.dtype, backend: str) -> None:
    """Its float32 shares are not rounded to autocast's dtype."""
    module = FusedLinearLabelSmoothingLoss(D, C, label_smoothing=0.1, backend=backend)
    hidden, y = torch.randn(N, D), torch.randint(C, (N,))
    target = SparseTarget.mix(y, y.flip(0), torch.rand(N))
    with torch.autocast("cpu", dtype=device_dtype):
        loss = module(hidden, target)
        logits = torch.nn.functional.linear(hidden, module.linear.weight)
    true = truth(
        projection(N, D, C)._replace(
            hidden=logits.double(), linear_weight=torch.eye(C, dtype=torch.float64)
        ),
        target, label_smoothing=0.1,
    )  # fmt: skip
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach().double(), true.loss, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": SparseTarget(*torch.zeros(2, N, K))}, TypeError, "target.classes: expected"),
        (
            {"target": SparseTarget(torch.zeros(N).long(), torch.rand(N))},
            ValueError,
            f"target.classes: expected shape ({N}, K), got ({N},)",
        ),
        (
            {"target": SparseTarget(torch.zeros(N, K).long(), torch.rand(N, 1))},
            ValueError,
            f"target.probs: expected shape ({N}, {K})",
        ),
        ({"row_weight": torch.rand(N - 1)}, ValueError, f"row_weight: expected shape ({N},)"),
        ({"row_weight": 2.0}, TypeError, "row_weight: expected a tensor, got 2.0"),
    ],
    ids=["dtype", "no K", "other K", "rows", "number"],
)
def test_errors(
    changes: dict[str, Any], error: type[Exception], message: str, backend: str
) -> None:
    arguments = {"target": sparse(N), "row_weight": torch.rand(N)} | changes
    hidden, weight, _ = projection(N, D, C, dtype=torch.float32)
    with pytest.raises(error, match=re.escape(message)):
        linear_label_smoothing_loss(hidden, weight, backend=backend, **arguments)
