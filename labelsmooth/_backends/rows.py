"""The rows of a call in plain torch operations: what loss and gradient are made of.

The mathematics of csrc/row_math.h, with the same names.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._call.problem import Inputs, Options
from .classes import (
    Classes,
    accumulated,
    beta_of_others,
    beta_of_unmasked,
    classes_in_rows,
    finite_or_zero,
    like,
    weighted,
)
from .target import Target, entries_of, prior_of_target, target_of, without_unused


class Rows(NamedTuple):
    """(N, 1) or (N, 1, S), but for x and coef."""

    x: Tensor  # (N, C) or (N, C, S): logits after scale and softcap
    shift: Tensor  # the maximum, or 0 where that is not finite
    sum_exp: Tensor
    classes: Classes  # those that are smoothed over; with "unmasked" of each row
    coef: Tensor  # beta v_c, broadcastable to x, plus kappa w_c t_c for class probabilities t
    beta: Tensor
    kappa: Tensor
    mass: Tensor
    target: Target | None  # None: class probabilities


def transform_logit(logits: Tensor, options: Options) -> Tensor:
    x = accumulated(logits) * options.logit_scale
    return x if options.softcap is None else options.softcap * torch.tanh(x / options.softcap)


def transform_slope(x: Tensor, options: Options) -> Tensor | float:
    if options.softcap is None:
        return options.logit_scale
    return options.logit_scale * (1 - (x / options.softcap) ** 2)


class Known(NamedTuple):
    """Of rows before they are read, each (N, 1) or (N, 1, S), or None."""

    shift: Tensor | None = None
    sum_exp: Tensor | None = None
    mass: Tensor | None = None
    beta: Tensor | None = None

    @staticmethod
    def of(row_stats: Tensor, logits: Tensor) -> "Known":
        """What forward left."""
        shape = (logits.shape[0], 1, *logits.shape[2:])
        return Known(*(stat.view(shape) for stat in row_stats[:4]))


def rows_of(
    inputs: Inputs, options: Options, *, clean: bool = False, known: Known | None = None
) -> Rows:
    if clean:
        inputs = inputs._replace(logits=without_unused(inputs.logits, inputs, options))
    x = transform_logit(inputs.logits, options)
    known = known or Known()
    if known.shift is None or known.sum_exp is None:
        shift = finite_or_zero(x.amax(1, keepdim=True))
        sum_exp = (x - shift).exp().sum(1, keepdim=True)
    else:
        shift, sum_exp = known.shift, known.sum_exp
    classes = classes_in_rows(inputs, options)
    beta = like(options.label_smoothing, shift)
    kappa = 1 - beta
    if options.smooth_over == "unmasked":
        beta = beta_of_unmasked(classes.prior_sum, options) if known.beta is None else known.beta
    if inputs.target.is_floating_point():
        probs = weighted(kappa * inputs.target.to(x.dtype), classes.weight)
        coef = beta * classes.coef + probs
        mass = coef.sum(1, keepdim=True) if known.mass is None else known.mass
        return Rows(x, shift, sum_exp, classes, coef, beta, kappa, mass, None)

    entries = entries_of(inputs, options)
    if options.smooth_over == "others":
        u = prior_of_target(inputs, options)
        beta = beta_of_others(u, options)
        kappa = kappa - beta * u
    target = target_of(inputs, options, classes, entries, beta, kappa)
    if known.mass is not None:
        mass = known.mass
    else:
        mass = beta * classes.coef_sum + target.tau.sum(1, keepdim=True)
    coef = beta * classes.coef
    return Rows(x, shift, sum_exp, classes, coef, beta, kappa, mass, target)


# ---- lse -----------------------------------------------------------------------------------------


def log_sum_exp(rows: Rows, options: Options) -> Tensor:
    return (
        torch.zeros_like(rows.shift) if options.from_log_probs else rows.shift + rows.sum_exp.log()
    )


def log_sum_exp_from_shift(rows: Rows, options: Options) -> Tensor:
    if options.from_log_probs:
        return -rows.shift
    return rows.sum_exp.log()
