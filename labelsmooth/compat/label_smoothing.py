"""Two widely copied label-smoothing losses as drop-ins with exactly their results."""

import torch
from torch import Tensor, nn

from .._buffers import Float32Buffers
from .._call.checks import check_class_vector, check_tensor
from .._call.values import as_index, as_number
from ..functional import label_smoothing_loss
from ._shared import NO_INDEX


class LabelSmoothing(nn.Module):
    r"""Summed KL divergence between the smoothed target and log-probabilities.

    .. math::
        \ell = \sum_n \sum_c q_{nc} (\log q_{nc} - x_{nc}), \qquad
        q_{nc} = \begin{cases} 1-s & c = y_n \\ s/(C-1) & \text{else} \end{cases}

    Args:
        size: C, the number of classes.
        smoothing: s in [0, 1]. Default: 0.

    Shape: log-probabilities (N, C), class indices (N,); the loss is a scalar.
    """

    def __init__(self, size: int, smoothing: float = 0.0) -> None:
        super().__init__()
        self.size = as_index("size", size)
        self.smoothing = _checked_smoothing(smoothing)
        self.confidence = 1.0 - self.smoothing
        self._target: Tensor | None = None
        self._dtype = torch.float32

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        _check_rows("x", x, target, self.size)
        self._target, self._dtype = target.detach().clone(), x.dtype
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
        if self._target is None:
            return None
        rest = self.smoothing / max(self.size - 1, 1)
        shape = (self._target.shape[0], self.size)
        dist = torch.full(shape, rest, dtype=self._dtype, device=self._target.device)
        return dist.scatter_(1, self._target.long().unsqueeze(1), self.confidence)

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
    check_tensor(name, x)
    check_tensor("target", target)
    if x.dim() != 2 or x.shape[1] != classes:
        raise ValueError(f"{name}: expected shape (N, {classes}), got {tuple(x.shape)}")
