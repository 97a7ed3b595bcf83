"""Signatures: what the functions and modules take beside the options, declared once."""

from dataclasses import KW_ONLY, field
from typing import Literal

import torch
from torch import Tensor

from .declare import declared
from .problem import CommonOptions, LinearOptions, Options, Reduction, Target


@declared
class _Weight:
    weight: Tensor | None = None


@declared
class _LogitsAndTarget:
    logits: Tensor
    target: Target


@declared
class ModuleArguments(Options, _Weight):
    """Of the module."""

    _: KW_ONLY
    prior: Tensor | None = None


@declared
class CallArguments(ModuleArguments, _LogitsAndTarget):
    """Of the function."""

    _: KW_ONLY
    logit_scale: Tensor | float = 1.0  # type: ignore[assignment]
    normalizer: Tensor | float | None = None
    row_weight: Tensor | None = None


@declared
class CallWithoutStats(CallArguments):
    _: KW_ONLY
    return_stats: Literal[False] = False


@declared
class CallWithStats(CallArguments):
    _: KW_ONLY
    return_stats: Literal[True] = True


@declared
class LinearArguments(LinearOptions):
    """By keyword alone, as torch has them."""

    _: KW_ONLY
    weight: Tensor | None = None
    ignore_index: int = CommonOptions.ignore_index
    reduction: Reduction = CommonOptions.reduction
    label_smoothing: float = CommonOptions.label_smoothing
    prior: Tensor | None = None


@declared
class _Features:
    in_features: int
    num_classes: int
    _: KW_ONLY
    bias: bool = False
    device: torch.device | str | int | None = None
    dtype: torch.dtype | None = None


@declared
class LinearModuleArguments(LinearArguments, _Features):
    """Of the module that has the projection."""

    num_classes: int = field(kw_only=False)


@declared
class _HiddenAndTarget:
    hidden: Tensor
    linear_weight: Tensor
    target: Target
    _: KW_ONLY
    linear_bias: Tensor | None = None


@declared
class LinearCallArguments(LinearArguments, _HiddenAndTarget):
    """Of the function that projects."""

    _: KW_ONLY
    logit_scale: Tensor | float = 1.0  # type: ignore[assignment]
    normalizer: Tensor | float | None = None
    row_weight: Tensor | None = None


@declared
class LinearCallWithoutStats(LinearCallArguments):
    _: KW_ONLY
    return_stats: Literal[False] = False


@declared
class LinearCallWithStats(LinearCallArguments):
    _: KW_ONLY
    return_stats: Literal[True] = True
