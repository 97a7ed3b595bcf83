"""The Triton kernel: a program holds a few rows, and a tile of their classes at a time. Its stages:

    whole     a row that fits one tile: read once for statistics, loss and gradient
    rows      a longer one: the tiles' statistics combined; read again for the gradient
    parts     the statistics of a part of each row, where there are few rows, for
    combine   the loss from those
    gradient  from statistics that are known, of a part of each row

What is known of rows stands in columns (ROWS, 1), what is
known of classes in lines (1, BLOCK), tiles are (ROWS, BLOCK). Lanes beyond a row's end hold a logit
of -inf and a coefficient of 0. Offsets have 64 bits.

Matrices are (outer, C, inner), as in csrc/kernels.h, row = outer index * inner + position.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from ._triton_math import (
    ClassSums,
    LossOptions,
    RowStats,
    RowTerms,
    combine,
    finite_or_zero,
    grad_terms,
    log_sum_exp,
    log_sum_exp_from,
    logit_grad,
    negative_entropy,
    row_loss,
    row_terms,
    soft_coef,
    soft_negative_entropy,
    soft_nll,
    transform_logit,
    transform_slope,
    weighted,
)


class Rows(NamedTuple):
    """The rows of a program and the classes that they are over."""

    outer: tl.tensor  # row = outer * inner + position
    position: tl.tensor
    index: tl.tensor  # the row
    inside: tl.tensor  # the program's last rows may lie beyond the matrix
    read: tl.tensor  # inside, and not ignored
    ignored: tl.tensor
    bad: tl.tensor  # the target is no class
    logits: tl.tensor  # pointers to class 0
    logits_stride: tl.tensor  # from class to class
    target: tl.tensor  # the class, 0 where there is none; or pointers to class probabilities
    target_stride: tl.tensor
    classes: tl.tensor
    weight: tl.tensor  # pointers to w_c, u_c and v_c; or None: 1, 1/C and 1/C
    prior: tl.tensor
    class_coef: tl.tensor


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


# ---- arguments -----------------------------------------------------------------------------------


@triton.jit
def scalar(value, IN_MEMORY: tl.constexpr, dtype: tl.constexpr):
    if IN_MEMORY:
        return tl.load(value)
    else:  # noqa: RET505
        return tl.full((), value, dtype)


@triton.jit
def options_of(
    label_smoothing,
    lse_square_scale,
    logit_scale,
    softcap,
    IN_MEMORY: tl.constexpr,
    OVER_OTHERS: tl.constexpr,
    KL_DIV: tl.constexpr,
    FROM_LOG_PROBS: tl.constexpr,
    dtype: tl.constexpr,
):
    cap = None
    if softcap is not None:
        cap = scalar(softcap, IN_MEMORY, dtype)
    return LossOptions(
        scalar(label_smoothing, IN_MEMORY, dtype),
        scalar(lse_square_scale, IN_MEMORY, dtype),
        scalar(logit_scale, IN_MEMORY, dtype),
        cap,
        OVER_OTHERS,
        KL_DIV,
        FROM_LOG_PROBS,
    )


@triton.jit
def pointers_to(data, outer, position, outer_stride, inner_stride):
    return data + outer * outer_stride + position * inner_stride


@triton.jit
def rows_of_program(
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
    READ_IGNORED: tl.constexpr,
    ROWS: tl.constexpr,
):
    blocks = tl.cdiv(inner, ROWS)
    outer = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    index = outer * inner + position
    inside = position < inner
    if target.dtype.element_ty.is_floating():
        y = pointers_to(target, outer, position, target_outer, target_inner)
        ignored = index < 0  # none of them
        bad = ignored
    else:
        y = tl.load(target + index, mask=inside, other=0).to(tl.int64)
        ignored = y == ignore_index
        bad = (y != ignore_index) & ((y < 0) | (y >= classes))
        y = tl.where(ignored | bad, 0, y)
    read = inside
    if not READ_IGNORED:
        read = inside & (ignored == 0)
    return Rows(
        outer,
        position,
        index,
        inside,
        read,
        ignored,
        bad,
        pointers_to(logits, outer, position, logits_outer, logits_inner),
        logits_stride,
        y,
        target_stride,
        classes,
        weight,
        prior,
        class_coef,
    )


# ---- reading -------------------------------------------------------------------------------------


@triton.jit
def accumulated(x):
    if x.dtype == tl.float64:
        return x
    else:  # noqa: RET505
        return x.to(tl.float32)


@triton.jit
def uniform(rows, dtype: tl.constexpr):
    return 1 / tl.full((), rows.classes, dtype)


@triton.jit
def logits_at(rows, c, options):
    inside = c < rows.classes
    pointers = rows.logits + c.to(tl.int64) * rows.logits_stride
    x0 = accumulated(tl.load(pointers, mask=rows.read & inside, other=0.0))
    return tl.where(inside, transform_logit(x0, options), float("-inf"))


@triton.jit
def target_probs_at(rows, c):
    pointers = rows.target + c.to(tl.int64) * rows.target_stride
    return accumulated(tl.load(pointers, mask=rows.inside & (c < rows.classes), other=0.0))


@triton.jit
def of_classes(vector, constant, rows, c):
    """Of classes that may lie beyond the last one; the constant where there is no vector."""
    if vector is None:
        return tl.where(c < rows.classes, constant, 0.0)
    else:  # noqa: RET505
        return tl.load(vector + c, mask=c < rows.classes, other=0.0)


@triton.jit
def class_coef_at(rows, c, dtype: tl.constexpr):
    """v_c, beyond the last class too: where there are no vectors it is one number."""
    if rows.class_coef is None:
        return uniform(rows, dtype)
    else:  # noqa: RET505
        return of_classes(rows.class_coef, 0.0, rows, c)


@triton.jit
def soft_coef_at(rows, c, beta, kappa, dtype: tl.constexpr):
    class_coef = tl.where(c < rows.classes, class_coef_at(rows, c, dtype), 0.0)
    weighted_probs = of_classes(rows.weight, 1.0, rows, c) * target_probs_at(rows, c)
    return soft_coef(class_coef, weighted_probs, beta, kappa)


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
def terms_of(rows, class_sums, options, dtype: tl.constexpr):
    """RowTerms, w_y and u_y."""
    if rows.target.dtype.is_ptr():  # those of a class without weight or prior: tau and mass are 0
        u = tl.zeros_like(rows.index).to(dtype)
        w = u
        terms = row_terms(u, w, 0.0, options)
    else:
        u = tl.zeros_like(rows.index).to(dtype) + uniform(rows, dtype)
        w = tl.zeros_like(rows.index).to(dtype) + 1
        if rows.prior is not None:
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
