"""The Triton kernel: a program holds a few rows, and a tile of their classes at a time. Its stages:

whole     rows that fit one tile: read once for statistics, loss and gradient
rows      longer ones: the tiles' statistics combined; read again for the gradient
parts     the statistics of a part of each row, where there are few rows, for
combine   the loss from those
gradient  from statistics that are known, of a part of each row
"""

import triton
import triton.language as tl

from .entries import entries_of, entropy_of_entries, gradient_of_entries
from .row_math import (
    UNMASKED,
    ClassSums,
    LossOptions,
    RowStats,
    RowTerms,
    finite_or_zero,
    grad_terms,
    log_sum_exp,
    log_sum_exp_from,
    logit_grad,
    reference_from,
    row_loss,
    row_terms,
    smoothing_entropy,
    soft_coef,
    target_entropy,
    target_terms,
    transform_slope,
    weighted,
)
from .rows import (
    accumulated,
    class_sums_of,
    given_at,
    nothing,
    of_classes,
    of_good_rows,
    of_weight,
    pointers_to,
    rows_of_program,
    scalar,
    spread_coef_at,
    target_probs_at,
    transformed,
    vectors_of_target,
)
from .sums import (
    TargetSums,
    combined_parts,
    empty_sums,
    store_part,
    sums_between,
    sums_of_tile,
    target_sums,
)

# ---- gradient ------------------------------------------------------------------------------------


@triton.jit
def scale_of(scale, scale_stride, rows, dtype: tl.constexpr):
    """The row's weight times the incoming gradient over the denominator; NaN makes all that it
    scales NaN."""
    if scale is None:
        factor = tl.zeros_like(rows.index).to(dtype) + 1
    else:
        factor = tl.load(scale + rows.index * scale_stride, mask=rows.inside, other=0.0)
    return tl.where(rows.bad, float("nan"), of_weight(rows, factor))


@triton.jit
def write_gradient(pointers, stride, rows, x0, x, c, grad, target, options):
    """As if there were no target, where that is a few classes."""
    spread = spread_coef_at(rows, c, x0, options)
    coef = grad.beta * spread
    if rows.entries.dtype.is_ptr():
        pass
    elif rows.probs.dtype.is_ptr():
        weight = of_classes(rows.weight, 1.0, rows, c)
        probs = weighted(grad.kappa * target_probs_at(rows, c, x.dtype), weight)
        coef = soft_coef(spread, probs, grad.beta)
    elif options.smooth_over == UNMASKED:  # something of which the target may have too, or not
        own = tl.where(c == rows.target, grad.scale * target.tau, 0.0)
        coef = soft_coef(spread, own, grad.beta)
    else:
        coef = tl.where(c == rows.target, grad.scale * target.coef, coef)
    gradient = logit_grad(tl.exp(x - grad.shift), coef, grad) * transform_slope(x, options)
    gradient = tl.where(rows.unused, 0.0, gradient)  # an unused row may hold NaN
    inside = rows.inside & (c < rows.classes)
    tl.store(
        pointers + c.to(tl.int64) * stride, gradient.to(pointers.dtype.element_ty), mask=inside
    )


# ---- the kernel ----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["ignore_index"])
def loss_kernel(
    logits,
    logits_outer,
    logits_stride,
    logits_inner,
    target,  # (N,), classes of a few entries, or class probabilities like the logits
    target_probs,  # of the entries, or None
    target_outer,
    target_stride,
    target_inner,
    entry_count,
    weight,  # (C,) each, or None
    prior,
    class_coef,
    class_sums,  # (2,), or None
    row_weight,  # (N,), or None
    outer,
    inner,
    classes,
    ignore_index: tl.int64,
    label_smoothing,
    lse_square_scale,
    logit_scale,
    softcap,
    IN_MEMORY: tl.constexpr,  # the four numbers are pointers
    LOWEST: tl.constexpr,
    SMOOTH_OVER: tl.constexpr,
    WEIGHT_OVER_TARGET: tl.constexpr,
    KL_DIV: tl.constexpr,
    FROM_LOG_PROBS: tl.constexpr,
    grad_logits,  # None: no gradient
    grad_outer,
    grad_stride,
    grad_inner,
    scale,  # of the gradient: (N,), or one number and stride 0; None: 1
    scale_stride,
    loss,  # (N,)
    row_stats,  # (4, N), or (6, N) with statistics
    predicted,  # (N,)
    parts,  # (12, N, PARTS)
    WITH_STATS: tl.constexpr,
    STAGE: tl.constexpr,
    PARTS: tl.constexpr,
    ENTRIES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = row_stats.dtype.element_ty
    DENSE: tl.constexpr = target.dtype.element_ty.is_floating()
    SPARSE: tl.constexpr = target_probs is not None
    options = LossOptions(
        scalar(label_smoothing, IN_MEMORY, dtype),
        scalar(lse_square_scale, IN_MEMORY, dtype),
        scalar(logit_scale, IN_MEMORY, dtype),
        nothing() if softcap is None else scalar(softcap, IN_MEMORY, dtype),
        tl.full((), LOWEST, dtype),
        SMOOTH_OVER,
        WEIGHT_OVER_TARGET,
        KL_DIV,
        FROM_LOG_PROBS,
    )
    rows = rows_of_program(
        logits,
        logits_outer,
        logits_stride,
        logits_inner,
        target,
        target_probs,
        target_outer,
        target_stride,
        target_inner,
        entry_count,
        weight,
        prior,
        class_coef,
        row_weight,
        inner,
        classes,
        ignore_index,
        WITH_STATS or ROWS > 1,  # of several rows it would only spoil wide reads to leave one out
        ENTRIES,
        ROWS,
    )
    totals = class_sums_of(class_sums, classes, dtype)
    target_prior, target_weight = vectors_of_target(rows, dtype)
    terms = row_terms(target_prior, totals, options)
    N = tl.cast(inner, tl.int64) * outer
    span = tl.cdiv(tl.cdiv(classes, tl.num_programs(1)), BLOCK) * BLOCK  # of a part
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, classes)
    if SPARSE and STAGE != "parts":
        entries = entries_of(rows, begin, end, options, dtype, ENTRIES)

    if STAGE == "gradient":
        shift = tl.load(row_stats + rows.index, mask=rows.inside, other=0.0)
        sum_exp = tl.load(row_stats + N + rows.index, mask=rows.inside, other=1.0)
        stats = RowStats(shift, sum_exp, tl.zeros_like(shift))
        zero = tl.zeros_like(shift)  # a logit that is not masked
        own = target_terms(1.0, target_weight, target_prior, zero, terms, options)
        if DENSE or SPARSE or SMOOTH_OVER == UNMASKED:
            mass = tl.load(row_stats + 2 * N + rows.index, mask=rows.inside, other=0.0)
            beta = tl.load(row_stats + 3 * N + rows.index, mask=rows.inside, other=0.0)
            terms = RowTerms(beta, terms.kappa, mass)
        else:  # fewer loads: of one class they are known
            terms = RowTerms(terms.beta, terms.kappa, terms.mass + own.tau)
    else:
        own_x0 = given_at(rows, rows.target)
        own_x = transformed(rows, rows.target, own_x0, options)
        reference = reference_from(own_x)
        empty = empty_sums(rows, dtype, DENSE, SMOOTH_OVER == UNMASKED, KL_DIV, WITH_STATS)
        if STAGE == "whole":
            c = tl.arange(0, BLOCK)[None, :]
            x0 = given_at(rows, c)
            x = transformed(rows, c, x0, options)
            sums = sums_of_tile(empty, rows, x0, x, c, reference, terms, options)
        elif STAGE == "combine":
            sums = combined_parts(empty, parts, rows, N, PARTS)
        else:
            end_read = tl.where(tl.max(rows.read.to(tl.int32)) > 0, end, 0)
            sums = sums_between(empty, rows, begin, end_read, reference, terms, options, BLOCK)
        if STAGE == "parts":
            store_part(parts, rows, N, sums, PARTS)
        else:
            stats = RowStats(finite_or_zero(sums.shift), sums.sum_exp, sums.spread_dot)
            if SMOOTH_OVER == UNMASKED:
                totals = ClassSums(sums.coef, sums.coef_log, sums.prior)
                terms = row_terms(target_prior, totals, options)
            own = target_terms(1.0, target_weight, target_prior, own_x0, terms, options)
            if DENSE or SPARSE:
                if DENSE:
                    of_target = TargetSums(sums.target_dot, sums.target_mass, sums.prob, sums.nll)
                    entropy = sums.entropy
                else:
                    of_target = target_sums(entries.prob, entries.weight, entries.x - reference)
                    entropy = entropy_of_entries(entries, rows, terms, options, ENTRIES)
                target_dot = weighted(terms.kappa, of_target.dot)
                target_mass = weighted(terms.kappa, of_target.mass)
            else:  # by itself
                target_dot = weighted(own.coef, own_x - reference)
                target_mass = own.tau
                entropy = target_entropy(own)
            terms = RowTerms(terms.beta, terms.kappa, terms.mass + target_mass)
            row_losses = row_loss(stats, terms, target_dot, reference, options)
            if KL_DIV:
                row_losses += entropy
                if not DENSE:  # which is of all classes already
                    row_losses += smoothing_entropy(terms, totals)
            row_losses = of_good_rows(rows, of_weight(rows, row_losses))
            tl.store(loss + rows.index, row_losses, mask=rows.inside)
            tl.store(row_stats + rows.index, stats.shift, mask=rows.inside)
            tl.store(row_stats + N + rows.index, stats.sum_exp, mask=rows.inside)
            tl.store(row_stats + 2 * N + rows.index, terms.mass, mask=rows.inside)
            tl.store(row_stats + 3 * N + rows.index, terms.beta, mask=rows.inside)
            if WITH_STATS:
                nll = log_sum_exp_from(reference, stats, options)
                if DENSE or SPARSE:
                    nll = weighted(of_target.prob, nll) + of_target.nll
                else:
                    nll -= own_x - reference
                lse = log_sum_exp(stats, options)
                tl.store(row_stats + 4 * N + rows.index, lse, mask=rows.inside)
                tl.store(row_stats + 5 * N + rows.index, of_good_rows(rows, nll), mask=rows.inside)
                tl.store(predicted + rows.index, sums.best, mask=rows.inside)

    if grad_logits is not None:
        grad = grad_terms(stats, terms, scale_of(scale, scale_stride, rows, dtype), options)
        pointers = pointers_to(grad_logits, rows.outer, rows.position, grad_outer, grad_inner)
        if SPARSE:
            of_entries = gradient_of_entries(entries, rows, grad, terms, options, ENTRIES)
            of_entries = of_entries.to(grad_logits.dtype.element_ty)
        tl.debug_barrier()  # in place: all have read the target's logits before they are lost
        if STAGE == "whole":
            # From begin, which is 0: these numbers are made anew, not kept in registers till here.
            c = begin + tl.arange(0, BLOCK)[None, :]
            write_gradient(pointers, grad_stride, rows, x0, x, c, grad, own, options)
        else:
            for start in range(begin, end, BLOCK):
                c = start + tl.arange(0, BLOCK)[None, :]
                x0 = given_at(rows, c)
                x = transformed(rows, c, x0, options)
                write_gradient(pointers, grad_stride, rows, x0, x, c, grad, own, options)
        if SPARSE:
            tl.debug_barrier()  # it replaces what has been written there
            tl.store(pointers + entries.target * grad_stride, of_entries, mask=entries.counts)


# ---- a gradient made in forward ------------------------------------------------------------------


@triton.jit
def scale_kernel(values, count, factor, BLOCK: tl.constexpr):
    """Leaves at once if there is nothing to scale."""
    scale = tl.load(factor)
    if scale != 1:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, count, tl.num_programs(0) * BLOCK):
            k = start + tl.arange(0, BLOCK)
            value = accumulated(tl.load(values + k, mask=k < count)) * scale
            tl.store(values + k, value.to(values.dtype.element_ty), mask=k < count)
