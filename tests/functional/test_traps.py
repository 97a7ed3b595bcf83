"""Faults that users of other losses met: those of docs/traps.md that no other file tests."""

from __future__ import annotations

import ast
import math
import re

import pytest
import torch
import torch.nn.functional as F
from checks import DTYPES, REDUCTIONS, ROOT, check, loss_dtype
from torch import Tensor, nn

from labelsmooth import label_smoothing_loss


def test_weight_with_ignored_rows_by_hand(backend: str) -> None:
    """pytorch #69339, #72056, #73205, #91383: an ignored row's weight was read out of bounds, the
    row was smoothed, or counted in the mean.

    Two equal logits: each row costs log 2 times the sum of w_c q_c, 0.9 w_y + 0.05 (1 + 3).
    """
    logits, weight = torch.zeros(4, 2), torch.tensor([1.0, 3.0])
    rows = torch.tensor([0.9 * 1 + 0.2, 0.9 * 3 + 0.2]) * math.log(2)
    for ignore_index in (-100, 2, 255, 2**40):  # the table of weights has two entries
        target = torch.tensor([0, ignore_index, 1, ignore_index])
        options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": 0.1}
        loss, grad = check(logits, target, **options, backend=backend)
        torch.testing.assert_close(loss, rows.sum() / (1 + 3))
        assert not grad[1::2].any()
    for ignored, kept in ((0, 1), (1, 0)):  # ignore_index may also be one of the classes
        target = torch.tensor([0, 1, 0, 1])
        options = {"weight": weight, "ignore_index": ignored, "label_smoothing": 0.1}
        loss, grad = check(logits, target, **options, backend=backend)
        torch.testing.assert_close(loss, rows[kept] / weight[kept])
        assert not grad[ignored::2].any()


def test_the_two_conventions_differ_by_their_smoothing(backend: str) -> None:
    """pytorch #104776, #148884: `others` with s is `all` with s C/(C-1), and so never the same."""
    logits, target = torch.randn(6, 5, dtype=torch.float64), torch.randint(5, (6,))
    others = label_smoothing_loss(
        logits, target, label_smoothing=0.2, smooth_over="others", backend=backend
    )
    everywhere = label_smoothing_loss(
        logits, target, label_smoothing=0.2 * 5 / 4, smooth_over="all", backend=backend
    )
    torch.testing.assert_close(others, everywhere)
    torch.testing.assert_close(everywhere, F.cross_entropy(logits, target, label_smoothing=0.25))


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_rows_ignored(dtype: torch.dtype, backend: str) -> None:
    """pytorch #75181, OLMo-core #657, Liger #177: NaN as torch has it; with a normalizer, 0."""
    logits, target = torch.randn(3, 5).to(dtype), torch.full((3,), -100)
    loss, grad = check(logits, target, label_smoothing=0.1, backend=backend)
    assert loss.isnan()
    assert not grad.any()  # no row has a gradient, so the run goes on
    loss, grad = check(logits, target, label_smoothing=0.1, normalizer=7, backend=backend)
    assert loss.item() == 0.0
    assert not grad.any()


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulation_steps_give_the_gradient_of_one_batch(weighted: bool, backend: str) -> None:
    """HF #46731, #47261, Liger #802: steps of different length, of which one is all ignored."""
    logits, target = torch.randn(12, 5, dtype=torch.float64), torch.randint(5, (12,))
    target[[0, 1, 4, 5, 6, 7]] = -100
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    kept = target[target != -100]
    total = kept.numel() if weight is None else weight[kept].sum()
    options = {"weight": weight, "label_smoothing": 0.1, "backend": backend}
    whole = check(logits, target, **options)

    leaf = logits.clone().requires_grad_()
    losses = []
    for step in (slice(0, 4), slice(4, 8), slice(8, 9), slice(9, 12)):
        loss = label_smoothing_loss(leaf[step], target[step], **options, normalizer=total)
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(losses).sum(), whole.loss)
    torch.testing.assert_close(leaf.grad, whole.grad_logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_every_output_of_ignored_rows_is_written(
    needs_grad: bool, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    """Liger #1338: an early return for an ignored row."""
    leaf = torch.randn(6, 70).to(dtype).requires_grad_(needs_grad)
    target = torch.tensor([-100, 3, -100, -100, 69, -100])
    loss, stats = label_smoothing_loss(
        leaf, target, reduction=reduction, return_stats=True, backend=backend
    )
    outputs: list[Tensor] = [loss, stats.nll, stats.lse]
    if needs_grad:
        outputs += torch.autograd.grad(loss.sum(), leaf)
        assert not outputs[-1][target == -100].any()
    assert all(output.isfinite().all() for output in outputs)
    assert not stats.nll[target == -100].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_float64_scalars_change_no_dtype(dtype: torch.dtype, backend: str) -> None:
    """Liger #1362: a normalizer that was counted in float64 or int64, and Python's own floats."""
    logits, target = torch.randn(6, 5).to(dtype), torch.randint(5, (6,))
    for normalizer in (7, 7.0, torch.tensor(7.0, dtype=torch.float64), torch.tensor(7)):
        options = {"label_smoothing": 0.1, "logit_scale": 0.5, "softcap": 3.0}
        loss, grad = check(logits, target, **options, normalizer=normalizer, backend=backend)
        assert loss.dtype == loss_dtype(logits)
        assert grad.dtype == dtype


def test_perplexity_is_of_the_likelihood(backend: str) -> None:
    """OpenNMT-py #462: uniform over 50 classes is a perplexity of 50, however much is smoothed."""
    for smoothing in (0.0, 0.1, 0.9):
        _, stats = label_smoothing_loss(
            torch.zeros(4, 50),
            torch.arange(4),
            label_smoothing=smoothing,
            smooth_over="others",
            objective="kl_div",
            return_stats=True,
            backend=backend,
        )
        assert stats.nll.mean().exp().item() == pytest.approx(50)


def test_the_logits_of_a_tied_projection_in_place(backend: str) -> None:
    """Liger #272, unsloth #5002: weights shared between embedding and projection, the logits'
    memory taken, the accuracy computed before: the weights' gradient is that of torch."""
    embedding = nn.Embedding(40, 8)
    tokens = torch.randint(40, (3, 9))

    def gradient(fused: bool) -> Tensor:
        embedding.zero_grad()
        hidden = embedding(tokens[:, :-1]).tanh().flatten(0, 1)
        logits, target = hidden @ embedding.weight.t(), tokens[:, 1:].flatten()
        logits.argmax(1)
        if fused:
            loss = label_smoothing_loss(
                logits, target, label_smoothing=0.1, inplace=True, backend=backend
            )
        else:
            loss = F.cross_entropy(logits, target, label_smoothing=0.1)
        loss.backward()
        return embedding.weight.grad.clone()

    torch.testing.assert_close(gradient(fused=True), gradient(fused=False))


def test_the_reference_shares_no_code() -> None:
    """TransformerEngine #2476: a reference that calls what it should check proves nothing."""
    tree = ast.parse((ROOT / "tests" / "reference.py").read_text())
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"__future__", "collections.abc", "functools", "typing", "torch"}


def test_each_trap_has_its_test() -> None:
    """docs/traps.md names a test in each row, or says why there is none; the tests exist."""
    table = (ROOT / "docs" / "traps.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [row.split(" | ")[-1] for row in rows if not row.startswith("| where |")]
    assert len(cells) >= 23 + 18
    for cell in cells:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", cell)
        assert named or cell.startswith("none: ")
        for file, function in named:
            assert f"def {function}(" in (ROOT / "tests" / file).read_text()
