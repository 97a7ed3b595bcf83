"""A small call of the function or the module, and the names of its arguments that are numbers."""

from __future__ import annotations

from typing import Any

import torch

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss

N, C = 4, 7
NUMBERS = ["label_smoothing", "lse_square_scale", "logit_scale", "softcap", "normalizer"]


def call(form: str, **arguments: Any) -> Any:
    arguments = {"logits": torch.randn(N, C), "target": torch.arange(N), **arguments}
    if form == "function":
        return label_smoothing_loss(**arguments)
    of_call = [
        name for name in ("logits", "target", "normalizer", "row_weight") if name in arguments
    ]
    given = {name: arguments.pop(name) for name in of_call}
    return FusedLabelSmoothingLoss(**arguments)(**given)
