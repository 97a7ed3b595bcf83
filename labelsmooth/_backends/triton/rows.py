"""The rows of a program: where they lie, and their target.

What is known of rows stands in columns (ROWS, 1), of a single row in scalars. Matrices are
(outer, C, inner), as in csrc/kernels.h, and row = outer index * inner + position. Offsets have 64
bits.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import weighted


class Rows(NamedTuple):
    """The rows of a program and their classes, counted from the first of these. Their target is one
    class, a few (its entries, each a class and a probability), or probabilities of all."""

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


@triton.jit
def nothing():
    """Stands for None in a tuple that a function returns, of which Triton 3.6 makes tensors."""
    return tl.full((), 0, tl.int1)


@triton.jit
def scalar(value, IN_MEMORY: tl.constexpr, dtype: tl.constexpr):
    if IN_MEMORY:
        return tl.load(value)
    else:  # noqa: RET505
        return tl.full((), value, dtype)


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


# ---- over the classes ----------------------------------------------------------------------------


@triton.jit
def row_max(tile):
    if tile.shape[0] == 1:
        return tl.max(tile)
    else:  # noqa: RET505
        return tl.max(tile, 1, keep_dims=True)


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
def any_of(rows):
    """A scalar, of a condition on rows."""
    if rows.type.is_block():
        return tl.max(rows.to(tl.int32)) > 0
    else:  # noqa: RET505
        return rows


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
