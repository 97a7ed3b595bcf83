"""row_weight: what each row's loss is multiplied by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import DTYPES, REDUCTIONS, check, run
from torch import Tensor

from labelsmooth import label_smoothing_loss

N, C = 6, 19


def row_weight() -> Tensor:
    return torch.tensor([0.5, 2.0, 0.0, -1.5, 1.0, 0.25])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_each_dtype(reduction: str, dtype: torch.dtype, backend: str) -> None:
    logits, target = torch.randn(N, C).to(dtype), torch.randint(C, (N,))
    target[1] = -100
    for inplace in (False, True):
        leaf = logits.clone().requires_grad_()
        loss = label_smoothing_loss(
            leaf.clone(), target, reduction=reduction, label_smoothing=0.1, row_weight=row_weight(),
            inplace=inplace, backend=backend,
        )  # fmt: skip
        loss.sum().backward()
        expected = check(
            logits, target, reduction=reduction, label_smoothing=0.1, row_weight=row_weight(),
            backend="eager",
        )  # fmt: skip
        torch.testing.assert_close(loss.detach(), expected.loss, rtol=1e-5, atol=1e-5)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            leaf.grad, expected.grad_logits, rtol=tolerance, atol=tolerance / 8
        )


def test_mean_divides_by_the_weights_of_the_rows_that_count(backend: str) -> None:
    """sum_i r_i w_yi l_i / sum_i r_i w_yi, as torch's weighted mean is, by hand."""
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    target[1] = -100
    weight, r = torch.rand(C) + 0.5, row_weight().abs()
    loss = label_smoothing_loss(logits, target, weight, row_weight=r, backend=backend)
    rows = F.cross_entropy(logits, target, weight, reduction="none")
    counts = (target != -100).float()
    expected = (r * rows).sum() / (r * counts * weight[target.clamp(min=0)]).sum()
    torch.testing.assert_close(loss, expected)


def test_normalizer_takes_its_place(backend: str) -> None:
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    mean, total = (
        label_smoothing_loss(logits, target, row_weight=row_weight(), backend=backend, **more)
        for more in ({"normalizer": 11.0}, {"reduction": "sum"})
    )
    torch.testing.assert_close(mean, total / 11)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_any_real_dtype(dtype: torch.dtype, backend: str) -> None:
    """A mask too: the padding of a batch."""
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    rows = torch.tensor([1, 0, 1, 1, 0, 1], dtype=dtype)
    loss = label_smoothing_loss(logits, target, row_weight=rows, backend=backend)
    torch.testing.assert_close(loss, F.cross_entropy(logits[rows > 0], target[rows > 0]))


def test_a_row_of_weight_0_counts_nothing_whatever_it_holds(backend: str) -> None:
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    logits[2] = torch.nan
    for reduction in REDUCTIONS:
        ours = run(logits, target, reduction=reduction, row_weight=row_weight(), backend=backend)
        assert ours.loss.isfinite().all()
        assert not ours.grad_logits[2].any()
        assert ours.grad_logits.isfinite().all()


@pytest.mark.parametrize("which", ["weight", "row_weight", "prior"])
def test_what_it_holds_reaches_no_derivative(which: str, backend: str) -> None:
    """Nor do ignored rows: their NaN is in no gradient of weight, prior and row weights. And a
    weight that is infinite, one over a length of 0, of an ignored row."""
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    target[1], logits[1:3] = -100, torch.nan
    vectors = {
        "weight": torch.rand(C) + 0.5,
        "prior": torch.rand(C).softmax(0),
        "row_weight": row_weight().where(target != -100, torch.inf),
    }
    leaf = vectors[which].requires_grad_()
    loss = label_smoothing_loss(logits, target, label_smoothing=0.1, backend=backend, **vectors)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_statistics_are_of_the_rows_themselves(backend: str) -> None:
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    _, stats = label_smoothing_loss(
        logits, target, row_weight=row_weight(), return_stats=True, backend=backend
    )
    torch.testing.assert_close(stats.nll, F.cross_entropy(logits, target, reduction="none"))
    assert torch.equal(stats.predicted, logits.argmax(1))


@pytest.mark.parametrize("options", [{}, {"normalizer": 3.0}, {"reduction": "none"}], ids=str)
def test_its_gradient(options: dict[str, Any], backend: str) -> None:
    logits = torch.randn(N, C, dtype=torch.float64, requires_grad=True)
    target = torch.randint(C, (N,))
    target[1] = -100
    rows = row_weight().double().requires_grad_()

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        made = label_smoothing_loss(
            logits, target, row_weight=rows, label_smoothing=0.1, backend=backend, **options
        )
        assert isinstance(made, Tensor)
        return made

    assert torch.autograd.gradcheck(loss, (logits, rows))
    assert torch.autograd.gradgradcheck(loss, (logits, rows))


def test_positions(backend: str) -> None:
    logits, target = torch.randn(2, C, 3, 4), torch.randint(C, (2, 3, 4))
    for reduction in REDUCTIONS:
        check(logits, target, reduction=reduction, row_weight=torch.rand(2, 3, 4), backend=backend)
    check(logits[0, :, 0, 0], target[0, 0, 0], row_weight=torch.tensor(0.5), backend=backend)
