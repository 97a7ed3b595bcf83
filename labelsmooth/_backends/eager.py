"""The loss in plain torch operations: the readable reference.

For devices without a kernel and derivatives that no kernel gives: `loss` and `gradient` can be
differentiated. The temporaries are those of a softmax.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._call.checks import can_be_read
from .._call.problem import (
    CommonOptions,
    Inputs,
    Options,
    Outputs,
    accumulate_dtype,
    class_range,
    has_one_class,
)
from .classes import (
    accumulated,
    beta_of_others,
    beta_of_unmasked,
    like,
    log,
    weighted,
    without_padding,
)
from .parts import INVALID, RowPart, combine_ranks, has, invalid_rows, loaded, stored
from .rows import Known, Rows, log_sum_exp, log_sum_exp_from_shift, rows_of, transform_slope
from .target import counting_rows, ignored_rows, prior_of_target

# ---- loss ----------------------------------------------------------------------------------------


def row_loss(rows: Rows, inputs: Inputs, options: Options) -> Tensor:
    loss = weighted(rows.mass, log_sum_exp_from_shift(rows, options))
    of_target, spread = dots(rows, inputs)
    loss = loss - of_target - spread
    if options.lse_square_scale != 0:
        loss = loss + options.lse_square_scale * log_sum_exp(rows, options) ** 2
    return loss


def dots(rows: Rows, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Sums of coef_c (x_c - shift): the target's own, and the others'."""
    difference = rows.x - rows.shift
    dot_of_target = torch.zeros_like(rows.shift)
    if rows.target is not None:
        of_target = difference.gather(1, rows.target.classes)
        coef = rows.target.tau
        if has_one_class(inputs):  # by itself: its logit may be -inf
            coef = rows.target.coef
            others = of_target.masked_fill(rows.target.here, 0.0)
            difference = difference.scatter(1, rows.target.classes, others)
        dot_of_target = weighted(coef, of_target).sum(1, keepdim=True)
    return dot_of_target, weighted(rows.coef, difference).sum(1, keepdim=True)


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
    """What rows count for in the mean, (N,) or (N, S): the row weight, times w_y where one class is
    the target; 0 where that is ignored or no class."""
    weight, row_weight, dtype = inputs.weight, inputs.row_weight, accumulate_dtype(inputs.logits)
    counting = counting_rows(inputs._replace(row_weight=None), options)
    weights = counting.to(dtype)
    if weight is not None and has_one_class(inputs):
        weights = weight.to(dtype)[inputs.target.long().where(counting, 0)].where(counting, 0.0)
    if row_weight is not None:
        weights = weighted(row_weight.to(dtype).where(counting, 0.0), weights)
    return weights


def mean_denominator(total_weight: Tensor) -> Tensor:
    """NaN for 0: a mean of nothing is 0/0, as torch has it, in the gradient too."""
    return total_weight.masked_fill(total_weight == 0, math.nan)


def denominator(inputs: Inputs, options: CommonOptions) -> Tensor | None:
    """None where nothing is divided. (Under torch.func a 0-d float32 by the number 1 is a
    float64.)"""
    if options.reduction != "mean":
        return None
    if inputs.normalizer is not None:
        return inputs.normalizer.to(accumulated(inputs.logits[:0]).dtype)
    return mean_denominator(target_weights(inputs, options).sum())


def divided(total: Tensor, denominator: Tensor | None) -> Tensor:
    return total if denominator is None else total / denominator


def loss(inputs: Inputs, options: Options) -> Tensor:
    """Differentiable in every input."""
    inputs = without_padding(inputs, options)
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
    classes = without_padding(inputs, options)
    rows = rows_of(classes, options)
    loss = _loss(rows, classes, options)
    with torch.no_grad():
        stats = [rows.shift, rows.sum_exp, rows.mass, rows.beta]
        predicted = rows.x.new_empty(0, dtype=torch.int64)
        if options.return_stats:
            stats += [log_sum_exp(rows, options), nll(rows, classes, options)]
            predicted = rows.x.argmax(1) if rows.x.numel() else rows.shift.squeeze(1).long()
        row_stats = torch.stack([stat.flatten() for stat in stats])
        grad_logits = inputs.logits.new_empty(0)
        if with_grad:
            one = torch.ones_like(loss)
            grad_logits = backward(one, row_stats, inputs, options, inplace=options.inplace)
    return Outputs(loss, row_stats, predicted, grad_logits)


def nll(rows: Rows, inputs: Inputs, options: Options) -> Tensor:
    """The unsmoothed, unweighted negative log-likelihood of the rows; 0 where ignored."""
    dot, prob = prob_sums(rows, inputs)
    value = weighted(prob, log_sum_exp_from_shift(rows, options)) - dot
    if rows.target is None:
        return value
    return value.masked_fill(rows.target.ignored, 0.0).masked_fill(rows.target.invalid, math.nan)


def prob_sums(rows: Rows, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Sums of t_c (x_c - shift) and t_c."""
    x, probs = rows.x, inputs.target
    if rows.target is not None:
        x, probs = x.gather(1, rows.target.classes), rows.target.probs
    probs = probs.to(x.dtype)
    dot = weighted(probs, x - rows.shift).sum(1, keepdim=True)
    return dot, probs.sum(1, keepdim=True)


def gradient(grad_loss: Tensor, inputs: Inputs, options: Options) -> Tensor:
    """Of the logits: mass p_c - coef_c; differentiable in its turn."""
    classes = without_padding(inputs, options)
    return _gradient(grad_loss, rows_of(classes, options, clean=True), inputs, options)


def _gradient(grad_loss: Tensor, rows: Rows, inputs: Inputs, options: Options) -> Tensor:
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
    grad = grad.to(inputs.logits.dtype)
    padding = inputs.logits.shape[1] - grad.shape[1]
    return grad if padding == 0 else pad(grad, (0, 0) * (grad.dim() - 2) + (0, padding))


def backward(
    grad_loss: Tensor, row_stats: Tensor, inputs: Inputs, options: Options, *, inplace: bool
) -> Tensor:
    """The gradient of the logits, from the statistics that forward left."""
    known = Known.of(row_stats, inputs.logits)
    rows = rows_of(without_padding(inputs, options), options, clean=True, known=known)
    grad_logits = _gradient(grad_loss, rows, inputs, options)
    return inputs.logits.copy_(grad_logits) if inplace else grad_logits


def scaled_(grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
    """The gradient that forward made times the incoming one, in place; where that is 1, the CPU
    reads and writes nothing."""
    if can_be_read(grad_loss) and grad_loss.item() == 1.0:
        return grad_logits
    return grad_logits.mul_(grad_loss)


# ---- over ranks ----------------------------------------------------------------------------------


def partial(inputs: Inputs, options: Options, *, beta: Tensor | None = None) -> Tensor:
    """What this rank's classes are to the rows, (fields, N); `beta` if known for "unmasked"."""
    inputs = without_padding(inputs, options)
    unknown = options.smooth_over == "unmasked" and beta is None
    known = Known(beta=_zero_of_rows(inputs) if unknown else beta)
    rows = rows_of(inputs, options, known=known)
    part = dict.fromkeys(RowPart._fields, torch.zeros_like(rows.shift))
    part["shift"] = rows.shift.masked_fill(rows.sum_exp == 0, -math.inf)
    part["sum_exp"], part["mass"] = rows.sum_exp, rows.mass
    of_target, spread = dots(rows, inputs)
    part["coef_dot"] = of_target + spread
    if unknown:
        of_spread = weighted(rows.classes.coef, rows.x - rows.shift).sum(1, keepdim=True)
        part["spread_dot"], part["spread_coef"] = of_spread, rows.classes.coef_sum
        part["spread_prior"] = rows.classes.prior_sum
    if options.objective == "kl_div":
        part["entropy"] = negative_entropy(rows, inputs)
    if options.return_stats:
        first = rows.x.argmax(1, keepdim=True)
        part["largest"] = rows.x.gather(1, first)
        part["predicted"] = first + class_range(rows.x.shape[1], options).first
        part["prob_dot"], part["prob"] = prob_sums(rows, inputs)
    if rows.target is not None:
        part["sum_exp"] = part["sum_exp"].masked_fill(rows.target.invalid, INVALID)
    made = (value.expand_as(rows.shift).to(rows.shift.dtype).flatten() for value in part.values())
    return stored(RowPart(*made), *has(options, beta_is_known=beta is not None))


def combine(
    parts: Tensor, inputs: Inputs, options: Options, *, beta: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What forward returns but the gradient, from the parts of all ranks, (ranks, fields, N)."""
    unknown = options.smooth_over == "unmasked" and beta is None
    row = combine_ranks(loaded(parts, *has(options, beta_is_known=beta is not None)))
    invalid = invalid_rows(parts).any(0)
    if unknown:
        beta = beta_of_unmasked(row.spread_prior, options)
    elif beta is None:
        beta = like(options.label_smoothing, row.shift)
        if options.smooth_over == "others":
            beta = beta_of_others(prior_of_target(inputs, options).flatten(), options)
    beta = beta.flatten()
    mass = row.mass + beta * row.spread_coef
    log_sum = -row.shift if options.from_log_probs else row.sum_exp.log()
    lse = torch.zeros_like(mass) if options.from_log_probs else row.shift + log_sum
    loss = weighted(mass, log_sum) - weighted(beta, row.spread_dot) - row.coef_dot + row.entropy
    if options.lse_square_scale != 0:
        loss = loss + options.lse_square_scale * lse**2
    if inputs.row_weight is not None:
        loss = weighted(inputs.row_weight.flatten().to(loss.dtype), loss)
    ignored = ignored_rows(inputs, options).flatten()
    loss = loss.masked_fill(ignored, 0.0).masked_fill(invalid, math.nan)
    stats = [row.shift, row.sum_exp, mass, beta]
    predicted = parts.new_empty(0, dtype=torch.int64)
    of_rows = (inputs.logits.shape[0], *inputs.logits.shape[2:])
    if options.return_stats:
        nll = (weighted(row.prob, log_sum) - row.prob_dot).masked_fill(ignored, 0.0)
        stats += [lse, nll]
        predicted = row.predicted.long().masked_fill(invalid, 0).view(of_rows)
    if options.reduction == "none":
        loss = loss.view(of_rows)
    else:
        loss = divided(loss.sum(), denominator(inputs, options))
    return loss, torch.stack(stats).masked_fill(invalid, math.nan), predicted


def _zero_of_rows(inputs: Inputs) -> Tensor:
    shape = (inputs.logits.shape[0], 1, *inputs.logits.shape[2:])
    return inputs.logits.new_zeros(shape, dtype=accumulate_dtype(inputs.logits))
