"""How far a contestant's loss and gradient are from the truth, in float64.

The reference is dense and direct (log-softmax, smoothed target, their product) and shares no code
with labelsmooth. It goes through the rows in chunks, so that it never needs N x C float64 numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.contestants import SMOOTHING, Convention

CHUNK_ELEMENTS = 1 << 20


def largest_errors(
    logits: Tensor, target: Tensor, loss: float, grad_logits: Tensor, convention: Convention
) -> tuple[float, float]:
    """Error of the loss, relative; and the largest error of a gradient element, absolute.

    Gradients are compared as those of a row's own loss (before the mean over rows), so that they
    lie in [-1, 1] whatever N and C are, and all contestants are measured by the same rule.
    """
    rows, classes = logits.shape
    scale = convention.scale(rows, classes)
    elsewhere = SMOOTHING / classes if convention.target_keeps_share else SMOOTHING / (classes - 1)
    on_target = 1 - SMOOTHING + (elsewhere if convention.target_keeps_share else 0.0)
    step = max(1, CHUNK_ELEMENTS // classes)

    true_loss, grad_error = 0.0, 0.0
    for start in range(0, rows, step):
        chunk = slice(start, start + step)
        log_probs = logits[chunk].double().log_softmax(1)
        q = torch.full_like(log_probs, elsewhere)
        q.scatter_(1, target[chunk].unsqueeze(1), on_target)
        true_loss -= (q * log_probs).sum().item()
        if convention.entropy:
            true_loss += torch.special.xlogy(q, q).sum().item()
        error = grad_logits[chunk].double().div_(scale).sub_(log_probs.exp_().sub_(q))
        grad_error = max(grad_error, error.abs_().max().item())
    true_loss *= scale
    return abs(loss - true_loss) / abs(true_loss), grad_error
