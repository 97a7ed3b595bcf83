"""Tiles (ROWS, BLOCK) of what is known of the classes of rows: logits, weights, prior and target.

What is known of classes alone stands in lines (1, BLOCK).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import ClassSums, transform_logit, unless_masked
from .rows import nothing


class Part(NamedTuple):
    """The classes of a program: tiles from begin to end, counted from `first`, and the edges before
    and behind all tiles."""

    first: tl.tensor
    count: tl.tensor  # of the classes that tiles are of, in all parts
    begin: tl.tensor
    end: tl.tensor
    low: tl.tensor  # of its classes, edges included
    high: tl.tensor
    begins: tl.tensor  # the edge before the tiles is its; nothing() without edges
    ends: tl.tensor


class Span(NamedTuple):
    """Some classes of the rows: those of a tile, or the target's."""

    c: tl.tensor
    inside: tl.tensor  # it is one


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
def tile_at(part, start, BLOCK: tl.constexpr):
    k = start + tl.arange(0, BLOCK)[None, :]
    return Span(part.first + k, k < part.count)


@triton.jit
def part_of_program(rows, classes, BLOCK: tl.constexpr, WIDTH: tl.constexpr, EDGES: tl.constexpr):
    first = 0
    count = classes
    if WIDTH > 1:
        if EDGES:
            first = first_aligned(rows, WIDTH)
        count = (classes - first) // WIDTH * WIDTH
    size = tl.cdiv(tl.cdiv(count, tl.num_programs(1)), BLOCK) * BLOCK
    begin = tl.program_id(1) * size
    end = tl.minimum(begin + size, count)
    low, high = first + begin, first + end
    begins, ends = nothing(), nothing()
    if EDGES:
        begins, ends = begin == 0, (end == count) & (begin < end)
        low, high = tl.where(begins, 0, low), tl.where(ends, classes, high)
    return Part(first, count, begin, end, low, high, begins, ends)


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
def edges_of(rows, part, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """The part's classes before the first aligned one and behind the last tile: fewer than WIDTH
    each, one in a lane."""
    k = tl.arange(0, LANES)[None, :]
    end = part.first + part.count
    c = tl.where(k < WIDTH, k, end + k - WIDTH)
    before, behind = part.begins & (c < part.first), part.ends & (c < rows.classes)
    return Span(c, tl.where(k < WIDTH, before, behind))


@triton.jit
def given_at(rows, span, ALIGNED: tl.constexpr = False):
    """The logits as given; 0 beyond the span. ALIGNED: the tile begins on 16 bytes, which its
    strides do not say."""
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
