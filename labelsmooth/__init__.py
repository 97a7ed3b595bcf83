"""Label-smoothed cross-entropy for many classes: loss and gradient in one step."""

from importlib.util import find_spec

if find_spec(f"{__name__}._C") is None:
    raise ImportError(
        f"labelsmooth in {__path__[0]} is not built: start Python in a folder that does not hold "
        "its sources, or install it from there"
    )

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
