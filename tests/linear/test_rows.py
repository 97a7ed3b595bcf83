"""Which rows are projected, and what their statistics say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from linear.projected_rows import Rows
from linear_checks import IGNORED, assert_exact, projection, run, targets, truth
from reference import reference
from torch import Tensor

from labelsmooth import FusedLinearLabelSmoothingLoss, LossStats, linear_label_smoothing_loss

N, D, C = 23, 5, 11


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_are_left_out(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.full((N,), IGNORED)
    target[[3, 8, 9, 20]] = torch.randint(C, (4,))
    given = projection(N, D, C, bias=True)
    rows = Rows(monkeypatch)
    ours = run(given, target, reduction=reduction, chunk_rows=3, backend="cpu")
    assert rows.seen == ([3, 1] if reduction != "none" else [3, 1, 3, 1])
    assert_exact(ours, truth(given, target, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_in_an_ignored_row(reduction: str) -> None:
    """Padding that nobody wrote reaches neither loss nor gradients."""
    given, target = projection(N, D, C), targets(N, C)
    spoilt = given.hidden.clone()
    spoilt[target == IGNORED] = torch.nan
    ours = run(given._replace(hidden=spoilt), target, reduction=reduction, backend="cpu")
    assert_exact(ours, truth(given, target, reduction=reduction))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("recompute", [False, True])
def test_statistics_of_every_row(reduction: str, recompute: bool, backend: str) -> None:
    given, target = projection(N, D, C, bias=True), targets(N, C)
    loss, stats = statistics(
        given, target, reduction=reduction, recompute=recompute, backend=backend
    )
    logits = given.hidden @ given.linear_weight.T + given.linear_bias
    true = reference(logits, target, reduction=reduction, label_smoothing=0.1)
    torch.testing.assert_close(loss.cpu(), true.loss)
    torch.testing.assert_close(stats.nll.cpu(), true.nll)
    torch.testing.assert_close(stats.lse, logits.logsumexp(1))  # of ignored rows too
    assert torch.equal(stats.predicted, logits.argmax(1))
    assert not stats.nll.requires_grad


def statistics(given: Any, target: Tensor, **options: Any) -> tuple[Tensor, LossStats]:
    hidden, weight, bias = given.leaves()
    loss, stats = linear_label_smoothing_loss(
        *(hidden, weight, target),
        linear_bias=bias,
        label_smoothing=0.1,
        return_stats=True,
        chunk_rows=4,
        **options,
    )
    return loss.detach(), stats


def test_statistics_have_the_targets_shape() -> None:
    module = FusedLinearLabelSmoothingLoss(D, C, return_stats=True)
    _, stats = module(torch.randn(2, 3, D), torch.randint(C, (2, 3)))
    assert [stat.shape for stat in stats] == [(2, 3)] * 3
