"""The Triton kernel: a program holds a few rows, and a tile of their classes at a time. Its stages:

whole     rows that fit one tile: read once for statistics, loss and gradient
rows      longer ones: the tiles' statistics combined; read again for the gradient
parts     the statistics of a part of each row, where there are few rows, for
combine   the loss from those
gradient  from statistics that are known, of a part of each row

Where the classes are a rank's, it is not the loss but a RowPart that the first four come to.
"""

import triton
import triton.language as tl

from .entries import entries_of, entropy_of_entries, gradient_of_entries
from .gradient import scale_of, write_gradient
from .outputs import store_evaluation, store_loss, store_partial
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
    reference_from,
    row_loss,
    row_terms,
    smoothing_entropy,
    soft_nll,
    target_entropy,
    target_terms,
    weighted,
)
from .rows import (
    class_sums_of,
    first_read,
    given_at,
    nothing,
    of_good_rows,
    of_weight,
    pointers_to,
    rows_of_program,
    scalar,
    transformed,
    uniform,
    vectors_of_target,
)
from .sums import (
    TargetSums,
    combined_parts,
    empty_sums,
    store_sums,
    sums_between,
    sums_of_tile,
    target_sums,
)


@triton.jit(do_not_specialize=["ignore_index", "class_offset", "all_classes"])
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
    target_prior,  # u_y of classes that are elsewhere too, (N,), or None
    row_weight,  # (N,), or None
    outer,
    inner,
    classes,
    class_offset,  # of all_classes these are those from here on; None: all
    all_classes,
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
    row_stats,  # (4, N), or (6, N) with statistics; PARTIAL: of a RowPart, (fields, N)
    predicted,  # (N,)
    parts,  # (12, N, PARTS)
    PARTIAL: tl.constexpr,  # no loss, but what these classes are to the rows
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
        class_offset,
        classes if class_offset is None else all_classes,
        ignore_index,
        WITH_STATS or ROWS > 1,  # of several rows it would only spoil wide reads to leave one out
        ENTRIES,
        ROWS,
    )
    totals = class_sums_of(class_sums, rows, dtype)
    own_prob, own_weight, own_prior = vectors_of_target(rows, dtype)
    y_prior = own_prior  # wherever that is
    if target_prior is not None:
        y_prior = tl.load(target_prior + rows.index, mask=rows.inside, other=0.0)
    elif PARTIAL:
        y_prior = tl.zeros_like(own_prior) + uniform(rows, dtype)
    terms = row_terms(y_prior, totals, options)
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
        own = target_terms(own_prob, own_weight, own_prior, zero, terms, options)
        if DENSE or SPARSE or SMOOTH_OVER == UNMASKED or class_offset is not None:
            mass = tl.load(row_stats + 2 * N + rows.index, mask=rows.inside, other=0.0)
            beta = tl.load(row_stats + 3 * N + rows.index, mask=rows.inside, other=0.0)
            terms = RowTerms(beta, terms.kappa, mass)
        else:  # fewer loads: of one class they are known
            terms = RowTerms(terms.beta, terms.kappa, terms.mass + own.tau)
    else:
        own_c = first_read(rows)
        own_x0 = given_at(rows, own_c)
        own_x = transformed(rows, own_c, own_x0, options)
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
            store_sums(parts, rows, N, sums, PARTS)
        else:
            stats = RowStats(finite_or_zero(sums.shift), sums.sum_exp, sums.spread_dot)
            if SMOOTH_OVER == UNMASKED:
                totals = ClassSums(sums.coef, sums.coef_log, sums.prior)
                terms = row_terms(y_prior, totals, options)
            own = target_terms(own_prob, own_weight, own_prior, own_x0, terms, options)
            if DENSE or SPARSE:
                if DENSE:
                    of_target = TargetSums(sums.target_dot, sums.target_mass, sums.prob, sums.nll)
                    entropy = sums.entropy
                else:
                    of_target = target_sums(entries.prob, entries.weight, entries.x - reference)
                    entropy = entropy_of_entries(entries, rows, terms, options, ENTRIES)
                target_dot = weighted(terms.kappa, of_target.dot)
                target_mass = weighted(terms.kappa, of_target.mass)
            else:
                # By itself, as sums_of_tile leaves it out.
                own_coef = own.tau if PARTIAL and SMOOTH_OVER == UNMASKED else own.coef
                target_dot = weighted(own_coef, own_x - reference)
                target_mass = own.tau
                nll = soft_nll(own_prob, 0.0, own_x - reference)
                of_target = TargetSums(target_dot, target_mass, own_prob, nll)
                entropy = target_entropy(own)
            if KL_DIV and not DENSE:  # which is of all classes already
                entropy += smoothing_entropy(terms, totals)
            if PARTIAL:
                store_partial(
                    row_stats,
                    N,
                    rows,
                    sums,
                    stats,
                    terms,
                    totals,
                    of_target,
                    target_dot,
                    target_mass,
                    entropy,
                    reference,
                    options,
                    SMOOTH_OVER == UNMASKED,
                    KL_DIV,
                    WITH_STATS,
                )
            else:
                terms = RowTerms(terms.beta, terms.kappa, terms.mass + target_mass)
                row_losses = row_loss(stats, terms, target_dot, reference, options)
                if KL_DIV:
                    row_losses += entropy
                row_losses = of_good_rows(rows, of_weight(rows, row_losses))
                store_loss(loss, row_stats, N, rows, row_losses, stats, terms)
                if WITH_STATS:
                    nll = log_sum_exp_from(reference, stats, options)
                    nll = of_good_rows(rows, weighted(of_target.prob, nll) + of_target.nll)
                    lse = log_sum_exp(stats, options)
                    store_evaluation(row_stats, predicted, N, rows, lse, nll, sums.best)

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
