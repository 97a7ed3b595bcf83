"""The gradient of the logits of a program's rows; and one made in forward, scaled."""

import triton
import triton.language as tl

from .exponent import exp_less_rest, exponent_of
from .reading import (
    accumulated,
    given_at,
    of_classes,
    spread_coef_at,
    target_probs_at,
    tile_at,
    transformed,
)
from .row_math import GradTerms, logit_grad, soft_coef, transform_slope, weighted
from .rows import of_weight


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
def of_used_rows(grad, rows):
    """Of others 0, whatever their statistics."""
    return GradTerms(
        tl.where(rows.unused, 0.0, grad.shift),
        tl.where(rows.unused, 0.0, grad.exp_scale),
        tl.where(rows.unused, 0.0, grad.beta),
        tl.where(rows.unused, 0.0, grad.kappa),
        tl.where(rows.unused, 0.0, grad.scale),
    )


@triton.jit
def gradient_of(x, coef, rows, grad, options, READ_UNUSED: tl.constexpr):
    exponent = exponent_of(grad.shift)
    grad = GradTerms(grad.shift, grad.exp_scale * exponent.rest, grad.beta, grad.kappa, grad.scale)
    exp_x = exp_less_rest(x, exponent.slope, exponent.offset)
    gradient = logit_grad(exp_x, coef, grad) * transform_slope(x, options)
    if READ_UNUSED:  # there may be NaN
        gradient = tl.where(rows.unused, 0.0, gradient)
    return gradient


@triton.jit
def write_gradient(
    pointers,
    stride,
    rows,
    x0,
    x,
    span,
    grad,
    options,
    READ_UNUSED: tl.constexpr,
    ALIGNED: tl.constexpr = False,
):
    """As if there were no target, where that is a few classes."""
    coef = spread_coef_at(rows, span, x0, options)
    if rows.probs.dtype.is_ptr() and not rows.entries.dtype.is_ptr():
        weight = of_classes(rows.weight, 1.0, span)
        probs = weighted(grad.kappa * target_probs_at(rows, span, x.dtype), weight)
        coef = soft_coef(coef, probs, grad.beta)
    else:
        coef = grad.beta * coef
    gradient = gradient_of(x, coef, rows, grad, options, READ_UNUSED)
    pointers += span.c.to(tl.int64) * stride
    if ALIGNED:
        pointers = tl.multiple_of(pointers, [16, 16])
    tl.store(pointers, gradient.to(pointers.dtype.element_ty), mask=rows.inside & span.inside)


@triton.jit
def write_gradient_between(
    pointers,
    stride,
    rows,
    part,
    grad,
    options,
    READ_UNUSED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of the part's tiles."""
    for start in range(part.begin, part.end, BLOCK):
        tile = tile_at(part, start, BLOCK)
        x0 = given_at(rows, tile, ALIGNED)
        x = transformed(rows, tile, x0, options)
        write_gradient(pointers, stride, rows, x0, x, tile, grad, options, READ_UNUSED, ALIGNED)


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
