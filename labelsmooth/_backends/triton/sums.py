"""Sums over the classes of rows: how lanes, tiles and parts of a row combine."""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import RowStats, combine, exp, finite_or_zero, weighted
from .rows import nothing, row_max, row_min, row_sum


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


# The terms of a sum must be rounded before threads exchange them, or each adds its own product
# unrounded, and they differ. A product in weighted() is, and one by a power of two is exact.


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
