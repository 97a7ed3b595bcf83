"""One call of the loss, as it passes from the public interface to a backend."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]
SmoothOver = Literal["all", "others"]
Objective = Literal["cross_entropy", "kl_div"]
Backend = Literal["auto", "cpu", "cuda", "triton", "eager"]


@dataclass(frozen=True)
class Options:
    """What a call depends on beside its tensors; checked when made."""

    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
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
        if not isinstance(self.ignore_index, int | torch.SymInt):
            raise TypeError(f"ignore_index: expected an integer, got {self.ignore_index!r}")
        if not isinstance(self.label_smoothing, Tensor) and not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(
                f"label_smoothing: expected a number in [0, 1], got {self.label_smoothing}"
            )
        for name, kind in (
            ("reduction", Reduction),
            ("smooth_over", SmoothOver),
            ("objective", Objective),
            ("backend", Backend),
        ):
            value = getattr(self, name)
            if value not in get_args(kind):
                raise ValueError(f"{name}: expected one of {get_args(kind)}, got {value!r}")
        for name in ("lse_square_scale", "logit_scale"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
        if self.softcap is not None and not (0.0 < self.softcap < math.inf):
            raise ValueError(f"softcap: expected a positive number or None, got {self.softcap}")


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
