"""The Triton kernel: a program holds a few rows, and a tile of their classes at a time. Its stages:

whole     rows that fit one tile: read once for statistics, loss and gradient
rows      longer ones: the tiles' statistics combined; read again for the gradient
parts     the statistics of a part of each row, where there are few rows, for
combine   the loss from those
gradient  from statistics that are known, of a part of each row
"""

import triton
import triton.language as tl

from .row_math import (
    ClassSums,
    RowStats,
    RowTerms,
    finite_or_zero,
    grad_terms,
    log_sum_exp,
    log_sum_exp_from,
    logit_grad,
    negative_entropy,
    row_loss,
    row_terms,
    transform_slope,
    weighted,
)
from .rows import (
    accumulated,
    class_coef_at,
    logits_at,
    options_of,
    pointers_to,
    rows_of_program,
    soft_coef_at,
    uniform,
)
from .sums import combined_parts, store_part, sums_between, sums_of_tile

# ---- terms ---------------------------------------------------------------------------------------


@triton.jit
def terms_of(rows, class_sums, options, dtype: tl.constexpr):
    """RowTerms, w_y and u_y."""
    if rows.target.dtype.is_ptr():  # those of a class without weight or prior: tau and mass are 0
        u = tl.zeros_like(rows.index).to(dtype)
        w = u
        terms = row_terms(u, w, 0.0, options)
    else:
        u = tl.zeros_like(rows.index).to(dtype) + uniform(rows, dtype)
        w = tl.zeros_like(rows.index).to(dtype) + 1
        if rows.prior.dtype.is_ptr():
            u = tl.load(rows.prior + rows.target)
            w = tl.load(rows.weight + rows.target)
        terms = row_terms(u, w, class_sums.coef, options)
    return terms, u, w


@triton.jit
def with_mass(terms, mass):
    return RowTerms(terms.beta, terms.kappa, terms.tau, mass, terms.target_prob, terms.target_coef)


@triton.jit
def class_sums_of(class_sums, classes, dtype: tl.constexpr):
    if class_sums is None:
        one = tl.full((), 1.0, dtype)
        return ClassSums(one, -tl.log(tl.full((), classes, dtype)))
    else:  # noqa: RET505
        return ClassSums(tl.load(class_sums), tl.load(class_sums + 1))


# ---- loss ----------------------------------------------------------------------------------------


@triton.jit
def soft_loss(stats, terms, reference, options):
    """Of class probabilities: coef_dot holds beta and kappa already, and no class is the target."""
    one = tl.zeros_like(reference) + 1
    zero = tl.zeros_like(reference)
    terms = RowTerms(one, zero, zero, terms.mass, zero, zero)
    return row_loss(stats, terms, reference, reference, options)


@triton.jit
def of_good_rows(rows, value):
    return tl.where(rows.bad, float("nan"), tl.where(rows.ignored, 0.0, value))


# ---- gradient ------------------------------------------------------------------------------------


@triton.jit
def soft_mass(rows, terms, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of the coefficients of class probabilities, from those alone."""
    mass = tl.zeros_like(rows.index).to(dtype)
    for start in range(0, rows.classes, BLOCK):
        c = start + tl.arange(0, BLOCK)[None, :]
        coef = soft_coef_at(rows, c, terms.beta, terms.kappa, dtype)
        mass += tl.sum(coef, 1, keep_dims=True)
    return mass


@triton.jit
def scale_of(scale, scale_stride, rows, dtype: tl.constexpr):
    """The incoming gradient over the denominator; NaN makes all that it scales NaN."""
    if scale is None:
        factor = tl.zeros_like(rows.index).to(dtype) + 1
    else:
        factor = tl.load(scale + rows.index * scale_stride, mask=rows.inside, other=0.0)
    return tl.where(rows.bad, float("nan"), factor)


@triton.jit
def write_gradient(pointers, stride, rows, x, c, grad, options):
    if rows.target.dtype.is_ptr():
        coef = soft_coef_at(rows, c, grad.beta, grad.kappa, x.dtype)
    else:
        coef = grad.beta * class_coef_at(rows, c, x.dtype)
        coef = tl.where(c == rows.target, grad.target_coef, coef)
    gradient = logit_grad(tl.exp(x - grad.shift), coef, grad) * transform_slope(x, options)
    gradient = tl.where(rows.ignored, 0.0, gradient)  # an ignored row may hold NaN
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
    target,  # (N,), or class probabilities like the logits
    target_outer,
    target_stride,
    target_inner,
    weight,  # (C,) each, or None
    prior,
    class_coef,
    class_sums,  # (2,), or None
    outer,
    inner,
    classes,
    ignore_index: tl.int64,
    label_smoothing,
    lse_square_scale,
    logit_scale,
    softcap,
    IN_MEMORY: tl.constexpr,  # the four numbers are pointers
    OVER_OTHERS: tl.constexpr,
    KL_DIV: tl.constexpr,
    FROM_LOG_PROBS: tl.constexpr,
    grad_logits,  # None: no gradient
    grad_outer,
    grad_stride,
    grad_inner,
    scale,  # of the gradient: (N,), or one number and stride 0; None: 1
    scale_stride,
    loss,  # (N,)
    row_stats,  # (2, N), or (4, N) with statistics
    predicted,  # (N,)
    parts,  # (8, N, PARTS)
    WITH_STATS: tl.constexpr,
    STAGE: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = row_stats.dtype.element_ty
    SOFT: tl.constexpr = target.dtype.element_ty.is_floating()
    options = options_of(
        label_smoothing,
        lse_square_scale,
        logit_scale,
        softcap,
        IN_MEMORY,
        OVER_OTHERS,
        KL_DIV,
        FROM_LOG_PROBS,
        dtype,
    )
    rows = rows_of_program(
        logits,
        logits_outer,
        logits_stride,
        logits_inner,
        target,
        target_outer,
        target_stride,
        target_inner,
        weight,
        prior,
        class_coef,
        inner,
        classes,
        ignore_index,
        WITH_STATS or ROWS > 1,  # of several rows it would only spoil wide reads to leave one out
        ROWS,
    )
    totals = class_sums_of(class_sums, classes, dtype)
    terms, target_prior, target_weight = terms_of(rows, totals, options, dtype)
    N = tl.cast(inner, tl.int64) * outer
    span = tl.cdiv(tl.cdiv(classes, tl.num_programs(1)), BLOCK) * BLOCK  # of a part
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, classes)

    if STAGE == "gradient":
        shift = tl.load(row_stats + rows.index, mask=rows.inside, other=0.0)
        sum_exp = tl.load(row_stats + N + rows.index, mask=rows.inside, other=1.0)
        stats = RowStats(shift, sum_exp, tl.zeros_like(shift), tl.zeros_like(shift))
        if SOFT:
            terms = with_mass(terms, soft_mass(rows, terms, dtype, BLOCK))
    else:
        own = tl.zeros_like(rows.index)
        if not SOFT:
            own = rows.target
        target_logit = logits_at(rows, own, options)
        reference = finite_or_zero(target_logit)
        if STAGE == "whole":
            c = tl.arange(0, BLOCK)[None, :]
            x = logits_at(rows, c, options)
            sums = sums_of_tile(rows, x, c, reference, terms, options, WITH_STATS)
        elif STAGE == "combine":
            sums = combined_parts(parts, rows, N, dtype, PARTS)
        else:
            end_read = tl.where(tl.max(rows.read.to(tl.int32)) > 0, end, 0)
            sums = sums_between(rows, begin, end_read, reference, terms, options, WITH_STATS, BLOCK)
        if STAGE == "parts":
            store_part(parts, rows, N, sums, PARTS)
        else:
            stats = RowStats(finite_or_zero(sums.shift), sums.sum_exp, sums.coef_dot, sums.coef_sum)
            if SOFT:
                terms = with_mass(terms, stats.coef_sum)
                row_losses = soft_loss(stats, terms, reference, options) + sums.entropy
                lse = log_sum_exp_from(reference, stats, options)
                nll = weighted(sums.prob_sum, lse) + sums.prob_nll
            else:
                row_losses = row_loss(stats, terms, target_logit, reference, options)
                if KL_DIV:
                    row_losses += negative_entropy(terms, target_prior, target_weight, totals)
                nll = log_sum_exp_from(reference, stats, options) - (target_logit - reference)
            tl.store(loss + rows.index, of_good_rows(rows, row_losses), mask=rows.inside)
            tl.store(row_stats + rows.index, stats.shift, mask=rows.inside)
            tl.store(row_stats + N + rows.index, stats.sum_exp, mask=rows.inside)
            if WITH_STATS:
                lse = log_sum_exp(stats, options)
                tl.store(row_stats + 2 * N + rows.index, lse, mask=rows.inside)
                nll = of_good_rows(rows, nll)
                tl.store(row_stats + 3 * N + rows.index, nll, mask=rows.inside)
                tl.store(predicted + rows.index, sums.best, mask=rows.inside)

    if grad_logits is not None:
        grad = grad_terms(stats, terms, scale_of(scale, scale_stride, rows, dtype), options)
        pointers = pointers_to(grad_logits, rows.outer, rows.position, grad_outer, grad_inner)
        tl.debug_barrier()  # in place: all have read the target's logit before it is overwritten
        if STAGE == "whole":
            # From begin, which is 0: these numbers are made anew, not kept in registers till here.
            c = begin + tl.arange(0, BLOCK)[None, :]
            write_gradient(pointers, grad_stride, rows, x, c, grad, options)
        else:
            for start in range(begin, end, BLOCK):
                c = start + tl.arange(0, BLOCK)[None, :]
                x = logits_at(rows, c, options)
                write_gradient(pointers, grad_stride, rows, x, c, grad, options)


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
