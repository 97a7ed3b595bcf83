"""icefall's loss of the attention decoder."""

from typing import Literal

from torch import Tensor, nn

from .._call.values import as_index, as_number
from ..functional import label_smoothing_loss
from ._shared import check_shape, classes_second, in_dtype_of

__all__ = ["LabelSmoothingLoss"]


class LabelSmoothingLoss(nn.Module):
    r"""LabelSmoothingLoss of icefall's label_smoothing.py, as its recipe zipformer has it at
    4e3bf9a: the cross-entropy of the smoothed target, summed.

    .. math::
        \ell = \sum_{y_i \ne \text{ignore\_index}} \sum_c -q_{ic} \log p_{ic}, \qquad
        q_{ic} = (1-a)\,[c = y_i] + a/C

    Args:
        ignore_index: tokens with this target give no loss and no gradient. Default: -1.
        label_smoothing: a in [0, 1). Default: 0.1.
        reduction: ``"sum"``, the default; ``"mean"``, over the tokens that are not ignored;
            ``"none"``.

    Shape: logits (B, T, C) of any strides, class indices (B, T). The loss is a scalar, or for
    ``"none"`` (B*T,), in the dtype of the logits.

    Oddities, as there: the default reduction is the sum; ``"none"`` comes flattened; a smoothing of
    1 is an error. ``"mean"`` of nothing but ignored tokens is NaN, its gradient 0. In older recipes
    (conformer_ctc at 4d9a1f5) ``"none"`` gives (B*T, C), the terms of each class.

    Raises:
        ValueError: what the original asserts: a label_smoothing outside of [0, 1), another
            reduction, other shapes.
    """

    def __init__(
        self,
        ignore_index: int = -1,
        label_smoothing: float = 0.1,
        reduction: Literal["none", "sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        self.ignore_index = as_index("ignore_index", ignore_index)
        self.label_smoothing = as_number("label_smoothing", label_smoothing)
        self.reduction = reduction
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1), got {label_smoothing}")
        if reduction not in ("none", "sum", "mean"):
            raise ValueError(f"reduction: expected 'none', 'sum' or 'mean', got {reduction!r}")

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        check_shape("x", x, "B", "T", "C")
        check_shape("target", target, *x.shape[:2])
        loss = label_smoothing_loss(
            classes_second(x),
            target,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        return in_dtype_of(x, loss.reshape(-1) if self.reduction == "none" else loss)

    def extra_repr(self) -> str:
        return (
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, "
            f"reduction={self.reduction!r}"
        )
