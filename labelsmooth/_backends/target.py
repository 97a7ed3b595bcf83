"""The target of a call in plain torch operations: the rows that count, and the classes that it
names.

The mathematics of csrc/row_math.h, with the same names.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._call.problem import (
    CommonOptions,
    Inputs,
    Options,
    accumulate_dtype,
    class_range,
    has_one_class,
)
from .classes import Classes, like, weighted

# ---- rows that count -----------------------------------------------------------------------------


def ignored_rows(inputs: Inputs, options: CommonOptions) -> Tensor:
    """(N,) or (N, S)."""
    if inputs.target.is_floating_point():
        return torch.zeros_like(inputs.logits[:, :1].sum(1), dtype=torch.bool)
    ignored = inputs.target == options.ignore_index
    return ignored if has_one_class(inputs) else ignored.all(1)


def counting_rows(inputs: Inputs, options: CommonOptions) -> Tensor:
    """Not those that are ignored, of weight 0, or whose target is no class; (N,) or (N, S)."""
    target, row_weight = inputs.target, inputs.row_weight
    counting = ~ignored_rows(inputs, options)
    if not target.is_floating_point():
        is_class = (target >= 0) & (target < class_range(inputs.logits.shape[1], options).all)
        if not has_one_class(inputs):
            is_class = (is_class | (target == options.ignore_index)).all(1)
        counting = counting & is_class
    return counting if row_weight is None else counting & (row_weight != 0)


def without_unused(rows: Tensor, inputs: Inputs, options: CommonOptions) -> Tensor:
    """Logits or hidden states, (N, ...), with 0 in rows that count nothing: NaN in them is to reach
    no derivative. But a finite loss, which the derivative in a weight of 0 needs, stays."""
    if inputs.row_weight is None and inputs.target.is_floating_point():
        return rows
    unused = ignored_rows(inputs, options).unsqueeze(1)
    if inputs.row_weight is not None:
        diverged = (rows.isnan() | (rows == torch.inf)).any(1, keepdim=True)
        unused = unused | (diverged & (inputs.row_weight == 0).unsqueeze(1))
    return rows.masked_fill(unused, 0.0)


# ---- the classes that a target names -------------------------------------------------------------


class Entries(NamedTuple):
    classes: Tensor  # (N, K) or (N, K, S), counted from the first column on; 0 what is not here
    probs: Tensor  # 0 what is not here
    here: Tensor  # whether the entry counts, and its class is one of the columns
    ignored: Tensor  # of the row, as is what follows
    invalid: Tensor  # an entry is no class


def _at(of_classes: Tensor, entries: Tensor) -> Tensor:
    """What a vector along the class axis, or one for each row, has at these classes."""
    if of_classes.dim() == entries.dim():
        return of_classes.gather(1, entries)
    return of_classes.flatten()[entries]


def prior_of_target(inputs: Inputs, options: Options) -> Tensor:
    """u_y where the target is one class, whatever columns these are."""
    target = inputs.target.long().unsqueeze(1)
    classes = class_range(inputs.logits.shape[1], options)
    valid = (target != options.ignore_index) & (target >= 0) & (target < classes.all)
    dtype = accumulate_dtype(inputs.logits)
    if inputs.prior is None:
        return torch.ones_like(target, dtype=dtype) / classes.all
    u = inputs.prior.to(dtype)[target.where(valid, 0)]
    return u.masked_fill(~u.isfinite(), 0.0)


def entries_of(inputs: Inputs, options: Options) -> Entries:
    first, count, classes = class_range(inputs.logits.shape[1], options)
    named, probs = inputs.target.long(), inputs.target_probs
    if probs is None:
        named = named.unsqueeze(1)
    counts, is_class = named != options.ignore_index, (named >= 0) & (named < classes)
    invalid = (counts & ~is_class).any(1, keepdim=True)
    valid = counts & is_class
    ones = torch.ones_like(named, dtype=accumulate_dtype(inputs.logits))
    probs = ones if probs is None else probs.to(ones.dtype)
    if inputs.target_probs is not None and options.objective == "kl_div":
        named, probs = _merged(named.where(valid, classes), probs.where(valid, 0.0))
        valid = named < classes
    here = valid & (named >= first) & (named < first + count)
    ignored = ignored_rows(inputs, options).unsqueeze(1)
    return Entries((named - first).where(here, 0), probs.where(here, 0.0), here, ignored, invalid)


def _merged(named: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
    """Each class's sum of probabilities where it comes first, and 0 where it comes again."""
    named, order = named.sort(dim=1)
    first = torch.ones_like(named[:, :1], dtype=torch.bool)
    first = torch.cat([first, named[:, 1:] != named[:, :-1]], 1)
    group = first.long().cumsum(1) - 1
    sums = torch.zeros_like(probs).scatter_add(1, group, probs.gather(1, order))
    return named, sums.gather(1, group).where(first, 0.0)


class Target(NamedTuple):
    """The classes that a row's target names, (N, K) or (N, K, S), and their terms; 0 for entries
    that count nothing or are of other columns."""

    classes: Tensor
    probs: Tensor  # t_c
    here: Tensor  # whether it is neither
    tau: Tensor  # coef_c - beta v_c
    prob: Tensor  # q_c
    coef: Tensor  # coef_c
    spread_prior: Tensor  # beta u_c
    spread_coef: Tensor  # beta v_c
    ignored: Tensor  # of the row, as is what follows: (N, 1) or (N, 1, S)
    invalid: Tensor


def target_of(
    inputs: Inputs,
    options: Options,
    classes: Classes,
    entries: Entries,
    beta: Tensor,
    kappa: Tensor,
) -> Target:
    probs, weight = entries.probs, _at(classes.weight, entries.classes)
    spread_prior = weighted(beta, _at(classes.prior, entries.classes))
    if has_one_class(inputs):  # what class 0 has stands where there is no target
        weight = weight.masked_fill(~entries.here, 0.0)
        spread_prior = spread_prior.masked_fill(~entries.here, 0.0)
    tau = weighted(kappa * probs, weight)
    if options.smooth_over == "others":
        prob = 1 - like(options.label_smoothing, spread_prior)
    else:
        prob = spread_prior + kappa * probs
    spread_coef, coef = spread_prior, weighted(prob, weight)
    if options.weight_over == "all":
        spread_coef = weighted(spread_prior, weight)
    elif options.smooth_over == "others":  # nothing is spread over the target
        tau = coef - spread_coef
    else:
        coef = spread_coef + tau
    return Target(
        *(entries.classes, probs, entries.here, tau, prob, coef, spread_prior, spread_coef),
        *(entries.ignored, entries.invalid),
    )
