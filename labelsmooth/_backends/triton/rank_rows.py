"""Rows of which every rank has a part: what forward writes of them, from all ranks' parts; as
csrc/rank_rows.h."""

import triton
import triton.language as tl

from .row_math import UNMASKED, LossOptions, finite_or_zero, log_sum_exp
from .row_part import (
    combine_ranks,
    is_invalid,
    loss_of_part,
    row_nll,
    stats_of,
    terms_of_part,
)
from .rows import nothing, scalar


@triton.jit
def combine_kernel(
    parts,  # (ranks, fields, N)
    rank_stride,
    ranks,
    ignored,  # (N,) each, or None
    target_prior,  # u_y; None: 1/C
    row_weight,
    N,
    all_classes,
    label_smoothing,
    lse_square_scale,
    IN_MEMORY: tl.constexpr,  # the two numbers are pointers
    SMOOTH_OVER: tl.constexpr,
    KL_DIV: tl.constexpr,
    FROM_LOG_PROBS: tl.constexpr,
    loss,  # (N,)
    row_stats,  # (4, N), or (6, N) with statistics
    predicted,  # (N,)
    WITH_STATS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = row_stats.dtype.element_ty
    options = LossOptions(
        scalar(label_smoothing, IN_MEMORY, dtype),
        scalar(lse_square_scale, IN_MEMORY, dtype),
        nothing(),
        nothing(),
        nothing(),
        SMOOTH_OVER,
        False,
        KL_DIV,
        FROM_LOG_PROBS,
    )
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < N
    stride = tl.cast(N, tl.int64)
    row = combine_ranks(
        ranks,
        parts + index,
        rank_stride,
        stride,
        inside,
        SMOOTH_OVER == UNMASKED,
        KL_DIV,
        WITH_STATS,
    )

    u = tl.zeros_like(row.shift) + 1 / tl.full((), all_classes, dtype)
    if target_prior is not None:
        u = tl.load(target_prior + index, mask=inside, other=0.0)
    weight = tl.zeros_like(row.shift) + 1
    if row_weight is not None:
        weight = tl.load(row_weight + index, mask=inside, other=0.0)
    counts = inside
    if ignored is not None:
        counts = inside & (tl.load(ignored + index, mask=inside, other=0) == 0)
    has_target = counts
    counts &= weight != 0

    invalid = is_invalid(row)
    terms = terms_of_part(u, row, options)
    otherwise = tl.where(invalid, float("nan"), tl.zeros_like(row.shift))
    has_target &= invalid == 0
    counts &= invalid == 0
    sum_exp = row.sum_exp
    if not WITH_STATS:  # rows that do not count have not been read
        sum_exp = tl.where(counts, sum_exp, 1.0)
    row_losses = tl.where(counts, weight * loss_of_part(row, terms, options), otherwise)
    row_stats += index
    tl.store(loss + index, row_losses, mask=inside)
    tl.store(row_stats, finite_or_zero(row.shift), mask=inside)
    tl.store(row_stats + stride, sum_exp, mask=inside)
    tl.store(row_stats + 2 * stride, tl.where(counts, terms.mass, otherwise), mask=inside)
    tl.store(row_stats + 3 * stride, tl.where(counts, terms.beta, otherwise), mask=inside)
    if WITH_STATS:
        nll = tl.where(has_target, row_nll(row, options), otherwise)
        tl.store(row_stats + 4 * stride, log_sum_exp(stats_of(row), options), mask=inside)
        tl.store(row_stats + 5 * stride, nll, mask=inside)
        tl.store(predicted + index, row.predicted.to(tl.int64), mask=inside)
