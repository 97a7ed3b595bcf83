"""OpenNMT-py's loss, up to version 3.0.2; read in 2.3.0.

Since 3.0.3 it has torch's own, of logits: ``CrossEntropyLoss(ignore_index=padding_idx,
reduction="sum", label_smoothing=...)``, whose arguments
:class:`labelsmooth.FusedLabelSmoothingLoss` takes.
"""

import torch
from torch import Tensor, nn

from .._call.values import as_index, as_number
from ._shared import check_shape
from .annotated_transformer import divergence

__all__ = ["LabelSmoothingLoss"]


class LabelSmoothingLoss(nn.Module):
    r"""onmt.utils.loss.LabelSmoothingLoss, as of 2.3: KL divergence from the smoothed target,
    summed over the rows that are not ignored, of log-probabilities.

    .. math::
        \ell = \sum_{n:\, y_n \ne p} \sum_c q_{nc} (\log q_{nc} - x_{nc}), \qquad
        q_{nc} = \begin{cases} 1-s & c = y_n \\ 0 & c = p \\ s/(C-2) & \text{else} \end{cases}

    Args:
        label_smoothing: s in (0, 1]. 0 is an error, as there.
        tgt_vocab_size: C, at least 3.
        ignore_index: p, the class of the padding. Default: -100.

    Shape: log-probabilities x (N, C), class indices y (N,). The loss is a scalar of float32 or
    better, as there: in the wider dtype of x and the buffer ``one_hot``.

    ``one_hot`` (1, C), what every row of q has before its target, is the original's buffer, of
    which the loss takes the dtype alone.

    A negative ignore_index, as the default, counts from the end, as there: class C-100 gets no
    smoothing mass in any row, and fewer than 100 classes are an IndexError. Not as there: in rows
    whose target is that class the others share s, s/(C-1) each, where the original's q sums to
    1 + s/(C-2); and rows whose target is the negative ignore_index itself are ignored, there an
    error of indexing.

    Raises:
        ValueError: label_smoothing outside of (0, 1], tgt_vocab_size below 3, x of other shape.
        IndexError: ignore_index outside of [-C, C).
    """

    one_hot: Tensor

    def __init__(
        self, label_smoothing: float, tgt_vocab_size: int, ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.label_smoothing: float = as_number("label_smoothing", label_smoothing)
        if not 0.0 < self.label_smoothing <= 1.0:
            raise ValueError(
                f"label_smoothing: expected a number in (0, 1], got {self.label_smoothing}"
            )
        classes: int = as_index("tgt_vocab_size", tgt_vocab_size)
        if classes < 3:
            raise ValueError(f"tgt_vocab_size: expected at least 3, got {classes}")
        self.ignore_index: int = as_index("ignore_index", ignore_index)
        if not -classes <= self.ignore_index < classes:
            raise IndexError(
                f"ignore_index: expected a class of {classes}, which may count from the end, "
                f"got {self.ignore_index}"
            )
        one_hot = torch.full((1, classes), self.label_smoothing / (classes - 2))
        one_hot[:, self.ignore_index] = 0.0
        self.register_buffer("one_hot", one_hot)
        self.confidence = 1.0 - self.label_smoothing

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        check_shape("output", output, "N", self.one_hot.shape[1])
        loss = divergence(output, target, self.ignore_index, self.label_smoothing)
        return loss.to(torch.promote_types(output.dtype, self.one_hot.dtype))
