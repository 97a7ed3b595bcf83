"""The sums of a tile of classes, and of tiles one after the other.

Lanes beyond a row's end hold a logit of -inf and a coefficient of 0.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .exponent import exp_less_rest, exponent_of
from .reading import (
    given_at,
    of_classes,
    spread_coef_at,
    target_probs_at,
    tile_at,
    transformed,
    uniform,
)
from .row_math import (
    OTHERS,
    UNMASKED,
    coef_log_of_class,
    finite_or_zero,
    soft_nll,
    target_terms,
    unless_masked,
    weighted,
)
from .sums import Sums, combine_sums

SMALL = tl.constexpr(2.0**-24)


class TargetSums(NamedTuple):
    """Over the classes of a target that is several."""

    dot: tl.tensor  # sum_c w_c t_c (x_c - reference)
    mass: tl.tensor  # sum_c w_c t_c
    prob: tl.tensor  # sum_c t_c
    nll: tl.tensor  # sum_c t_c (reference - x_c)


# ---- lanes ---------------------------------------------------------------------------------------
# Vectors of WIDTH neighbouring classes are dealt to LANES lanes in turn. A thread has of a tile
# what lies in one lane: sums by lanes pass through the tiles without a word between threads.


@triton.jit
def in_lanes(x, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """(ROWS, BLOCK) as (ROWS, vectors, LANES, WIDTH)."""
    return tl.reshape(x, (x.shape[0], x.shape[1] // (LANES * WIDTH), LANES, WIDTH))


@triton.jit
def lane_sum(x, LANES: tl.constexpr, WIDTH: tl.constexpr):
    if LANES == 1:
        return tl.sum(x, 1, keep_dims=True)
    else:  # noqa: RET505
        return tl.sum(tl.sum(in_lanes(x, LANES, WIDTH), 3), 1)


@triton.jit
def lane_max(x, LANES: tl.constexpr, WIDTH: tl.constexpr):
    if LANES == 1:
        return tl.max(x, 1, keep_dims=True)
    else:  # noqa: RET505
        return tl.max(tl.max(in_lanes(x, LANES, WIDTH), 3), 1)


@triton.jit
def lane_min(x, LANES: tl.constexpr, WIDTH: tl.constexpr):
    if LANES == 1:
        return tl.min(x, 1, keep_dims=True)
    else:  # noqa: RET505
        return tl.min(tl.min(in_lanes(x, LANES, WIDTH), 3), 1)


@triton.jit
def along_lanes(value, x, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """(ROWS, LANES), beside each element of a tile x of these."""
    if LANES == 1:
        return value
    else:  # noqa: RET505
        vectors: tl.constexpr = x.shape[1] // (LANES * WIDTH)
        value = tl.broadcast_to(value[:, None, :, None], (x.shape[0], vectors, LANES, WIDTH))
        return tl.reshape(value, x.shape)


# ---- tiles ---------------------------------------------------------------------------------------


@triton.jit
def target_sums(probs, weight, difference, LANES: tl.constexpr, WIDTH: tl.constexpr):
    weighted_probs = weighted(probs, weight)
    return TargetSums(
        lane_sum(weighted(weighted_probs, difference), LANES, WIDTH),
        lane_sum(weighted_probs, LANES, WIDTH),
        lane_sum(probs, LANES, WIDTH),
        lane_sum(soft_nll(probs, 0.0, difference), LANES, WIDTH),
    )


@triton.jit
def if_wanted(empty, value):
    """The compiler leaves out what is computed for nothing."""
    if empty.dtype == tl.int1:
        return empty
    else:  # noqa: RET505
        return value


@triton.jit
def sum_if_wanted(empty, value, LANES: tl.constexpr, WIDTH: tl.constexpr):
    return if_wanted(empty, lane_sum(value, LANES, WIDTH))


@triton.jit
def sums_of_tile(
    empty, rows, x0, x, span, reference, terms, options, LANES: tl.constexpr, WIDTH: tl.constexpr
):
    """By lanes. The terms are those of calls where they are the same for all rows."""
    shift = lane_max(x, LANES, WIDTH)
    best = empty.best
    if best.dtype != tl.int1:
        largest = tl.where(x == x, x, float("inf"))
        is_largest = largest == along_lanes(lane_max(largest, LANES, WIDTH), x, LANES, WIDTH)
        best = tl.where(is_largest, span.c, rows.classes)
        best = lane_min(best, LANES, WIDTH).to(tl.int64)
    difference = tl.where(span.inside, x - reference, 0.0)
    if options.smooth_over == OTHERS:  # of which the target is none, and may be infinite
        difference = tl.where(span.c == rows.target, 0.0, difference)
    coef = spread_coef_at(rows, span, x0, options)
    spread_dot = lane_sum(weighted(coef, difference), LANES, WIDTH)  # frees registers
    if not rows.class_coef.dtype.is_ptr() and options.smooth_over != UNMASKED:
        # It is one number, never 0. By the power of two the largest numbers do not overflow.
        coef_of_all = uniform(rows, x.dtype) / SMALL
        spread_dot = weighted(coef_of_all, lane_sum(difference * SMALL, LANES, WIDTH))
    entropy = empty.entropy
    target = TargetSums(empty.target_dot, empty.target_mass, empty.prob, empty.nll)
    if empty.target_dot.dtype != tl.int1:
        probs = target_probs_at(rows, span, x.dtype)
        weight = of_classes(rows.weight, 1.0, span)
        target = target_sums(probs, weight, difference, LANES, WIDTH)
        if entropy.dtype != tl.int1:
            prior = of_classes(rows.prior, uniform(rows, x.dtype), span)
            of_class = target_terms(probs, weight, prior, x0, terms, options)
            of_class = weighted(of_class.coef, tl.log(of_class.prob))
            entropy = lane_sum(of_class, LANES, WIDTH)
    coef = tl.where(span.inside, coef, 0.0)
    prior = of_classes(rows.prior, uniform(rows, x.dtype), span)
    # Last, for the exponentials may take the logits' registers.
    exponent = exponent_of(finite_or_zero(shift))
    slope = along_lanes(exponent.slope, x, LANES, WIDTH)
    offset = along_lanes(exponent.offset, x, LANES, WIDTH)
    exp_x = exp_less_rest(x, slope, offset)
    return Sums(
        shift,
        lane_sum(exp_x, LANES, WIDTH) * exponent.rest,
        spread_dot,
        sum_if_wanted(empty.coef, coef, LANES, WIDTH),
        sum_if_wanted(empty.coef_log, coef_log_of_class(coef, prior), LANES, WIDTH),
        sum_if_wanted(empty.prior, unless_masked(prior, x0, options), LANES, WIDTH),
        target.dot,
        target.mass,
        entropy,
        if_wanted(empty.prob, target.prob),
        if_wanted(empty.nll, target.nll),
        best,
    )


@triton.jit
def sums_between(
    empty,
    rows,
    part,
    end,
    reference,
    terms,
    options,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Of the part's tiles before `end`."""
    sums = empty
    for start in tl.range(part.begin, end, BLOCK, num_stages=STAGES):
        span = tile_at(part, start, BLOCK)
        x0 = given_at(rows, span, ALIGNED)
        x = transformed(rows, span, x0, options)
        of_tile = sums_of_tile(empty, rows, x0, x, span, reference, terms, options, LANES, WIDTH)
        sums = combine_sums(sums, of_tile)
    return sums
