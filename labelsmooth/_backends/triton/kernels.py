"""The Triton kernel: a program holds a few rows, and a tile of their classes at a time. Its stages:

whole     rows that fit one tile: read once for statistics, loss and gradient
rows      longer ones: the tiles' statistics combined; read again for the gradient
parts     the statistics of a part of each row, where there are few rows, for
combine   the loss from those
gradient  from statistics that are known, of a part of each row

Where the classes are a rank's, the first four come to a RowPart instead of the loss.
"""

import triton
import triton.language as tl

from .entries import coef_of_entries, entries_of, entropy_of_entries, target_sums_of_entries
from .gradient import gradient_of, of_used_rows, scale_of, write_gradient, write_gradient_between
from .outputs import load_stats, load_terms, store_evaluation, store_loss, store_partial
from .reading import (
    Span,
    class_sums_of,
    edges_of,
    first_read,
    given_at,
    own_span,
    part_of_program,
    tile_at,
    transformed,
    uniform,
    vectors_of_target,
)
from .row_math import (
    OTHERS,
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
    any_of,
    nothing,
    of_good_rows,
    of_weight,
    pointers_to,
    rows_of_program,
    scalar,
)
from .sums import combine_sums, combined, empty_sums, load_sums, store_sums
from .tile_sums import TargetSums, sums_between, sums_of_tile


@triton.jit(do_not_specialize=["outer", "inner", "ignore_index", "class_offset", "all_classes"])
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
    logit_scale,  # None: 1, and no softcap
    softcap,  # None: none
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
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    EDGES: tl.constexpr,
    UNIT: tl.constexpr,  # inner is a multiple of it
    STAGES: tl.constexpr,  # of the loop that sums
):
    dtype: tl.constexpr = row_stats.dtype.element_ty
    if WIDTH > 1 and not EDGES:  # of which the strides are multiples: they come divided by it
        logits_outer *= WIDTH
        logits_inner *= WIDTH
        grad_outer *= WIDTH
        grad_inner *= WIDTH
    DENSE: tl.constexpr = target.dtype.element_ty.is_floating()
    SPARSE: tl.constexpr = target_probs is not None
    # To leave out one of several rows would only spoil wide reads.
    READ_UNUSED: tl.constexpr = WITH_STATS or ROWS > 1
    options = LossOptions(
        scalar(label_smoothing, IN_MEMORY, dtype),
        scalar(lse_square_scale, IN_MEMORY, dtype),
        nothing() if logit_scale is None else scalar(logit_scale, IN_MEMORY, dtype),
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
        READ_UNUSED,
        ENTRIES,
        ROWS,
        UNIT,
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
    part = part_of_program(rows, classes, BLOCK, WIDTH, EDGES)
    if EDGES:
        edges = edges_of(rows, part, LANES, WIDTH)
        edges_x0 = given_at(rows, edges)
        edges_x = transformed(rows, edges, edges_x0, options)
    if SPARSE and STAGE != "parts":
        entries = entries_of(rows, part.low, part.high, options, dtype, ENTRIES)

    here = own_span(rows, part.low, part.high)
    # The gradient's is of a part, and other parts' logits may be lost already.
    own_place = here if STAGE == "gradient" else Span(first_read(rows), rows.inside)
    own_x0 = given_at(rows, own_place)
    own_x = transformed(rows, own_place, own_x0, options)
    if STAGE == "gradient":
        stats = load_stats(row_stats, N, rows)
        if DENSE or SPARSE or SMOOTH_OVER == UNMASKED or class_offset is not None:
            terms = load_terms(row_stats, N, rows, terms.kappa)
            own = target_terms(own_prob, own_weight, own_prior, own_x0, terms, options)
        else:  # fewer loads: of one class they are known
            own = target_terms(own_prob, own_weight, own_prior, own_x0, terms, options)
            terms = RowTerms(terms.beta, terms.kappa, terms.mass + own.tau)
    else:
        reference = reference_from(own_x)
        empty = empty_sums(rows, dtype, DENSE, SMOOTH_OVER == UNMASKED, KL_DIV, WITH_STATS, LANES)
        if STAGE == "whole":
            tile = tile_at(part, 0, BLOCK)
            x0 = given_at(rows, tile, EDGES)
            x = transformed(rows, tile, x0, options)
            sums = sums_of_tile(empty, rows, x0, x, tile, reference, terms, options, LANES, WIDTH)
        elif STAGE == "combine":
            sums = load_sums(empty, parts, rows, N, PARTS)
        else:
            end_read = tl.where(any_of(rows.read), part.end, 0)
            sums = sums_between(
                empty,
                rows,
                part,
                end_read,
                reference,
                terms,
                options,
                LANES,
                WIDTH,
                EDGES,
                BLOCK,
                STAGES,
            )
        if EDGES and STAGE != "combine":
            of_edges = sums_of_tile(
                empty, rows, edges_x0, edges_x, edges, reference, terms, options, LANES, 1
            )
            sums = combine_sums(sums, of_edges)
        sums = combined(sums, classes)
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
                    of_target = target_sums_of_entries(entries, reference)
                    entropy = entropy_of_entries(entries, rows, terms, options, ENTRIES)
                target_dot = weighted(terms.kappa, of_target.dot)
                target_mass = weighted(terms.kappa, of_target.mass)
            else:
                # Of others wholly, as sums_of_tile leaves it out there.
                own_coef = own.coef if SMOOTH_OVER == OTHERS else own.tau
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
        grad = of_used_rows(grad, rows)
        pointers = pointers_to(grad_logits, rows.outer, rows.position, grad_outer, grad_inner)
        if not DENSE:
            own_coef = own.coef
            if SPARSE:
                here, own_x = Span(entries.target, entries.counts), entries.x
                own_coef = coef_of_entries(entries, rows, terms, options, ENTRIES)
            of_own = gradient_of(own_x, grad.scale * own_coef, rows, grad, options, READ_UNUSED)
        tl.debug_barrier()  # in place: all have read the target's logits before they are lost
        if EDGES:
            write_gradient(
                *(pointers, grad_stride, rows, edges_x0, edges_x, edges, grad, options, READ_UNUSED)
            )
        if STAGE == "whole":
            # From begin, which is 0: made anew, not kept in registers till here.
            tile = tile_at(part, part.begin, BLOCK)
            write_gradient(
                pointers, grad_stride, rows, x0, x, tile, grad, options, READ_UNUSED, EDGES
            )
        else:
            write_gradient_between(
                pointers, grad_stride, rows, part, grad, options, READ_UNUSED, EDGES, BLOCK
            )
        if not DENSE:
            tl.debug_barrier()  # it replaces what has been written there
            of_own = of_own.to(grad_logits.dtype.element_ty)
            place = pointers + here.c.to(tl.int64) * grad_stride
            tl.store(place, of_own, mask=rows.inside & here.inside)
