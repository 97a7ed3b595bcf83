"""Two widely copied label-smoothing losses as drop-ins with exactly their results."""

import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from .._buffers import Float32Buffers
from .._call.checks import check_class_vector, check_tensor
from .._call.values import as_index, as_number
from ..functional import label_smoothing_loss
from ._shared import NO_INDEX, check_shape

__all__ = ["LabelSmoothing", "LabelSmoothingLoss"]

P = ParamSpec("P")


class KeepsTarget(nn.Module):
    """Of log-probabilities (N, C); keeps the target of the last call, of which the smoothed one is
    made when it is asked for."""

    def __init__(self, size: int, smoothing: float) -> None:
        super().__init__()
        self.size = as_index("size", size)
        self.smoothing = _checked_smoothing(smoothing)
        self.confidence = 1.0 - self.smoothing
        self._target: Tensor | None = None
        self._dtype = torch.float32

    def _keep(self, x: Tensor, target: Tensor) -> None:
        _check_rows("x", x, target, self.size)
        self._target, self._dtype = target.detach().clone(), x.dtype

    def _spread(self, target: Tensor, others: int) -> Tensor:
        """(N, C): the smoothing over so many others beside the target, the rest on the target."""
        rest = self.smoothing / max(others, 1)
        shape = (target.shape[0], self.size)
        dist = torch.full(shape, rest, dtype=self._dtype, device=target.device)
        return dist.scatter_(1, target.long().unsqueeze(1), self.confidence)


def _told_apart(init: Callable[P, None]) -> Callable[P, None]:
    """Raises TypeError for what may be arguments of the other class of the name."""

    @wraps(init)
    def told_apart(*args: P.args, **kwargs: P.kwargs) -> None:
        _, *given = args  # without self
        if len(given) > 2 or (len(given) == 2 and _is_index(given[1])) or "padding_idx" in kwargs:
            came = [repr(value) for value in given] + [f"{k}={v!r}" for k, v in kwargs.items()]
            raise TypeError(
                "LabelSmoothing: expected (size, smoothing=0.0), where a smoothing that is an "
                f"integer is given by name, got ({', '.join(came)}); (size, padding_idx, "
                "smoothing=0.0) is labelsmooth.compat.annotated_transformer.LabelSmoothing"
            )
        init(*args, **kwargs)

    return told_apart


def _is_index(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


class LabelSmoothing(KeepsTarget):
    r"""Summed KL divergence between the smoothed target and log-probabilities.

    .. math::
        \ell = \sum_n \sum_c q_{nc} (\log q_{nc} - x_{nc}), \qquad
        q_{nc} = \begin{cases} 1-s & c = y_n \\ s/(C-1) & \text{else} \end{cases}

    Args:
        size: C, the number of classes.
        smoothing: s in [0, 1]. Default: 0. An integer is given by name, ``smoothing=0``.

    Shape: log-probabilities (N, C), class indices (N,); the loss is a scalar.

    The Annotated Transformer's class of this name, ``(size, padding_idx, smoothing)``, is
    :class:`labelsmooth.compat.annotated_transformer.LabelSmoothing`. Its arguments, and an integer
    in second place, are a TypeError.
    """

    @_told_apart
    def __init__(self, size: int, smoothing: float = 0.0) -> None:
        super().__init__(size, smoothing)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        self._keep(x, target)
        return label_smoothing_loss(
            x,
            target,
            ignore_index=NO_INDEX,
            reduction="sum",
            label_smoothing=self.smoothing,
            smooth_over="others",
            objective="kl_div",
            from_log_probs=True,
        )

    @property
    def true_dist(self) -> Tensor | None:
        """The smoothed target (N, C) of the last call, made when it is asked for; None before."""
        return None if self._target is None else self._spread(self._target, self.size - 1)

    def extra_repr(self) -> str:
        return f"size={self.size}, smoothing={self.smoothing}"


class LabelSmoothingLoss(Float32Buffers):
    r"""Mean over the rows of the weighted cross-entropy between logits and the smoothed target.

    .. math::
        \ell = \frac{1}{N} \sum_n \sum_c -q_{nc} \log p_{nc}\, w_c, \qquad
        q_{nc} = \begin{cases} 1-s & c = y_n \\ s/(C-1) & \text{else} \end{cases}

    Args:
        classes: C, the number of classes.
        smoothing: s in [0, 1]. Default: 0.
        dim: the class axis of the logits, -1 or 1.
        weight: (C,). Default: 1/C for every class.

    Shape: logits (N, C), class indices (N,); the loss is a scalar.
    """

    weight: Tensor | None

    def __init__(
        self, classes: int, smoothing: float = 0.0, dim: int = -1, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        dim = as_index("dim", dim)
        if dim not in (-1, 1):
            raise ValueError(f"dim: expected the class axis, -1 or 1, got {dim}")
        self.cls = as_index("classes", classes)
        self.smoothing = _checked_smoothing(smoothing)
        self.confidence = 1.0 - self.smoothing
        self.dim = dim
        if weight is not None:
            check_class_vector("weight", weight, self.cls)
        self.register_buffer("weight", weight)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        _check_rows("pred", pred, target, self.cls)
        rows = target.numel()
        return label_smoothing_loss(
            pred,
            target,
            self.in_float32("weight"),
            ignore_index=NO_INDEX,
            label_smoothing=self.smoothing,
            smooth_over="others",
            normalizer=rows * self.cls if self.weight is None else rows,
        )

    def extra_repr(self) -> str:
        return f"classes={self.cls}, smoothing={self.smoothing}, dim={self.dim}"


def _checked_smoothing(smoothing: float) -> float:
    number: float = as_number("smoothing", smoothing)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"smoothing: expected a number in [0, 1], got {number}")
    return number


def _check_rows(name: str, x: Tensor, target: Tensor, classes: int) -> None:
    check_shape(name, x, "N", classes)
    check_tensor("target", target)
