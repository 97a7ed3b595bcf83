"""The Annotated Transformer's label smoothing, which never spreads to the padding."""

import torch
from torch import Tensor, nn

from .._call.problem import accumulate_dtype
from .._call.values import as_index
from ..functional import label_smoothing_loss
from ._shared import in_dtype_of
from .label_smoothing import KeepsTarget

__all__ = ["LabelSmoothing"]


def divergence(log_probs: Tensor, target: Tensor, padding_idx: int, smoothing: float) -> Tensor:
    r"""Summed KL divergence of log-probabilities (N, C) or (N, C, d1, ...), in float32 or better:
    smoothing/(C-2) on each class that is neither the target nor padding; rows whose target is
    padding_idx count nothing."""
    classes = log_probs.shape[1]
    if classes < 3:
        raise ValueError(
            "log-probabilities: expected at least three classes, one beside target and padding, "
            f"got {classes}"
        )
    prior = torch.full(
        (classes,), 1 / (classes - 1), dtype=accumulate_dtype(log_probs), device=log_probs.device
    )
    prior[padding_idx:][:1].zero_()  # an assignment would wait for a GPU
    return label_smoothing_loss(
        log_probs,
        target,
        ignore_index=padding_idx,
        reduction="sum",
        label_smoothing=smoothing,
        smooth_over="others",
        prior=prior,
        objective="kl_div",
        from_log_probs=True,
    )


class LabelSmoothing(KeepsTarget):
    r"""Summed KL divergence between the smoothed target and log-probabilities, without padding.

    .. math::
        \ell = \sum_{n:\, y_n \ne p} \sum_c q_{nc} (\log q_{nc} - x_{nc}), \qquad
        q_{nc} = \begin{cases} 1-s & c = y_n \\ 0 & c = p \\ s/(C-2) & \text{else} \end{cases}

    Args:
        size: C, the number of classes, at least 3.
        padding_idx: p, the class of the padding, in [0, C).
        smoothing: s in [0, 1]. Default: 0.

    Shape: log-probabilities x (N, C), class indices y (N,); the loss is a scalar in x's dtype.
    Without a row that is not padding it is 0.

    ``true_dist`` is the smoothed target of the last call, q above, whose rows of padding are 0. The
    loss does not go through ``criterion``.

    Raises:
        TypeError: padding_idx is a float: (size, smoothing) are the arguments of
            :class:`labelsmooth.compat.LabelSmoothing`.
        ValueError: a padding_idx outside of [0, C). The original takes a negative one for a class
            counted from the end, and leaves rows of that target without their confidence.

    Read: the_annotated_transformer.py of harvardnlp/annotated-transformer (2022).
    """

    def __init__(self, size: int, padding_idx: int, smoothing: float = 0.0) -> None:
        if isinstance(padding_idx, float):
            raise TypeError(
                "LabelSmoothing: expected (size, padding_idx, smoothing=0.0), whose padding_idx is "
                f"an integer, got {padding_idx!r} for it; (size, smoothing=0.0) is "
                "labelsmooth.compat.LabelSmoothing"
            )
        super().__init__(size, smoothing)
        if self.size < 3:
            raise ValueError(f"size: expected at least 3, got {self.size}")
        self.padding_idx = as_class("padding_idx", padding_idx, self.size)
        self.criterion = nn.KLDivLoss(reduction="sum")

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        self._keep(x, target)
        return in_dtype_of(x, divergence(x, target, self.padding_idx, self.smoothing))

    @property
    def true_dist(self) -> Tensor | None:
        """The smoothed target (N, C) of the last call, made when it is asked for; None before."""
        if self._target is None:
            return None
        dist = self._spread(self._target, self.size - 2)
        dist[:, self.padding_idx] = 0.0
        return dist.masked_fill_((self._target == self.padding_idx).unsqueeze(1), 0.0)

    def extra_repr(self) -> str:
        return f"size={self.size}, padding_idx={self.padding_idx}, smoothing={self.smoothing}"


def as_class(name: str, value: int, classes: int) -> int:
    """The value as a class; one counted from the end is none."""
    index: int = as_index(name, value)
    if not 0 <= index < classes:
        raise ValueError(f"{name}: expected a class in [0, {classes}), got {index}")
    return index
