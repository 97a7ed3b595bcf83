"""The gradient of the logits of a program's rows; and one made in forward, scaled."""

import triton
import triton.language as tl

from .row_math import UNMASKED, logit_grad, soft_coef, transform_slope, weighted
from .rows import accumulated, of_classes, of_weight, spread_coef_at, target_probs_at


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
