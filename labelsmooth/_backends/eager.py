"""The loss in plain torch operations: the readable reference.

The same mathematics as csrc/row_math.h, with the same names, for devices without a kernel and for
derivatives that the kernels do not give: `loss` and `gradient` can be differentiated. No N x C
target is built; the temporaries are those of a softmax.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._call.checks import can_be_read
from .._call.problem import CommonOptions, Inputs, Options, Outputs


class Classes(NamedTuple):
    """w_c, u_c and v_c = w_c u_c, each (C,), with V = sum v_c and sum_c v_c log u_c."""

    weight: Tensor
    prior: Tensor
    coef: Tensor
    coef_sum: Tensor
    coef_log: Tensor


class _Rows(NamedTuple):
    """What loss and gradient of the rows are made of; (N, 1) or (N, 1, S), but for x and coef."""

    x: Tensor  # (N, C) or (N, C, S): logits after scale and softcap
    shift: Tensor  # the maximum, or 0 where that is not finite
    sum_exp: Tensor
    reference: Tensor  # what differences are taken to: x_y, or 0 where that is not finite
    coef: Tensor  # beta v_c, broadcastable to x, plus kappa w_c t_c for class probabilities t
    mass: Tensor
    tau: Tensor
    target_coef: Tensor  # w_y q_y = beta v_y + tau
    target_prior: Tensor
    target_weight: Tensor  # 0 for rows that do not count
    target: Tensor | None  # class indices, 0 for rows that do not count
    ignored: Tensor | None
    invalid: Tensor | None


def _accumulate(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _along_classes(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *(1,) * (x.dim() - 2))


def _weighted(coef: Tensor, x: Tensor) -> Tensor:
    """coef * x, where a coefficient of 0 contributes 0 even if x is infinite or NaN."""
    return coef * x.masked_fill((coef == 0) & ~x.isfinite(), 0.0)


def _x_log_x(x: Tensor) -> Tensor:
    """0 where x is 0, and so is its derivative."""
    return x * x.masked_fill(x <= 0, 1.0).log()


def _like(number: float | Tensor, tensor: Tensor) -> Tensor:
    """The number, which compiled code may have as a tensor, in the shape and dtype of another."""
    return torch.zeros_like(tensor) + number


def _finite_or_zero(x: Tensor) -> Tensor:
    return x.detach().where(x.isfinite(), 0.0)


def classes_of(
    logits: Tensor, weight: Tensor | None, prior: Tensor | None, label_smoothing: float | Tensor
) -> Classes:
    count = logits.shape[1]
    ones = torch.ones(count, dtype=_accumulate(logits[:0]).dtype, device=logits.device)
    weight = ones if weight is None else weight.to(ones.dtype)
    prior = ones / count if prior is None else prior.to(ones.dtype)
    # What has a coefficient of 0 and is infinite or NaN counts as 0: the prior where nothing is
    # spread or the class has no weight, the weight where nothing is spread over the class.
    unspread = _like(label_smoothing, ones) == 0
    prior = prior.masked_fill((unspread | (weight == 0)) & ~prior.isfinite(), 0.0)
    coef = weight.masked_fill((unspread | (prior == 0)) & ~weight.isfinite(), 0.0) * prior
    coef_log = (coef * prior.masked_fill(prior == 0, 1.0).log()).sum()
    return Classes(weight, prior, coef, coef.sum(), coef_log)


def _classes(inputs: Inputs, options: Options) -> Classes:
    return classes_of(inputs.logits, inputs.weight, inputs.prior, options.label_smoothing)


def transform_logit(logits: Tensor, options: Options) -> Tensor:
    x = _accumulate(logits) * options.logit_scale
    return x if options.softcap is None else options.softcap * torch.tanh(x / options.softcap)


def transform_slope(x: Tensor, options: Options) -> Tensor | float:
    if options.softcap is None:
        return options.logit_scale
    return options.logit_scale * (1 - (x / options.softcap) ** 2)


def _rows(inputs: Inputs, classes: Classes, options: Options) -> _Rows:
    x = transform_logit(inputs.logits, options)
    shift = _finite_or_zero(x.amax(1, keepdim=True))
    sum_exp = (x - shift).exp().sum(1, keepdim=True)
    a = options.label_smoothing
    if inputs.target.dtype == inputs.logits.dtype:
        probs = (1 - a) * _accumulate(inputs.target)
        weighted_probs = _weighted(probs, _along_classes(classes.weight, x))
        coef = a * _along_classes(classes.coef, x) + weighted_probs
        mass = coef.sum(1, keepdim=True)
        reference = _finite_or_zero(x[:, :1])
        none = torch.zeros_like(mass)
        none_of = (none, none, none, none, None, None, None)
        return _Rows(x, shift, sum_exp, reference, coef, mass, *none_of)

    target = inputs.target.long().unsqueeze(1)
    ignored = target == options.ignore_index
    invalid = ~ignored & ((target < 0) | (target >= x.shape[1]))
    skipped = ignored | invalid
    target = target.masked_fill(skipped, 0)
    u, w = classes.prior[target], classes.weight[target].masked_fill(skipped, 0.0)
    beta, target_prob = _beta_and_target_prob(u, options)
    tau = _weighted(target_prob - beta * u, w)
    mass = beta * classes.coef_sum + tau
    coef = beta * _along_classes(classes.coef, x)
    reference = _finite_or_zero(x.gather(1, target))
    of_target = (tau, _weighted(target_prob, w), u, w, target, ignored, invalid)
    return _Rows(x, shift, sum_exp, reference, coef, mass, *of_target)


def _beta_and_target_prob(target_prior: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """beta and q_y of each row."""
    a = _like(options.label_smoothing, target_prior)
    if options.smooth_over == "all":
        return a, 1 - a + a * target_prior
    return a / (1 - target_prior).masked_fill(a == 0, 1.0), 1 - a


def log_sum_exp(rows: _Rows, options: Options) -> Tensor:
    return (
        torch.zeros_like(rows.shift) if options.from_log_probs else rows.shift + rows.sum_exp.log()
    )


def log_sum_exp_from_reference(rows: _Rows, options: Options) -> Tensor:
    if options.from_log_probs:
        return -rows.reference
    return (rows.shift - rows.reference) + rows.sum_exp.log()


def row_loss(rows: _Rows, options: Options) -> Tensor:
    lse = log_sum_exp_from_reference(rows, options)
    loss = _weighted(rows.mass, lse)
    difference = rows.x - rows.reference
    if rows.target is not None:  # the target by itself: x_y may be -inf
        loss = loss - _weighted(rows.target_coef, difference.gather(1, rows.target))
        difference = difference.scatter(1, rows.target, 0.0)
    loss = loss - _weighted(rows.coef, difference).sum(1, keepdim=True)
    if options.lse_square_scale != 0:
        loss = loss + options.lse_square_scale * log_sum_exp(rows, options) ** 2
    return loss


def negative_entropy(rows: _Rows, inputs: Inputs, classes: Classes, options: Options) -> Tensor:
    """sum_c w_c q_c log q_c."""
    if rows.target is None:
        a = options.label_smoothing
        q = a * _along_classes(classes.prior, rows.x) + (1 - a) * _accumulate(inputs.target)
        weight = _along_classes(classes.weight, rows.x)
        return _weighted(_x_log_x(q), weight).sum(1, keepdim=True)
    u, w = rows.target_prior, rows.target_weight
    beta, q = _beta_and_target_prob(u, options)
    everywhere = _x_log_x(beta) * classes.coef_sum + beta * classes.coef_log
    return everywhere + _weighted(_x_log_x(q) - _x_log_x(beta * u), w)


def target_weights(inputs: Inputs, options: CommonOptions) -> Tensor:
    """What each row counts for in the mean: w_y, or 1 with class probabilities, 0 where the row is
    ignored or its target is no class; (N,) or (N, S)."""
    logits, target, weight, _, _ = inputs
    if target.is_floating_point():
        return torch.ones_like(_accumulate(logits[:, 0]))
    classes = logits.shape[1]
    counts = (target >= 0) & (target < classes) & (target != options.ignore_index)
    dtype = _accumulate(logits[:0]).dtype
    if weight is None:
        return counts.to(dtype)
    return weight.to(dtype)[target.long().where(counts, 0)].where(counts, 0.0)


def mean_denominator(total_weight: Tensor) -> Tensor:
    """NaN for 0: a mean over no weight at all is 0/0, as torch has it, in the gradient too."""
    return total_weight.masked_fill(total_weight == 0, math.nan)


def denominator(inputs: Inputs, options: CommonOptions) -> Tensor | None:
    """None where nothing is divided. (The number 1 would not do: under torch.func a 0-d float32 by
    a Python number is a float64.)"""
    if options.reduction != "mean":
        return None
    if inputs.normalizer is not None:
        return inputs.normalizer.to(_accumulate(inputs.logits[:0]).dtype)
    return mean_denominator(target_weights(inputs, options).sum())


def divided(total: Tensor, denominator: Tensor | None) -> Tensor:
    return total if denominator is None else total / denominator


def loss(inputs: Inputs, options: Options) -> Tensor:
    """The loss, which autograd can differentiate in every input."""
    classes = _classes(inputs, options)
    return _loss(_rows(inputs, classes, options), inputs, classes, options)


def _loss(rows: _Rows, inputs: Inputs, classes: Classes, options: Options) -> Tensor:
    loss = row_loss(rows, options)
    if options.objective == "kl_div":
        loss = loss + negative_entropy(rows, inputs, classes, options)
    if rows.ignored is not None and rows.invalid is not None:
        # A product, so that NaN reaches the derivatives too.
        factor = torch.ones_like(loss).masked_fill(rows.invalid, math.nan)
        loss = loss.masked_fill(rows.ignored, 0.0) * factor
    loss = loss.squeeze(1)
    if options.reduction == "none":
        return loss
    return divided(loss.sum(), denominator(inputs, options))


def forward(inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
    """Loss, statistics and, with_grad, the gradient of the loss for an incoming gradient of 1."""
    classes = _classes(inputs, options)
    rows = _rows(inputs, classes, options)
    loss = _loss(rows, inputs, classes, options)
    with torch.no_grad():
        stats = [rows.shift, rows.sum_exp]
        predicted = rows.x.new_empty(0, dtype=torch.int64)
        if options.return_stats:
            stats += [log_sum_exp(rows, options), nll(rows, inputs, options)]
            predicted = rows.x.argmax(1) if rows.x.numel() else rows.shift.squeeze(1).long()
        row_stats = torch.stack([stat.flatten() for stat in stats])
        grad_logits = inputs.logits.new_empty(0)
        if with_grad:
            one = torch.ones_like(loss)
            grad_logits = backward(one, row_stats, inputs, options, inplace=options.inplace)
    return Outputs(loss, row_stats, predicted, grad_logits)


def nll(rows: _Rows, inputs: Inputs, options: Options) -> Tensor:
    """The unsmoothed, unweighted negative log-likelihood of the rows; 0 where ignored."""
    lse = log_sum_exp_from_reference(rows, options)
    if rows.target is None or rows.ignored is None or rows.invalid is None:
        difference = lse - (rows.x - rows.reference)
        return _weighted(_accumulate(inputs.target), difference).sum(1, keepdim=True)
    value = lse - (rows.x.gather(1, rows.target) - rows.reference)
    return value.masked_fill(rows.ignored, 0.0).masked_fill(rows.invalid, math.nan)


def gradient(grad_loss: Tensor, inputs: Inputs, options: Options) -> Tensor:
    """The gradient of the logits: mass p_c - beta v_c - tau [c = y]; differentiable in its turn."""
    classes = _classes(inputs, options)
    rows = _rows(inputs, classes, options)
    scale = grad_loss if options.reduction != "none" else grad_loss.unsqueeze(1)
    scale = divided(scale, denominator(inputs, options))
    mass = rows.mass
    if options.lse_square_scale != 0:
        mass = mass + 2 * options.lse_square_scale * log_sum_exp(rows, options)
    grad = -rows.coef
    if not options.from_log_probs:
        grad = mass * ((rows.x - rows.shift).exp() / rows.sum_exp) + grad
    grad = grad.expand_as(rows.x)
    if rows.target is not None:
        grad = grad.scatter_add(1, rows.target, -rows.tau)
    grad = scale * grad * transform_slope(rows.x, options)
    if rows.ignored is not None and rows.invalid is not None:
        grad = grad.masked_fill(rows.ignored, 0.0).masked_fill(rows.invalid, math.nan)
    return grad.to(inputs.logits.dtype)


def backward(
    grad_loss: Tensor, row_stats: Tensor, inputs: Inputs, options: Options, *, inplace: bool
) -> Tensor:
    """The gradient of the logits; the statistics are taken anew."""
    grad_logits = gradient(grad_loss, inputs, options)
    return inputs.logits.copy_(grad_logits) if inplace else grad_logits


def scaled_(grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
    """The gradient that forward made times the incoming one, in place; where that is 1, as nearly
    always, the CPU reads and writes nothing."""
    if can_be_read(grad_loss) and grad_loss.item() == 1.0:
        return grad_logits
    return grad_logits.mul_(grad_loss)
