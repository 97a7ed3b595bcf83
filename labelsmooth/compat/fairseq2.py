"""fairseq2's cross-entropy."""

from typing import Literal

from torch import Tensor

from ..functional import label_smoothing_loss
from ._shared import NO_INDEX, classes_second

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    pad_idx: int | None,
    *,
    label_smoothing: float = 0.0,
    target_mask: Tensor | None = None,
    reduction: Literal["sum", "mean", "none"] = "sum",
) -> Tensor:
    r"""fairseq2.nn.functional.cross_entropy, as of 0.8.1: label smoothing over the other classes.

    .. math::
        \ell_i = m_i \Bigl( -(1-s) \log p_{i y_i}
            - \frac{s}{T-1} \sum_{c \ne y_i} \log p_{ic} \Bigr), \qquad
        \ell_i = 0 \text{ where } y_i = \text{pad\_idx}

    Args:
        pad_idx: positions of this target cost nothing. None: there are none; but see below.
        label_smoothing: s in [0, 1]. Default: 0.
        target_mask: m, of bool; positions where it is False cost nothing. Default: all count.
        reduction: ``"sum"``, the default; ``"mean"`` over the positions that count; ``"none"``.

    Shape: logits (S, T) or (N, S, T) of T classes and any strides; targets and target_mask (S,) or
    (N, S), or as many. The loss is a scalar, or for "none" (S,) or (N, S) as the logits are; in
    float32, as there, whatever the logits are.

    Oddities, as there: pad_idx None without smoothing is -100. The mean of nothing is NaN. Older
    versions divide the mean by all positions, padding too, where there is smoothing or a mask.

    A target_mask of numbers weighs the positions; there it is an error for "mean" beside padding.

    Raises:
        ValueError: another reduction, a label_smoothing outside of [0, 1].
        IndexError: on the CPU, a target that is no class and not pad_idx.
    """
    positions = logits.shape[:-1]
    if pad_idx is None:
        pad_idx = -100 if label_smoothing == 0 else NO_INDEX
    return label_smoothing_loss(
        classes_second(logits),
        targets.reshape(positions),
        ignore_index=pad_idx,
        reduction=reduction,
        label_smoothing=label_smoothing,
        smooth_over="others",
        row_weight=None if target_mask is None else target_mask.reshape(positions),
    ).float()
