"""The error budget: never further from the float64 truth than torch's own operator, plus a hair.

The hair is what no implementation in the dtype can avoid. For the loss, that is a float32: 4 of its
roundings. For the gradient: one rounding to the logits' dtype, and 8 roundings of the float32 that
it is computed in (an exponential, a sum and its quotient, then a difference), in units of the
largest element.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import REDUCTIONS, ROUNDING, assert_gradient, check, run
from reference import Reference, reference
from torch import Tensor

from labelsmooth import label_smoothing_loss
from labelsmooth._backends.choose import choose_backend
from labelsmooth._call.problem import Inputs, Options

HAIR = 4 * ROUNDING[torch.float32]
GRADIENT_HAIR = 8 * ROUNDING[torch.float32]

# Rows x classes, from ImageNet to a large vocabulary; the spread of the logits in `problem` makes
# the target's probability anything from 1e-6 to almost 1.
SIZES = [(64, 1000), (16, 32768), (4, 131072)]
HALVES = [torch.bfloat16, torch.float16]


def problem(
    rows: int, classes: int, dtype: torch.dtype, offset: float = 0
) -> tuple[Tensor, Tensor]:
    target = torch.randint(classes, (rows,))
    logits = 2 * torch.randn(rows, classes, dtype=torch.float64)
    logits[torch.arange(rows), target] += torch.linspace(0, 20, rows, dtype=torch.float64)
    return (logits + offset).to(dtype), target


def loss_error(loss: Tensor, truth: Reference) -> float:
    return (loss.double() - truth.loss).abs().max().item()


def assert_within_budget(logits: Tensor, target: Tensor, backend: str, **options: Any) -> None:
    truth = reference(logits, target, **options)
    leaf = logits.detach().requires_grad_()
    theirs = F.cross_entropy(leaf, target, **options)
    (their_grad,) = torch.autograd.grad(theirs.sum(), leaf)
    ours = run(logits, target, grad_loss=torch.ones(theirs.shape), backend=backend, **options)

    budget = loss_error(theirs.detach(), truth) + HAIR * truth.loss.abs().max().item()
    assert loss_error(ours.loss, truth) <= budget

    def excess(grad: Tensor) -> float:
        """The largest error beyond the one rounding to the dtype that every gradient needs."""
        error = (grad.double() - truth.grad_logits).abs()
        return (error - ROUNDING[logits.dtype] * truth.grad_logits.abs()).max().item()

    subnormal = torch.finfo(logits.dtype).smallest_normal * ROUNDING[logits.dtype]
    hair = GRADIENT_HAIR * truth.grad_logits.abs().max().item() + subnormal
    assert excess(ours.grad_logits) <= max(excess(their_grad), 0.0) + hair


# A class that is never predicted, as padding is: its logit must not be what others are taken to
@pytest.mark.parametrize("below", [10.0, 20.0, 40.0, 60.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_low_first_class_costs_no_digits(smoothing: float, below: float, backend: str) -> None:
    logits, target = problem(64, 1000, torch.float32)
    logits[:, 0] -= below
    assert_within_budget(logits, target, backend, reduction="none", label_smoothing=smoothing)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize(("rows", "classes"), SIZES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_within_torchs_own_error(
    smoothing: float, reduction: str, rows: int, classes: int, dtype: torch.dtype, backend: str
) -> None:
    logits, target = problem(rows, classes, dtype)
    assert_within_budget(logits, target, backend, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_within_torchs_own_error_weighted(dtype: torch.dtype, backend: str) -> None:
    logits, target = problem(64, 1000, dtype)
    weight = (torch.rand(1000) + 0.5).to(dtype)
    assert_within_budget(logits, target, backend, weight=weight, label_smoothing=0.1)


# Sums of equal terms: added up one by one, each would round to the same side
@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(("rows", "classes"), SIZES)
def test_float64_is_float64_throughout(
    rows: int, classes: int, vectors: bool, backend: str
) -> None:
    logits, target = problem(rows, classes, torch.float64)
    options: dict[str, Any] = {"label_smoothing": 0.1}
    if vectors:
        options["weight"] = torch.full((classes,), 0.3, dtype=torch.float64)
        options["prior"] = torch.full((classes,), 1 / classes, dtype=torch.float64)
    truth = reference(logits, target, **options)
    ours = run(logits, target, **options, backend=backend)
    torch.testing.assert_close(ours.loss, truth.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(ours.grad_logits, truth.grad_logits, rtol=0, atol=1e-15)


# Classes adjacent or apart in memory, up to where no buffer holds a row; one logit stands out
@pytest.mark.parametrize(
    ("classes", "across", "first"),
    [(1000, True, 5.3), (30_000, False, 5.3), (30_000, True, 5.3), (1_000_003, False, -3.0)],
)
def test_sums_of_equal_terms(classes: int, across: bool, first: float, backend: str) -> None:
    logits = torch.full((2, classes), 0.1)
    logits[:, 0] = first
    uniform = torch.full((2, classes), 1 / classes)
    if across:
        logits, uniform = (x.t().contiguous().t() for x in (logits, uniform))
    options = {"reduction": "none", "backend": backend}
    for target in (torch.tensor([0, classes - 1]), uniform):
        check(logits, target, label_smoothing=0.1, **options)
    terms = 1 + 2 * math.log(classes)
    check(logits, uniform, label_smoothing=0.1, objective="kl_div", terms=terms, **options)

    truth = reference(logits, uniform, reduction="none", label_smoothing=1.0)
    loss, stats = label_smoothing_loss(
        logits, uniform, label_smoothing=1.0, return_stats=True, **options
    )
    for ours, theirs in ((loss, truth.loss), (stats.nll, truth.nll), (stats.lse, truth.lse)):
        torch.testing.assert_close(ours.double(), theirs, rtol=2 * HAIR, atol=0)


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smooth_over", ["all", "others"])
def test_a_common_offset_costs_nothing(
    smooth_over: str, reduction: str, offset: float, backend: str
) -> None:
    """`lse - x_y` alone would round at 1e4, to 1e-3: the loss must be good to its own last digits.

    The sum over classes of v_c x_c is the second place that the offset would spoil.
    """
    logits, target = problem(64, 1000, torch.float32, offset)
    options = {"reduction": reduction, "label_smoothing": 0.1, "smooth_over": smooth_over}
    truth = reference(logits, target, **options)
    grad_loss = torch.ones_like(truth.loss)
    ours = run(logits, target, grad_loss=grad_loss.float(), backend=backend, **options)
    assert loss_error(ours.loss, truth) <= HAIR * truth.loss.abs().max().item()
    largest = truth.grad_logits.abs().max().item()
    torch.testing.assert_close(
        ours.grad_logits.double(), truth.grad_logits, rtol=2**-23, atol=GRADIENT_HAIR * largest
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_targets_gradient_is_rounded_once(
    reduction: str, dtype: torch.dtype, backend: str
) -> None:
    """p_y - q_y with p_y near 1: rounded before the subtraction, nothing of the difference is left.

    Row r has its target r/4 above nine others, so 1 - p_y falls from 0.9 to 1e-6.
    """
    logits = torch.zeros(64, 10)
    logits[:, 4] = torch.arange(64) / 4
    logits = logits.to(dtype)
    target = torch.full((64,), 4)
    for smoothing in (0.0, 0.001):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        grad_loss = torch.ones(64) if reduction == "none" else None
        truth = reference(logits, target, grad_loss=grad_loss, **options).grad_logits
        ours = run(logits, target, grad_loss=grad_loss, backend=backend, **options).grad_logits
        float32_error = GRADIENT_HAIR * truth.abs().max().item()
        subnormal = torch.finfo(dtype).smallest_normal * ROUNDING[dtype]
        torch.testing.assert_close(
            ours[:, 4].double(),
            truth[:, 4],
            rtol=ROUNDING[dtype],
            atol=float32_error + subnormal,
        )


# Kernels for rows, for columns in tiles and gathered; and rows too long to keep exponentials
@pytest.mark.parametrize(
    ("rows", "classes", "across"),
    [(256, 1000, False), (256, 1000, True), (4, 40_000, True), (4, 140_003, False)],
)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_two_steps_round_as_well_as_one(
    smoothing: float, dtype: torch.dtype, rows: int, classes: int, across: bool, backend: str
) -> None:
    """Of the gradient's elements all but 0.2% are the correctly rounded truth, and in two steps no
    more than another 0.01% are not."""
    logits, target = problem(rows, classes, dtype)
    truth = reference(logits, target, reduction="sum", label_smoothing=smoothing).grad_logits
    if across:
        logits = logits.t().contiguous().t()
    inputs = Inputs(logits, target)
    options = Options(reduction="sum", label_smoothing=smoothing)
    chosen = choose_backend(backend, logits.device)
    _, row_stats, _, one_step = chosen.forward(inputs, options, with_grad=True)
    two_steps = chosen.backward(torch.ones(()), row_stats, inputs, options, inplace=False)
    off = [(grad != truth.to(dtype)).double().mean().item() for grad in (one_step, two_steps)]
    assert off[0] <= 2e-3
    assert off[1] <= off[0] + 1e-4


# Loss scales as a GradScaler has them: its first one, and the two ends of where it may settle
@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**20])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("inplace", [False, True])
def test_float16_gradients_survive_a_mean_over_65536_rows(
    inplace: bool, reduction: str, scale: float, backend: str
) -> None:
    """1/65536 is subnormal in float16: the loss scale must come before the rounding."""
    rows, classes = 65536, 8
    logits = torch.randn(rows, classes, dtype=torch.float16)
    target = torch.randint(classes, (rows,))
    truth = reference(logits, target, label_smoothing=0.1, grad_loss=torch.tensor(scale))

    leaf = logits.requires_grad_()
    loss = label_smoothing_loss(
        leaf.clone(),
        target,
        reduction=reduction,
        label_smoothing=0.1,
        inplace=inplace,
        backend=backend,
    )
    (loss.mean() * scale).backward()
    assert_gradient(leaf.grad, truth)


def test_float16_sums_do_not_overflow(backend: str) -> None:
    """65536 classes at -8 sum to 2^19, eight times the largest float16."""
    logits = torch.full((4, 65536), -8.0, dtype=torch.float16)
    loss, grad = run(logits, torch.arange(4), label_smoothing=0.1, backend=backend)
    torch.testing.assert_close(loss, torch.tensor(65536.0).log())
    assert grad.isfinite().all()
    torch.testing.assert_close(grad.diagonal(), torch.full((4,), -0.9 / 4, dtype=torch.float16))


# A ramp has its maximum at the far end of each part of a row, a peak in one part alone. 300 is more
# than exp of a float32 can bridge: each part must be taken from a maximum near its own.
PROFILES = {
    "rising": torch.linspace(-150, 150, 50_000),
    "falling": torch.linspace(150, -150, 50_000),
    "far below 0": torch.full((50_000,), -300.0),
    "a low first class": torch.full((50_000,), 300.0).index_fill(0, torch.tensor(0), -300.0),
    "a high first class": torch.full((50_000,), -300.0).index_fill(0, torch.tensor(0), 300.0),
    "a peak in the middle": torch.zeros(50_000).index_fill(0, torch.tensor(30_001), 300.0),
    "a peak at the end": torch.zeros(50_000).index_fill(0, torch.tensor(49_999), 300.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("masked", [0, 1, 20_000])  # leading classes that are -inf
def test_the_maximum_may_stand_anywhere(
    masked: int, profile: str, dtype: torch.dtype, backend: str
) -> None:
    logits = (PROFILES[profile] + torch.randn(2, 50_000)).to(dtype)
    logits[:, :masked] = -torch.inf
    prior = torch.ones(50_000, dtype=torch.float64)
    prior[:masked] = 0
    target = torch.tensor([25_000, 49_999])
    for reduction in REDUCTIONS:
        loss, _ = check(
            logits,
            target,
            label_smoothing=0.1,
            prior=prior / prior.sum(),
            reduction=reduction,
            backend=backend,
        )
        assert loss.isfinite().all()
