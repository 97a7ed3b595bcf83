"""The rows of a call in plain torch operations: what loss and gradient are made of.

The mathematics of csrc/row_math.h, with the same names.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._call.problem import CommonOptions, Inputs, Options, accumulate_dtype, has_one_class


class Classes(NamedTuple):
    """w_c, u_c and v_c, each (C,), with the sums over the classes: of v_c, v_c log u_c and u_c."""

    weight: Tensor
    prior: Tensor
    coef: Tensor
    coef_sum: Tensor
    coef_log: Tensor
    prior_sum: Tensor


class Target(NamedTuple):
    """The classes of each row that its target names, (N, K) or (N, K, S), and their terms; 0 for
    entries that count nothing."""

    classes: Tensor
    probs: Tensor  # t_c
    tau: Tensor  # coef_c - beta v_c
    prob: Tensor  # q_c
    coef: Tensor  # coef_c
    spread_prior: Tensor  # beta u_c
    spread_coef: Tensor  # beta v_c
    ignored: Tensor  # of the row, as is what follows: (N, 1) or (N, 1, S)
    invalid: Tensor


class Rows(NamedTuple):
    """What loss and gradient of the rows are made of; (N, 1) or (N, 1, S), but for x and coef."""

    x: Tensor  # (N, C) or (N, C, S): logits after scale and softcap
    shift: Tensor  # the maximum, or 0 where that is not finite
    sum_exp: Tensor
    classes: Classes  # those that are smoothed over; with "unmasked" of each row
    coef: Tensor  # beta v_c, broadcastable to x, plus kappa w_c t_c for class probabilities t
    beta: Tensor
    kappa: Tensor
    mass: Tensor
    target: Target | None  # None: class probabilities


def accumulated(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _along_classes(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *(1,) * (x.dim() - 2))


def weighted(coef: Tensor, x: Tensor) -> Tensor:
    """coef * x, where a coefficient of 0 contributes 0 even if x is infinite or NaN."""
    return coef * x.masked_fill((coef == 0) & ~x.isfinite(), 0.0)


def _like(number: float | Tensor, tensor: Tensor) -> Tensor:
    """The number, which compiled code may have as a tensor, in the shape and dtype of another."""
    return torch.zeros_like(tensor) + number


def log(x: Tensor) -> Tensor:
    """0 where x is not positive, and so is its derivative: of the coefficient that it multiplies
    nothing is left there."""
    return x.masked_fill(x <= 0, 1.0).log()


def _finite_or_zero(x: Tensor) -> Tensor:
    return x.detach().where(x.isfinite(), 0.0)


def classes_of(
    logits: Tensor,
    weight: Tensor | None,
    prior: Tensor | None,
    label_smoothing: float | Tensor,
    *,
    weight_over_target: bool,
) -> Classes:
    count = logits.shape[1]
    ones = torch.ones(count, dtype=accumulated(logits[:0]).dtype, device=logits.device)
    weight = ones if weight is None else weight.to(ones.dtype)
    prior = ones / count if prior is None else prior.to(ones.dtype)
    over_all = ones if weight_over_target else weight
    # What has a coefficient of 0 and is infinite or NaN counts as 0: the prior where nothing is
    # spread or the class has no weight, the weight where nothing is spread over the class.
    unspread = _like(label_smoothing, ones) == 0
    prior = prior.masked_fill((unspread | (over_all == 0)) & ~prior.isfinite(), 0.0)
    coef = over_all.masked_fill((unspread | (prior == 0)) & ~over_all.isfinite(), 0.0) * prior
    return Classes(weight, prior, coef, coef.sum(), (coef * log(prior)).sum(), prior.sum())


def _classes(inputs: Inputs, options: Options) -> Classes:
    """Along the class axis of the logits; for "unmasked" like the logits, masked ones being 0."""
    vectors = classes_of(
        inputs.logits,
        inputs.weight,
        inputs.prior,
        options.label_smoothing,
        weight_over_target=options.weight_over == "target",
    )
    weight, prior, coef = (_along_classes(vector, inputs.logits) for vector in vectors[:3])
    if options.smooth_over != "unmasked":
        return Classes(weight, prior, coef, *vectors[3:])
    masked = inputs.logits <= torch.finfo(inputs.logits.dtype).min
    coef, prior = coef.masked_fill(masked, 0.0), prior.masked_fill(masked, 0.0)
    sums = (of.sum(1, keepdim=True) for of in (coef, coef * log(prior), prior))
    return Classes(weight, prior, coef, *sums)


def transform_logit(logits: Tensor, options: Options) -> Tensor:
    x = accumulated(logits) * options.logit_scale
    return x if options.softcap is None else options.softcap * torch.tanh(x / options.softcap)


def transform_slope(x: Tensor, options: Options) -> Tensor | float:
    if options.softcap is None:
        return options.logit_scale
    return options.logit_scale * (1 - (x / options.softcap) ** 2)


def ignored_rows(inputs: Inputs, options: CommonOptions) -> Tensor:
    """(N,) or (N, S)."""
    if inputs.target.is_floating_point():
        return torch.zeros_like(inputs.logits[:, 0], dtype=torch.bool)
    ignored = inputs.target == options.ignore_index
    return ignored if has_one_class(inputs) else ignored.all(1)


def counting_rows(inputs: Inputs, options: CommonOptions) -> Tensor:
    """Which rows are neither ignored, nor have a target that is no class, nor a weight of 0; (N,)
    or (N, S)."""
    target, row_weight = inputs.target, inputs.row_weight
    counting = ~ignored_rows(inputs, options)
    if not target.is_floating_point():
        is_class = (target >= 0) & (target < inputs.logits.shape[1])
        valid = is_class | (target == options.ignore_index)
        counting = counting & (valid if has_one_class(inputs) else valid.all(1))
    return counting if row_weight is None else counting & (row_weight != 0)


def without_unused(rows: Tensor, inputs: Inputs, options: CommonOptions) -> Tensor:
    """Logits or hidden states, (N, ...), of which rows that count nothing are 0: what they hold,
    NaN perhaps, is to reach no derivative. But what the derivative in a weight of 0 needs, a loss
    that is finite, stays."""
    if inputs.row_weight is None and inputs.target.is_floating_point():
        return rows
    unused = ignored_rows(inputs, options).unsqueeze(1)
    if inputs.row_weight is not None:
        diverged = (rows.isnan() | (rows == torch.inf)).any(1, keepdim=True)
        unused = unused | (diverged & (inputs.row_weight == 0).unsqueeze(1))
    return rows.masked_fill(unused, 0.0)


def rows_of(inputs: Inputs, options: Options, *, clean: bool = False) -> Rows:
    if clean:
        inputs = inputs._replace(logits=without_unused(inputs.logits, inputs, options))
    x = transform_logit(inputs.logits, options)
    shift = _finite_or_zero(x.amax(1, keepdim=True))
    sum_exp = (x - shift).exp().sum(1, keepdim=True)
    classes = _classes(inputs, options)
    beta = _like(options.label_smoothing, shift)
    kappa = 1 - beta
    if options.smooth_over == "unmasked":  # where all are masked nothing is spread
        nothing = classes.prior_sum == 0
        beta = (beta / classes.prior_sum.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)
    if inputs.target.is_floating_point():
        probs = weighted(kappa * inputs.target.to(x.dtype), classes.weight)
        coef = beta * classes.coef + probs
        mass = coef.sum(1, keepdim=True)
        return Rows(x, shift, sum_exp, classes, coef, beta, kappa, mass, None)

    entries, probs, of_rows = _entries(inputs, options)
    if options.smooth_over == "others":
        u = _at(classes.prior, entries)
        beta = beta / (1 - u).masked_fill(beta == 0, 1.0)
        kappa = kappa - beta * u
    target = _target(inputs, options, classes, entries, probs, beta, kappa, of_rows)
    mass = beta * classes.coef_sum + target.tau.sum(1, keepdim=True)
    coef = beta * classes.coef
    return Rows(x, shift, sum_exp, classes, coef, beta, kappa, mass, target)


def _at(of_classes: Tensor, entries: Tensor) -> Tensor:
    """What a vector along the class axis, or one for each row, has at these classes."""
    if of_classes.dim() == entries.dim():
        return of_classes.gather(1, entries)
    return of_classes.flatten()[entries]


# ---- the classes that a target names -------------------------------------------------------------


def _entries(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Classes and probabilities, (N, K) or (N, K, S), 0 what counts nothing; and which rows are
    ignored or have an entry that is no class."""
    classes = inputs.logits.shape[1]
    named, probs = inputs.target.long(), inputs.target_probs
    if probs is None:
        named = named.unsqueeze(1)
    counts, is_class = named != options.ignore_index, (named >= 0) & (named < classes)
    invalid = (counts & ~is_class).any(1, keepdim=True)
    of_rows = ignored_rows(inputs, options).unsqueeze(1), invalid
    valid = counts & is_class
    ones = torch.ones_like(named, dtype=accumulate_dtype(inputs.logits))
    probs = ones if probs is None else probs.to(ones.dtype)
    if inputs.target_probs is not None and options.objective == "kl_div":
        named, probs = _merged(named.where(valid, classes), probs.where(valid, 0.0))
        valid = named < classes
    return named.where(valid, 0), probs.where(valid, 0.0), of_rows


def _merged(named: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Each class with the sum of its probabilities where it comes first, and 0 where it comes
    again."""
    named, order = named.sort(dim=1)
    first = torch.ones_like(named[:, :1], dtype=torch.bool)
    first = torch.cat([first, named[:, 1:] != named[:, :-1]], 1)
    group = first.long().cumsum(1) - 1
    sums = torch.zeros_like(probs).scatter_add(1, group, probs.gather(1, order))
    return named, sums.gather(1, group).where(first, 0.0)


def _target(
    inputs: Inputs,
    options: Options,
    classes: Classes,
    entries: Tensor,
    probs: Tensor,
    beta: Tensor,
    kappa: Tensor,
    of_rows: tuple[Tensor, Tensor],
) -> Target:
    weight = _at(classes.weight, entries)
    if has_one_class(inputs):  # the weight of class 0 stands where there is no target
        weight = weight.masked_fill(of_rows[0] | of_rows[1], 0.0)
    spread_prior = weighted(beta, _at(classes.prior, entries))
    tau = weighted(kappa * probs, weight)
    if options.smooth_over == "others":
        prob = 1 - _like(options.label_smoothing, spread_prior)
    else:
        prob = spread_prior + kappa * probs
    spread_coef, coef = spread_prior, weighted(prob, weight)
    if options.weight_over == "all":
        spread_coef = weighted(spread_prior, weight)
    elif options.smooth_over == "others":  # nothing is spread over the target
        tau = coef - spread_coef
    else:
        coef = spread_coef + tau
    return Target(entries, probs, tau, prob, coef, spread_prior, spread_coef, *of_rows)


# ---- lse -----------------------------------------------------------------------------------------


def log_sum_exp(rows: Rows, options: Options) -> Tensor:
    return (
        torch.zeros_like(rows.shift) if options.from_log_probs else rows.shift + rows.sum_exp.log()
    )


def log_sum_exp_from_shift(rows: Rows, options: Options) -> Tensor:
    if options.from_log_probs:
        return -rows.shift
    return rows.sum_exp.log()
