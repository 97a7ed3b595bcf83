"""What the kernel writes of rows, from their statistics, and reads again for their gradient."""

import triton
import triton.language as tl

from .row_math import RowStats, RowTerms, finite_or_zero, weighted
from .row_part import RowPart, empty_part, invalid_part, row_part, select_part, store_part


@triton.jit
def store_loss(loss, row_stats, N, rows, row_losses, stats, terms):
    row_stats += rows.index
    tl.store(loss + rows.index, row_losses, mask=rows.inside)
    tl.store(row_stats, stats.shift, mask=rows.inside)
    tl.store(row_stats + N, stats.sum_exp, mask=rows.inside)
    tl.store(row_stats + 2 * N, terms.mass, mask=rows.inside)
    tl.store(row_stats + 3 * N, terms.beta, mask=rows.inside)


@triton.jit
def load_stats(row_stats, N, rows):
    shift = tl.load(row_stats + rows.index, mask=rows.inside, other=0.0)
    sum_exp = tl.load(row_stats + N + rows.index, mask=rows.inside, other=1.0)
    return RowStats(shift, sum_exp, tl.zeros_like(shift))


@triton.jit
def load_terms(row_stats, N, rows, kappa):
    mass = tl.load(row_stats + 2 * N + rows.index, mask=rows.inside, other=0.0)
    beta = tl.load(row_stats + 3 * N + rows.index, mask=rows.inside, other=0.0)
    return RowTerms(beta, kappa, mass)


@triton.jit
def store_evaluation(row_stats, predicted, N, rows, lse, nll, best):
    """What is asked of rows beside their loss."""
    row_stats += rows.index
    tl.store(row_stats + 4 * N, lse, mask=rows.inside)
    tl.store(row_stats + 5 * N, nll, mask=rows.inside)
    tl.store(predicted + rows.index, best, mask=rows.inside)


@triton.jit
def store_partial(
    parts,  # (fields, N)
    N,
    rows,
    sums,
    stats,
    terms,
    classes,
    of_target,
    target_dot,
    target_mass,
    entropy,
    reference,
    options,
    OVER_UNMASKED: tl.constexpr,
    KL_DIV: tl.constexpr,
    WITH_STATS: tl.constexpr,
):
    """Their RowPart; of_target has sums of t_c, the others are of tau_c and coef_c."""
    part = row_part(stats, terms, classes, target_dot, target_mass, reference, options)
    largest = part.largest
    predicted = part.predicted
    prob_dot = part.prob_dot
    prob = part.prob
    if WITH_STATS:
        largest = tl.where(sums.sum_exp == sums.sum_exp, sums.shift, float("nan"))
        predicted += rows.class_offset + sums.best
        prob += of_target.prob
        prob_dot = weighted(prob, reference - finite_or_zero(part.shift)) - of_target.nll
    part = RowPart(
        part.shift,
        part.sum_exp,
        part.coef_dot,
        part.mass,
        part.spread_dot,
        part.spread_coef,
        part.spread_prior,
        entropy,
        largest,
        predicted,
        prob_dot,
        prob,
    )
    if not WITH_STATS:  # else they are read all the same
        part = select_part(rows.unused, empty_part(part.shift), part)
    part = select_part(rows.bad, invalid_part(part.shift), part)
    store_part(parts + rows.index, N, part, rows.inside, OVER_UNMASKED, KL_DIV, WITH_STATS)
