"""Sums over the classes of rows: of a tile, of tiles one after the other, of parts of a row.

Lanes beyond a row's end hold a logit of -inf and a coefficient of 0.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .exponent import exp_less_rest, exponent_of
from .row_math import (
    OTHERS,
    UNMASKED,
    RowStats,
    coef_log_of_class,
    combine,
    exp,
    finite_or_zero,
    soft_nll,
    target_terms,
    unless_masked,
    weighted,
)
from .rows import (
    given_at,
    nothing,
    of_classes,
    row_max,
    row_min,
    row_sum,
    span_from,
    spread_coef_at,
    target_probs_at,
    transformed,
    uniform,
)

SMALL = tl.constexpr(2.0**-24)


class Sums(NamedTuple):
    """Of a part of a row: RowStats, and what only some calls want, else nothing()."""

    shift: tl.tensor
    sum_exp: tl.tensor
    spread_dot: tl.tensor
    # ClassSums of the row, where masked classes are left out
    coef: tl.tensor
    coef_log: tl.tensor
    prior: tl.tensor
    # TargetSums, for probabilities of all classes
    target_dot: tl.tensor
    target_mass: tl.tensor
    entropy: tl.tensor
    prob: tl.tensor
    nll: tl.tensor
    best: tl.tensor  # the first class of the largest logit, or of NaN


class TargetSums(NamedTuple):
    """Over the classes of a target that is several."""

    dot: tl.tensor  # sum_c w_c t_c (x_c - reference)
    mass: tl.tensor  # sum_c w_c t_c
    prob: tl.tensor  # sum_c t_c
    nll: tl.tensor  # sum_c t_c (reference - x_c)


# ---- lanes ---------------------------------------------------------------------------------------
# Vectors of WIDTH neighbouring classes are dealt to LANES lanes in turn. As a thread has of a tile
# what lies in one lane, sums by lanes pass through the tiles without a word between threads.


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


# ---- statistics ----------------------------------------------------------------------------------


@triton.jit
def empty_sums(
    rows,
    dtype: tl.constexpr,
    DENSE: tl.constexpr,
    OVER_UNMASKED: tl.constexpr,
    KL_DIV: tl.constexpr,
    WITH_STATS: tl.constexpr,
    LANES: tl.constexpr,
):
    """By lanes; and which of them the call wants."""
    zero = tl.zeros_like(rows.index).to(dtype) + tl.zeros((1, LANES), dtype)
    return Sums(
        zero - float("inf"),
        zero,
        zero,
        zero if OVER_UNMASKED else nothing(),
        zero if OVER_UNMASKED and KL_DIV else nothing(),
        zero if OVER_UNMASKED else nothing(),
        zero if DENSE else nothing(),
        zero if DENSE else nothing(),
        zero if DENSE and KL_DIV else nothing(),
        zero if DENSE and WITH_STATS else nothing(),
        zero if DENSE and WITH_STATS else nothing(),
        tl.zeros_like(zero).to(tl.int64) if WITH_STATS else nothing(),
    )


@triton.jit
def plus(a, b):
    if a.dtype == tl.int1:
        return a
    else:  # noqa: RET505
        return a + b


@triton.jit
def combine_sums(a, b):
    stats = combine(
        RowStats(a.shift, a.sum_exp, a.spread_dot), RowStats(b.shift, b.sum_exp, b.spread_dot)
    )
    best = a.best
    if a.best.dtype != tl.int1:  # a NaN is in the sum, but not in the maximum
        a_largest = tl.where(a.sum_exp == a.sum_exp, a.shift, float("inf"))
        b_largest = tl.where(b.sum_exp == b.sum_exp, b.shift, float("inf"))
        first = tl.where(a_largest == b_largest, tl.minimum(a.best, b.best), a.best)
        best = tl.where(b_largest > a_largest, b.best, first)
    return Sums(
        stats.shift,
        stats.sum_exp,
        stats.spread_dot,
        plus(a.coef, b.coef),
        plus(a.coef_log, b.coef_log),
        plus(a.prior, b.prior),
        plus(a.target_dot, b.target_dot),
        plus(a.target_mass, b.target_mass),
        plus(a.entropy, b.entropy),
        plus(a.prob, b.prob),
        plus(a.nll, b.nll),
        best,
    )


# The terms of a sum must be rounded before threads exchange them, or one adds its own product, not
# rounded, and the other one's: they would differ. A product in weighted() is, and one by a power of
# two is exact.


@triton.jit
def total(value):
    if value.dtype == tl.int1:
        return value
    else:  # noqa: RET505
        return row_sum(value)


@triton.jit
def combined(sums, classes):
    """combine_sums of all lanes at once."""
    if sums.shift.shape[0] > 1 and sums.shift.shape[1] == 1:
        return sums
    else:  # noqa: RET505
        return combined_lanes(sums, classes)


@triton.jit
def combined_lanes(sums, classes):
    shift = row_max(sums.shift)
    best = sums.best
    if best.dtype != tl.int1:
        largest = tl.where(sums.sum_exp == sums.sum_exp, sums.shift, float("inf"))
        best = row_min(tl.where(largest == row_max(largest), best, classes))
    return Sums(
        shift,
        total(weighted(sums.sum_exp, exp(sums.shift - finite_or_zero(shift)))),
        total(sums.spread_dot),
        total(sums.coef),
        total(sums.coef_log),
        total(sums.prior),
        total(sums.target_dot),
        total(sums.target_mass),
        total(sums.entropy),
        total(sums.prob),
        total(sums.nll),
        best,
    )


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
    first,
    begin,
    end,
    count,
    reference,
    terms,
    options,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    sums = empty
    for start in tl.range(begin, end, BLOCK, num_stages=STAGES):
        span = span_from(first, start + tl.arange(0, BLOCK)[None, :], count)
        x0 = given_at(rows, span, ALIGNED)
        x = transformed(rows, span, x0, options)
        of_tile = sums_of_tile(empty, rows, x0, x, span, reference, terms, options, LANES, WIDTH)
        sums = combine_sums(sums, of_tile)
    return sums


# ---- parts of a row ------------------------------------------------------------------------------


@triton.jit
def store_sums(parts, rows, N, sums, PARTS: tl.constexpr):
    record = parts + rows.index * PARTS + tl.program_id(1)
    for field in tl.static_range(12):
        if sums[field].dtype != tl.int1:
            tl.store(record + field * N * PARTS, sums[field].to(tl.float64), mask=rows.inside)


@triton.jit
def load_sums(empty, parts, rows, N, PARTS: tl.constexpr):
    """Of all parts, each in a lane; what is not wanted stays."""
    record = parts + rows.index * PARTS + tl.arange(0, PARTS)[None, :]
    return Sums(
        load_sum(empty.shift, record, rows, 0, N * PARTS),
        load_sum(empty.sum_exp, record, rows, 1, N * PARTS),
        load_sum(empty.spread_dot, record, rows, 2, N * PARTS),
        load_sum(empty.coef, record, rows, 3, N * PARTS),
        load_sum(empty.coef_log, record, rows, 4, N * PARTS),
        load_sum(empty.prior, record, rows, 5, N * PARTS),
        load_sum(empty.target_dot, record, rows, 6, N * PARTS),
        load_sum(empty.target_mass, record, rows, 7, N * PARTS),
        load_sum(empty.entropy, record, rows, 8, N * PARTS),
        load_sum(empty.prob, record, rows, 9, N * PARTS),
        load_sum(empty.nll, record, rows, 10, N * PARTS),
        load_sum(empty.best, record, rows, 11, N * PARTS),
    )


@triton.jit
def load_sum(empty, record, rows, field, stride):
    if empty.dtype == tl.int1:
        return empty
    else:  # noqa: RET505
        return tl.load(record + field * stride, mask=rows.inside, other=0.0).to(empty.dtype)
