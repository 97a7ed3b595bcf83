"""A row in parts, in plain torch operations: what a rank knows of rows from its classes, and the
rows from all ranks' parts.

The mathematics of csrc/row_part.h, with the same names.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._call.problem import Inputs, Options, accumulate_dtype
from .classes import finite_or_zero, weighted


class RowPart(NamedTuple):
    """(N,) each, or (ranks, N). Sums are taken to the part's own finite_or_zero(shift); what a call
    does not have is 0."""

    shift: Tensor
    sum_exp: Tensor
    coef_dot: Tensor
    mass: Tensor
    spread_dot: Tensor
    spread_coef: Tensor
    spread_prior: Tensor
    entropy: Tensor
    largest: Tensor
    predicted: Tensor
    prob_dot: Tensor
    prob: Tensor


def _fields(over_unmasked: bool, kl_div: bool, with_stats: bool) -> list[str]:
    """Those that a call has, in the order in which they are sent."""
    names = list(RowPart._fields)
    return [
        *names[:4],
        *(names[4:7] if over_unmasked else []),
        *(names[7:8] if kl_div else []),
        *(names[8:] if with_stats else []),
    ]


def field_count(over_unmasked: bool, kl_div: bool, with_stats: bool) -> int:
    return len(_fields(over_unmasked, kl_div, with_stats))


def has(options: Options, *, beta_is_known: bool = False) -> tuple[bool, bool, bool]:
    """Which fields a call has."""
    unknown = options.smooth_over == "unmasked" and not beta_is_known
    return unknown, options.objective == "kl_div", options.return_stats


def stored(part: RowPart, *which: bool) -> Tensor:
    """(fields, N)."""
    return torch.stack([getattr(part, name) for name in _fields(*which)])


def loaded(parts: Tensor, *which: bool) -> RowPart:
    """Of (ranks, fields, N)."""
    names = _fields(*which)
    zero = torch.zeros_like(parts[:, 0])
    return RowPart(*(parts[:, names.index(n)] if n in names else zero for n in RowPart._fields))


INVALID = -1.0  # as a sum of exponentials: the target of the row is no class


def invalid_rows(parts: Tensor) -> Tensor:
    """Which, on which rank: (ranks, N)."""
    return parts[:, 1] == INVALID


def empty_part(inputs: Inputs, options: Options, *, beta_is_known: bool = False) -> Tensor:
    """What a rank without classes knows of rows, (fields, N)."""
    logits = inputs.logits
    zero = logits.new_zeros(
        logits.shape[0] * logits.shape[2:].numel(), dtype=accumulate_dtype(logits)
    )
    part = RowPart(*(zero for _ in RowPart._fields))
    nothing = zero - torch.inf
    part = part._replace(shift=nothing, largest=nothing)
    return stored(part, *has(options, beta_is_known=beta_is_known))


def combine_ranks(parts: RowPart) -> RowPart:
    """Of (ranks, N) each; the sums are taken to finite_or_zero(shift) of all."""
    shift = parts.shift.amax(0)
    point = finite_or_zero(shift)
    step = finite_or_zero(parts.shift) - point
    first = parts.largest.argmax(0, keepdim=True)  # or of the first NaN
    return RowPart(
        shift=point,
        sum_exp=(parts.sum_exp * (parts.shift - point).exp()).sum(0),
        coef_dot=(parts.coef_dot + weighted(parts.mass, step)).sum(0),
        mass=parts.mass.sum(0),
        spread_dot=(parts.spread_dot + weighted(parts.spread_coef, step)).sum(0),
        spread_coef=parts.spread_coef.sum(0),
        spread_prior=parts.spread_prior.sum(0),
        entropy=parts.entropy.sum(0),
        largest=parts.largest.gather(0, first)[0],
        predicted=parts.predicted.gather(0, first)[0],
        prob_dot=(parts.prob_dot + weighted(parts.prob, step)).sum(0),
        prob=parts.prob.sum(0),
    )
