"""The rows of a program: where they lie, their target, and tiles of what is known of their classes.

What is known of rows stands in columns (ROWS, 1), what is known of classes in lines (1, BLOCK),
tiles are (ROWS, BLOCK). Matrices are (outer, C, inner), as in csrc/kernels.h, and row = outer index
* inner + position. Offsets have 64 bits.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from .row_math import LossOptions, soft_coef, transform_logit, weighted


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
    weight: tl.tensor  # pointers to w_c, u_c and v_c; or nothing(): 1, 1/C and 1/C
    prior: tl.tensor
    class_coef: tl.tensor


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
    return LossOptions(
        scalar(label_smoothing, IN_MEMORY, dtype),
        scalar(lse_square_scale, IN_MEMORY, dtype),
        scalar(logit_scale, IN_MEMORY, dtype),
        nothing() if softcap is None else scalar(softcap, IN_MEMORY, dtype),
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
    if vector.dtype.is_ptr():
        return tl.load(vector + c, mask=c < rows.classes, other=0.0)
    else:  # noqa: RET505
        return tl.where(c < rows.classes, constant, 0.0)


@triton.jit
def class_coef_at(rows, c, dtype: tl.constexpr):
    """v_c, beyond the last class too: where there are no vectors it is one number."""
    if rows.class_coef.dtype.is_ptr():
        return of_classes(rows.class_coef, 0.0, rows, c)
    else:  # noqa: RET505
        return uniform(rows, dtype)


@triton.jit
def soft_coef_at(rows, c, beta, kappa, dtype: tl.constexpr):
    class_coef = tl.where(c < rows.classes, class_coef_at(rows, c, dtype), 0.0)
    probs = kappa * target_probs_at(rows, c)
    if rows.weight is not None:
        probs = weighted(probs, of_classes(rows.weight, 1.0, rows, c))
    return soft_coef(class_coef, probs, beta)
