"""The rows of a program: where they lie, their target, and tiles of what is known of their classes.

What is known of rows stands in columns (ROWS, 1), of a single row in scalars; what is known of
classes in lines (1, BLOCK); tiles are (ROWS, BLOCK). Matrices are (outer, C, inner), as in
csrc/kernels.h, and row = outer index * inner + position. Offsets have 64 bits.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import ClassSums, transform_logit, unless_masked, weighted


class Rows(NamedTuple):
    """The rows of a program and the classes that they are over, counted from the first of these.
    Their target is one class, a few (its entries, each a class and a probability), or probabilities
    of all."""

    outer: tl.tensor  # row = outer * inner + position
    position: tl.tensor
    index: tl.tensor  # the row
    inside: tl.tensor  # the program's last rows may lie beyond the matrix
    read: tl.tensor  # inside, and not unused
    ignored: tl.tensor
    bad: tl.tensor  # the target is no class
    row_weight: tl.tensor  # or nothing(): 1
    unused: tl.tensor  # ignored, or of weight 0
    logits: tl.tensor  # pointers to class 0
    logits_stride: tl.tensor  # from class to class
    target: tl.tensor  # the class, 0 where there is none; -1 where it is not among these classes
    entries: tl.tensor  # pointers to the first one's class, or nothing()
    entry_count: tl.tensor
    probs: tl.tensor  # pointers to the first probability, or nothing(): it is one class
    target_stride: tl.tensor  # from entry to entry, or from class to class
    ignore_index: tl.tensor
    classes: tl.tensor  # their number
    class_offset: tl.tensor  # the first one, of all; or nothing(): these are all
    all_classes: tl.tensor
    weight: tl.tensor  # pointers to w_c, u_c and v_c; or nothing(): 1, 1/C and 1/C
    prior: tl.tensor
    class_coef: tl.tensor


class Span(NamedTuple):
    """Some classes of the rows: those of a tile, or the target's."""

    c: tl.tensor
    inside: tl.tensor  # it is one


# ---- arguments -----------------------------------------------------------------------------------


@triton.jit
def nothing():
    """Stands for None in a tuple that a function returns: Triton 3.6 makes tensors of all in it."""
    return tl.full((), 0, tl.int1)


@triton.jit
def scalar(value, IN_MEMORY: tl.constexpr, dtype: tl.constexpr):
    if IN_MEMORY:
        return tl.load(value)
    else:  # noqa: RET505
        return tl.full((), value, dtype)


@triton.jit
def row_max(tile):
    if tile.shape[0] == 1:
        return tl.max(tile)
    else:  # noqa: RET505
        return tl.max(tile, 1, keep_dims=True)


@triton.jit
def any_of(rows):
    """A scalar, of a condition on rows."""
    if rows.type.is_block():
        return tl.max(rows.to(tl.int32)) > 0
    else:  # noqa: RET505
        return rows


@triton.jit
def row_min(tile):
    if tile.shape[0] == 1:
        return tl.min(tile)
    else:  # noqa: RET505
        return tl.min(tile, 1, keep_dims=True)


@triton.jit
def row_sum(tile):
    if tile.shape[0] == 1:
        return tl.sum(tile)
    else:  # noqa: RET505
        return tl.sum(tile, 1, keep_dims=True)


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
    all_classes,
    ignore_index,
    READ_UNUSED: tl.constexpr,
    ENTRIES: tl.constexpr,
    ROWS: tl.constexpr,
    UNIT: tl.constexpr,
):
    blocks = tl.cdiv(inner, ROWS)
    outer = (tl.program_id(0) // blocks).to(tl.int64)
    position = (tl.program_id(0) % blocks).to(tl.int64) * ROWS
    if ROWS > 1:
        position += tl.arange(0, ROWS)[:, None]
    index = outer * inner + position
    inside = position < inner // UNIT * UNIT  # so that it is known to be a multiple
    y = tl.zeros_like(index)
    entries = nothing()
    probs = nothing()
    ignored = index < 0  # none of them
    bad = ignored
    if target.dtype.element_ty.is_floating():
        probs = pointers_to(target, outer, position, target_outer, target_inner)
    elif target_probs is not None:
        entries = pointers_to(target, outer, position, target_outer, target_inner)
        probs = pointers_to(target_probs, outer, position, target_outer, target_inner)
        k = tl.arange(0, ENTRIES)[None, :]
        here = inside & (k < entry_count)
        c = tl.load(entries + k.to(tl.int64) * target_stride, mask=here, other=0).to(tl.int64)
        counts = here & (c != ignore_index)
        ignored = row_max(counts.to(tl.int32)) == 0
        wrong = counts & ((c < 0) | (c >= all_classes))
        bad = row_max(wrong.to(tl.int32)) > 0
    else:
        y = tl.load(target + index, mask=inside, other=0).to(tl.int64)
        ignored = y == ignore_index
        bad = (y != ignore_index) & ((y < 0) | (y >= all_classes))
        if class_offset is None:
            y = tl.where(ignored | bad, 0, y)
        else:
            y -= class_offset
            y = tl.where(ignored | bad | (y < 0) | (y >= classes), -1, y)
    unused = ignored
    r = nothing()
    if row_weight is not None:
        r = tl.load(row_weight + index, mask=inside, other=0.0)
        unused = ignored | ((r == 0) & (bad == 0))
    read = inside
    if not READ_UNUSED:
        read = inside & (unused == 0)
    return Rows(
        outer,
        position,
        index,
        inside,
        read,
        ignored,
        bad,
        r,
        unused,
        pointers_to(logits, outer, position, logits_outer, logits_inner),
        logits_stride,
        y,
        entries,
        entry_count,
        probs,
        target_stride,
        ignore_index,
        classes,
        nothing() if class_offset is None else class_offset,
        all_classes,
        nothing() if weight is None else weight,
        nothing() if prior is None else prior,
        nothing() if class_coef is None else class_coef,
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
    return 1 / tl.full((), rows.all_classes, dtype)


@triton.jit
def span_from(first, k, count):
    return Span(first + k, k < count)


@triton.jit
def own_span(rows, begin, end):
    """The target's class, if it is one of those."""
    return Span(rows.target, (rows.target >= begin) & (rows.target < end))


@triton.jit
def first_aligned(rows, WIDTH: tl.constexpr):
    """The first class whose logit lies on 16 bytes."""
    size: tl.constexpr = 16 // WIDTH
    return (-(rows.logits.to(tl.int64) // size) & (WIDTH - 1)).to(tl.int32)


@triton.jit
def edges_of(rows, first, end, begins, ends, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """The classes before the first aligned one, if `begins`, and from end on, if `ends`: fewer
    than WIDTH each. One in a lane."""
    k = tl.arange(0, LANES)[None, :]
    c = tl.where(k < WIDTH, k, end + k - WIDTH)
    return Span(c, tl.where(k < WIDTH, begins & (c < first), ends & (c < rows.classes)))


@triton.jit
def given_at(rows, span, ALIGNED: tl.constexpr = False):
    """The logits as they were given; 0 beyond the span. ALIGNED: a tile that begins on 16 bytes,
    which its strides alone do not say."""
    pointers = rows.logits + span.c.to(tl.int64) * rows.logits_stride
    if ALIGNED:
        pointers = tl.multiple_of(pointers, [16, 16])
    return accumulated(tl.load(pointers, mask=rows.read & span.inside, other=0.0))


@triton.jit
def transformed(rows, span, x0, options):
    return tl.where(span.inside, transform_logit(x0, options), float("-inf"))


@triton.jit
def target_probs_at(rows, span, dtype: tl.constexpr):
    pointers = rows.probs + span.c.to(tl.int64) * rows.target_stride
    return tl.load(pointers, mask=rows.inside & span.inside, other=0.0).to(dtype)


@triton.jit
def of_classes(vector, constant, span):
    """The constant where there is no vector."""
    if vector.dtype.is_ptr():
        return tl.load(vector + span.c, mask=span.inside, other=0.0)
    else:  # noqa: RET505
        return tl.where(span.inside, constant, 0.0)


@triton.jit
def class_coef_at(rows, span, dtype: tl.constexpr):
    """v_c, beyond the last class too: where there are no vectors it is one number."""
    if rows.class_coef.dtype.is_ptr():
        return of_classes(rows.class_coef, 0.0, span)
    else:  # noqa: RET505
        return uniform(rows, dtype)


@triton.jit
def spread_coef_at(rows, span, x0, options):
    """v_c, 0 where it is masked."""
    return unless_masked(class_coef_at(rows, span, x0.dtype), x0, options)


@triton.jit
def first_read(rows):
    """A class of each row that differences may be taken to: its target's, or 0."""
    if rows.class_offset.dtype == tl.int1:
        return rows.target
    else:  # noqa: RET505
        return tl.maximum(rows.target, 0)


@triton.jit
def vectors_of_target(rows, dtype: tl.constexpr):
    """t_y, w_y and u_y, where the target is one class; 0 where that is elsewhere."""
    t = tl.zeros_like(rows.index).to(dtype) + 1
    w = t
    u = tl.zeros_like(t) + uniform(rows, dtype)
    if rows.probs.dtype.is_ptr():
        pass
    elif rows.class_offset.dtype == tl.int1:
        if rows.prior.dtype.is_ptr():
            w = tl.load(rows.weight + rows.target)
            u = tl.load(rows.prior + rows.target)
    else:
        here = rows.target >= 0
        t = tl.where(here, 1.0, tl.zeros_like(t))
        w = t
        u = tl.where(here, u, 0.0)
        if rows.prior.dtype.is_ptr():
            w = tl.load(rows.weight + rows.target, mask=here, other=0.0)
            u = tl.load(rows.prior + rows.target, mask=here, other=0.0)
    return t, w, u


@triton.jit
def class_sums_of(class_sums, rows, dtype: tl.constexpr):
    if class_sums is None:
        log_prior = -tl.log(tl.full((), rows.all_classes, dtype))
        share = tl.full((), 1.0, dtype)
        if rows.class_offset.dtype != tl.int1:
            share = rows.classes * uniform(rows, dtype)
        return ClassSums(share, share * log_prior, share)
    else:  # noqa: RET505
        return ClassSums(tl.load(class_sums), tl.load(class_sums + 1), 1.0)


# ---- of rows that count -------------------------------------------------------------------------


@triton.jit
def of_good_rows(rows, value):
    return tl.where(rows.bad, float("nan"), tl.where(rows.ignored, 0.0, value))


@triton.jit
def of_weight(rows, value):
    if rows.row_weight.dtype == tl.int1:
        return value
    else:  # noqa: RET505
        return weighted(rows.row_weight, value)
