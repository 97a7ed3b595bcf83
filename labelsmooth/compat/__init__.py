"""Drop-ins for the losses of libraries, a file each: `labelsmooth.compat.timm` for timm's.

They are imported when they are asked for, and none imports its library before it must.
"""

import importlib
from typing import TYPE_CHECKING

from .label_smoothing import LabelSmoothing, LabelSmoothingLoss

if TYPE_CHECKING:
    from . import annotated_transformer as annotated_transformer
    from . import espnet as espnet
    from . import fairseq as fairseq
    from . import fairseq2 as fairseq2
    from . import fastai as fastai
    from . import funasr as funasr
    from . import icefall as icefall
    from . import joeynmt as joeynmt
    from . import nemo as nemo
    from . import opennmt as opennmt
    from . import pytorch_toolbelt as pytorch_toolbelt
    from . import segmentation_models_pytorch as segmentation_models_pytorch
    from . import speechbrain as speechbrain
    from . import timm as timm
    from . import torch as torch
    from . import transformers as transformers
    from . import wenet as wenet

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


if not TYPE_CHECKING:  # of which a checker would believe any name

    def __getattr__(name):
        if name not in LIBRARIES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f".{name}", __name__)


def __dir__() -> list[str]:
    return [*__all__, *LIBRARIES]
