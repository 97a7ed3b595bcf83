"""How far a contestant's loss and gradient are from the truth, in float64.

The reference is dense and direct (log-softmax, smoothed target, their product) and shares no code
with labelsmooth. It goes through the rows in chunks, without N x C float64 numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.contestants import SMOOTHING, Convention

CHUNK_ELEMENTS = 1 << 20


class Outcome(NamedTuple):
    loss: float
    grad_logits: Tensor
    convention: Convention


def largest_errors(
    logits: Tensor, target: Tensor, outcomes: list[Outcome]
) -> list[tuple[float, float]]:
    """Of each outcome: error of the loss, relative; largest error of a gradient element, absolute.

    Gradients are compared as those of a row's own loss (before the mean over rows), which lie in
    [-1, 1] whatever N and C are.
    """
    rows, classes = logits.shape
    step = max(1, CHUNK_ELEMENTS // classes)
    true_losses, grad_errors = [0.0] * len(outcomes), [0.0] * len(outcomes)
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        log_probs = logits[chunk].double().log_softmax(1)
        probs = log_probs.exp()
        for i, (_, grad_logits, convention) in enumerate(outcomes):
            q = smoothed(convention, log_probs, target[chunk])
            true_losses[i] -= (q * log_probs).sum().item()
            if convention.entropy:
                true_losses[i] += torch.special.xlogy(q, q).sum().item()
            scale = convention.scale(rows, classes)
            error = grad_logits[chunk].double().div_(scale).sub_(probs).add_(q)
            grad_errors[i] = max(grad_errors[i], error.abs_().max().item())
    scales = [outcome.convention.scale(rows, classes) for outcome in outcomes]
    truths = [scale * loss for scale, loss in zip(scales, true_losses, strict=True)]
    loss_errors = [
        abs(outcome.loss - truth) / abs(truth)
        for outcome, truth in zip(outcomes, truths, strict=True)
    ]
    return list(zip(loss_errors, grad_errors, strict=True))


def smoothed(convention: Convention, like: Tensor, target: Tensor) -> Tensor:
    others = like.size(1) if convention.target_keeps_share else like.size(1) - 1
    elsewhere = SMOOTHING / others
    on_target = 1 - SMOOTHING + (elsewhere if convention.target_keeps_share else 0.0)
    return torch.full_like(like, elsewhere).scatter_(1, target.unsqueeze(1), on_target)
