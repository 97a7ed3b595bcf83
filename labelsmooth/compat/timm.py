"""timm's losses, its Mixup and FastCollateMixup. Read in timm 1.0.31: timm/loss/cross_entropy.py
and timm/data/mixup.py.

    from labelsmooth.compat.timm import FastCollateMixup, Mixup, SoftTargetCrossEntropy

timm is imported where a Mixup is asked for; the losses do without it.
"""

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..functional import label_smoothing_loss
from ..targets import SparseTarget
from ._shared import NO_INDEX, classes_second, in_dtype_of

if TYPE_CHECKING:
    from ._timm_mixup import FastCollateMixup as FastCollateMixup
    from ._timm_mixup import Mixup as Mixup

__all__ = ["LabelSmoothingCrossEntropy", "MixedTarget", "SoftTargetCrossEntropy"]  # without timm


class LabelSmoothingCrossEntropy(nn.Module):
    r"""Cross-entropy with label smoothing over all classes, mean over the rows.

    .. math::
        \ell = \frac{1}{N} \sum_n \Bigl( -(1-a) \log p_{n y_n} - \frac{a}{C} \sum_c \log p_{nc}
        \Bigr)

    Args:
        smoothing: :math:`a` in [0, 1). Default: 0.1.

    Shape:
        x: logits (N, C) or (..., C). target: class indices (N,) or (...). The loss is a scalar of
        x's dtype.

    Raises:
        ValueError: smoothing is not below 1 (an AssertionError of timm) or is negative (which timm
            takes). At the call: shapes that do not fit.
        IndexError: a target that is no class. No index is ignored, -100 neither.

    Of logits (N, T, C) timm takes each target's log-probability from position 0 of its row; here it
    is that of the target's own position.
    """

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__()
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"smoothing: expected a number in [0, 1), got {smoothing}")
        self.smoothing = smoothing

    @property
    def confidence(self) -> float:
        return 1.0 - self.smoothing

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        loss = label_smoothing_loss(
            classes_second(x), target, ignore_index=NO_INDEX, label_smoothing=self.smoothing
        )
        return in_dtype_of(x, loss)


class SoftTargetCrossEntropy(nn.Module):
    r"""Cross-entropy with a soft target, mean over the rows.

    .. math:: \ell = \frac{1}{N} \sum_n \sum_c -t_{nc} \log p_{nc}

    Shape:
        x: logits (N, C) or (..., C). target: timm's dense one, of x's shape or one that broadcasts
        to it; or of the Mixup here, a :class:`MixedTarget`; or another
        :class:`labelsmooth.SparseTarget`. The loss is a scalar. Its dtype is what torch promotes
        those of x and of a dense target to, float32 for bfloat16 logits and timm's float32 targets;
        of a sparse target float32, or float64 for float64 logits.

    A row need not sum to 1. A dense target may be of integers, which are copied in x's dtype. A
    :class:`MixedTarget` brings its ``label_smoothing``.

    Raises:
        RuntimeError: a dense target does not broadcast to x's shape.
        IndexError: a class of a sparse target that is none.
    """

    def forward(self, x: Tensor, target: Tensor | SparseTarget) -> Tensor:
        if isinstance(target, tuple):
            return label_smoothing_loss(
                classes_second(x),
                SparseTarget(*map(classes_second, target)),
                ignore_index=NO_INDEX,
                label_smoothing=getattr(target, "label_smoothing", 0.0),
            )
        if not target.is_floating_point():
            target = target.to(x.dtype)
        dense = target.expand_as(x)
        loss = label_smoothing_loss(classes_second(x), classes_second(dense))
        return in_dtype_of(x, loss, target)


class MixedTarget(SparseTarget):
    """What `Mixup` returns: a SparseTarget of the two classes of a row and their shares,
    (N, 2), with the smoothing that timm puts into its dense target.

    :class:`SoftTargetCrossEntropy` reads ``label_smoothing``. To labelsmooth's own losses give it:
    ``FusedLabelSmoothingLoss(label_smoothing=mixup.label_smoothing)``.
    """

    # Of each smoothing a class: pin_memory and accelerate make a tuple anew, without attributes.
    __slots__ = ()
    label_smoothing: ClassVar[float]

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "MixedTarget":
        """On the device, as timm's PrefetchLoader asks for it."""
        return type(self)(*(part.to(device, non_blocking=non_blocking) for part in self))

    def __reduce__(self) -> tuple[Any, ...]:
        return _mixed_target, (self.label_smoothing, *self)


@cache
def mixed_target_of(label_smoothing: float) -> type[MixedTarget]:
    attributes = {"__slots__": (), "label_smoothing": label_smoothing}
    return type("MixedTarget", (MixedTarget,), attributes)


def _mixed_target(label_smoothing: float, classes: Tensor, probs: Tensor) -> MixedTarget:
    return mixed_target_of(label_smoothing)(classes, probs)


if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in ("FastCollateMixup", "Mixup"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import _timm_mixup

        return getattr(_timm_mixup, name)
