"""JoeyNMT's loss."""

from typing import Any

from torch import Tensor, nn

from .._call.values import as_index, as_number
from ..functional import label_smoothing_loss
from ._shared import classes_second, in_dtype_of
from .annotated_transformer import divergence

__all__ = ["XentLoss"]


class XentLoss(nn.Module):
    r"""joeynmt.loss.XentLoss, as of 2.3: summed over the tokens that are not padding, of
    log-probabilities.

    .. math::
        \ell = \sum_{i:\, y_i \ne p} \sum_c q_{ic} (\log q_{ic} - x_{ic}), \qquad
        q_{ic} = \begin{cases} 1-s & c = y_i \\ 0 & c = p \\ s/(C-2) & \text{else} \end{cases}

    Without smoothing that is the negative log-likelihood.

    Args:
        pad_index: p, the class of the padding.
        smoothing: s, at most 1; of 0 or less, as there, for none. Default: 0.

    Shape: log-probabilities x (B, T, C), of any strides, or (..., C); ``trg`` class indices
    (B, T), or as many. The loss is a scalar. With smoothing it is float32 or better, as there,
    where the smoothed target is float32; without it is in x's dtype.

    Called as ``loss(log_probs, trg=...)``; other keywords pass unread.

    The loss does not go through ``criterion``.

    Raises:
        ValueError: smoothing above 1; or beside smoothing, a negative pad_index, which the original
            takes for a class counted from the end, whose tokens lose their 1-s; or fewer than
            three classes.
    """

    def __init__(self, pad_index: int, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing: float = as_number("smoothing", smoothing)
        self.pad_index: int = as_index("pad_index", pad_index)
        self.criterion: nn.Module
        if self.smoothing <= 0.0:
            self.criterion = nn.NLLLoss(ignore_index=self.pad_index, reduction="sum")
            return
        if self.smoothing > 1.0:
            raise ValueError(f"smoothing: expected at most 1, got {self.smoothing}")
        if self.pad_index < 0:
            raise ValueError(f"pad_index: expected a class, got {self.pad_index}")
        self.criterion = nn.KLDivLoss(reduction="sum")

    def forward(self, log_probs: Tensor, *, trg: Tensor, **kwargs: Any) -> Tensor:
        target = trg.reshape(log_probs.shape[:-1])
        log_probs = classes_second(log_probs)
        if self.smoothing > 0.0:
            return divergence(log_probs, target, self.pad_index, self.smoothing)
        loss = label_smoothing_loss(
            log_probs, target, ignore_index=self.pad_index, reduction="sum", from_log_probs=True
        )
        return in_dtype_of(log_probs, loss)

    def __repr__(self) -> str:
        return f"XentLoss(criterion={self.criterion}, smoothing={self.smoothing})"
