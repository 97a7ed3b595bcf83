"""Drop-ins for losses that people use, a file each."""

from .label_smoothing import LabelSmoothing, LabelSmoothingLoss

__all__ = ["LabelSmoothing", "LabelSmoothingLoss"]
