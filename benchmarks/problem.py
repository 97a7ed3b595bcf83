"""The tensors of one case, and a stand-in for the layer that produced the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Problem:
    """Random logits (N, C, ...) and target (N, ...), with all that a contestant needs around them.

    `buffer` holds the logits that a contestant sees and may destroy; `refresh()` restores it from
    `pristine`. The logits' gradient stays in `grad` until then, so that giving its memory back is
    in nobody's time.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, device: str = "cpu"
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        options = {"generator": generator, "device": device}
        self.pristine = torch.randn(shape, **options).to(dtype)
        self.target = torch.randint(shape[1], shape[:1] + shape[2:], **options)
        self.buffer = self.pristine.clone()
        self.copy = self.pristine.clone()
        self.grad: Tensor | None = None
        self._anchor = torch.zeros((), requires_grad=True, device=device)

    def refresh(self) -> None:
        self.grad = None
        self.buffer.copy_(self.pristine)

    def logits(self) -> Tensor:
        """The buffer as an autograd node's output, as a model's last layer would hand it over."""
        logits: Tensor = _Layer.apply(self._anchor, self)
        return logits


class _Layer(torch.autograd.Function):
    """Makes the logits and receives their gradient, without time or memory of its own."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, problem: Problem) -> Tensor:
        ctx.problem = problem
        return problem.buffer.detach()

    @staticmethod
    def backward(ctx: Any, grad_logits: Tensor) -> tuple[None, None]:
        ctx.problem.grad = grad_logits
        return None, None
