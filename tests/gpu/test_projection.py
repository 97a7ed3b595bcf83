"""The projection and the loss in one: values, waiting, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_steps import SMOOTHING, nothing_waits
from torch import Tensor

from labelsmooth import linear_label_smoothing_loss

ROWS, FEATURES, CLASSES = 96, 64, 5000


def given(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(ROWS, FEATURES, device="cuda").to(dtype).requires_grad_()
    weight = torch.randn(CLASSES, FEATURES, device="cuda").div_(8).to(dtype).requires_grad_()
    target = torch.randint(CLASSES, (ROWS,), device="cuda")
    target[::5] = -100
    return hidden, weight, target


def step(hidden: Tensor, weight: Tensor, target: Tensor, **options: Any) -> list[Tensor]:
    loss = linear_label_smoothing_loss(
        hidden, weight, target, label_smoothing=SMOOTHING, chunk_rows=32, **options
    )
    return [loss.detach(), *torch.autograd.grad(loss.sum(), (hidden, weight))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values(reduction: str, dtype: torch.dtype, backend: str) -> None:
    """Of the CPU, which the rest of the suite holds against the truth."""
    hidden, weight, target = given(dtype)
    there = step(hidden, weight, target, reduction=reduction, backend=backend)
    on_cpu = (leaf.detach().cpu().requires_grad_() for leaf in (hidden, weight))
    with torch.device("cpu"):
        here = step(*on_cpu, target.cpu(), reduction=reduction, backend="eager")
    for ours, expected in zip(there, here, strict=True):
        off = (ours.cpu().double() - expected.double()).norm() / expected.double().norm()
        assert off < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_waits_for_the_gpu(reduction: str, dtype: torch.dtype, backend: str) -> None:
    tensors = given(dtype)
    step(*tensors, reduction=reduction, backend=backend)
    with nothing_waits():
        step(*tensors, reduction=reduction, backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_captured_in_a_graph(dtype: torch.dtype, backend: str) -> None:
    hidden, weight, target = given(dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(hidden, weight, target, backend=backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step(hidden, weight, target, backend=backend)
    for _ in range(2):
        with torch.no_grad():
            hidden.normal_()
            target.random_(CLASSES)
        graph.replay()
        assert all(map(torch.equal, made, step(hidden, weight, target, backend=backend)))
