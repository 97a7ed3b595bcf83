"""Targets of a few classes a row."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._call.values import as_number, described

__all__ = ["SparseTarget"]


class SparseTarget(NamedTuple):
    """A target of K classes a row and their probabilities, as of mixup, CutMix or a teacher's top
    classes: t_c is the sum of ``probs`` where ``classes`` is c. No N x C target is made.

    Shape:
        For logits (N, C), (N, C, d1, ...) or (C,): both (N, K), (N, K, d1, ...) or (K,). For hidden
        states (N, D), (..., D) or (D,): both (N, K), (..., K) or (K,). ``classes`` of any integer
        dtype, ``probs`` in float16, bfloat16, float32 or float64; they may require a gradient.

    An entry whose class is ``ignore_index`` counts nothing; a row that has no other is ignored.
    Probabilities need not sum to 1. "mean" divides as for class probabilities: by the number of
    rows that are not ignored, or the sum of their ``row_weight``.
    """

    classes: Tensor
    probs: Tensor

    @staticmethod
    def mix(y1: Tensor, y2: Tensor, lam: Tensor | float) -> "SparseTarget":
        """``lam`` of the class indices y1 and the rest of y2: mixup (Zhang et al. 2018,
        arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899).

        Args:
            y1, y2: class indices of the same shape, (N,), (N, d1, ...) or ().
            lam: in [0, 1]: a number (taken in torch's default dtype), a floating-point 0-d tensor,
                or one value for each of N rows, (N,). A tensor's values are not looked at.

        Raises:
            TypeError, ValueError: y1 and y2 differ in shape or device or are not class indices, or
                lam is none of these.
        """
        for name, y in (("y1", y1), ("y2", y2)):
            if not isinstance(y, Tensor) or not _is_integer(y):
                raise TypeError(f"{name}: expected class indices, got {described(y)}")
        if y1.shape != y2.shape or y1.device != y2.device:
            raise ValueError(
                f"y2: expected shape {tuple(y1.shape)} on {y1.device}, as y1 has it, "
                f"got {described(y2)}"
            )
        axis = min(y1.dim(), 1)
        first = _share(lam, y1)
        probs = torch.stack([first, 1 - first], axis)
        return SparseTarget(torch.stack([y1, y2], axis), probs)


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _share(lam: Tensor | float, y: Tensor) -> Tensor:
    """lam for each class index of y."""
    if isinstance(lam, Tensor) and lam.is_floating_point():
        if lam.dim() > 0 and (y.dim() == 0 or lam.shape != y.shape[:1]):
            expected = f"() or {tuple(y.shape[:1])}" if y.dim() else "()"
            raise ValueError(f"lam: expected shape {expected}, got {described(lam)}")
        if lam.dim() > 0 and lam.device != y.device:
            raise ValueError(f"lam: expected device {y.device}, got {lam.device}")
        # A number on the CPU gets to a GPU with the arguments of the product.
        ones = torch.ones(y.shape, dtype=lam.dtype, device=y.device)
        return ones * lam.view(lam.shape + (1,) * (y.dim() - 1 if lam.dim() else 0))
    if isinstance(lam, Tensor):  # of integers; a look at them might wait for a device
        raise TypeError(f"lam: expected a number or a floating-point tensor, got {described(lam)}")
    number = as_number("lam", lam)
    if not 0 <= number <= 1:
        raise ValueError(f"lam: expected a number in [0, 1], got {number}")
    return torch.full(y.shape, number, dtype=torch.get_default_dtype(), device=y.device)


def classes_and_probs(target: Any) -> tuple[Any, Any]:
    """A target as one or two tensors: what is no pair is class indices or probabilities."""
    if not isinstance(target, tuple):
        return target, None
    if len(target) != 2 or target[1] is None:
        came = ", ".join(described(part) for part in target)
        raise TypeError(
            "target: expected a tensor or a SparseTarget of classes and probabilities, "
            f"got a tuple ({came})"
        )
    return target
