"""timm's Mixup and FastCollateMixup that make no dense target. Imports timm."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..targets import SparseTarget
from .timm import MixedTarget, mixed_target_of

mixup: Any = import_module("timm.data.mixup")  # so that types are the same with and without timm


class _Sparse:
    """How the two make their target of class indices."""

    label_smoothing: float

    if TYPE_CHECKING:  # of timm's, which is the next class

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def _mixed(self, target: Tensor, lam: Any, rows: int) -> MixedTarget:
        """The first rows of the batch, each with its share lam, one number or (N, 1), of the row
        that is as far from the batch's end."""
        y = target.long().flatten()
        lam = lam[:rows, 0] if isinstance(lam, Tensor) else lam
        mixed = SparseTarget.mix(y[:rows], y.flip(0)[:rows], lam)
        return mixed_target_of(float(self.label_smoothing))(*mixed)


class Mixup(_Sparse, mixup.Mixup):  # type: ignore[misc]
    """timm's Mixup, but its target is a :class:`~labelsmooth.compat.timm.MixedTarget` (N, 2).

    Arguments, random draws (NumPy's, in timm's order) and images, which are mixed in place, are
    timm's, and so is the loss by :class:`labelsmooth.compat.timm.SoftTargetCrossEntropy`.
    ``label_smoothing`` is 0.1 by default.

    Shape: x (N, channels, H, W), N even; target: class indices (N,), of any dtype.

    Raises:
        ValueError: N is odd (timm's AssertionError).

    ``num_classes`` does not matter. With ``multi_label=True`` all is timm's, the dense target too.
    A mode that is neither "elem" nor "pair" is "batch".
    """

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor | MixedTarget]:
        if getattr(self, "multi_label", False):
            result: tuple[Tensor, Tensor] = super().__call__(x, target)
            return result
        _check_even(len(x))
        if self.mode == "elem":
            lam = self._mix_elem(x)
        elif self.mode == "pair":
            lam = self._mix_pair(x)
        else:
            lam = self._mix_batch(x)
        return x, self._mixed(target, lam, len(x))


class FastCollateMixup(_Sparse, mixup.FastCollateMixup):  # type: ignore[misc]
    """timm's FastCollateMixup, the ``collate_fn`` of a loader, likewise.

    As :class:`Mixup`, of a list of pairs of a uint8 image (an array or a tensor) and a class index;
    images come as uint8. Mode "half" gives N/2 images and targets. timm's PrefetchLoader takes it.
    """

    def __call__(self, batch: Any, _: Any = None) -> tuple[Tensor, Tensor | MixedTarget]:
        if getattr(self, "multi_label", False):
            result: tuple[Tensor, Tensor] = super().__call__(batch, _)
            return result
        _check_even(len(batch))
        half = self.mode == "half"
        rows = len(batch) // 2 if half else len(batch)
        images = torch.zeros((rows, *batch[0][0].shape), dtype=torch.uint8)
        if half or self.mode == "elem":
            lam = self._mix_elem_collate(images, batch, half=half)
        elif self.mode == "pair":
            lam = self._mix_pair_collate(images, batch)
        else:
            lam = self._mix_batch_collate(images, batch)
        return images, self._mixed(default_collate([y for _, y in batch]), lam, rows)


def _check_even(rows: int) -> None:
    if rows % 2:
        raise ValueError(f"batch: expected an even number of rows, which are paired, got {rows}")
