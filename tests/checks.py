"""How the tests call the loss and compare it: one way to call, one statement of the tolerances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from reference import Reference, Target, reference
from torch import Tensor

from labelsmooth import label_smoothing_loss

ROOT = Path(__file__).parent.parent  # of the repository
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
REDUCTIONS = ["mean", "sum", "none"]

# Half the distance between neighbours, relative: what rounding to the dtype once may cost.
ROUNDING = {dtype: torch.finfo(dtype).eps / 2 for dtype in DTYPES}

# Logits of every dtype but float64 are summed up in float32: relative error of the loss, and of the
# gradient in units of its largest element (probability minus target cancels, so not of each one).
# The factors leave room for exp, log and a sum over 10^4 classes.
ACCUMULATION = dict.fromkeys(DTYPES, 16 * ROUNDING[torch.float32])
ACCUMULATION[torch.float64] = 1024 * ROUNDING[torch.float64]
for half in (torch.bfloat16, torch.float16):  # of which the CPU takes shorter exponentials
    ACCUMULATION[half] += 2**-18

# For tests that compile: what torch says of itself, on one of its versions or another.
COMPILES = [
    pytest.mark.usefixtures("fresh_compiler"),
    *(
        pytest.mark.filterwarnings(f"ignore:{said}")
        for said in (
            ".class 'torch.autograd.function.Function'. should not:DeprecationWarning",
            ".torch.jit.\\w+. is deprecated",
            "Guards may run slower:RuntimeWarning",
            "The .grad attribute of a Tensor:UserWarning",
            "Error detected in:UserWarning",
        )
    ),
]

# Likewise for those that take forward mode, where it starts up; the second is that of 2.13.
FORWARD_MODE = [
    pytest.mark.filterwarnings(f"ignore:.torch.jit.script. is deprecated:{kind}")
    for kind in ("FutureWarning", "DeprecationWarning")
]


class Outcome(NamedTuple):
    loss: Tensor
    grad_logits: Tensor


def run(
    logits: Tensor, target: Target, *, grad_loss: Tensor | None = None, **options: Any
) -> Outcome:
    """The loss and its gradient. The logits' memory is used as it lies: strides and alignment."""
    leaf = logits.detach().requires_grad_()
    loss = label_smoothing_loss(leaf, target, **options)
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss)
    return Outcome(loss.detach(), grad)


def loss_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def assert_gradient(ours: Tensor, truth: Reference, *, roundings: int = 1) -> None:
    """`roundings`: how often the gradient is rounded to the logits' dtype (twice where a gradient
    made in forward is then scaled in backward)."""
    rounding = ROUNDING[ours.dtype]
    # Of a single class the gradient is 0, a difference of numbers as large as the row's share of 1.
    share = torch.tensor([1 / max(1, truth.lse.numel())])
    largest = torch.cat([truth.grad_logits.abs().flatten(), share]).max().item()
    smallest = torch.finfo(ours.dtype).smallest_normal * rounding
    bound = roundings * (
        rounding * truth.grad_logits.abs() + ACCUMULATION[ours.dtype] * largest + smallest
    )
    if ours.dtype.itemsize == 2:  # shorter exponentials, less than which a gradient may be
        bound += ACCUMULATION[ours.dtype] * truth.grad_probs.abs()
    error = (ours.double() - truth.grad_logits).abs()
    same_nan = ours.isnan() & truth.grad_logits.isnan()
    assert ((error <= bound) | same_nan).all(), f"{(error / bound).max()} times the error allowed"


def assert_equals_reference(
    ours: Outcome, truth: Reference, logits: Tensor, *, roundings: int = 1, terms: float = 1.0
) -> None:
    """`terms`: how large the terms are that the loss is a sum of, where they may cancel."""
    tolerance = ACCUMULATION[logits.dtype]
    assert ours.loss.dtype == loss_dtype(logits)
    torch.testing.assert_close(
        ours.loss.double(), truth.loss, rtol=tolerance, atol=tolerance * terms, equal_nan=True
    )
    assert ours.grad_logits.dtype == logits.dtype
    assert_gradient(ours.grad_logits, truth, roundings=roundings)


def check(
    logits: Tensor,
    target: Target,
    *,
    backend: str,
    grad_loss: Tensor | None = None,
    roundings: int = 1,
    terms: float = 1.0,
    **options: Any,
) -> Outcome:
    """Runs the loss, compares it with the reference, returns it for what else a test may ask."""
    ours = run(logits, target, backend=backend, grad_loss=grad_loss, **options)
    truth = reference(logits, target, grad_loss=grad_loss, **options)
    assert_equals_reference(ours, truth, logits, roundings=roundings, terms=terms)
    return ours


def check_scaling(
    scale: Callable[[Tensor, Tensor], object], dtype: torch.dtype, count: int, offset: int
) -> Tensor:
    """`count` values that begin so far into their memory, times 0.3 in place; none beside them."""
    buffer = torch.randn(count + 8).to(dtype)
    before, place = buffer.clone(), slice(offset, offset + count)
    values = buffer[place]
    factor = torch.tensor(0.3, dtype=loss_dtype(values))
    scale(values, factor)
    expected = before[place].double() * factor.double()
    error = (values.double() - expected).abs()
    assert (error <= 2 * ROUNDING[dtype] * expected.abs() + torch.finfo(dtype).tiny).all()
    before[place] = values
    assert torch.equal(buffer, before)
    return values
