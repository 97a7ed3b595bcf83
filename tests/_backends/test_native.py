"""torch.library.opcheck: the operators do what their schemas say, on real and on fake tensors."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from checks import DTYPES
from torch import Tensor
from torch.library import opcheck

import labelsmooth  # noqa: F401, registers the operators

OPS = torch.ops.labelsmooth
N, C = 5, 19
NONE, MEAN, SUM = range(3)
SHAPES = [(N, C), (2, C, 3), (0, C)]


def problem(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(shape).to(dtype), torch.randint(C, shape[:1] + shape[2:])


def options(
    reduction: int, *, vectors: bool = False, rows: tuple[int, ...] = (N,)
) -> tuple[Any, ...]:
    """What all operators take beside target and target_probs, in the schema's order."""
    return (
        torch.rand(C) if vectors else None,  # weight
        torch.rand(C).softmax(0) if vectors else None,  # prior
        torch.tensor(7.0) if vectors else None,  # normalizer
        torch.rand(rows) if vectors else None,  # row_weight
        -100,  # ignore_index
        reduction,
        0.1,  # label_smoothing
        int(vectors),  # smooth_over: the others
        vectors,  # weight_over_target
        vectors,  # kl_div
        False,  # from_log_probs
        0.01 if vectors else 0.0,  # lse_square_scale
        0.5 if vectors else 1.0,  # logit_scale
        4.0 if vectors else 0.0,  # softcap
        0,  # class_offset
        C,  # num_classes
    )


CASES = [
    pytest.param(shape, dtype, reduction, vectors)
    for shape, dtype in [*product(SHAPES, [torch.float32]), *product(SHAPES[:1], DTYPES[1:])]
    for reduction, vectors in ((NONE, False), (MEAN, True), (SUM, False))
]
each_case = pytest.mark.parametrize(("shape", "dtype", "reduction", "vectors"), CASES)


@each_case
@pytest.mark.parametrize("with_grad", [False, True])
def test_forward(
    with_grad: bool, shape: tuple[int, ...], dtype: torch.dtype, reduction: int, vectors: bool
) -> None:
    rows = shape[:1] + shape[2:]
    shared = options(reduction, vectors=vectors, rows=rows)
    arguments = (*problem(shape, dtype), None, *shared)
    for with_stats in (False, True):
        opcheck(OPS.forward.default, (*arguments, with_grad, with_stats))


@each_case
def test_forward_in_place(
    shape: tuple[int, ...], dtype: torch.dtype, reduction: int, vectors: bool
) -> None:
    rows = shape[:1] + shape[2:]
    shared = options(reduction, vectors=vectors, rows=rows)
    arguments = (*problem(shape, dtype), None, *shared)
    for with_stats in (False, True):
        opcheck(OPS.forward_.default, (*arguments, with_stats))


@each_case
@pytest.mark.parametrize("name", ["backward", "backward_"])
def test_backward(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, reduction: int, vectors: bool
) -> None:
    logits, target = problem(shape, dtype)
    shared = options(reduction, vectors=vectors, rows=shape[:1] + shape[2:])
    loss, row_stats, _, _ = OPS.forward(logits, target, None, *shared, False, False)
    grad_loss = torch.randn_like(loss)
    op = getattr(OPS, name).default
    opcheck(op, (grad_loss, logits, target, None, row_stats, *shared))


def test_traced_overloads() -> None:
    """label_smoothing as a tensor: what torch.compile puts into its graphs."""
    logits, target = problem((N, C), torch.float32)
    position = 6
    shared: list[Any] = list(options(MEAN, vectors=True))
    loss, row_stats, _, grad_logits = OPS.forward(logits, target, None, *shared, True, False)
    before, after = shared[:position], shared[position + 1 :]
    traced = (*before, torch.tensor(shared[position], dtype=torch.float64), *after)
    assert torch.equal(
        OPS.forward.traced(logits, target, None, *traced, True, False)[3], grad_logits
    )
    opcheck(OPS.forward.traced, (logits, target, None, *traced, True, False))
    opcheck(OPS.forward_.traced, (logits.clone(), target, None, *traced, False))
    for backward in (OPS.backward.traced, OPS.backward_.traced):
        opcheck(backward, (torch.ones_like(loss), logits.clone(), target, None, row_stats, *traced))


@pytest.mark.parametrize("dtype", DTYPES)
def test_class_probabilities(dtype: torch.dtype) -> None:
    logits, target = torch.randn(N, C), torch.rand(N, C).to(dtype)
    opcheck(OPS.forward.default, (logits, target, None, *options(MEAN), True, True))


def test_a_few_classes() -> None:
    logits, classes, probs = torch.randn(N, C), torch.randint(C, (N, 3)), torch.rand(N, 3)
    opcheck(OPS.forward.default, (logits, classes, probs, *options(MEAN), True, True))
    loss, row_stats, _, _ = OPS.forward(logits, classes, probs, *options(MEAN), False, False)
    opcheck(OPS.backward.default, (loss, logits, classes, probs, row_stats, *options(MEAN)))


@each_case
def test_parts_of_rows(
    shape: tuple[int, ...], dtype: torch.dtype, reduction: int, vectors: bool
) -> None:
    """The logits are classes 3 to 10 of 19, and columns of padding."""
    logits, target = problem(shape, dtype)
    *shared, _, classes = options(reduction, vectors=vectors, rows=shape[:1] + shape[2:])
    for columns, offset in ((7, 3), (12, 10)):
        arguments = (logits[:, :columns], target, None, *shared, offset, classes)
        for with_stats in (False, True):
            opcheck(OPS.partial.default, (*arguments, with_stats))
            part = OPS.partial(*arguments, with_stats)
            parts = torch.stack([part, part])
            opcheck(OPS.combine.default, (parts, *arguments, with_stats))
        row_stats = OPS.combine(parts, *arguments, True)[1]
        grad_loss = torch.ones(shape[:1] + shape[2:] if reduction == NONE else ())
        for name in ("backward", "backward_"):
            tensors = (grad_loss, logits[:, :columns].clone(), target, None, row_stats)
            opcheck(getattr(OPS, name).default, (*tensors, *shared, offset, classes))


def test_strided_logits() -> None:
    """The fake gradient must have the real one's strides."""
    for logits in (
        torch.randn(C, N).t(),
        torch.randn(N, 2 * C)[:, ::2],
        torch.randn(N, C + 1)[:, 1:],
    ):
        target = torch.randint(C, (N,))
        opcheck(OPS.forward.default, (logits, target, None, *options(MEAN), True, False))


def test_the_schemas_declare_what_is_written() -> None:
    for name, written in {"forward": [], "backward": [], "forward_": ["logits"]}.items():
        arguments = getattr(OPS, name).default._schema.arguments
        assert [a.name for a in arguments if a.alias_info and a.alias_info.is_write] == written
    arguments = OPS.backward_.default._schema.arguments
    assert [a.name for a in arguments if a.alias_info and a.alias_info.is_write] == ["logits"]
