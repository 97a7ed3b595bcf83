"""Label-smoothed cross-entropy for many classes: loss and gradient in one step."""

from . import compat
from .functional import LossStats, label_smoothing_loss
from .linear import linear_label_smoothing_loss
from .memory import release_memory
from .modules import FusedLabelSmoothingLoss, FusedLinearLabelSmoothingLoss
from .targets import SparseTarget

__version__ = "0.2.0"
__all__ = [
    "FusedLabelSmoothingLoss",
    "FusedLinearLabelSmoothingLoss",
    "LossStats",
    "SparseTarget",
    "compat",
    "label_smoothing_loss",
    "linear_label_smoothing_loss",
    "release_memory",
]
