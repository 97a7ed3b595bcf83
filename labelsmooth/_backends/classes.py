"""The classes of a call in plain torch operations: weights, priors, and what is spread over them.

The mathematics of csrc/row_math.h, with the same names.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._call.problem import ClassRange, CommonOptions, Inputs, Options, class_range

# ---- terms that may be 0 times what is not finite ------------------------------------------------


def accumulated(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _along_classes(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *(1,) * (x.dim() - 2))


def weighted(coef: Tensor, x: Tensor) -> Tensor:
    """coef * x, where a coefficient of 0 contributes 0 even if x is infinite or NaN."""
    return coef * x.masked_fill((coef == 0) & ~x.isfinite(), 0.0)


def like(number: float | Tensor, tensor: Tensor) -> Tensor:
    """The number, in compiled code a tensor, in the shape and dtype of another."""
    return torch.zeros_like(tensor) + number


def log(x: Tensor) -> Tensor:
    """0 where x is not positive, and so is its derivative."""
    return x.masked_fill(x <= 0, 1.0).log()


def finite_or_zero(x: Tensor) -> Tensor:
    return x.detach().where(x.isfinite(), 0.0)


# ---- classes -------------------------------------------------------------------------------------


class Classes(NamedTuple):
    """w_c, u_c and v_c, each (C,), with the sums over the classes: of v_c, v_c log u_c and u_c."""

    weight: Tensor
    prior: Tensor
    coef: Tensor
    coef_sum: Tensor
    coef_log: Tensor
    prior_sum: Tensor


def classes_of(
    logits: Tensor,
    classes: ClassRange,
    weight: Tensor | None,
    prior: Tensor | None,
    label_smoothing: float | Tensor,
    *,
    weight_over_target: bool,
) -> Classes:
    """Those of the logits' columns."""
    here = slice(classes.first, classes.first + classes.count)
    ones = torch.ones(classes.count, dtype=accumulated(logits[:0]).dtype, device=logits.device)
    weight = ones if weight is None else weight[here].to(ones.dtype)
    prior = ones / classes.all if prior is None else prior[here].to(ones.dtype)
    over_all = ones if weight_over_target else weight
    # What is infinite or NaN beside a coefficient of 0 counts as 0: the prior where nothing is
    # spread or the class has no weight, the weight where nothing is spread over the class.
    unspread = like(label_smoothing, ones) == 0
    prior = prior.masked_fill((unspread | (over_all == 0)) & ~prior.isfinite(), 0.0)
    coef = over_all.masked_fill((unspread | (prior == 0)) & ~over_all.isfinite(), 0.0) * prior
    return Classes(weight, prior, coef, coef.sum(), (coef * log(prior)).sum(), prior.sum())


def classes_in_rows(inputs: Inputs, options: Options) -> Classes:
    """Along the class axis of the logits; for "unmasked" like the logits, masked ones being 0."""
    vectors = classes_of(
        inputs.logits,
        class_range(inputs.logits.shape[1], options),
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


def without_padding(inputs: Inputs, options: CommonOptions) -> Inputs:
    """Of the columns that are classes."""
    columns, count = inputs.logits.shape[1], class_range(inputs.logits.shape[1], options).count
    if count == columns:
        return inputs
    target = inputs.target
    if target.is_floating_point():
        target = target.narrow(1, 0, count)
    return inputs._replace(logits=inputs.logits.narrow(1, 0, count), target=target)


def beta_of_others(target_prior: Tensor, options: CommonOptions) -> Tensor:
    beta = like(options.label_smoothing, target_prior)
    return beta / (1 - target_prior).masked_fill(beta == 0, 1.0)


def beta_of_unmasked(prior_sum: Tensor, options: CommonOptions) -> Tensor:
    """Where all are masked nothing is spread."""
    nothing = prior_sum == 0
    beta = like(options.label_smoothing, prior_sum)
    return (beta / prior_sum.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)


def unmasked_prior(inputs: Inputs, options: Options) -> Tensor:
    """The sum of u_c over the unmasked classes of each row, (1, N)."""
    return classes_in_rows(without_padding(inputs, options), options).prior_sum.view(1, -1)
