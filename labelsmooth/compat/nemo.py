"""NeMo's losses of log-probabilities."""

from typing import Any

import torch
from torch import Tensor, nn

from .._call.problem import accumulate_dtype
from ..functional import label_smoothing_loss
from ._shared import NO_INDEX, check_shape, classes_second, in_dtype_of
from .speechbrain import masked_nll

__all__ = ["SmoothedCrossEntropyLoss", "SmoothedNLLLoss"]


class SmoothedCrossEntropyLoss(nn.Module):
    r"""nemo.collections.common.losses.smoothed_cross_entropy.SmoothedCrossEntropyLoss, as of 3.0.0:
    the cross-entropy of log-probabilities, over the tokens that count.

    .. math::
        \ell = \frac{1}{\varepsilon + \sum_{bt} m_{bt}} \sum_{bt} m_{bt} \sum_c -q_{btc}\, x_{btc},
        \qquad q_c = \begin{cases} 1-a & c = y \\ a/(C-1) & \text{else} \end{cases}

    Args:
        pad_id: without an output_mask m is 0 where the label is this one, else 1. Default: None.
        label_smoothing: a in [0, 1]. Default: 0.
        predict_last_k: k > 0 looks at the last k tokens alone, k < 0 at all but the first -k.
            Default: 0, all.
        eps: :math:`\varepsilon`. Default: 1e-6.
        per_token_reduction: False returns the terms of the sum over b and t. Default: True.

    Shape, by keyword or position: log_probs (B, T, C) of any strides, labels (B, T), output_mask m
    (B, T) of any dtype or None. The loss is a scalar, or (B, T), in the dtype of log_probs; T is k
    where that is less.

    Oddities, as there: tokens of pad_id count where an output_mask says so. Where nothing counts
    the loss is 0.

    It is no NeMo module: without NeMo's checks of neural types (``input_types``, ``output_types``,
    arguments by keyword alone) and ``from_config_dict``.

    Raises:
        ValueError: pad_id and output_mask both None; other shapes; one class.
    """

    def __init__(
        self,
        pad_id: int | None = None,
        label_smoothing: float = 0.0,
        predict_last_k: int = 0,
        eps: float = 1e-6,
        per_token_reduction: bool = True,
    ) -> None:
        super().__init__()
        self._pad_id = pad_id
        self._eps = eps
        self._predict_last_k = predict_last_k
        self._label_smoothing = label_smoothing
        self._per_token_reduction = per_token_reduction

    def forward(
        self, log_probs: Tensor, labels: Tensor, output_mask: Tensor | None = None
    ) -> Tensor:
        _check_shapes(log_probs, labels=labels, output_mask=output_mask)
        ignore_index, mask = NO_INDEX, output_mask
        if mask is None:
            if self._pad_id is None:
                raise ValueError("output_mask: expected a tensor, since pad_id is None, got None")
            ignore_index, mask = self._pad_id, labels != self._pad_id
        last = slice(-self._predict_last_k, None)
        mask = mask[:, last]
        count = mask.sum(dtype=accumulate_dtype(log_probs)) + self._eps
        loss = label_smoothing_loss(
            classes_second(log_probs[:, last]),
            labels[:, last],
            ignore_index=ignore_index,
            reduction="mean" if self._per_token_reduction else "none",
            label_smoothing=self._label_smoothing,
            smooth_over="others",
            from_log_probs=True,
            row_weight=mask,
            normalizer=count if self._per_token_reduction else None,
        )
        return in_dtype_of(log_probs, loss)


class SmoothedNLLLoss(nn.Module):
    r"""nemo.collections.common.losses.smoothed_cross_entropy.SmoothedNLLLoss, as of 3.0.0.

    .. math::
        \ell_{bt} = m_{bt} \left(-(1-a)\, w_y\, x_y - \frac{a}{C} \sum_c x_c\right)

    Args:
        reduction: ``"mean"``, the default, the sum divided by :math:`\sum m + \varepsilon`;
            ``"batch"``, (B,), the same of each utterance; ``"batchmean"``, the sum divided by B;
            any other gives (B, T).
        label_smoothing: a in [0, 1]. Default: 0.
        eps: :math:`\varepsilon`. Default: 1e-8.
        **kwargs: of :class:`torch.nn.NLLLoss`: ``weight``, the class weights w, and
            ``ignore_index``. Default: none, -100.

    Shape, by keyword or position: log_probs (B, T, C) of any strides, labels (B, T), output_mask m
    (B, T), or lengths (B,), the frames of each utterance that count. Default: all count. The loss
    has the dtype of log_probs or of the mask, whichever is more; with lengths, and where a sum of
    booleans or integers divides it, float32 or more.

    Oddities, as there: ``"sum"`` does not sum. The weights are neither in the denominator nor in
    the smoothing's term. A label of ignore_index leaves out the target's term alone. Lengths beside
    an output_mask are not looked at.

    Not as there: without mask and lengths the original multiplies (B, T) by (B, T, C), which fails
    or is another loss. And there the smoothing's term is divided without :math:`\varepsilon`, which
    makes NaN where nothing counts; here it is 0.

    It is no NeMo module, as :class:`SmoothedCrossEntropyLoss`.
    """

    def __init__(
        self,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        eps: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.nll_loss = nn.NLLLoss(reduction="none", **kwargs)
        self.eps = eps

    def forward(
        self,
        log_probs: Tensor,
        labels: Tensor,
        output_mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        _check_shapes(log_probs, labels=labels, output_mask=output_mask)
        mask = output_mask
        if mask is None and lengths is not None:
            frames = torch.arange(log_probs.shape[1], device=log_probs.device)
            mask = (frames < lengths.unsqueeze(1)).float()
        elif mask is None:
            mask = torch.ones(labels.shape, device=labels.device)
        elif self.reduction in ("mean", "batch") and not mask.is_floating_point():
            mask = mask.float()  # as its sum is, there, by epsilon
        loss = masked_nll(
            classes_second(log_probs),
            labels,
            mask,
            self.reduction,
            self.label_smoothing,
            self.nll_loss.weight,
            self.nll_loss.ignore_index,
            self.eps,
        )
        return loss.to(torch.promote_types(mask.dtype, log_probs.dtype))


def _check_shapes(log_probs: Tensor, **of_tokens: Tensor | None) -> None:
    check_shape("log_probs", log_probs, "B", "T", "C")
    for name, tensor in of_tokens.items():
        if tensor is not None:
            check_shape(name, tensor, *log_probs.shape[:2])
