"""The reference itself, against torch in float64 and by hand: a wrong truth proves nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import reference, smoothed_target
from torch import Tensor


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 3])
@pytest.mark.parametrize("shape", [(6, 7), (2, 7, 3)])
def test_is_torchs_cross_entropy(
    shape: tuple[int, ...], ignore_index: int, weighted: bool, reduction: str, smoothing: float
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = torch.randint(7, shape[:1] + shape[2:])
    target.view(-1)[:3] = ignore_index
    options: dict[str, Any] = {
        "weight": torch.rand(7, dtype=torch.float64) if weighted else None,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": smoothing,
    }
    expected = F.cross_entropy(logits, target, **options)
    grad_loss = torch.randn_like(expected)
    (grad,) = torch.autograd.grad(expected, logits, grad_loss)

    ours = reference(logits, target, **options, grad_loss=grad_loss)
    torch.testing.assert_close(ours.loss, expected.detach())
    torch.testing.assert_close(ours.grad_logits, grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_is_torchs_cross_entropy_of_class_probabilities(reduction: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 7, 3, dtype=torch.float64)
    target = torch.randn(2, 7, 3, dtype=torch.float64).softmax(1)
    weight = torch.rand(7, dtype=torch.float64)
    options: dict[str, Any] = {"weight": weight, "reduction": reduction, "label_smoothing": 0.2}
    torch.testing.assert_close(
        reference(logits, target, **options).loss, F.cross_entropy(logits, target, **options)
    )


@pytest.mark.parametrize("smooth_over", ["all", "others"])
def test_is_torchs_kl_divergence(smooth_over: str) -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(4, 5, dtype=torch.float64).log_softmax(1)
    target = torch.tensor([0, 3, 3, 4])
    prior = torch.tensor([0.4, 0.0, 0.1, 0.3, 0.2], dtype=torch.float64)
    q = smoothed(F.one_hot(target, 5), 0.3, smooth_over, prior)
    torch.testing.assert_close(q.sum(1), torch.ones(4, dtype=torch.float64))
    ours = reference(
        log_probs,
        target,
        reduction="none",
        label_smoothing=0.3,
        smooth_over=smooth_over,
        prior=prior,
        objective="kl_div",
        from_log_probs=True,
    )
    torch.testing.assert_close(ours.loss, F.kl_div(log_probs, q, reduction="none").sum(1))
    torch.testing.assert_close(ours.grad_logits, -q)


def test_target_by_hand() -> None:
    """Target 0 of three classes, 0.4 to smooth, prior 1/2, 1/4, 1/4."""
    prior = torch.tensor([0.5, 0.25, 0.25])
    cases = {
        ("all", None): [0.6 + 0.4 / 3, 0.4 / 3, 0.4 / 3],
        ("others", None): [0.6, 0.2, 0.2],
        ("all", prior): [0.8, 0.1, 0.1],
        ("others", prior): [0.6, 0.2, 0.2],
    }
    for (smooth_over, u), row in cases.items():
        q = smoothed(torch.tensor([[1, 0, 0]]), 0.4, smooth_over, u)
        torch.testing.assert_close(q, torch.tensor([row], dtype=torch.float64))


def smoothed(t: Tensor, smoothing: float, smooth_over: str, prior: Tensor | None) -> Tensor:
    masked = torch.zeros(t.shape, dtype=torch.bool)
    spread, own = smoothed_target(t.double(), smoothing, smooth_over, prior, masked)
    return spread + own


def test_new_targets_by_hand() -> None:
    """Three classes of logit 0 and one that is masked: lse = log 3, so each row's loss is a
    coefficient's sum times log 3."""
    logits = torch.zeros(1, 4)
    logits[0, 3] = -torch.inf
    log3, a = 1.0986122886681098, 0.3
    weight, two = torch.tensor([2.0, 1.0, 1.0, 1.0]), torch.tensor([[0, 1]])
    sparse = (two, torch.tensor([[0.5, 0.25]]))
    unmasked: dict[str, Any] = {"label_smoothing": a, "smooth_over": "unmasked"}
    cases: list[tuple[Any, dict[str, Any], float]] = [
        (torch.tensor([0]), unmasked, 1.0),
        # 2 (1 - a) + 0.1 (2 + 1 + 1), or the smoothing without weights
        (torch.tensor([0]), unmasked | {"weight": weight, "reduction": "sum"}, 1.8),
        (
            torch.tensor([0]),
            unmasked | {"weight": weight, "weight_over": "target", "reduction": "sum"},
            1.7,
        ),
        (sparse, {}, 0.75),
        (sparse, {"weight": weight}, 1.25),
        (sparse, {"ignore_index": 1}, 0.5),
        (sparse, {"row_weight": torch.tensor([3.0]), "reduction": "sum"}, 2.25),
        (sparse, {"row_weight": torch.tensor([3.0])}, 0.75),
    ]
    for target, options, expected in cases:
        loss = reference(logits, target, **options).loss.item()
        assert abs(loss - expected * log3) < 1e-6, (options, loss / log3)


def test_additions_by_hand() -> None:
    """Two classes, both logits 1, so lse = 1 + log 2 and p = 1/2 each."""
    logits, target, log2 = torch.ones(1, 2), torch.tensor([0]), 0.6931471805599453
    squared = reference(logits, target, lse_square_scale=0.1)
    assert squared.loss.item() == pytest.approx(log2 + 0.1 * (1 + log2) ** 2)
    lift = 2 * 0.1 * (1 + log2) / 2
    assert squared.grad_logits.tolist() == [pytest.approx([lift - 0.5, lift + 0.5])]

    scaled = reference(torch.tensor([[1.0, 0.0]]), target, logit_scale=log2)  # p = 2/3, 1/3
    assert scaled.loss.item() == pytest.approx(0.4054651081081644)  # log 3/2
    assert scaled.grad_logits.tolist() == [pytest.approx([-log2 / 3, log2 / 3])]

    capped = reference(
        torch.tensor([[torch.inf, -torch.inf]]), target, softcap=log2 / 2
    )  # p = 2/3, 1/3
    assert capped.loss.item() == pytest.approx(0.4054651081081644)
    assert capped.grad_logits.tolist() == [[0.0, 0.0]]


def test_infinities() -> None:
    """A masked class: infinite where it carries mass, absent where its coefficient is 0."""
    logits, target = torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0])
    masked = reference(logits, target, label_smoothing=0.3)
    assert masked.loss.item() == torch.inf
    assert masked.grad_logits.tolist() == [pytest.approx([0.5 - 0.8, 0.5 - 0.1, -0.1])]
    for options in (
        {"weight": torch.tensor([1.0, 1.0, 0.0])},
        {"prior": torch.tensor([0.5, 0.5, 0.0])},
    ):
        assert reference(logits, target, label_smoothing=0.3, **options).loss.isfinite()
    assert reference(logits, target).loss.item() == pytest.approx(0.6931471805599453)
    assert reference(logits, torch.tensor([2])).loss.item() == torch.inf
