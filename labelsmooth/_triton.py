"""Triton's kernel as a backend: the operators of csrc/ops.cpp again, as torch.ops.labelsmooth_triton.

For GPUs without the CUDA extension, AMD's included; on CPU tensors under TRITON_INTERPRET=1.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton

from . import _eager, _ops
from ._problem import Inputs, Options, Outputs
from ._triton_kernels import loss_kernel


def _call(name: str, traced: bool, *arguments: object) -> Any:
    if traced:  # label_smoothing is a tensor then, see _ops.py
        name += "traced" if name.endswith("_") else "_traced"
    return getattr(torch.ops.labelsmooth_triton, name).default(*arguments)


def forward(inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
    """Loss, statistics and, with_grad, the gradient of the loss for an incoming gradient of 1."""
    return _ops.forward(inputs, options, with_grad=with_grad, call=_call)


def backward(
    grad_loss: Tensor, row_stats: Tensor, inputs: Inputs, options: Options, *, inplace: bool
) -> Tensor:
    """The gradient of the logits, from the statistics that forward left."""
    return _ops.backward(grad_loss, row_stats, inputs, options, inplace=inplace, call=_call)


# ---- how the logits are divided ------------------------------------------------------------------


class Tile(NamedTuple):
    """What a program holds at a time: `rows` x `block` logits in the registers of its warps.

    A tile has at most 32768 logits (8192 of float64) on 32 warps: the longest row that is read
    once. Longer rows are passed through in tiles of half of that, so that two programs share a
    processor.
    """

    rows: int
    block: int
    warps: int
    whole: bool  # the block holds all classes


def tile_of(classes: int, inner: int, class_stride: int, dtype: torch.dtype) -> Tile:
    """Of adjacent classes as many as there are, and more rows where those are few. Of classes that
    are strided 32 rows, which are adjacent then, so that a warp reads what lies together."""
    most, least, a_thread = (8192, 512, 4) if dtype == torch.float64 else (32768, 1024, 16)
    rows = 1 if class_stride == 1 else min(32, triton.next_power_of_2(inner))
    block = max(32, triton.next_power_of_2(classes))
    whole = rows * block <= most
    if not whole:
        block = most // (2 * rows)
    rows = max(rows, least // block)
    return Tile(rows, block, min(32, max(4, rows * block // (32 * a_thread))), whole)


@lru_cache
def processors(device: torch.device) -> int:
    """How many programs a GPU runs at the same time, at least; 1 for what is not a GPU."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def parts_of(tile: Tile, programs: int, classes: int, device: torch.device) -> int:
    """Into how many parts rows are divided, so that there are two programs a processor."""
    parts = 1
    if not tile.whole:
        while parts * tile.block < classes and programs * parts < processors(device):
            parts *= 2
    return parts


# ---- a call --------------------------------------------------------------------------------------


def _accumulate_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _strides(tensor: Tensor) -> tuple[int, int, int]:
    """(outer, classes, inner) of (N, C) or (N, C, S), an (N, C) being one of many positions."""
    if tensor.dim() == 2:
        return 0, tensor.stride(1), tensor.stride(0)
    return tensor.stride(0), tensor.stride(1), tensor.stride(2)


class Classes(NamedTuple):
    """w_c, u_c and v_c = w_c u_c, (C,) each, and (2,): sum_c v_c, sum_c v_c log u_c."""

    weight: Tensor | None
    prior: Tensor | None
    coef: Tensor | None
    sums: Tensor | None


def _classes(logits: Tensor, weight: Tensor | None, prior: Tensor | None) -> Classes:
    if weight is None and prior is None:
        return Classes(None, None, None, None)
    count = logits.shape[1]
    ones = logits.new_ones(count, dtype=_accumulate_dtype(logits))
    weight = ones if weight is None else weight.to(ones).contiguous()
    prior = ones / count if prior is None else prior.to(ones).contiguous()
    coef = weight * prior
    return Classes(weight, prior, coef, torch.stack([coef.sum(), torch.xlogy(coef, prior).sum()]))


class Call:
    """The tensors and numbers of one call, as the kernel takes them."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        prior: Tensor | None,
        normalizer: Tensor | None,
        ignore_index: int,
        reduction: int,
        label_smoothing: float | Tensor,
        over_others: bool,
        kl_div: bool,
        from_log_probs: bool,
        lse_square_scale: float,
        logit_scale: float,
        softcap: float,
    ) -> None:
        self.logits, self.reduction = logits, reduction
        self.dtype = _accumulate_dtype(logits)
        self.classes = logits.shape[1]
        self.outer, self.inner = (
            (1, logits.shape[0]) if logits.dim() == 2 else (logits.shape[0], logits.shape[2])
        )
        self.rows = self.outer * self.inner
        self.tile = tile_of(self.classes, self.inner, logits.stride(1), logits.dtype)
        self.programs = self.outer * triton.cdiv(self.inner, self.tile.rows)
        self.parts = parts_of(self.tile, self.programs, self.classes, logits.device)
        self.denominator: Tensor | None = None
        if reduction == _ops.REDUCTIONS["mean"]:
            if normalizer is None:
                options = Options(ignore_index=ignore_index)
                inputs = Inputs(logits, target, weight, None, None)
                self.denominator = _eager.target_weights(inputs, options).sum()
            else:
                self.denominator = normalizer.to(logits.device, self.dtype)

        soft = target.dtype == logits.dtype
        self.in_memory = self.dtype == torch.float64 or isinstance(label_smoothing, Tensor)
        self.arguments = (
            logits,
            *_strides(logits),
            target if soft else target.contiguous(),
            *(_strides(target) if soft else (0, 0, 0)),
            *_classes(logits, weight, prior),
            self.outer,
            self.inner,
            self.classes,
            ignore_index,
            *self._numbers(label_smoothing, lse_square_scale, logit_scale, softcap or None),
            self.in_memory,
            over_others,
            kl_div,
            from_log_probs,
        )

    def _numbers(self, *numbers: float | Tensor | None) -> tuple[float | Tensor | None, ...]:
        """A launch takes a number as float32: those of float64 come in memory, and so do all where
        one of them is a tensor."""
        if not self.in_memory:
            return numbers
        made = {"dtype": self.dtype, "device": self.logits.device}
        return tuple(
            n if n is None else n.to(**made) if isinstance(n, Tensor) else torch.full((), n, **made)
            for n in numbers
        )

    def scale(self, grad_loss: Tensor | None) -> Tensor | None:
        if self.denominator is None:
            return grad_loss
        return (1 if grad_loss is None else grad_loss) / self.denominator


def _launch(
    call: Call,
    stage: str,
    parts: int,
    outputs: dict[str, Tensor],
    grad_logits: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    if call.rows == 0:
        return
    row_stats = outputs["row_stats"]
    wrap_triton(loss_kernel)[(call.programs, parts)](
        *call.arguments,
        grad_logits,
        *((0, 0, 0) if grad_logits is None else _strides(grad_logits)),
        None if scale is None else scale.contiguous(),
        0 if scale is None or scale.dim() == 0 else 1,
        outputs.get("loss"),
        row_stats,
        outputs.get("predicted"),
        outputs.get("parts"),
        WITH_STATS=row_stats.shape[0] == 4,
        STAGE=stage,
        PARTS=parts if stage != "combine" else call.parts,
        ROWS=call.tile.rows,
        BLOCK=call.tile.block,
        num_warps=call.tile.warps,
    )


def _run_forward(
    call: Call, grad_logits: Tensor | None, *, with_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    logits, rows = call.logits, (call.logits.shape[0], *call.logits.shape[2:])
    loss = logits.new_empty(rows, dtype=call.dtype)
    row_stats = logits.new_empty((4 if with_stats else 2, call.rows), dtype=call.dtype)
    predicted = logits.new_empty(rows if with_stats else 0, dtype=torch.int64)
    outputs = {"loss": loss, "row_stats": row_stats, "predicted": predicted}
    scale = None if grad_logits is None else call.scale(None)
    if call.parts == 1:
        _launch(call, "whole" if call.tile.whole else "rows", 1, outputs, grad_logits, scale)
    else:
        parts = logits.new_empty((8, call.rows, call.parts), dtype=torch.float64)
        _launch(call, "parts", call.parts, {**outputs, "parts": parts})
        _launch(call, "combine", 1, {**outputs, "parts": parts})
        if grad_logits is not None:
            _launch(call, "gradient", call.parts, outputs, grad_logits, scale)
    if call.reduction != _ops.REDUCTIONS["none"]:
        loss = loss.sum()
        if call.denominator is not None:
            loss = loss / call.denominator
    return loss, row_stats, predicted


def _run_backward(call: Call, grad_loss: Tensor, row_stats: Tensor, grad_logits: Tensor) -> None:
    scale = call.scale(grad_loss.to(call.dtype))
    _launch(call, "gradient", call.parts, {"row_stats": row_stats}, grad_logits, scale)


# ---- operators, of the schemas of csrc/ops.cpp ---------------------------------------------------


def _forward(logits, target, *options):  # type: ignore[no-untyped-def]
    *options, with_grad, with_stats = options
    grad_logits = torch.empty_like(logits) if with_grad else None
    made = _run_forward(Call(logits, target, *options), grad_logits, with_stats=with_stats)
    return *made, logits.new_empty(0) if grad_logits is None else grad_logits


def _forward_(logits, target, *options):  # type: ignore[no-untyped-def]
    *options, with_stats = options
    return _run_forward(Call(logits, target, *options), logits, with_stats=with_stats)


def _backward(grad_loss, logits, target, row_stats, *options):  # type: ignore[no-untyped-def]
    grad_logits = torch.empty_like(logits)
    _run_backward(Call(logits, target, *options), grad_loss, row_stats, grad_logits)
    return grad_logits


def _backward_(grad_loss, logits, target, row_stats, *options):  # type: ignore[no-untyped-def]
    _run_backward(Call(logits, target, *options), grad_loss, row_stats, logits)


def _define(function: Callable[..., Any]) -> None:
    """The operator, and the one that torch.compile takes."""
    name = function.__name__.removeprefix("_")
    schema = getattr(torch.ops.labelsmooth, name).default._schema
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    signature = "(" + str(schema).partition("(")[2]
    traced = signature.replace("float label_smoothing", "Tensor label_smoothing")
    suffix = "traced" if name.endswith("_") else "_traced"
    for defined, of in ((name, signature), (name + suffix, traced)):
        operator = triton_op(
            f"labelsmooth_triton::{defined}", function, mutates_args=written, schema=of
        )
        operator.register_fake(_ops.FAKES[name])


for _function in (_forward, _forward_, _backward, _backward_):
    _define(_function)
