"""The loss as its definition reads, densely and in float64: the truth that tests compare with.

It builds everything that the library avoids (the smoothed target q, the log-probabilities, their
product, all N x C) and takes gradients by autograd. It shares no code with labelsmooth.

    loss_i = r_i (sum_c coef_ic (lse_i - x_ic)  [+ sum_c coef_ic log q_ic]  + L lse_i^2)
    coef = w q, or with weight_over="target" w times the target's part of q alone
    x = k tanh(s logits / k),   lse_i = log sum_c exp(x_ic)   (0 for rows of log-probabilities)

A term whose coefficient is 0 is 0, whatever it multiplies. A truly infinite term is +inf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Target = Tensor | tuple[Tensor, Tensor]


class Reference(NamedTuple):
    """All float64; `loss` reduced, the statistics one value a row, shaped as class indices."""

    loss: Tensor
    grad_logits: Tensor
    grad_probs: Tensor  # the part of the gradient that a row's probabilities make, through lse
    nll: Tensor
    lse: Tensor
    predicted: Tensor


def unsmoothed_target(target: Target, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """t, (N, C), of (N,) class indices, (N, C) class probabilities, or (N, K) classes and their
    probabilities; and which rows have a target."""
    if isinstance(target, tuple):
        of, probs = target
        counts = of != ignore_index
        t = torch.zeros(len(of), classes, dtype=torch.float64)
        t.scatter_add_(1, of.long().where(counts, 0), probs.double().where(counts, 0.0))
        return t, counts.any(1)
    if target.is_floating_point():
        return target.double(), torch.ones(len(target), dtype=torch.bool)
    kept = target != ignore_index
    onehot = torch.nn.functional.one_hot(target.long().where(kept, 0), classes)
    return onehot.double(), kept


def smoothed_target(
    t: Tensor, smoothing: float, smooth_over: str, prior: Tensor | None, masked: Tensor
) -> tuple[Tensor, Tensor]:
    """The two parts of q, both (N, C): what is spread, and what stays with the target."""
    classes = t.shape[1]
    u = (
        torch.full((classes,), 1 / classes, dtype=torch.float64)
        if prior is None
        else prior.double()
    )
    if smoothing == 0:  # whatever the prior holds
        return torch.zeros_like(t), t
    if smooth_over == "all":
        return smoothing * u.expand_as(t), (1 - smoothing) * t
    if smooth_over == "unmasked":
        u = u.expand_as(t).masked_fill(masked, 0.0)
        return smoothing * (u / u.sum(1, keepdim=True)).nan_to_num(0.0), (1 - smoothing) * t
    assert t.count_nonzero() <= len(t), "the others of several classes are not defined"
    # The prior without the target's class, scaled up to sum to 1 again.
    others = u * (1 - t)
    return smoothing * others / others.sum(1, keepdim=True), (1 - smoothing) * t


def weighted_sum(coefficient: Tensor, value: Tensor) -> Tensor:
    """sum_c coefficient * value; a coefficient of 0 makes the term 0 even beside an infinity."""
    return torch.where(coefficient == 0, 0.0, coefficient * value).sum(1)


def on_the_cpu(function: Callable[..., Reference]) -> Callable[..., Reference]:
    """Wherever its tensors are, and torch makes new ones; what comes of it goes to the logits."""

    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        return value.detach().cpu() if isinstance(value, Tensor) else value

    @functools.wraps(function)
    def there(logits: Tensor, *args: Any, **options: Any) -> Reference:
        with torch.device("cpu"):
            options = {name: moved(value) for name, value in options.items()}
            made = function(moved(logits), *map(moved, args), **options)
        return Reference(*(tensor.to(logits.device) for tensor in made))

    return there


@on_the_cpu
def reference(
    logits: Tensor,
    target: Target,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    smooth_over: str = "all",
    weight_over: str = "all",
    prior: Tensor | None = None,
    objective: str = "cross_entropy",
    from_log_probs: bool = False,
    lse_square_scale: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: float | Tensor | None = None,
    row_weight: Tensor | None = None,
    grad_loss: Tensor | None = None,
) -> Reference:
    """Loss, statistics and the gradient of sum(loss * grad_loss), grad_loss being 1 by default."""
    leaf = logits.double().requires_grad_()
    class_dim = 1 if leaf.dim() > 1 else 0
    channels_last = leaf.movedim(class_dim, -1)
    classes, row_shape = channels_last.shape[-1], channels_last.shape[:-1]
    x = channels_last.reshape(-1, classes)

    lowest = torch.finfo(logits.dtype).min
    masked = x.detach() <= lowest

    def in_rows(of: Tensor, last: int | None) -> Tensor:
        """With the axis beside the rows, if there is one, as the last."""
        return of.reshape(-1) if last is None else of.movedim(class_dim, -1).reshape(-1, last)

    indices: Tensor | None = None
    if isinstance(target, tuple):
        count = target[0].shape[class_dim]
        t, kept = unsmoothed_target(
            (in_rows(target[0], count), in_rows(target[1], count)), classes, ignore_index
        )
    elif target.is_floating_point():
        t, kept = unsmoothed_target(in_rows(target, classes), classes, ignore_index)
    else:
        indices = in_rows(target, None).long()
        t, kept = unsmoothed_target(indices, classes, ignore_index)
    r = torch.ones(len(x), dtype=torch.float64)
    if row_weight is not None:
        r = in_rows(row_weight, None).double()
    x = x.where(kept[:, None], 0.0)  # what an ignored row holds, NaN included, reaches nothing

    x = x * logit_scale
    if softcap is not None:
        x = softcap * torch.tanh(x / softcap)
    lse = x.new_zeros(len(x)) if from_log_probs else x.logsumexp(1)

    w = torch.ones(classes, dtype=torch.float64) if weight is None else weight.double()
    spread, own = smoothed_target(t, label_smoothing, smooth_over, prior, masked)
    q = spread + own
    if weight_over == "target":
        coef = spread + torch.where((own == 0) | (w == 0), 0.0, w * own)
    else:
        coef = torch.where((q == 0) | (w == 0), 0.0, w * q)  # even if the weight is infinite or NaN

    def reduced(lse: Tensor) -> Tensor:
        # As is what one of weight 0 holds.
        inside, lse = x.where((r != 0)[:, None], 0.0), lse.where(r != 0, 0.0)
        rows = weighted_sum(coef, lse[:, None] - inside) + lse_square_scale * lse.square()
        if objective == "kl_div":
            rows = rows + weighted_sum(coef, q.log())
        rows = r * rows.where(kept, 0.0)
        if reduction == "none":
            return rows.reshape(row_shape)
        if reduction == "sum":
            return rows.sum()
        if normalizer is not None:
            return rows.sum() / float(normalizer)
        if indices is None:
            return rows.sum() / r[kept].sum()
        return rows.sum() / (w[indices.where(kept, 0)] * r)[kept].sum()

    loss = reduced(lse)
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss.double()
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss, retain_graph=True)
    (grad_fixed_lse,) = torch.autograd.grad(reduced(lse.detach()), leaf, grad_loss)

    nll = weighted_sum(t, lse[:, None] - x).where(kept, 0.0)
    per_row = [stat.detach().reshape(row_shape) for stat in (nll, lse, x.argmax(1))]
    return Reference(loss.detach(), grad, grad - grad_fixed_lse, *per_row)
