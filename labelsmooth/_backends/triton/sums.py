"""Sums over the classes of rows: of a tile, of tiles one after the other, of parts of a row.

Lanes beyond a row's end hold a logit of -inf and a coefficient of 0.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import (
    UNMASKED,
    RowStats,
    coef_log_of_class,
    combine,
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
    spread_coef_at,
    target_probs_at,
    transformed,
    uniform,
)


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


# ---- statistics ----------------------------------------------------------------------------------


@triton.jit
def empty_sums(
    rows,
    dtype: tl.constexpr,
    DENSE: tl.constexpr,
    OVER_UNMASKED: tl.constexpr,
    KL_DIV: tl.constexpr,
    WITH_STATS: tl.constexpr,
):
    """And which of them the call wants."""
    zero = tl.zeros_like(rows.index).to(dtype)
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
        tl.zeros_like(rows.index) if WITH_STATS else nothing(),
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
        best = tl.where(b_largest > a_largest, b.best, a.best)
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


@triton.jit
def target_sums(probs, weight, difference):
    weighted_probs = weighted(probs, weight)
    return TargetSums(
        tl.sum(weighted(weighted_probs, difference), 1, keep_dims=True),
        tl.sum(weighted_probs, 1, keep_dims=True),
        tl.sum(probs, 1, keep_dims=True),
        tl.sum(soft_nll(probs, 0.0, difference), 1, keep_dims=True),
    )


@triton.jit
def if_wanted(empty, value):
    """The compiler leaves out what is computed for nothing."""
    if empty.dtype == tl.int1:
        return empty
    else:  # noqa: RET505
        return value


@triton.jit
def sum_if_wanted(empty, value):
    return if_wanted(empty, tl.sum(value, 1, keep_dims=True))


@triton.jit
def sums_of_tile(empty, rows, x0, x, c, reference, terms, options):
    """The terms are those of calls where they are the same for all rows."""
    inside = c < rows.classes
    shift = tl.max(x, 1, keep_dims=True)
    best = empty.best
    if best.dtype != tl.int1:
        largest = tl.where(x == x, x, float("inf"))
        best = tl.min(tl.where(largest == tl.max(largest, 1, keep_dims=True), c, rows.classes), 1)
        best = best.to(tl.int64)[:, None]
    difference = tl.where(inside, x - reference, 0.0)
    if not rows.probs.dtype.is_ptr():
        by_itself = c == rows.target
        if rows.class_offset.dtype != tl.int1:  # of a rank's masked classes beta is not known yet
            by_itself &= options.smooth_over != UNMASKED
        difference = tl.where(by_itself, 0.0, difference)
    coef = spread_coef_at(rows, c, x0, options)
    spread_dot = tl.sum(weighted(coef, difference), 1, keep_dims=True)  # frees registers
    entropy = empty.entropy
    target = TargetSums(empty.target_dot, empty.target_mass, empty.prob, empty.nll)
    if empty.target_dot.dtype != tl.int1:
        probs = target_probs_at(rows, c, x.dtype)
        weight = of_classes(rows.weight, 1.0, rows, c)
        target = target_sums(probs, weight, difference)
        if entropy.dtype != tl.int1:
            prior = of_classes(rows.prior, uniform(rows, x.dtype), rows, c)
            of_class = target_terms(probs, weight, prior, x0, terms, options)
            of_class = weighted(of_class.coef, tl.log(of_class.prob))
            entropy = tl.sum(of_class, 1, keep_dims=True)
    coef = tl.where(inside, coef, 0.0)
    prior = of_classes(rows.prior, uniform(rows, x.dtype), rows, c)
    # Last, for the exponentials may take the logits' registers.
    sum_exp = tl.sum(tl.exp(x - finite_or_zero(shift)), 1, keep_dims=True)
    return Sums(
        shift,
        sum_exp,
        spread_dot,
        sum_if_wanted(empty.coef, coef),
        sum_if_wanted(empty.coef_log, coef_log_of_class(coef, prior)),
        sum_if_wanted(empty.prior, unless_masked(prior, x0, options)),
        target.dot,
        target.mass,
        entropy,
        if_wanted(empty.prob, target.prob),
        if_wanted(empty.nll, target.nll),
        best,
    )


@triton.jit
def sums_between(empty, rows, begin, end, reference, terms, options, BLOCK: tl.constexpr):
    sums = empty
    for start in range(begin, end, BLOCK):
        c = start + tl.arange(0, BLOCK)[None, :]
        x0 = given_at(rows, c)
        x = transformed(rows, c, x0, options)
        sums = combine_sums(sums, sums_of_tile(empty, rows, x0, x, c, reference, terms, options))
    return sums


# ---- parts of a row ------------------------------------------------------------------------------


@triton.jit
def store_sums(parts, rows, N, sums, PARTS: tl.constexpr):
    record = parts + rows.index * PARTS + tl.program_id(1)
    for field in tl.static_range(12):
        if sums[field].dtype != tl.int1:
            tl.store(record + field * N * PARTS, sums[field].to(tl.float64), mask=rows.inside)


@triton.jit
def sum_of_parts(empty, parts, rows, N, field: tl.constexpr, PARTS: tl.constexpr):
    if empty[field].dtype == tl.int1:
        return empty[field]
    else:  # noqa: RET505
        record = parts + (field * N + rows.index) * PARTS + tl.arange(0, PARTS)[None, :]
        value = tl.load(record, mask=rows.inside, other=0.0).to(empty[field].dtype)
        return tl.sum(value, 1, keep_dims=True)


@triton.jit
def combined_parts(empty, parts, rows, N, PARTS: tl.constexpr):
    """combine_sums of all parts at once, in sums that come out the same in every thread."""
    record = parts + rows.index * PARTS + tl.arange(0, PARTS)[None, :]
    field = N * PARTS
    shifts = tl.load(record, mask=rows.inside, other=0.0).to(empty.shift.dtype)
    sum_exps = tl.load(record + field, mask=rows.inside, other=0.0).to(empty.shift.dtype)
    shift = tl.max(shifts, 1, keep_dims=True)
    best = empty.best
    if best.dtype != tl.int1:
        bests = tl.load(record + 11 * field, mask=rows.inside, other=0.0).to(tl.int64)
        largest = tl.where(sum_exps == sum_exps, shifts, float("inf"))
        is_largest = largest == tl.max(largest, 1, keep_dims=True)
        best = tl.min(tl.where(is_largest, bests, rows.classes), 1)[:, None]
    return Sums(
        shift,
        tl.sum(sum_exps * tl.exp(shifts - finite_or_zero(shift)), 1, keep_dims=True),
        sum_of_parts(empty, parts, rows, N, 2, PARTS),
        sum_of_parts(empty, parts, rows, N, 3, PARTS),
        sum_of_parts(empty, parts, rows, N, 4, PARTS),
        sum_of_parts(empty, parts, rows, N, 5, PARTS),
        sum_of_parts(empty, parts, rows, N, 6, PARTS),
        sum_of_parts(empty, parts, rows, N, 7, PARTS),
        sum_of_parts(empty, parts, rows, N, 8, PARTS),
        sum_of_parts(empty, parts, rows, N, 9, PARTS),
        sum_of_parts(empty, parts, rows, N, 10, PARTS),
        best,
    )
