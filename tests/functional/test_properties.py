"""What holds for every call: drawn calls against the dense reference, and against each other.

`make test` draws the same calls each time; `make fuzz` draws many more, and others each time. The
GPU's kernels are held to it by the former: interpreted_cases.py, csrc/cuda/test_properties.py. That
the instruction sets agree is tested by tests/cpp/fuzz_kernel.cpp, which compares each with the
definition.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import ACCUMULATION, Outcome, check, loss_dtype, run
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import Problem, problems
from torch import Tensor

from labelsmooth import label_smoothing_loss

PRECISE = [torch.float32, torch.float64]  # a gradient is not rounded beyond what it is computed in


def outcome(problem: Problem, backend: str, **changes: Any) -> Outcome:
    return run(problem.logits, problem.target, backend=backend, **(problem.options | changes))


def assert_same(ours: Outcome, other: Outcome, problem: Problem) -> None:
    """Each may be off the truth by the accumulation's error."""
    tolerance = 2 * ACCUMULATION[problem.logits.dtype]
    close = torch.testing.assert_close
    close(ours.loss, other.loss, rtol=tolerance, atol=tolerance * problem.terms, equal_nan=True)
    share = torch.ones(1, dtype=other.grad_logits.dtype) / max(1, math.prod(problem.rows))
    largest = torch.cat([share, other.grad_logits.abs().flatten()]).max().item()
    close(ours.grad_logits, other.grad_logits, rtol=tolerance, atol=tolerance * largest)


def relabelled(problem: Problem, order: Tensor) -> Problem:
    """The classes in another order, everywhere they are told apart."""
    logits, target, options = problem
    position = order.argsort()
    changed = {name: options[name][order] for name in ("weight", "prior") if name in options}
    if target.is_floating_point():
        target = target.index_select(problem.class_axis, order)
    else:
        ignore_index = options.get("ignore_index", -100)
        if 0 <= ignore_index < len(order):
            changed["ignore_index"] = int(position[ignore_index])
        ignored = target == ignore_index
        kept = position[target.long().masked_fill(ignored, 0)]
        target = kept.masked_fill(ignored, changed.get("ignore_index", ignore_index))
    return Problem(logits.index_select(problem.class_axis, order), target, options | changed)


# ---- against the truth ---------------------------------------------------------------------------


@given(problem=problems(several=True))
def test_equals_the_reference(problem: Problem, backend: str) -> None:
    logits, target, options = problem
    shape = problem.rows if options["reduction"] == "none" else ()
    grad_loss = torch.randn(shape, dtype=loss_dtype(logits)).relu()  # 0 for some rows
    ours = {"backend": backend, "grad_loss": grad_loss, "roundings": 2, "terms": problem.terms}
    check(logits, target, **options, **ours)


@given(problem=problems(plain_logits=True, dtypes=PRECISE))
def test_without_smoothing_it_is_cross_entropy(problem: Problem, backend: str) -> None:
    """Whatever prior and convention are."""
    logits, target, options = problem
    options.pop("objective", None)
    options.pop("normalizer", None)
    theirs = {k: options[k] for k in ("ignore_index", "reduction", "weight") if k in options}
    if "weight" in theirs:
        theirs["weight"] = theirs["weight"].double().nan_to_num(1.0, 1.0)  # 0 * inf is NaN there
    leaf = logits.detach().double().requires_grad_()
    target = target.double() if target.is_floating_point() else target.long()
    loss = F.cross_entropy(leaf, target, **theirs)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    ours = outcome(problem, backend, label_smoothing=0.0)
    expected = Outcome(loss.detach().to(ours.loss.dtype), grad.to(logits.dtype))
    assert_same(ours, expected, problem)


@given(problem=problems(plain_logits=True, dtypes=PRECISE, reductions=["none"]))
def test_at_least_the_entropy_of_the_target(problem: Problem, backend: str) -> None:
    """Gibbs' inequality."""
    target, options = problem.target, problem.options | {"objective": "kl_div"}
    options.pop("weight", None)
    if target.is_floating_point():  # made to sum to 1, of which masked classes left it short
        total = target.double().sum(problem.class_axis, keepdim=True)
        assume((total > 0).all())
        target = (target / total).to(target.dtype)
    divergence = Problem(problem.logits, target, options)
    rounding = 2 * ACCUMULATION[problem.logits.dtype] * divergence.terms
    assert (outcome(divergence, backend).loss >= -rounding).all()


@given(problem=problems(plain_logits=True, dtypes=PRECISE))
def test_gradient_of_a_row_sums_to_zero(problem: Problem, backend: str) -> None:
    """The loss does not change when a constant is added to the row."""
    _, grad = outcome(problem, backend)
    bound = ACCUMULATION[grad.dtype] * (grad.abs().sum(problem.class_axis) + 1)
    assert (grad.sum(problem.class_axis).abs() <= bound).all()


# ---- against each other --------------------------------------------------------------------------


@given(problem=problems(plain_logits=True, dtypes=PRECISE), shift=st.integers(-4096, 4096))
def test_a_constant_changes_nothing(problem: Problem, shift: int, backend: str) -> None:
    """Logits on a grid on which adding the constant is exact."""
    grid = (64 * problem.logits).round() / 64
    ours, shifted = (
        outcome(problem._replace(logits=logits), backend) for logits in (grid, grid + shift)
    )
    assert_same(ours, shifted, problem)


@given(problem=problems(dtypes=PRECISE), seed=st.randoms())
def test_classes_may_be_relabelled(problem: Problem, seed: Any, backend: str) -> None:
    classes = problem.logits.shape[problem.class_axis]
    order = torch.tensor(seed.sample(range(classes), classes))
    loss, grad = outcome(problem, backend)
    expected = Outcome(loss, grad.index_select(problem.class_axis, order))
    assert_same(outcome(relabelled(problem, order), backend), expected, problem)


@given(problem=problems(dtypes=PRECISE, reductions=["none"]), data=st.data())
def test_rows_in_any_order_and_in_parts(
    problem: Problem, data: st.DataObject, backend: str
) -> None:
    logits, target, _ = problem
    assume(problem.class_axis == 1)
    order = torch.tensor(data.draw(st.permutations(range(len(logits)))), dtype=torch.int64)
    whole = outcome(problem, backend)
    reordered = outcome(problem._replace(logits=logits[order], target=target[order]), backend)
    assert_same(reordered, Outcome(*(part[order] for part in whole)), problem)

    cut = data.draw(st.integers(0, len(logits)))
    parts = [
        outcome(problem._replace(logits=logits[rows], target=target[rows]), backend)
        for rows in (slice(cut), slice(cut, None))
    ]
    joined = Outcome(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    assert_same(joined, whole, problem)


@given(problem=problems(dtypes=PRECISE, reductions=["sum"], several=True))
def test_one_step_is_two_phases(problem: Problem, backend: str) -> None:
    """ "sum" makes its gradient in forward, "none" in backward."""
    rows = outcome(problem, backend, reduction="none")
    two_phases = Outcome(rows.loss.sum(), rows.grad_logits)
    size = max(1.0, float(rows.loss.abs().sum()))  # of the terms of the sum, which may be infinite
    assume(math.isfinite(size))
    one_step = outcome(problem, backend)
    tolerance = 2 * ACCUMULATION[problem.logits.dtype]
    torch.testing.assert_close(one_step.loss, two_phases.loss, rtol=0, atol=tolerance * size)
    assert_same(one_step._replace(loss=two_phases.loss), two_phases, problem)


@given(problem=problems(several=True))
def test_in_place_is_the_same_to_the_bit(problem: Problem, backend: str) -> None:
    """Gaps in memory stay as they are."""
    logits, target, options = problem
    buffer = logits._base.nan_to_num(7.0)  # what lies in the gaps and the masked classes
    layout = (logits.shape, logits.stride(), logits.storage_offset())

    def step(inplace: bool) -> tuple[Tensor, Tensor]:
        leaf = buffer.clone().requires_grad_()
        memory = leaf.clone()
        work = memory.as_strided(*layout)
        loss = label_smoothing_loss(work, target, **options, inplace=inplace, backend=backend)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        changed = torch.zeros_like(buffer, dtype=torch.bool)
        changed.as_strided(*layout).fill_(inplace)
        assert torch.equal(memory.detach()[~changed], buffer[~changed])
        return loss.detach(), grad

    for fresh, taken in zip(step(inplace=False), step(inplace=True), strict=True):
        torch.testing.assert_close(taken, fresh, rtol=0, atol=0, equal_nan=True)


@given(problem=problems(several=True))
def test_the_loss_is_the_same_without_a_gradient(problem: Problem, backend: str) -> None:
    logits, target, options = problem
    loss = label_smoothing_loss(logits, target, **options, backend=backend)
    expected = outcome(problem, backend).loss
    torch.testing.assert_close(loss, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@given(problem=problems(plain_logits=True, reductions=["none"]), chosen=st.integers(0, 10**6))
def test_a_diverged_row_shows_and_stays_alone(
    problem: Problem, chosen: int, value: float, backend: str
) -> None:
    logits, target, options = problem
    assume(logits.numel() > 0 and not target.is_floating_point())
    options.pop("weight", None)  # a row of weight 0 has no loss, whatever it holds
    hit = torch.zeros(logits.shape, dtype=torch.bool)
    hit.view(-1)[chosen % hit.numel()] = True
    row = hit.any(problem.class_axis)

    before = outcome(problem, backend)
    logits.masked_fill_(hit, value)
    after = outcome(problem, backend)
    ignored = target == options.get("ignore_index", -100)
    assert torch.equal(after.loss.isfinite(), ~row | ignored)
    for one, other in zip(before, after, strict=True):
        if one.dim() > row.dim():
            one, other = (grad.movedim(problem.class_axis, -1) for grad in (one, other))
        assert torch.equal(one[~row], other[~row])
