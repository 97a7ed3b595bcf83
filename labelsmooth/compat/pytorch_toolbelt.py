"""pytorch_toolbelt's SoftCrossEntropyLoss. Read in 0.8.0: losses/soft_ce.py and
losses/functional.py."""

from torch import Tensor

from . import segmentation_models_pytorch as smp

__all__ = ["SoftCrossEntropyLoss"]


class SoftCrossEntropyLoss(smp.SoftCrossEntropyLoss):
    """That of segmentation_models_pytorch, which came from here, oddities included:
    :class:`labelsmooth.compat.segmentation_models_pytorch.SoftCrossEntropyLoss`. Here
    ``smooth_factor`` is 0 by default, and the arguments of the call are ``input, target``."""

    def __init__(
        self,
        reduction: str = "mean",
        smooth_factor: float | None = 0.0,
        ignore_index: int | None = -100,
        dim: int = 1,
    ) -> None:
        super().__init__(reduction, smooth_factor, ignore_index, dim)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target)
