"""For tests on a GPU: logits with a target, and the step from them to loss and gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from labelsmooth import label_smoothing_loss

SMOOTHING = 0.1
CYCLES = 50_000_000  # some tens of milliseconds


def problem(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    logits = torch.randn(rows, classes, device="cuda").to(dtype).requires_grad_()
    return logits, torch.randint(classes, (rows,), device="cuda")


def step(logits: Tensor, target: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    loss = label_smoothing_loss(logits, target, label_smoothing=SMOOTHING, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


@contextmanager
def nothing_waits() -> Iterator[None]:
    """What makes the host wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
