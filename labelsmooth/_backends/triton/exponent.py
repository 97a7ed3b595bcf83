"""exp(x - point) for all logits of a row: a fused multiply-add and a power of two for each.

    exp(x - point) = exp2(x slope - offset) rest        slope = log2(e), offset = point slope

The offset is rounded, which `rest` makes up for; it is one factor for all of the row.
"""

from typing import NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


class Exponent(NamedTuple):
    slope: tl.tensor
    offset: tl.tensor
    rest: tl.tensor


@triton.jit
def exponent_of(point):
    """Of a finite point. In float64 the subtraction is made as it stands."""
    if point.dtype == tl.float64:
        return Exponent(point, point, tl.full((), 1.0, tl.float64))
    else:  # noqa: RET505
        # Beyond 2^30 logits differ by 64 or not at all, so that any slope does: by this one nothing
        # is rounded, nor too large.
        slope = tl.where(tl.abs(point) < 1073741824.0, LOG2_E, 1.0)
        offset = point * slope
        return Exponent(slope, offset, tl.exp2(tl.fma(point, -slope, offset)))


@triton.jit
def exp_less_rest(x, slope, offset):
    if x.dtype == tl.float64:
        return tl.exp(x - offset)
    else:  # noqa: RET505
        return tl.exp2(tl.fma(x, slope, -offset))
