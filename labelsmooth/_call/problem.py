"""One call of the loss, as it passes from the public interface to a backend."""

import math
from dataclasses import KW_ONLY
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .declare import declared
from .values import as_index, as_number, described

Reduction = Literal["none", "mean", "sum"]
SmoothOver = Literal["all", "others"]
Objective = Literal["cross_entropy", "kl_div"]
Backend = Literal["auto", "cpu", "cuda", "triton", "eager"]

CHOICES = {
    "reduction": get_args(Reduction),
    "smooth_over": get_args(SmoothOver),
    "objective": get_args(Objective),
    "backend": get_args(Backend),
}


@declared
class Options:
    """What a call depends on beside its tensors; checked when made.

    The one declaration of these keywords: functions and modules take theirs from here.
    """

    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    _: KW_ONLY
    smooth_over: SmoothOver = "all"
    objective: Objective = "cross_entropy"
    from_log_probs: bool = False
    lse_square_scale: float = 0.0
    logit_scale: float = 1.0
    softcap: float | None = None
    inplace: bool = False
    return_stats: bool = False
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        self._set("ignore_index", as_index("ignore_index", self.ignore_index))
        for name in ("label_smoothing", "lse_square_scale", "logit_scale"):
            self._set(name, as_number(name, getattr(self, name)))
        if self.softcap is not None:
            self._set("softcap", as_number("softcap", self.softcap))
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {described(value)}")
        for name in ("from_log_probs", "inplace", "return_stats"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name}: expected True or False, got {described(value)}")
        smoothing: Any = self.label_smoothing  # in a traced graph it may be a tensor
        if not isinstance(smoothing, Tensor) and not 0.0 <= smoothing <= 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {smoothing}")
        for name in ("lse_square_scale", "logit_scale"):
            value = getattr(self, name)
            if not -math.inf < value < math.inf:
                raise ValueError(f"{name}: expected a finite number, got {value}")
        if self.softcap is not None and not (0.0 < self.softcap < math.inf):
            raise ValueError(f"softcap: expected a positive number or None, got {self.softcap}")
        if self.from_log_probs and self.lse_square_scale != 0:
            raise ValueError(
                "lse_square_scale: expected 0 with from_log_probs=True, whose lse is 0, "
                f"got {self.lse_square_scale}"
            )

    def _set(self, name: str, value: object) -> None:
        if value is not getattr(self, name):
            object.__setattr__(self, name, value)


# ---- signatures: what functions and modules take beside ------------------------------------------


@declared
class _Weight:
    weight: Tensor | None = None


@declared
class _LogitsAndTarget:
    logits: Tensor
    target: Tensor


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


@declared
class CallWithoutStats(CallArguments):
    _: KW_ONLY
    return_stats: Literal[False] = False


@declared
class CallWithStats(CallArguments):
    _: KW_ONLY
    return_stats: Literal[True] = True


# ---- what a backend takes and returns ------------------------------------------------------------


class Inputs(NamedTuple):
    """The tensors of a call.

    logits (N, C) or (N, C, S); target (N,) or (N, S) of class indices, or class probabilities of
    the logits' shape and dtype; weight (C,); prior (C,); normalizer ().
    """

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    prior: Tensor | None
    normalizer: Tensor | None


def accumulate_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of the loss and of all sums."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class Outputs(NamedTuple):
    """What a forward returns.

    loss () or, for "none", (N,) or (N, S); row_stats (2, N S): shift and sum of exponentials of
    each row, with stats (4, N S): its lse and nll too; predicted like the rows, with stats;
    grad_logits like the logits, where it was asked for. What was not asked for is empty.
    """

    loss: Tensor
    row_stats: Tensor
    predicted: Tensor
    grad_logits: Tensor
