"""The compiled kernels as a backend: the operators of csrc/ops.cpp and their fake versions."""

from typing import Any

import torch
from torch import Tensor

from . import _C  # noqa: F401  (registers torch.ops.labelsmooth)
from ._problem import Inputs, Options, Outputs

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def _arguments(inputs: Inputs, options: Options) -> tuple[object, ...]:
    """The arguments that all operators share, in the schema's order."""
    return (
        inputs.weight,
        inputs.prior,
        inputs.normalizer,
        options.ignore_index,
        REDUCTIONS[options.reduction],
        options.label_smoothing,
        options.smooth_over == "others",
        options.objective == "kl_div",
        options.from_log_probs,
        options.lse_square_scale,
        options.logit_scale,
        options.softcap or 0.0,
    )


def _index_error(error: RuntimeError) -> Exception:
    """The IndexError that a kernel meant: the stable ABI makes every exception a RuntimeError."""
    _, begin, rest = str(error).partition("<IndexError>")
    return IndexError(rest.partition("</IndexError>")[0]) if begin else error


def forward(
    inputs: Inputs, options: Options, *, with_grad: bool, ops: Any = torch.ops.labelsmooth
) -> Outputs:
    """Loss, statistics and, with_grad, the gradient of the loss for an incoming gradient of 1."""
    shared = _arguments(inputs, options)
    try:
        if with_grad and options.inplace:
            made = ops.forward_.default(*inputs[:2], *shared, options.return_stats)
            return Outputs._make((*made, inputs.logits))
        made = ops.forward.default(*inputs[:2], *shared, with_grad, options.return_stats)
        return Outputs._make(made)
    except RuntimeError as error:
        raise _index_error(error) from None


def backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: Inputs,
    options: Options,
    *,
    inplace: bool,
    ops: Any = torch.ops.labelsmooth,
) -> Tensor:
    """The gradient of the logits, from the statistics that forward left."""
    arguments = (grad_loss, *inputs[:2], row_stats, *_arguments(inputs, options))
    if inplace:
        ops.backward_.default(*arguments)
        return inputs.logits
    grad_logits: Tensor = ops.backward.default(*arguments)
    return grad_logits


# ---- fake versions: shapes, for torch.compile and the meta device --------------------------------


def _accumulate_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _fake_outputs(
    logits: Tensor, reduction: int, with_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = (logits.shape[0], *logits.shape[2:])
    dtype = _accumulate_dtype(logits)
    loss = logits.new_empty(rows if reduction == REDUCTIONS["none"] else (), dtype=dtype)
    count = logits.shape[0] * (logits.shape[2] if logits.dim() == 3 else 1)
    row_stats = logits.new_empty((4 if with_stats else 2, count), dtype=dtype)
    return loss, row_stats, logits.new_empty(rows if with_stats else 0, dtype=torch.int64)


def _fake_forward(logits, target, weight, prior, normalizer, ignore_index, reduction, *options):  # type: ignore[no-untyped-def]
    *_, with_grad, with_stats = options
    grad_logits = torch.empty_like(logits) if with_grad else logits.new_empty(0)
    return *_fake_outputs(logits, reduction, with_stats), grad_logits


def _fake_forward_(logits, target, weight, prior, normalizer, ignore_index, reduction, *options):  # type: ignore[no-untyped-def]
    return _fake_outputs(logits, reduction, options[-1])


def _fake_backward(grad_loss, logits, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits)


def _fake_backward_(grad_loss, logits, *rest):  # type: ignore[no-untyped-def]
    return None


FAKES = {
    "forward": _fake_forward,
    "forward_": _fake_forward_,
    "backward": _fake_backward,
    "backward_": _fake_backward_,
}
for _name, _fake in FAKES.items():
    torch.library.register_fake(f"labelsmooth::{_name}", _fake)
