"""The compiled kernels as a backend: the operators of csrc/torch and their fake versions.

eager.py says what forward, backward, partial and combine are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _C  # noqa: F401, registers torch.ops.labelsmooth
from .._call.checks import has_values
from .._call.problem import Inputs, Options, Outputs, accumulate_dtype, class_range, has_one_class
from . import eager
from .parts import field_count

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}
SMOOTH_OVER = {"all": 0, "others": 1, "unmasked": 2}

Call = Callable[..., Any]  # of an operator, by its name


def _as_index_error(error: RuntimeError) -> Exception:
    """The IndexError that a kernel meant: the stable ABI makes every exception a RuntimeError."""
    _, begin, rest = str(error).partition("<IndexError>")
    return IndexError(rest.partition("</IndexError>")[0]) if begin else error


def _call(name: str, traced: bool, *arguments: object) -> Any:
    operator = getattr(torch.ops.labelsmooth, name)
    try:
        return (operator.traced if traced else operator.default)(*arguments)
    except RuntimeError as error:
        raise _as_index_error(error) from None


def forward(inputs: Inputs, options: Options, *, with_grad: bool, call: Call = _call) -> Outputs:
    if not can_read_once(inputs, options):
        return eager.forward(inputs, options, with_grad=with_grad)
    tensors = inputs[:3]
    if with_grad and options.inplace:
        made = _run(call, "forward_", tensors, inputs, options, options.return_stats)
        return Outputs._make((*made, inputs.logits))
    made = _run(call, "forward", tensors, inputs, options, with_grad, options.return_stats)
    return Outputs._make(made)


def backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: Inputs,
    options: Options,
    *,
    inplace: bool,
    call: Call = _call,
) -> Tensor:
    tensors = (grad_loss, *inputs[:3], row_stats)
    if inplace:
        _run(call, "backward_", tensors, inputs, options)
        return inputs.logits
    grad_logits: Tensor = _run(call, "backward", tensors, inputs, options)
    return grad_logits


def partial(inputs: Inputs, options: Options, *, call: Call = _call) -> Tensor:
    parts: Tensor = _run(call, "partial", inputs[:3], inputs, options, options.return_stats)
    return parts


def combine(
    parts: Tensor, inputs: Inputs, options: Options, *, call: Call = _call
) -> tuple[Tensor, Tensor, Tensor]:
    loss, row_stats, predicted = _run(
        call, "combine", (parts, *inputs[:3]), inputs, options, options.return_stats
    )
    return loss, row_stats, predicted


def can_read_once(inputs: Inputs, options: Options) -> bool:
    """Not where the entropy is that of a row's unmasked classes and of several of its target: it
    needs beta at each, which is known when the row has been read."""
    has_entropy = options.objective == "kl_div" and options.smooth_over == "unmasked"
    return has_one_class(inputs) or not has_entropy


def _run(
    call: Call,
    name: str,
    tensors: tuple[Tensor | None, ...],
    inputs: Inputs,
    options: Options,
    *asked: bool,
) -> Any:
    """The operator of that name: first what is its own, then what all take."""
    label_smoothing: float | Tensor = options.label_smoothing
    traced = not has_values(inputs.logits) and inputs.logits.is_cpu
    if traced and not isinstance(label_smoothing, Tensor):
        label_smoothing = torch.full((), label_smoothing, dtype=torch.float64)
    traced = isinstance(label_smoothing, Tensor)
    classes = class_range(inputs.logits.shape[1], options)
    return call(
        name,
        traced,
        *tensors,
        inputs.weight,
        inputs.prior,
        inputs.normalizer,
        inputs.row_weight,
        options.ignore_index,
        REDUCTIONS[options.reduction],
        label_smoothing,
        SMOOTH_OVER[options.smooth_over],
        options.weight_over == "target",
        options.objective == "kl_div",
        options.from_log_probs,
        options.lse_square_scale,
        options.logit_scale,
        options.softcap or 0.0,
        classes.first,
        classes.all,
        *asked,
    )


def scaled_(grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
    """As eager.scaled_; a GPU decides by itself whether to."""
    if not grad_logits.is_cuda or not grad_logits.is_contiguous():
        return eager.scaled_(grad_logits, grad_loss)
    torch.ops.labelsmooth.scale_.default(grad_logits, grad_loss)
    return grad_logits


def new_empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """On the CPU; large ones in memory that is kept from call to call."""
    made: Tensor = torch.ops.labelsmooth.new_empty.default(torch.empty(0, dtype=dtype), shape)
    return made


# ---- fake versions: shapes, for torch.compile and the meta device --------------------------------


def _fake_outputs(
    logits: Tensor, reduction: int, with_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows = (logits.shape[0], *logits.shape[2:])
    dtype = accumulate_dtype(logits)
    loss = logits.new_empty(rows if reduction == REDUCTIONS["none"] else (), dtype=dtype)
    count = logits.shape[0] * (logits.shape[2] if logits.dim() == 3 else 1)
    row_stats = logits.new_empty((6 if with_stats else 4, count), dtype=dtype)
    return loss, row_stats, logits.new_empty(rows if with_stats else 0, dtype=torch.int64)


TENSORS = len(Inputs._fields)  # then ignore_index, reduction and more


def _fake_forward(*arguments):  # type: ignore[no-untyped-def]
    logits, reduction, (with_grad, with_stats) = (
        arguments[0],
        arguments[TENSORS + 1],
        arguments[-2:],
    )
    grad_logits = torch.empty_like(logits) if with_grad else logits.new_empty(0)
    return *_fake_outputs(logits, reduction, with_stats), grad_logits


def _fake_forward_(*arguments):  # type: ignore[no-untyped-def]
    return _fake_outputs(arguments[0], arguments[TENSORS + 1], arguments[-1])


def _fake_partial(*arguments):  # type: ignore[no-untyped-def]
    logits, smooth_over, kl_div = arguments[0], arguments[TENSORS + 3], arguments[TENSORS + 5]
    fields = field_count(smooth_over == SMOOTH_OVER["unmasked"], kl_div, arguments[-1])
    row_stats = _fake_outputs(logits, REDUCTIONS["none"], False)[1]
    return row_stats.new_empty(fields, row_stats.shape[1])


def _fake_combine(parts, *arguments):  # type: ignore[no-untyped-def]
    return _fake_outputs(arguments[0], arguments[TENSORS + 1], arguments[-1])


def _fake_backward(grad_loss, logits, *rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(logits)


def _fake_backward_(grad_loss, logits, *rest):  # type: ignore[no-untyped-def]
    return None


FAKES: dict[str, Callable[..., Any]] = {
    "forward": _fake_forward,
    "forward_": _fake_forward_,
    "backward": _fake_backward,
    "backward_": _fake_backward_,
    "partial": _fake_partial,
    "combine": _fake_combine,
}

# ---- traced versions -----------------------------------------------------------------------------


def _define_traced(name: str, fake: Callable[..., Any]) -> None:
    """The overload for torch.compile, as schema_of says; a wrong target is an IndexError here
    too."""
    operator = getattr(torch.ops.labelsmooth, name).default
    schema = str(operator._schema).partition("(")[2]
    schema = schema.replace("float label_smoothing", "Tensor label_smoothing")
    names = [argument.name for argument in operator._schema.arguments]
    position = names.index("label_smoothing")

    def traced(*arguments: Any) -> Any:
        label_smoothing = arguments[position].item()
        return _call(
            name, False, *arguments[:position], label_smoothing, *arguments[position + 1 :]
        )

    torch.library.define(f"labelsmooth::{name}.traced", "(" + schema)
    torch.library.impl(f"labelsmooth::{name}.traced", "CompositeExplicitAutograd", traced)
    for overload in (name, f"{name}.traced"):
        torch.library.register_fake(f"labelsmooth::{overload}", fake)


for _name, _fake in FAKES.items():
    _define_traced(_name, _fake)
