"""What drop-ins have in common."""

from typing import Any

import torch
from torch import Tensor

from .._call.checks import check_tensor

NO_INDEX = torch.iinfo(torch.int64).min  # the ignore_index of a loss that ignores no row


def classes_second(x: Tensor, axis: int = -1) -> Tensor:
    """(..., C) as (N, C, ...), a view; (C,) as it is."""
    return x.movedim(axis, 1) if x.dim() > 1 else x


def in_dtype_of(x: Tensor, loss: Tensor, target: Tensor | None = None) -> Tensor:
    """The loss in the dtype of the logits or log-probabilities x, or what torch promotes it and
    that of class probabilities to; under autocast in float32, as the originals' on a GPU."""
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return loss
    dtype = x.dtype
    if target is not None and target.is_floating_point():
        dtype = torch.promote_types(dtype, target.dtype)
    return loss.to(dtype)


def check_shape(name: str, tensor: Any, *expected: int | str) -> None:
    """Raises unless there are as many axes, of these sizes; those that have a name may be any."""
    check_tensor(name, tensor)
    sizes = zip(expected, tensor.shape, strict=False)
    if tensor.dim() != len(expected) or any(e not in (s, str(e)) for e, s in sizes):
        shape = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
        raise ValueError(f"{name}: expected shape ({shape}), got {tuple(tensor.shape)}")
