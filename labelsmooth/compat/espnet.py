"""ESPnet's loss of the attention decoder."""

from torch import Tensor, nn

from .._call.values import as_index, as_number, described
from ..functional import label_smoothing_loss
from ._shared import check_shape, classes_second, in_dtype_of

__all__ = ["LabelSmoothingLoss"]

CRITERION = nn.KLDivLoss(reduction="none")


class LabelSmoothingLoss(nn.Module):
    r"""espnet.nets.pytorch_backend.transformer.label_smoothing_loss.LabelSmoothingLoss, as of
    202511: the KL divergence from the smoothed target, summed, over the batch or its tokens.

    .. math::
        \ell = \frac{1}{D} \sum_{y_i \ne \text{padding\_idx}} \sum_c
            q_{ic} (\log q_{ic} - \log p_{ic}), \qquad
        q_{ic} = \begin{cases} 1-s & c = y_i \\ s/(C-1) & \text{else} \end{cases}

    D is B, the utterances of the batch; with ``normalize_length`` the tokens that are not padding.

    Args:
        size: C, the number of classes.
        padding_idx: tokens with this target give no loss and no gradient.
        smoothing: s in [0, 1]. ``confidence`` is 1 - s, also where s is set between calls.
        normalize_length: divide by the number of tokens. Default: False, by B.
        criterion: a KLDivLoss with reduction="none" and without log_target, the default, which is
            what is computed.

    Shape: logits (B, T, C) of any strides, class indices (B, T). The loss is a scalar in the dtype
    of the logits.

    Oddities, as there: by default long utterances count more, within a batch and among batches.
    With ``normalize_length`` a batch of nothing but padding has the loss NaN and the gradient 0.
    ``true_dist`` is always None.

    Raises:
        TypeError: another criterion: the original calls any, on a target of B*T x C.
        ValueError: logits that are not (B, T, size), a smoothing outside of [0, 1], and size 1,
            where the original divides by 0.
    """

    criterion: nn.Module

    def __init__(
        self,
        size: int,
        padding_idx: int,
        smoothing: float,
        normalize_length: bool = False,
        criterion: nn.Module = CRITERION,
    ) -> None:
        super().__init__()
        _check_criterion(criterion)
        self.criterion = criterion
        self.padding_idx = as_index("padding_idx", padding_idx)
        self.smoothing = as_number("smoothing", smoothing)
        self.size = as_index("size", size)
        self.true_dist = None
        self.normalize_length = normalize_length

    @property
    def confidence(self) -> float:
        return float(1.0 - self.smoothing)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        _check_criterion(self.criterion)
        check_shape("x", x, "B", "T", self.size)
        loss = label_smoothing_loss(
            classes_second(x),
            target,
            ignore_index=self.padding_idx,
            label_smoothing=self.smoothing,
            smooth_over="others",
            objective="kl_div",
            normalizer=None if self.normalize_length else x.shape[0],
        )
        return in_dtype_of(x, loss)

    def extra_repr(self) -> str:
        return (
            f"size={self.size}, padding_idx={self.padding_idx}, smoothing={self.smoothing}, "
            f"normalize_length={self.normalize_length}"
        )


def _check_criterion(criterion: nn.Module) -> None:
    came = described(criterion)
    if type(criterion) is nn.KLDivLoss:
        if criterion.reduction == "none" and not criterion.log_target:
            return
        came = f"KLDivLoss(reduction={criterion.reduction!r}, log_target={criterion.log_target})"
    raise TypeError(f"criterion: expected torch.nn.KLDivLoss(reduction='none'), got {came}")
