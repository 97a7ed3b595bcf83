"""One call of the loss, as it passes from the public interface to a backend."""

import math
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .declare import declared
from .schema import keywords_of
from .values import as_index, as_number, described

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup as ProcessGroup
else:
    try:
        from torch.distributed import ProcessGroup
    except ImportError:  # a torch without it

        class ProcessGroup:
            pass


Reduction = Literal["none", "mean", "sum"]
SmoothOver = Literal["all", "others", "unmasked"]
WeightOver = Literal["all", "target"]
Objective = Literal["cross_entropy", "kl_div"]
Backend = Literal["auto", "cpu", "cuda", "triton", "eager"]
Target = Tensor | tuple[Tensor, Tensor]  # such as a SparseTarget

CHOICES = {
    "reduction": get_args(Reduction),
    "smooth_over": get_args(SmoothOver),
    "weight_over": get_args(WeightOver),
    "objective": get_args(Objective),
    "backend": get_args(Backend),
}


@declared
class CommonOptions:
    """What a call depends on beside its tensors, from logits or from a projection; checked when
    made.

    Functions and modules take their keywords from here.
    """

    ignore_index: int = -100
    reduction: Reduction = "mean"
    label_smoothing: float = 0.0
    _: KW_ONLY
    smooth_over: SmoothOver = "all"
    weight_over: WeightOver = "all"
    objective: Objective = "cross_entropy"
    lse_square_scale: float = 0.0
    logit_scale: float = 1.0
    softcap: float | None = None
    return_stats: bool = False
    backend: Backend = "auto"
    process_group: ProcessGroup | str | None = None
    class_offset: int | None = None
    num_classes: int | None = None

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
        self._check_flags("return_stats")
        self._check_ranks()
        smoothing: Any = self.label_smoothing  # in a traced graph it may be a tensor
        if not isinstance(smoothing, Tensor) and not 0.0 <= smoothing <= 1.0:
            raise ValueError(f"label_smoothing: expected a number in [0, 1], got {smoothing}")
        for name in ("lse_square_scale", "logit_scale"):
            value = getattr(self, name)
            if not -math.inf < value < math.inf:
                raise ValueError(f"{name}: expected a finite number, got {value}")
        if self.softcap is not None and not (0.0 < self.softcap < math.inf):
            raise ValueError(f"softcap: expected a positive number or None, got {self.softcap}")

    def _check_ranks(self) -> None:
        group: Any = self.process_group
        if group is not None and not isinstance(group, str):
            if not isinstance(group, ProcessGroup):
                raise TypeError(
                    "process_group: expected a torch.distributed.ProcessGroup or None, "
                    f"got {described(group)}"
                )
            self._set("process_group", group.group_name)  # can be copied, pickled and compiled
        for name, least in (("class_offset", 0), ("num_classes", 1)):
            if (value := getattr(self, name)) is None:
                continue
            self._set(name, as_index(name, value))
            if value < least:
                raise ValueError(f"{name}: expected an integer from {least} on, got {value}")
        if self.class_offset is not None and self.num_classes is None:
            raise ValueError(
                f"class_offset: expected num_classes beside it, got {self.class_offset} alone"
            )

    def _check_flags(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name}: expected True or False, got {described(value)}")

    def _set(self, name: str, value: object) -> None:
        if value is not getattr(self, name):
            object.__setattr__(self, name, value)


COMMON = keywords_of(CommonOptions)


@declared
class Options(CommonOptions):
    """Of a call from logits."""

    _: KW_ONLY
    from_log_probs: bool = False
    inplace: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flags("from_log_probs", "inplace")
        if self.from_log_probs and self.lse_square_scale != 0:
            raise ValueError(
                "lse_square_scale: expected 0 with from_log_probs=True, whose lse is 0, "
                f"got {self.lse_square_scale}"
            )


@declared
class LinearOptions(CommonOptions):
    """Of a call from hidden states."""

    _: KW_ONLY
    chunk_rows: int | None = None
    recompute: bool = False
    partial_hidden_grad: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flags("recompute", "partial_hidden_grad")
        if self.chunk_rows is not None:
            self._set("chunk_rows", as_index("chunk_rows", self.chunk_rows))
            if self.chunk_rows < 1:
                raise ValueError(
                    f"chunk_rows: expected a positive number or None, got {self.chunk_rows}"
                )

    def of_logits(self, **changes: Any) -> Options:
        """What is done with the logits of a chunk."""
        common = {name: getattr(self, name) for name in COMMON}
        return Options(**common | changes)


# ---- what a backend takes and returns ------------------------------------------------------------


class Inputs(NamedTuple):
    """The tensors of a call.

    logits (N, C) or (N, C, S). target (N,) or (N, S) of class indices; or (N, K) or (N, K, S) of
    classes, with target_probs of that shape; or class probabilities of the logits' shape, in any
    floating-point dtype. weight (C,); prior (C,); normalizer (); row_weight like the rows.
    """

    logits: Tensor
    target: Tensor
    target_probs: Tensor | None = None
    weight: Tensor | None = None
    prior: Tensor | None = None
    normalizer: Tensor | None = None
    row_weight: Tensor | None = None


class LinearInputs(NamedTuple):
    """hidden (N, D); linear_weight (C, D); linear_bias (C,); the others as in Inputs."""

    hidden: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    target: Tensor
    target_probs: Tensor | None = None
    weight: Tensor | None = None
    prior: Tensor | None = None
    normalizer: Tensor | None = None
    row_weight: Tensor | None = None


def accumulate_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of the loss and of all sums."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


class ClassRange(NamedTuple):
    """Of columns of logits: `count` classes, from `first` on of `all`; then padding."""

    first: int
    count: int  # type: ignore[assignment]  # hides that of tuples
    all: int


def class_range(columns: int, options: CommonOptions) -> ClassRange:
    if options.num_classes is None:
        return ClassRange(0, columns, columns)
    first = options.class_offset or 0
    return ClassRange(first, max(0, min(columns, options.num_classes - first)), options.num_classes)


def has_one_class(inputs: Inputs | LinearInputs) -> bool:
    """Not a few of them, nor probabilities of all."""
    return inputs.target_probs is None and not inputs.target.is_floating_point()


class Outputs(NamedTuple):
    """What a forward returns.

    loss () or, for "none", (N,) or (N, S); row_stats (4, N S): shift, sum of exponentials, mass and
    beta of each row, with stats (6, N S): lse and nll too; predicted like the rows; grad_logits
    like the logits. What was not asked for is empty.
    """

    loss: Tensor
    row_stats: Tensor
    predicted: Tensor
    grad_logits: Tensor
