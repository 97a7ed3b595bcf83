"""fastai's LabelSmoothingCrossEntropy and its Flat form. Read in fastai 2.8.12: fastai/losses.py.

fastai is not imported: a Learner takes these as it takes its own.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .._call.checks import check_class_vector
from .._call.problem import Reduction
from ..functional import label_smoothing_loss
from ..targets import SparseTarget
from ._shared import NO_INDEX, in_dtype_of

__all__ = ["LabelSmoothingCrossEntropy", "LabelSmoothingCrossEntropyFlat"]

IGNORED = -100  # by the default of torch's nll_loss


class _Decoded:
    """What a Learner asks a loss for: mixed targets or not, probabilities, classes. The class axis
    is the last, whatever the axis of the loss."""

    y_int = True

    def activation(self, out: Tensor) -> Tensor:
        return out.softmax(-1)

    def decodes(self, out: Tensor) -> Tensor:
        return out.argmax(-1)


class LabelSmoothingCrossEntropy(_Decoded, nn.Module):
    r"""Cross-entropy with label smoothing over all classes and class weights on the target's term
    alone.

    .. math::
        \ell = \frac{1}{N} \sum_n \frac{\epsilon}{C} \sum_c -\log p_{nc}
             + \frac{1-\epsilon}{\sum_{n: y_n \ne -100} w_{y_n}}
               \sum_{n: y_n \ne -100} -w_{y_n} \log p_{n y_n}

    Args:
        eps: :math:`\epsilon` in [0, 1]. Default: 0.1.
        weight: class weights, (C,). Default: 1 for every class. A plain attribute as in fastai, no
            buffer: ``.to(device)`` does not move it.
        reduction: ``"mean"``, as above; ``"sum"`` and ``"none"`` do not divide.

    Shape:
        output: logits (N, C) or (N, C, d1, ...). target: class indices (N,) or (N, d1, ...), of any
        dtype; what is no integer is cut off to one. The loss is a scalar of the logits' dtype, or
        for ``"none"`` has the target's shape.

    Rows whose target is -100 count in the first term and N all the same. Where all are, the mean is
    NaN, and the gradient that of the first term. ``activation`` and ``decodes`` take the last axis
    for the classes', the loss takes axis 1.

    Raises:
        TypeError, ValueError: shapes that do not fit; eps outside [0, 1] (which fastai takes);
            another reduction.
        IndexError: a target that is neither a class nor -100; logits without an axis 1.
    """

    def __init__(
        self, eps: float = 0.1, weight: Tensor | None = None, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.eps, self.weight, self.reduction = eps, weight, reduction

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        classes = output.shape[1]
        kept = target != IGNORED
        y = target.long().where(kept, 0)
        share = self._weight_of(y, classes, torch.promote_types(output.dtype, torch.float32))
        scale: Tensor | float = 1.0
        if self.reduction == "mean":
            scale = y.numel() / share.where(kept, 0.0).sum()
        # The target's term of each row by its probability, 0 where it is ignored.
        probs = (share * scale).where(kept, 0.0)
        loss = label_smoothing_loss(
            output,
            SparseTarget(y.unsqueeze(1), probs.unsqueeze(1)),
            ignore_index=NO_INDEX,
            reduction=self.reduction,
            label_smoothing=self.eps,
        )
        return in_dtype_of(output, loss + 0.0 * scale)  # NaN where no row has a target

    def _weight_of(self, y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
        if self.weight is None:
            return torch.ones_like(y, dtype=dtype)
        check_class_vector("weight", self.weight, classes)
        return self.weight.to(dtype)[y.clamp(0, classes - 1)]  # of no class: the loss says so


class LabelSmoothingCrossEntropyFlat(_Decoded):
    """:class:`LabelSmoothingCrossEntropy` over all rows of logits with the classes on any axis.

    Args:
        eps, weight, reduction: as there; these alone may be given by position.
        axis: of the classes. Default: -1.
        flatten: False only swaps ``axis`` and the last one in logits and target, of which the loss
            takes axis 1 for the classes': right for (N, C) alone. Default: True.
        floatify: changes nothing, since the loss takes class indices.
        is_2d: False, flat logits without a class axis, is a ValueError (fastai's IndexError, at the
            call). Default: True.

    Shape:
        inp: logits of any shape with the classes on ``axis``. targ: class indices of that shape
        without the axis, or as many in another shape. The loss is a scalar, or for ``"none"`` (N,),
        of the rows in the order of ``targ.transpose(axis, -1)`` (where that exists).

    Each row has its own target. In fastai, where three or more axes follow that of the classes, or
    it is counted from the end and is not the last, it has another row's; where the target has no
    such axis, as at axis 1 of logits (N, C), that is an IndexError. ``activation`` and ``decodes``
    take the last axis for the classes', not ``axis``.

    Not a module, as in fastai; ``reduction`` and ``to`` are those of ``func``, the loss inside.
    """

    def __init__(
        self,
        *args: Any,
        axis: int = -1,
        flatten: bool = True,
        floatify: bool = False,
        is_2d: bool = True,
        **kwargs: Any,
    ) -> None:
        if flatten and not is_2d:
            raise ValueError("is_2d: expected True, since flat logits have no class axis")
        self.axis, self.flatten, self.floatify, self.is_2d = axis, flatten, floatify, is_2d
        self.func = LabelSmoothingCrossEntropy(*args, **kwargs)

    def __call__(self, inp: Tensor, targ: Tensor) -> Tensor:
        if not self.flatten:
            whole: Tensor = self.func(inp.transpose(self.axis, -1), targ.transpose(self.axis, -1))
            return whole
        if inp.dim() == 1:
            inp = inp.unsqueeze(0)
        rows = inp.movedim(self.axis, 1)
        loss: Tensor = self.func(rows, targ.reshape(rows.shape[:1] + rows.shape[2:]))
        if self.reduction != "none":
            return loss
        axis = self.axis % inp.dim()
        return (loss.transpose(axis, -1) if axis < loss.dim() else loss).flatten()

    @property
    def reduction(self) -> Reduction:
        return self.func.reduction

    @reduction.setter
    def reduction(self, reduction: Reduction) -> None:
        self.func.reduction = reduction

    def to(self, device: torch.device) -> None:
        self.func.to(device)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.func}, axis={self.axis}"
