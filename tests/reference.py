"""The loss as its definition reads, densely and in float64: the truth that tests compare with.

It builds everything that the library avoids (the smoothed target q, the log-probabilities, their
product, all N x C) and takes gradients by autograd. It shares no code with labelsmooth.

    loss_i = sum_c w_c q_ic (lse_i - x_ic)  [+ sum_c w_c q_ic log q_ic]  + L lse_i^2
    x = k tanh(s logits / k),   lse_i = log sum_c exp(x_ic)   (0 for rows of log-probabilities)

A term whose coefficient is 0 is 0, whatever it multiplies. A truly infinite term is +inf.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Reference(NamedTuple):
    """All float64; `loss` reduced, the statistics one value a row, shaped as class indices."""

    loss: Tensor
    grad_logits: Tensor
    grad_probs: Tensor  # the part of the gradient that a row's probabilities make, through lse
    nll: Tensor
    lse: Tensor
    predicted: Tensor


def smoothed_target(
    target: Tensor, classes: int, smoothing: float, smooth_over: str, prior: Tensor | None
) -> Tensor:
    """The (N, C) distribution q of (N,) class indices or (N, C) class probabilities."""
    u = (
        torch.full((classes,), 1 / classes, dtype=torch.float64)
        if prior is None
        else prior.double()
    )
    if target.is_floating_point():
        assert smooth_over == "all", "the others of a class-probability target are not defined"
        unsmoothed = target.double()
    else:
        unsmoothed = torch.nn.functional.one_hot(target.long(), classes).double()
    if smoothing == 0:  # whatever the prior holds
        return unsmoothed
    if smooth_over == "all":
        return (1 - smoothing) * unsmoothed + smoothing * u
    onehot = unsmoothed
    others = u * (
        1 - onehot
    )  # the prior without the target's class, then scaled up to sum to 1 again
    return (1 - smoothing) * onehot + smoothing * others / others.sum(1, keepdim=True)


def weighted_sum(coefficient: Tensor, value: Tensor) -> Tensor:
    """sum_c coefficient * value; a coefficient of 0 makes the term 0 even beside an infinity."""
    return torch.where(coefficient == 0, 0.0, coefficient * value).sum(1)


def reference(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    smooth_over: str = "all",
    prior: Tensor | None = None,
    objective: str = "cross_entropy",
    from_log_probs: bool = False,
    lse_square_scale: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    grad_loss: Tensor | None = None,
) -> Reference:
    """Loss, statistics and the gradient of sum(loss * grad_loss), grad_loss being 1 by default."""
    leaf = logits.detach().cpu().double().requires_grad_()
    class_dim = 1 if leaf.dim() > 1 else 0
    channels_last = leaf.movedim(class_dim, -1)
    classes, row_shape = channels_last.shape[-1], channels_last.shape[:-1]
    x = channels_last.reshape(-1, classes)

    target = target.detach().cpu()
    if target.is_floating_point():
        target = target.movedim(class_dim, -1).reshape(-1, classes)
        kept = torch.ones(len(x), dtype=torch.bool)
    else:
        target = target.reshape(-1)
        kept = target != ignore_index
        target = target.where(kept, 0)
    x = x.where(kept[:, None], 0.0)  # what an ignored row holds, NaN included, reaches nothing

    x = x * logit_scale
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    lse = x.new_zeros(len(x)) if from_log_probs else x.logsumexp(1)

    w = (
        torch.ones(classes, dtype=torch.float64)
        if weight is None
        else weight.detach().cpu().double()
    )
    q = smoothed_target(target, classes, label_smoothing, smooth_over, prior)
    coef = torch.where((q == 0) | (w == 0), 0.0, w * q)  # even where the weight is infinite or NaN

    def reduced(lse: Tensor) -> Tensor:
        rows = weighted_sum(coef, lse[:, None] - x) + lse_square_scale * lse.square()
        if objective == "kl_div":
            rows = rows + weighted_sum(coef, q.log())
        rows = rows.where(kept, 0.0)
        if reduction == "none":
            return rows.reshape(row_shape)
        if reduction == "sum":
            return rows.sum()
        if normalizer is not None:
            return rows.sum() / float(normalizer)
        if target.is_floating_point():
            return rows.mean()
        return rows.sum() / w[target.long()][kept].sum()

    loss = reduced(lse)
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss.detach().cpu().double()
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss, retain_graph=True)
    (grad_fixed_lse,) = torch.autograd.grad(reduced(lse.detach()), leaf, grad_loss)

    unsmoothed = smoothed_target(target, classes, 0.0, "all", None)
    nll = weighted_sum(unsmoothed, lse[:, None] - x).where(kept, 0.0)
    per_row = [stat.detach().reshape(row_shape) for stat in (nll, lse, x.argmax(1))]
    return Reference(loss.detach(), grad, grad - grad_fixed_lse, *per_row)
