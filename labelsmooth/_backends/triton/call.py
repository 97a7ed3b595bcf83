"""One call of an operator, as the kernels take it."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..._call.problem import ClassRange, Inputs, Options, accumulate_dtype, class_range
from .. import eager, native
from ..classes import classes_of
from ..target import ignored_rows, prior_of_target
from .plan import Gpu, Plan, gpu_of, plan_of


def strides_of(tensor: Tensor, unit: int = 1) -> tuple[int, int, int]:
    """(outer, classes, inner) of (N, C), which is one of N positions, or (N, C, S); outer and inner
    in this unit."""
    if tensor.dim() == 2:
        return 0, tensor.stride(1), tensor.stride(0) // unit
    return tensor.stride(0) // unit, tensor.stride(1), tensor.stride(2) // unit


class Classes(NamedTuple):
    """As eager's, but the two sums are one tensor, (2,)."""

    weight: Tensor | None
    prior: Tensor | None
    coef: Tensor | None
    sums: Tensor | None


@dataclass
class Call:
    """Its tensors and numbers, the operators' arguments by name."""

    logits: Tensor
    target: Tensor
    target_probs: Tensor | None
    weight: Tensor | None
    prior: Tensor | None
    normalizer: Tensor | None
    row_weight: Tensor | None
    ignore_index: int
    reduction: int
    label_smoothing: float | Tensor
    smooth_over: int
    weight_over_target: bool
    kl_div: bool
    from_log_probs: bool
    lse_square_scale: float
    logit_scale: float
    softcap: float
    class_offset: int
    num_classes: int
    _: KW_ONLY
    with_stats: bool = False
    partial: bool = False  # of each row a part is wanted, not the loss

    def __post_init__(self) -> None:
        logits = self.logits
        self.dtype = accumulate_dtype(logits)
        self.outer, self.inner = (
            (1, logits.shape[0]) if logits.dim() == 2 else (logits.shape[0], logits.shape[2])
        )
        self.rows = self.outer * self.inner
        self.dense, self.sparse = self.target.is_floating_point(), self.target_probs is not None
        self.vectors = self.weight is not None or self.prior is not None
        self.unmasked = self.smooth_over == native.SMOOTH_OVER["unmasked"]
        self.in_memory = self.dtype == torch.float64 or isinstance(self.label_smoothing, Tensor)
        # Of one class a row nobody asks how it lies, nor of probabilities how many.
        self.entry_count = self.target.shape[1] if self.sparse else 0
        self.entries = triton.next_power_of_2(max(1, self.entry_count))

    @property
    def shape_of_rows(self) -> tuple[int, ...]:
        return (self.logits.shape[0], *self.logits.shape[2:])

    @cached_property
    def inputs(self) -> Inputs:
        return Inputs(
            *(self.logits, self.target, self.target_probs, self.weight, self.prior),
            *(self.normalizer, self.row_weight),
        )

    @cached_property
    def options(self) -> Options:
        """What torch operations ask of them."""
        return Options(
            ignore_index=self.ignore_index,
            class_offset=self.class_offset,
            num_classes=self.num_classes,
        )

    @cached_property
    def classes(self) -> ClassRange:
        return class_range(self.logits.shape[1], self.options)

    @cached_property
    def gpu(self) -> Gpu:
        return gpu_of(self.logits.device)

    @cached_property
    def plan(self) -> Plan:
        # What registers have room for beside the rest; test_compiled.py sees to it.
        more = self.with_stats or self.vectors or self.softcap > 0
        most, wide = 32768, self.dtype == torch.float64
        if self.dense:
            most = 4096
        elif more and (self.sparse or self.unmasked or wide):
            most = 8192
        elif more or self.sparse or self.unmasked:
            most = 16384
        if self.partial:  # a row that is read once may as well pass in tiles
            most //= 2
        stride, dtype = self.logits.stride(1), self.logits.dtype
        return plan_of(self.outer, self.inner, self.classes.count, stride, dtype, most, self.gpu)

    @cached_property
    def denominator(self) -> Tensor | None:
        if self.reduction != native.REDUCTIONS["mean"]:
            return None
        if self.normalizer is not None:
            return self.normalizer.to(self.logits.device, self.dtype)
        return eager.mean_denominator(eager.target_weights(self.inputs, self.options).sum())

    def scale(self, grad_loss: Tensor | None) -> Tensor | None:
        if self.denominator is None:
            return grad_loss
        return (1 if grad_loss is None else grad_loss) / self.denominator

    # ---- arguments of loss_kernel ----------------------------------------------------------------

    def arguments(self, unit: int) -> tuple[Any, ...]:
        """The strides of the logits are in this unit."""
        target, probs, classes = self.target, self.target_probs, self.classes
        if not self.dense:
            target = target.contiguous()
        softcap = self.softcap or None
        scale = None if softcap is None and self.logit_scale == 1 else self.logit_scale
        in_part = self.partial or classes.count < classes.all
        return (
            self.logits,
            *strides_of(self.logits, unit),
            target,
            None if probs is None else probs.to(self.dtype).contiguous(),
            *(strides_of(target) if self.dense or self.sparse else (0, 0, 0)),
            self.entry_count,
            *self._of_classes(),
            self._prior_of_target() if self.partial else None,
            self._row_weight(),
            self.outer,
            self.inner,
            classes.count,
            classes.first if in_part else None,
            classes.all if in_part else None,
            self.ignore_index,
            *self._numbers(self.label_smoothing, self.lse_square_scale, scale, softcap),
            self.in_memory,
            torch.finfo(self.logits.dtype).min,
            self.smooth_over,
            self.weight_over_target,
            self.kl_div,
            self.from_log_probs,
        )

    def _of_classes(self) -> Classes:
        if not self.vectors:
            return Classes(None, None, None, None)
        made = classes_of(
            self.logits,
            self.classes,
            self.weight,
            self.prior,
            self.label_smoothing,
            weight_over_target=self.weight_over_target,
        )
        weight, prior, coef = (vector.contiguous() for vector in made[:3])
        return Classes(weight, prior, coef, torch.stack([made.coef_sum, made.coef_log]))

    def _row_weight(self) -> Tensor | None:
        row_weight = self.row_weight
        return None if row_weight is None else row_weight.to(self.dtype).contiguous()

    def _numbers(self, *numbers: float | Tensor | None) -> tuple[float | Tensor | None, ...]:
        """A launch takes a number as float32: those of float64 come in memory, and so do all where
        one of them is a tensor."""
        if not self.in_memory:
            return numbers
        like = self.logits.new_empty(0, dtype=self.dtype)
        return tuple(
            n if n is None else n.to(like) if isinstance(n, Tensor) else like.new_full((), n)
            for n in numbers
        )

    # ---- of rows over ranks ----------------------------------------------------------------------

    def _prior_of_target(self) -> Tensor | None:
        """(N,), of classes that may be other ranks', where something asks for it."""
        if self.prior is None or self.smooth_over != native.SMOOTH_OVER["others"]:
            return None
        return prior_of_target(self.inputs, self.options).flatten()

    @cached_property
    def combine_arguments(self) -> tuple[Any, ...]:
        """Of combine_kernel: nothing of the classes."""
        ignored = None if self.dense else ignored_rows(self.inputs, self.options).contiguous()
        return (
            ignored,
            self._prior_of_target(),
            self._row_weight(),
            self.rows,
            self.num_classes,
            *self._numbers(self.label_smoothing, self.lse_square_scale),
            self.in_memory,
            self.smooth_over,
            self.kl_div,
            self.from_log_probs,
        )
