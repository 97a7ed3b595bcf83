"""The loss in plain torch operations: the readable reference.

For devices without a kernel and for derivatives that the kernels do not give: `loss` and `gradient`
can be differentiated. No N x C target is built; the temporaries are those of a softmax.
"""

import math

import torch
from torch import Tensor

from .._call.checks import can_be_read
from .._call.problem import (
    CommonOptions,
    Inputs,
    Options,
    Outputs,
    accumulate_dtype,
    has_one_class,
)
from .rows import (
    Rows,
    accumulated,
    counting_rows,
    log,
    log_sum_exp,
    log_sum_exp_from_shift,
    rows_of,
    transform_slope,
    weighted,
)

# ---- loss ----------------------------------------------------------------------------------------


def row_loss(rows: Rows, inputs: Inputs, options: Options) -> Tensor:
    lse = log_sum_exp_from_shift(rows, options)
    loss = weighted(rows.mass, lse)
    difference = rows.x - rows.shift
    if rows.target is not None:
        of_target = difference.gather(1, rows.target.classes)
        coef = rows.target.tau
        if has_one_class(inputs):  # by itself: its logit may be -inf
            coef = rows.target.coef
            difference = difference.scatter(1, rows.target.classes, 0.0)
        loss = loss - weighted(coef, of_target).sum(1, keepdim=True)
    loss = loss - weighted(rows.coef, difference).sum(1, keepdim=True)
    if options.lse_square_scale != 0:
        loss = loss + options.lse_square_scale * log_sum_exp(rows, options) ** 2
    return loss


def negative_entropy(rows: Rows, inputs: Inputs) -> Tensor:
    """sum_c coef_c log q_c."""
    classes, target = rows.classes, rows.target
    if target is None:
        q = rows.beta * classes.prior + rows.kappa * inputs.target.to(rows.x.dtype)
        return weighted(rows.coef, log(q)).sum(1, keepdim=True)
    everywhere = rows.beta * (log(rows.beta) * classes.coef_sum + classes.coef_log)
    of_target = weighted(target.coef, log(target.prob))
    instead = weighted(target.spread_coef, log(target.spread_prior))
    return everywhere + (of_target - instead).sum(1, keepdim=True)


def target_weights(inputs: Inputs, options: CommonOptions) -> Tensor:
    """What each row counts for in the mean, (N,) or (N, S): its row weight, times w_y where one
    class is the target; 0 where it is ignored or what it names is no class."""
    weight, row_weight, dtype = inputs.weight, inputs.row_weight, accumulate_dtype(inputs.logits)
    counting = counting_rows(inputs._replace(row_weight=None), options)
    weights = counting.to(dtype)
    if weight is not None and has_one_class(inputs):
        weights = weight.to(dtype)[inputs.target.long().where(counting, 0)].where(counting, 0.0)
    if row_weight is not None:
        weights = weighted(row_weight.to(dtype).where(counting, 0.0), weights)
    return weights


def mean_denominator(total_weight: Tensor) -> Tensor:
    """NaN for 0: a mean over no weight at all is 0/0, as torch has it, in the gradient too."""
    return total_weight.masked_fill(total_weight == 0, math.nan)


def denominator(inputs: Inputs, options: CommonOptions) -> Tensor | None:
    """None where nothing is divided. (The number 1 would not do: under torch.func a 0-d float32 by
    a Python number is a float64.)"""
    if options.reduction != "mean":
        return None
    if inputs.normalizer is not None:
        return inputs.normalizer.to(accumulated(inputs.logits[:0]).dtype)
    return mean_denominator(target_weights(inputs, options).sum())


def divided(total: Tensor, denominator: Tensor | None) -> Tensor:
    return total if denominator is None else total / denominator


def loss(inputs: Inputs, options: Options) -> Tensor:
    """The loss, which autograd can differentiate in every input."""
    return _loss(rows_of(inputs, options, clean=True), inputs, options)


def _loss(rows: Rows, inputs: Inputs, options: Options) -> Tensor:
    loss = row_loss(rows, inputs, options)
    if options.objective == "kl_div":
        loss = loss + negative_entropy(rows, inputs)
    if inputs.row_weight is not None:
        loss = weighted(_row_weights(inputs.row_weight, rows), loss)
    if rows.target is not None:
        # A product, so that NaN reaches the derivatives too.
        factor = torch.ones_like(loss).masked_fill(rows.target.invalid, math.nan)
        loss = loss.masked_fill(rows.target.ignored, 0.0) * factor
    loss = loss.squeeze(1)
    if options.reduction == "none":
        return loss
    return divided(loss.sum(), denominator(inputs, options))


def _row_weights(row_weight: Tensor, rows: Rows) -> Tensor:
    """0 where the row is ignored: there the weight may be infinite."""
    row_weight = row_weight.to(rows.x.dtype).unsqueeze(1)
    return row_weight if rows.target is None else row_weight.masked_fill(rows.target.ignored, 0.0)


def forward(inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
    """Loss, statistics and, with_grad, the gradient of the loss for an incoming gradient of 1."""
    rows = rows_of(inputs, options)
    loss = _loss(rows, inputs, options)
    with torch.no_grad():
        stats = [rows.shift, rows.sum_exp, rows.mass, rows.beta]
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


def nll(rows: Rows, inputs: Inputs, options: Options) -> Tensor:
    """The unsmoothed, unweighted negative log-likelihood of the rows; 0 where ignored."""
    lse = log_sum_exp_from_shift(rows, options)
    if rows.target is None:
        probs = inputs.target.to(rows.x.dtype)
        return weighted(probs, lse - (rows.x - rows.shift)).sum(1, keepdim=True)
    difference = lse - (rows.x.gather(1, rows.target.classes) - rows.shift)
    value = weighted(rows.target.probs, difference).sum(1, keepdim=True)
    return value.masked_fill(rows.target.ignored, 0.0).masked_fill(rows.target.invalid, math.nan)


def gradient(grad_loss: Tensor, inputs: Inputs, options: Options) -> Tensor:
    """The gradient of the logits: mass p_c - coef_c; differentiable in its turn."""
    rows = rows_of(inputs, options, clean=True)
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
        grad = grad.scatter_add(1, rows.target.classes, -rows.target.tau)
    grad = scale * grad * transform_slope(rows.x, options)
    if inputs.row_weight is not None:
        grad = weighted(_row_weights(inputs.row_weight, rows), grad)
    if rows.target is not None:
        grad = grad.masked_fill(rows.target.ignored, 0.0)
        grad = grad.masked_fill(rows.target.invalid, math.nan)
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
