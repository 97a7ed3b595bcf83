"""One call of an operator, as the kernel takes it."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..._call.problem import Inputs, Options, accumulate_dtype
from .. import eager, native, rows
from .plan import gpu_of, plan_of


def strides_of(tensor: Tensor) -> tuple[int, int, int]:
    """(outer, classes, inner) of (N, C) or (N, C, S), an (N, C) being one of many positions."""
    if tensor.dim() == 2:
        return 0, tensor.stride(1), tensor.stride(0)
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


class Classes(NamedTuple):
    """As eager's, but the two sums are one tensor, (2,)."""

    weight: Tensor | None
    prior: Tensor | None
    coef: Tensor | None
    sums: Tensor | None


def _classes(
    logits: Tensor,
    weight: Tensor | None,
    prior: Tensor | None,
    label_smoothing: float | Tensor,
    weight_over_target: bool,
) -> Classes:
    if weight is None and prior is None:
        return Classes(None, None, None, None)
    made = rows.classes_of(
        logits, weight, prior, label_smoothing, weight_over_target=weight_over_target
    )
    weight, prior, coef = (vector.contiguous() for vector in made[:3])
    return Classes(weight, prior, coef, torch.stack([made.coef_sum, made.coef_log]))


class Call:
    """Its tensors and numbers, the operators' arguments by name."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        target_probs: Tensor | None,
        weight: Tensor | None,
        prior: Tensor | None,
        normalizer: Tensor | None,
        row_weight: Tensor | None,
        ignore_index: int,
        reduction: int,
        label_smoothing: float | Tensor,
        smooth_over: int,
        weight_over_target: bool,
        kl_div: bool,
        from_log_probs: bool,
        lse_square_scale: float,
        logit_scale: float,
        softcap: float,
        *,
        with_stats: bool = False,
    ) -> None:
        self.logits, self.reduction = logits, reduction
        self.dtype = accumulate_dtype(logits)
        self.classes = logits.shape[1]
        self.outer, self.inner = (
            (1, logits.shape[0]) if logits.dim() == 2 else (logits.shape[0], logits.shape[2])
        )
        self.rows = self.outer * self.inner
        self.with_stats = with_stats
        self.gpu = gpu_of(logits.device)
        # What registers have room for beside the rest; test_compiled.py sees to it.
        dense, sparse = target.is_floating_point(), target_probs is not None
        unmasked = smooth_over == native.SMOOTH_OVER["unmasked"]
        more = with_stats or weight is not None or prior is not None or softcap > 0
        most = 32768
        if dense or (more and (sparse or unmasked or logits.dtype == torch.float64)):
            most = 8192
        elif more or sparse or unmasked:
            most = 16384
        stride = logits.stride(1)
        self.plan = plan_of(
            self.outer, self.inner, self.classes, stride, logits.dtype, most, self.gpu
        )
        self.denominator: Tensor | None = None
        if reduction == native.REDUCTIONS["mean"]:
            if normalizer is None:
                options = Options(ignore_index=ignore_index)
                inputs = Inputs(logits, target, target_probs, weight, None, None, row_weight)
                total = eager.target_weights(inputs, options).sum()
                self.denominator = eager.mean_denominator(total)
            else:
                self.denominator = normalizer.to(logits.device, self.dtype)

        # Of one class a row there is no need to know how it lies, nor of probabilities how many.
        entries = target.shape[1] if sparse else 0
        self.entries = triton.next_power_of_2(max(1, entries))
        if not dense:
            target = target.contiguous()
        self.in_memory = self.dtype == torch.float64 or isinstance(label_smoothing, Tensor)
        self.arguments = (
            logits,
            *strides_of(logits),
            target,
            None if target_probs is None else target_probs.to(self.dtype).contiguous(),
            *(strides_of(target) if dense or sparse else (0, 0, 0)),
            entries,
            *_classes(logits, weight, prior, label_smoothing, weight_over_target),
            None if row_weight is None else row_weight.to(self.dtype).contiguous(),
            self.outer,
            self.inner,
            self.classes,
            ignore_index,
            *self._numbers(label_smoothing, lse_square_scale, logit_scale, softcap or None),
            self.in_memory,
            torch.finfo(logits.dtype).min,
            smooth_over,
            weight_over_target,
            kl_div,
            from_log_probs,
        )

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

    def scale(self, grad_loss: Tensor | None) -> Tensor | None:
        if self.denominator is None:
            return grad_loss
        return (1 if grad_loss is None else grad_loss) / self.denominator
