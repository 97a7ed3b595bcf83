"""Drop-ins for the losses of libraries, a file each: `labelsmooth.compat.timm` for timm's.

They are imported when they are asked for, and none imports its library before it must.
"""

import importlib
from types import ModuleType

from .label_smoothing import LabelSmoothing, LabelSmoothingLoss

LIBRARIES = (
    "annotated_transformer",
    "espnet",
    "fairseq",
    "fairseq2",
    "fastai",
    "funasr",
    "icefall",
    "joeynmt",
    "nemo",
    "opennmt",
    "pytorch_toolbelt",
    "segmentation_models_pytorch",
    "speechbrain",
    "timm",
    "torch",
    "transformers",
    "wenet",
)
__all__ = ["LabelSmoothing", "LabelSmoothingLoss"]


def __getattr__(name: str) -> ModuleType:
    if name not in LIBRARIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return [*__all__, *LIBRARIES]
