"""Sums over the classes of rows: of a tile, of tiles one after the other, of parts of a row.

Lanes beyond a row's end hold a logit of -inf and a coefficient of 0.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import (
    RowStats,
    combine,
    finite_or_zero,
    soft_negative_entropy,
    soft_nll,
    weighted,
)
from .rows import (
    class_coef_at,
    logits_at,
    of_classes,
    soft_coef_at,
    target_probs_at,
    uniform,
)


class Sums(NamedTuple):
    """Of a part of a row: RowStats, and what only some calls want, else 0."""

    shift: tl.tensor
    sum_exp: tl.tensor
    coef_dot: tl.tensor
    coef_sum: tl.tensor
    entropy: tl.tensor  # sum_c w_c q_c log q_c, for class probabilities t_c
    prob_sum: tl.tensor  # sum_c t_c
    prob_nll: tl.tensor  # sum_c t_c (reference - x_c)
    best: tl.tensor  # the first class of the largest logit, or of NaN


# ---- statistics ----------------------------------------------------------------------------------


@triton.jit
def empty_sums(like, dtype: tl.constexpr):
    zero = tl.zeros_like(like).to(dtype)
    none = tl.zeros_like(like).to(tl.int64)
    return Sums(zero - float("inf"), zero, zero, zero, zero, zero, zero, none)


@triton.jit
def combine_sums(a, b):
    stats = combine(
        RowStats(a.shift, a.sum_exp, a.coef_dot, a.coef_sum),
        RowStats(b.shift, b.sum_exp, b.coef_dot, b.coef_sum),
    )
    # A NaN is in the sum, but not in the maximum.
    a_largest = tl.where(a.sum_exp == a.sum_exp, a.shift, float("inf"))
    b_largest = tl.where(b.sum_exp == b.sum_exp, b.shift, float("inf"))
    return Sums(
        stats.shift,
        stats.sum_exp,
        stats.coef_dot,
        stats.coef_sum,
        a.entropy + b.entropy,
        a.prob_sum + b.prob_sum,
        a.prob_nll + b.prob_nll,
        tl.where(b_largest > a_largest, b.best, a.best),
    )


@triton.jit
def sums_of_tile(rows, x, c, reference, terms, options, WITH_STATS: tl.constexpr):
    dtype: tl.constexpr = x.dtype
    shift = tl.max(x, 1, keep_dims=True)
    difference = x - reference
    coef_sum = tl.zeros_like(shift)
    entropy = tl.zeros_like(shift)
    prob_sum = tl.zeros_like(shift)
    prob_nll = tl.zeros_like(shift)
    if rows.target.dtype.is_ptr():
        coef = soft_coef_at(rows, c, terms.beta, terms.kappa, dtype)
        coef_sum = tl.sum(coef, 1, keep_dims=True)
        coef_dot = tl.sum(weighted(coef, difference), 1, keep_dims=True)  # frees registers
        probs = target_probs_at(rows, c)
        if options.kl_div:
            prior = of_classes(rows.prior, uniform(rows, dtype), rows, c)
            weight = of_classes(rows.weight, 1.0, rows, c)
            entropy = soft_negative_entropy(weight, prior, probs, terms.beta, terms.kappa)
            entropy = tl.sum(entropy, 1, keep_dims=True)
        if WITH_STATS:
            prob_sum = tl.sum(probs, 1, keep_dims=True)
            prob_nll = tl.sum(soft_nll(probs, 0.0, difference), 1, keep_dims=True)
    else:
        coef = class_coef_at(rows, c, dtype)
        difference = tl.where((c == rows.target) | (c >= rows.classes), 0.0, difference)
        coef_dot = tl.sum(weighted(coef, difference), 1, keep_dims=True)
    best = tl.zeros_like(shift).to(tl.int64)
    if WITH_STATS:
        largest = tl.where(x == x, x, float("inf"))
        best = tl.min(tl.where(largest == tl.max(largest, 1, keep_dims=True), c, rows.classes), 1)
        best = best.to(tl.int64)[:, None]
    # Last, for the exponentials may take the logits' registers.
    sum_exp = tl.sum(tl.exp(x - finite_or_zero(shift)), 1, keep_dims=True)
    return Sums(shift, sum_exp, coef_dot, coef_sum, entropy, prob_sum, prob_nll, best)


@triton.jit
def sums_between(
    rows,
    begin,
    end,
    reference,
    terms,
    options,
    WITH_STATS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sums = empty_sums(rows.index, reference.dtype)
    for start in range(begin, end, BLOCK):
        c = start + tl.arange(0, BLOCK)[None, :]
        x = logits_at(rows, c, options)
        tile = sums_of_tile(rows, x, c, reference, terms, options, WITH_STATS)
        sums = combine_sums(sums, tile)
    return sums


@triton.jit
def store_part(parts, rows, N, sums, PARTS: tl.constexpr):
    record = parts + rows.index * PARTS + tl.program_id(1)
    for field in tl.static_range(8):
        tl.store(record + field * N * PARTS, sums[field].to(tl.float64), mask=rows.inside)


@triton.jit
def sum_of_parts(parts, rows, N, field: tl.constexpr, dtype: tl.constexpr, PARTS: tl.constexpr):
    record = parts + (field * N + rows.index) * PARTS + tl.arange(0, PARTS)[None, :]
    value = tl.load(record, mask=rows.inside, other=0.0).to(dtype)
    return tl.sum(value, 1, keep_dims=True)


@triton.jit
def combined_parts(parts, rows, N, dtype: tl.constexpr, PARTS: tl.constexpr):
    """combine_sums of all parts at once, in sums that come out the same in every thread."""
    record = parts + rows.index * PARTS + tl.arange(0, PARTS)[None, :]
    field = N * PARTS
    shifts = tl.load(record, mask=rows.inside, other=0.0).to(dtype)
    sum_exps = tl.load(record + field, mask=rows.inside, other=0.0).to(dtype)
    bests = tl.load(record + 7 * field, mask=rows.inside, other=0.0).to(tl.int64)
    shift = tl.max(shifts, 1, keep_dims=True)
    largest = tl.where(sum_exps == sum_exps, shifts, float("inf"))
    is_largest = largest == tl.max(largest, 1, keep_dims=True)
    return Sums(
        shift,
        tl.sum(sum_exps * tl.exp(shifts - finite_or_zero(shift)), 1, keep_dims=True),
        sum_of_parts(parts, rows, N, 2, dtype, PARTS),
        sum_of_parts(parts, rows, N, 3, dtype, PARTS),
        sum_of_parts(parts, rows, N, 4, dtype, PARTS),
        sum_of_parts(parts, rows, N, 5, dtype, PARTS),
        sum_of_parts(parts, rows, N, 6, dtype, PARTS),
        tl.min(tl.where(is_largest, bests, rows.classes), 1)[:, None],
    )
