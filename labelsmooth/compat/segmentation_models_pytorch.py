"""segmentation_models_pytorch's SoftCrossEntropyLoss. Read in 0.6.0: losses/soft_ce.py and
losses/_functional.py."""

from torch import Tensor, nn

from .._call.problem import Reduction
from ..functional import label_smoothing_loss
from ._shared import NO_INDEX, classes_second, in_dtype_of

__all__ = ["SoftCrossEntropyLoss"]

REDUCTIONS: dict[str | None, Reduction] = {"mean": "mean", "sum": "sum"}


class SoftCrossEntropyLoss(nn.Module):
    r"""Cross-entropy with label smoothing over all classes; the mean is over all pixels, ignored
    ones too.

    .. math::
        \ell = \frac{1}{N} \sum_{n:\ y_n \ne \text{ignore\_index}} \Bigl(
        -(1-a) \log p_{n y_n} - \frac{a}{C} \sum_c \log p_{nc} \Bigr)

    Args:
        reduction: ``"mean"`` divides by N, the number of all pixels; ``"sum"``; anything else is
            no reduction.
        smooth_factor: :math:`a` in [0, 1]. Default: None, 0 here, with which the original fails.
        ignore_index: pixels of this target cost 0. None: there are none. Default: -100.
        dim: the axis of the classes. Default: 1.

    Shape:
        y_pred: logits (N, C, H, W), or of any shape with C classes on axis ``dim``. y_true: class
        indices of that shape without the axis, or with 1 there. The loss is a scalar of the logits'
        dtype. Without reduction it has the shape of the logits with 1 in place of C, (N, 1, H, W);
        only where ignore_index is None it has no such axis, (N, H, W).

    Raises:
        ValueError: shapes that do not fit; smooth_factor outside [0, 1] (which the original takes).
        IndexError: a target that is neither a class nor ignore_index; an axis that is none.

    All are attributes, which may be set.
    """

    def __init__(
        self,
        reduction: str = "mean",
        smooth_factor: float | None = None,
        ignore_index: int | None = -100,
        dim: int = 1,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.smooth_factor = smooth_factor
        self.ignore_index = ignore_index
        self.dim = dim

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        if y_true.dim() == y_pred.dim():
            y_true = y_true.squeeze(self.dim)
        reduction = REDUCTIONS.get(self.reduction, "none")
        loss = label_smoothing_loss(
            classes_second(y_pred, self.dim),
            y_true,
            ignore_index=NO_INDEX if self.ignore_index is None else self.ignore_index,
            reduction=reduction,
            label_smoothing=0.0 if self.smooth_factor is None else self.smooth_factor,
            normalizer=y_true.numel() if reduction == "mean" else None,
        )
        if reduction == "none" and self.ignore_index is not None:
            loss = loss.unsqueeze(self.dim)
        return in_dtype_of(y_pred, loss)
