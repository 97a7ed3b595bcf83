"""Gradients that lie over the ranks of a process group."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._backends.ranks import summed


def summed_in_backward(tensor: Tensor, group: str) -> Tensor:
    """The tensor, of which all ranks have the same: its gradient is the sum of theirs."""
    result: Tensor = _SummedInBackward.apply(tensor, group)
    return result


FIRST_ALONE = (
    "process_group: expected a first derivative by backward(), got create_graph=True or another "
    "transform, which would need the other ranks"
)


def check_derivatives(others: dict[str, Tensor | None], *, transformed: bool) -> None:
    """Raises where a derivative is wanted that a rank cannot make by itself: by a transform, or in
    what is neither logits nor projection."""
    if transformed:
        raise RuntimeError(FIRST_ALONE)
    for name, tensor in others.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise TypeError(
                f"{name}: expected a tensor that does not require grad beside process_group or a "
                "DTensor, over whose ranks its gradient would lie"
            )


class _SummedInBackward(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: str) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return summed(grad, ctx.group), None
