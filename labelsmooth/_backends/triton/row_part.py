"""csrc/row_part.h in Triton: the same functions and names, on columns of rows.

Triton has no overloads: what row_part.h calls row_terms and row_loss is terms_of_part and
loss_of_part. test_row_part.py holds the two against each other.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import (
    UNMASKED,
    ClassSums,
    RowStats,
    RowTerms,
    combine,
    finite_or_zero,
    log_sum_exp_from,
    row_loss,
    row_terms,
    weighted,
)


class RowPart(NamedTuple):
    """Sums are taken to a point of its own, finite_or_zero(shift)."""

    shift: tl.tensor
    sum_exp: tl.tensor
    coef_dot: tl.tensor
    mass: tl.tensor
    spread_dot: tl.tensor
    spread_coef: tl.tensor
    spread_prior: tl.tensor
    entropy: tl.tensor
    largest: tl.tensor
    predicted: tl.tensor
    prob_dot: tl.tensor
    prob: tl.tensor


@triton.jit
def row_part(stats, terms, classes, target_dot, target_mass, reference, options):
    shift = tl.where(stats.sum_exp == 0, float("-inf"), stats.shift)
    step = reference - finite_or_zero(shift)
    zero = tl.zeros_like(shift)
    coef_dot = target_dot
    mass = target_mass
    spread_dot = zero
    spread_coef = zero
    spread_prior = zero
    if options.smooth_over == UNMASKED:
        spread_dot = stats.spread_dot + weighted(classes.coef, step)
        spread_coef += classes.coef
        spread_prior += classes.prior
    else:
        coef_dot += weighted(terms.beta, stats.spread_dot)
        mass += terms.beta * classes.coef
    return RowPart(
        shift,
        stats.sum_exp,
        coef_dot + weighted(mass, step),
        mass,
        spread_dot,
        spread_coef,
        spread_prior,
        zero,
        zero,
        zero,
        zero,
        zero,
    )


@triton.jit
def store_fields(parts, stride, part, inside, BEGIN: tl.constexpr, END: tl.constexpr):
    """Returns where the next field is to be."""
    for field in tl.static_range(BEGIN, END):
        tl.store(parts, part[field], mask=inside)
        parts += stride
    return parts


@triton.jit
def store_part(
    parts,
    stride,
    part,
    inside,
    OVER_UNMASKED: tl.constexpr,
    KL_DIV: tl.constexpr,
    WITH_STATS: tl.constexpr,
):
    """From pointers to the rows' first field; `stride` leads to the next one."""
    parts = store_fields(parts, stride, part, inside, 0, 4)
    if OVER_UNMASKED:
        parts = store_fields(parts, stride, part, inside, 4, 7)
    if KL_DIV:
        parts = store_fields(parts, stride, part, inside, 7, 8)
    if WITH_STATS:
        store_fields(parts, stride, part, inside, 8, 12)


@triton.jit
def load_field(parts, place, stride, inside, HAS: tl.constexpr):
    if HAS:
        return tl.load(parts + place * stride, mask=inside, other=0.0)
    else:  # noqa: RET505
        return tl.zeros(parts.shape, parts.dtype.element_ty)


@triton.jit
def load_part(
    parts,
    stride,
    inside,
    OVER_UNMASKED: tl.constexpr,
    KL_DIV: tl.constexpr,
    WITH_STATS: tl.constexpr,
):
    entropy = 7 if OVER_UNMASKED else 4
    largest = entropy + 1 if KL_DIV else entropy
    return RowPart(
        load_field(parts, 0, stride, inside, True),
        load_field(parts, 1, stride, inside, True),
        load_field(parts, 2, stride, inside, True),
        load_field(parts, 3, stride, inside, True),
        load_field(parts, 4, stride, inside, OVER_UNMASKED),
        load_field(parts, 5, stride, inside, OVER_UNMASKED),
        load_field(parts, 6, stride, inside, OVER_UNMASKED),
        load_field(parts, entropy, stride, inside, KL_DIV),
        load_field(parts, largest, stride, inside, WITH_STATS),
        load_field(parts, largest + 1, stride, inside, WITH_STATS),
        load_field(parts, largest + 2, stride, inside, WITH_STATS),
        load_field(parts, largest + 3, stride, inside, WITH_STATS),
    )


@triton.jit
def empty_part(shift):
    """Of rows as many as those of the shift."""
    zero = tl.zeros_like(shift)
    nothing = zero - float("inf")
    return RowPart(nothing, zero, zero, zero, zero, zero, zero, zero, nothing, zero, zero, zero)


@triton.jit
def invalid_part(shift):
    zero = tl.zeros_like(shift)
    nothing = zero - float("inf")
    return RowPart(nothing, zero - 1, zero, zero, zero, zero, zero, zero, nothing, zero, zero, zero)


@triton.jit
def is_invalid(part):
    return part.sum_exp == -1


@triton.jit
def select_part(condition, a, b):
    return RowPart(
        tl.where(condition, a.shift, b.shift),
        tl.where(condition, a.sum_exp, b.sum_exp),
        tl.where(condition, a.coef_dot, b.coef_dot),
        tl.where(condition, a.mass, b.mass),
        tl.where(condition, a.spread_dot, b.spread_dot),
        tl.where(condition, a.spread_coef, b.spread_coef),
        tl.where(condition, a.spread_prior, b.spread_prior),
        tl.where(condition, a.entropy, b.entropy),
        tl.where(condition, a.largest, b.largest),
        tl.where(condition, a.predicted, b.predicted),
        tl.where(condition, a.prob_dot, b.prob_dot),
        tl.where(condition, a.prob, b.prob),
    )


@triton.jit
def combine_ranks(
    ranks,
    parts,
    rank_stride,
    stride,
    inside,
    OVER_UNMASKED: tl.constexpr,
    KL_DIV: tl.constexpr,
    WITH_STATS: tl.constexpr,
):
    """From pointers to the rows' first field on rank 0."""
    row = empty_part(tl.zeros(parts.shape, parts.dtype.element_ty))
    shift = row.shift
    for rank in range(ranks):
        of_rank = parts + tl.cast(rank, tl.int64) * rank_stride
        shift = tl.maximum(shift, tl.load(of_rank, mask=inside, other=0.0))
    point = finite_or_zero(shift)
    stats = RowStats(shift, row.sum_exp, row.coef_dot)
    invalid = is_invalid(row)
    for rank in range(ranks):
        of_rank = parts + tl.cast(rank, tl.int64) * rank_stride
        part = load_part(of_rank, stride, inside, OVER_UNMASKED, KL_DIV, WITH_STATS)
        step = finite_or_zero(part.shift) - point
        coef_dot = part.coef_dot + weighted(part.mass, step)
        stats = combine(stats, RowStats(part.shift, part.sum_exp, coef_dot))
        invalid |= is_invalid(part)
        # The first of the largest; a NaN is larger than all.
        larger = (row.largest == row.largest) & ((part.largest <= row.largest) == 0)
        row = RowPart(
            row.shift,
            row.sum_exp,
            row.coef_dot,
            row.mass + part.mass,
            row.spread_dot + (part.spread_dot + weighted(part.spread_coef, step)),
            row.spread_coef + part.spread_coef,
            row.spread_prior + part.spread_prior,
            row.entropy + part.entropy,
            tl.where(larger, part.largest, row.largest),
            tl.where(larger, part.predicted, row.predicted),
            row.prob_dot + (part.prob_dot + weighted(part.prob, step)),
            row.prob + part.prob,
        )
    row = RowPart(
        point,
        stats.sum_exp,
        stats.spread_dot,
        row.mass,
        row.spread_dot,
        row.spread_coef,
        row.spread_prior,
        row.entropy,
        row.largest,
        row.predicted,
        row.prob_dot,
        row.prob,
    )
    return select_part(invalid, invalid_part(point), row)


# ---- a row that is combined ----------------------------------------------------------------------


@triton.jit
def stats_of(row):
    return RowStats(row.shift, row.sum_exp, row.spread_dot)


@triton.jit
def terms_of_part(target_prior, row, options):
    sums = ClassSums(row.spread_coef, tl.zeros_like(row.spread_coef), row.spread_prior)
    terms = row_terms(target_prior, sums, options)
    return RowTerms(terms.beta, terms.kappa, terms.mass + row.mass)


@triton.jit
def loss_of_part(row, terms, options):
    return row_loss(stats_of(row), terms, row.coef_dot, row.shift, options) + row.entropy


@triton.jit
def row_nll(row, options):
    return weighted(row.prob, log_sum_exp_from(row.shift, stats_of(row), options)) - row.prob_dot
