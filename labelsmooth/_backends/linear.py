"""The projection and the loss in one: rows in chunks through one slab of logits, (R, C).

Of each chunk's hidden states h, with the linear weight W and bias b:

    X = h W^T + b         into the slab
    G = mass p - coef     the backend's kernel, in the place of X: the gradient of the rows' losses,
                          divided by the loss's denominator in float32, then rounded to the slab
    grad_hidden  = G W
    grad_weight += G^T h
    grad_bias   += sum of the rows of G

Two operators: `linear_forward` makes the loss and, where asked for, the gradients;
`linear_backward` the gradients alone, from two numbers a row that forward left.
"""

import platform
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._call.checks import check_targets
from .._call.problem import Inputs, LinearInputs, LinearOptions, accumulate_dtype, in_one_dtype
from .._call.schema import keywords_of, overload_of, schema_of
from . import eager, native
from .choose import choose_backend

KEYWORDS = keywords_of(LinearOptions)
Rows = slice | Tensor  # of a chunk: adjacent ones, or their numbers

# What a float16 slab holds is so many times the gradient: a/C = 7.8e-7 of 128k classes would be
# subnormal. The products undo it.
FLOAT16_SCALE = 1024.0
BLOCK = 1 << 20  # elements of a temporary, where a product or a sum is taken in blocks of classes


class Gradients(NamedTuple):
    hidden: Tensor
    linear_weight: Tensor
    linear_bias: Tensor


class LinearOutputs(NamedTuple):
    """What linear_forward returns.

    loss, row_stats, predicted as in Outputs; the gradients, the weight's and the bias's as sums in
    whatever dtype they were added up; pending (), what they are still to be multiplied by. What
    was not asked for is empty.
    """

    loss: Tensor
    row_stats: Tensor
    predicted: Tensor
    grad_hidden: Tensor
    grad_linear_weight: Tensor
    grad_linear_bias: Tensor
    pending: Tensor


# ---- sizes and dtypes ----------------------------------------------------------------------------


def rows_of_chunk(
    rows: int, features: int, dtype: torch.dtype, device: torch.device, asked: int | None
) -> int:
    """R, by shapes and dtype alone: a chunk reads the whole weight and its gradient, which R rows
    pay for.

    About D, so that the slab is no larger than the weight once D reaches the least R that keeps
    products fast; then equal chunks.
    """
    if asked is not None:
        return min(asked, max(rows, 1))
    least, most, multiple = 1024, 4096, 128
    if device.type == "cpu":
        least, most, multiple = 2048 // product_dtype(dtype, device).itemsize, 1024, 8
    chunks = -(-rows // min(max(features, least), most)) or 1
    return -(-rows // (chunks * multiple)) * multiple or multiple


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of the slab and all products: float32 where the CPU has no fast ones of a 16-bit dtype."""
    if device.type != "cpu" or dtype.itemsize > 2 or _multiplies_fast(dtype):
        return dtype
    return torch.float32


def dtype_of_sums(dtype: torch.dtype, several: bool) -> torch.dtype:
    """Of the weight's gradient until it is handed out: several chunks would lose digits if they
    were rounded each time, and one of float16 its small elements before they are scaled."""
    if dtype == torch.float16 or (dtype == torch.bfloat16 and several):
        return torch.float32
    return dtype


def logits_like(inputs: LinearInputs, dtype: torch.dtype) -> Tensor:
    """The logits by their shape, dtype and device, without memory."""
    shape = (inputs.hidden.shape[0], inputs.linear_weight.shape[0])
    return inputs.hidden.new_empty(1, dtype=dtype).expand(shape)


def _multiplies_fast(dtype: torch.dtype) -> bool:
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    if platform.machine() in ("x86_64", "AMD64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _adds_in_float32(device: torch.device) -> bool:
    """Whether a product of 16-bit matrices can be added to float32 sums."""
    return device.type == "cuda" and torch.version.hip is None


def _new_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On the CPU large ones in memory that is kept from call to call."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    return native.new_empty(shape, dtype)


# ---- a call --------------------------------------------------------------------------------------


class _Call:
    """What all chunks of a call share."""

    def __init__(self, inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype) -> None:
        hidden, linear_weight, linear_bias, target, weight, _, normalizer = inputs
        self.inputs, self.options, self.device = inputs, options, hidden.device
        self.backend = choose_backend(options.backend, self.device)
        self.dtype = product_dtype(dtype, self.device)
        self.linear_weight = linear_weight
        if linear_weight.dtype != self.dtype:
            shape = tuple(linear_weight.shape)
            self.linear_weight = _new_empty(shape, self.dtype, self.device).copy_(linear_weight)
        self.linear_bias = None if linear_bias is None else linear_bias.to(self.dtype)
        logits = logits_like(inputs, self.dtype)
        whole = Inputs(logits, target, weight, None, normalizer)
        check_targets(whole, options)
        self.denominator = eager.denominator(whole, options)
        self.accumulate_dtype = accumulate_dtype(logits)
        rows, features = hidden.shape
        self.step = rows_of_chunk(rows, features, dtype, self.device, options.chunk_rows)
        self.counted = self._counted()
        self.chunks = list(self._chunks())
        self._slab = hidden.new_empty(0)

    def _counted(self) -> Tensor | None:
        """The numbers of the rows that are not ignored, unless all are wanted. On a GPU asking
        would mean to wait; with statistics every row has its own."""
        target = self.inputs.target
        if self.device.type != "cpu" or self.options.return_stats or target.is_floating_point():
            return None
        counts = target != self.options.ignore_index
        return None if bool(counts.all()) else counts.nonzero().squeeze(1)

    def _chunks(self) -> Iterator[Rows]:
        rows, step = len(self.inputs.hidden), self.step
        if self.counted is not None:
            yield from torch.split(self.counted, step) if len(self.counted) else ()
        else:
            yield from (slice(start, min(start + step, rows)) for start in range(0, rows, step))

    def logits(self, hidden: Tensor) -> Tensor:
        """The chunk's, in the slab, which all chunks share."""
        if len(self._slab) < len(hidden):
            self._slab = _new_empty((len(hidden), len(self.linear_weight)), self.dtype, self.device)
        slab, transposed = self._slab[: len(hidden)], self.linear_weight.t()
        if self.linear_bias is None:
            return torch.mm(hidden, transposed, out=slab)
        return torch.addmm(self.linear_bias, hidden, transposed, out=slab)

    def hidden(self, rows: Rows) -> Tensor:
        return self.inputs.hidden[rows].to(self.dtype)

    def of_kernel(
        self, logits: Tensor, rows: Rows, reduction: str, divisor: Tensor | None
    ) -> tuple[Inputs, Any]:
        """A chunk as the backend takes it; its gradient goes in the logits' place."""
        logits, target = in_one_dtype(logits, self.inputs.target[rows])
        inputs = Inputs(logits, target, self.inputs.weight, self.inputs.prior, divisor)
        return inputs, self.options.of_logits(reduction=reduction, inplace=True)

    def reduction(self, divisor: Tensor | None) -> str:
        """The kernel's, which divides a mean by the divisor."""
        if self.options.reduction == "none":
            return "none"
        return "sum" if divisor is None else "mean"

    def headroom(self) -> Tensor | None:
        """About how large an element of a row's gradient may be, where float16 asks for care."""
        if self.dtype != torch.float16:
            return None
        largest = torch.ones((), device=self.device)
        if self.inputs.weight is not None:
            weight = self.inputs.weight.float()
            largest = weight.where(weight.isfinite(), 1.0).amax().clamp(1.0, FLOAT16_SCALE)
        return largest * max(1.0, abs(self.options.logit_scale))


class _Sums:
    """The gradients as they are added up, chunk by chunk."""

    def __init__(self, call: _Call, needed: list[bool]) -> None:
        hidden, linear_weight, *_ = call.inputs
        self._call, self._needed = call, needed
        self._alpha = 1.0 / FLOAT16_SCALE if call.dtype == torch.float16 else 1.0
        self._first = True
        self.hidden, self.linear_weight, self.linear_bias = (hidden.new_empty(0) for _ in range(3))
        if needed[0]:
            make = torch.empty_like if call.counted is None else torch.zeros_like
            self.hidden = make(hidden, memory_format=torch.contiguous_format)
        if needed[1]:
            dtype = dtype_of_sums(linear_weight.dtype, len(hidden) > call.step)
            self.linear_weight = _new_empty(tuple(linear_weight.shape), dtype, call.device)
            if not call.chunks:
                self.linear_weight.zero_()
        if needed[2]:
            classes = len(linear_weight)
            self.linear_bias = hidden.new_zeros(classes, dtype=call.accumulate_dtype)

    def add(self, rows: Rows, hidden: Tensor, grad_logits: Tensor) -> None:
        if self._needed[0]:
            self._write_hidden(rows, grad_logits)
        if self._needed[1]:
            self._add_to_weight(grad_logits.t(), hidden)
        if self._needed[2]:
            sums = grad_logits.sum(0, dtype=self.linear_bias.dtype)
            self.linear_bias.add_(sums, alpha=self._alpha)
        self._first = False

    def _write_hidden(self, rows: Rows, grad_logits: Tensor) -> None:
        linear_weight = self._call.linear_weight
        if isinstance(rows, slice) and self.hidden.dtype == grad_logits.dtype:
            self.hidden[rows].addmm_(grad_logits, linear_weight, beta=0, alpha=self._alpha)
        else:
            product = torch.mm(grad_logits, linear_weight)
            self.hidden[rows] = product.mul_(self._alpha).to(self.hidden.dtype)

    def _add_to_weight(self, grad_logits: Tensor, hidden: Tensor) -> None:
        sums, beta = self.linear_weight, 0 if self._first else 1
        if sums.dtype == grad_logits.dtype:
            sums.addmm_(grad_logits, hidden, beta=beta, alpha=self._alpha)
        elif _adds_in_float32(sums.device):
            torch.addmm(
                *(sums, grad_logits, hidden),
                out_dtype=sums.dtype,
                beta=beta,
                alpha=self._alpha,
                out=sums,
            )
        else:
            for classes in _blocks(sums):
                if self._first:
                    sums[classes].zero_()
                product = torch.mm(grad_logits[classes], hidden)
                sums[classes].add_(product, alpha=self._alpha)


def _blocks(matrix: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, matrix.shape[1]))
    return (slice(start, start + step) for start in range(0, len(matrix), step))


# ---- the two loops ---------------------------------------------------------------------------


def _forward(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> LinearOutputs:
    call = _Call(inputs, options, dtype)
    sums = _Sums(call, needed)
    rows, dtype = len(inputs.hidden), call.accumulate_dtype
    per_row = options.reduction == "none"
    row_loss = inputs.hidden.new_zeros(rows if per_row else 0, dtype=dtype)
    row_stats = inputs.hidden.new_zeros(4 if options.return_stats else 2, rows, dtype=dtype)
    predicted = inputs.target.new_zeros(rows if options.return_stats else 0, dtype=torch.int64)

    divisor, pending = call.denominator, inputs.hidden.new_empty(0)
    headroom = call.headroom() if any(needed) else None
    if headroom is not None:
        divisor = headroom / FLOAT16_SCALE
        pending = eager.divided(headroom, call.denominator)
    reduction = call.reduction(divisor)
    losses = [row_loss.new_zeros(())]
    for chunk in call.chunks:
        hidden = call.hidden(chunk)
        logits = call.logits(hidden)
        kernel = call.of_kernel(logits, chunk, reduction, divisor)
        outputs = call.backend.forward(*kernel, with_grad=any(needed))
        row_stats[:, chunk] = outputs.row_stats
        if options.return_stats:
            predicted[chunk] = outputs.predicted
        if per_row:
            row_loss[chunk] = outputs.loss
        else:
            losses.append(outputs.loss)
        if any(needed):
            sums.add(chunk, hidden, _in_slab(outputs.grad_logits, logits))
    loss = row_loss
    if not per_row:
        loss = torch.stack(losses).sum(dtype=torch.float64).to(dtype)
        if headroom is not None and divisor is not None:
            loss = eager.divided(loss * divisor, call.denominator)
        elif not call.chunks:  # a mean over no weight at all
            loss = eager.divided(loss, call.denominator)
    return LinearOutputs(
        loss, row_stats, predicted, sums.hidden, sums.linear_weight, sums.linear_bias, pending
    )


def _backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> Gradients:
    call = _Call(inputs, options, dtype)
    sums = _Sums(call, needed)
    per_row = options.reduction == "none"
    divisor, pending = call.denominator, torch.ones((), device=call.device)
    headroom = call.headroom()
    if headroom is not None and grad_loss.numel():
        smallest = torch.finfo(torch.float32).tiny
        headroom = headroom * grad_loss.abs().amax().clamp_min(smallest)
        pending = eager.divided(headroom, call.denominator)
        grad_loss, divisor = grad_loss / headroom * FLOAT16_SCALE, None
    reduction = call.reduction(divisor)
    for chunk in call.chunks:
        hidden = call.hidden(chunk)
        logits = call.logits(hidden)
        kernel = call.of_kernel(logits, chunk, reduction, divisor)
        grad = grad_loss[chunk] if per_row else grad_loss
        stats = row_stats[:2, chunk].contiguous()
        grad_logits = call.backend.backward(grad, stats, *kernel, inplace=True)
        sums.add(chunk, hidden, _in_slab(grad_logits, logits))
    made = Gradients(sums.hidden, sums.linear_weight, sums.linear_bias)
    return finish(made, pending, inputs, keep=False, backend=call.backend)


def _in_slab(grad_logits: Tensor, logits: Tensor) -> Tensor:
    """The gradient where the logits were; wider class probabilities have it made elsewhere."""
    return logits if grad_logits is logits else logits.copy_(grad_logits)


# ---- gradients that are handed out ---------------------------------------------------------------


def finish(
    made: Gradients, scale: Tensor, inputs: LinearInputs, *, keep: bool, backend: Any
) -> Gradients:
    """The sums times what is left to multiply them by, rounded once to the dtypes of what they are
    gradients of; in their place unless they are to be kept."""

    def finished(grad: Tensor, of: Tensor | None) -> Tensor:
        if of is None or grad.numel() == 0:
            return grad
        if grad.dtype == of.dtype:
            scaled: Tensor = grad * scale if keep else backend.scaled_(grad, scale)
            return scaled
        if not grad.is_cpu or grad.dim() == 1:
            return torch.mul(grad, scale).to(of.dtype)
        out = _new_empty(tuple(grad.shape), of.dtype, grad.device)
        for classes in _blocks(grad):
            out[classes] = grad[classes] * scale
        return out

    return Gradients(*map(finished, made, inputs[:3]))


# ---- the operators -------------------------------------------------------------------------------


def forward(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> LinearOutputs:
    """Loss, statistics and the gradients that are needed; `dtype` is that of the projection."""
    outputs = _call("linear_forward", inputs, options, dtype=dtype, needed=needed)
    return LinearOutputs._make(outputs)


def backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> Gradients:
    """The gradients that are needed, from the statistics that forward left."""
    tensors = (grad_loss, row_stats, *inputs)
    return Gradients._make(_call("linear_backward", tensors, options, dtype=dtype, needed=needed))


def _call(name: str, tensors: Any, options: LinearOptions, **more: Any) -> Any:
    operator, values = overload_of(getattr(torch.ops.labelsmooth, name), options, KEYWORDS)
    return operator(*tensors, **values, **more)


def _fake_forward(
    inputs: LinearInputs, options: LinearOptions, dtype: torch.dtype, needed: list[bool]
) -> LinearOutputs:
    hidden, linear_weight, *_ = inputs
    rows, per_row, stats = hidden.shape[0], options.reduction == "none", options.return_stats
    of_sums = accumulate_dtype(hidden.new_empty(0, dtype=dtype))
    grads = list(_fake_backward(hidden, hidden, inputs, options, dtype, needed))
    if needed[1]:
        _, features = hidden.shape
        chunk = rows_of_chunk(rows, features, dtype, hidden.device, options.chunk_rows)
        grads[1] = grads[1].to(dtype_of_sums(linear_weight.dtype, rows > chunk))
    scaled = any(needed) and product_dtype(dtype, hidden.device) == torch.float16
    return LinearOutputs(
        hidden.new_empty(rows if per_row else (), dtype=of_sums),
        hidden.new_empty((4 if stats else 2, rows), dtype=of_sums),
        hidden.new_empty(rows if stats else 0, dtype=torch.int64),
        *(grads[0], grads[1], grads[2].to(of_sums) if needed[2] else grads[2]),
        hidden.new_empty(() if scaled else 0, dtype=torch.float32 if scaled else hidden.dtype),
    )


def _fake_backward(
    grad_loss: Tensor,
    row_stats: Tensor,
    inputs: LinearInputs,
    options: LinearOptions,
    dtype: torch.dtype,
    needed: list[bool],
) -> Gradients:
    return Gradients(
        *(
            of.new_empty(of.shape) if of is not None and need else inputs.hidden.new_empty(0)
            for of, need in zip(inputs[:3], needed, strict=True)
        )
    )


TENSORS = (
    "Tensor hidden, Tensor linear_weight, Tensor? linear_bias, Tensor target, Tensor? weight, "
    "Tensor? prior, Tensor? normalizer"
)
GRADIENTS = "Tensor grad_hidden, Tensor grad_linear_weight, Tensor grad_linear_bias"


def _define(
    name: str, first: str, returns: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Both overloads: with label_smoothing a number, and a tensor on the CPU."""
    count = first.count("Tensor")

    def of(function: Callable[..., Any], *arguments: Any) -> Any:
        before, (inputs, options, *more) = arguments[:count], parsed(*arguments[count:])
        return tuple(function(*before, inputs, options, *more))

    def real(*arguments: Any) -> Any:
        device = arguments[count].device.type
        if not torch.is_autocast_enabled(device):
            return of(run, *arguments)
        with torch.autocast(device, enabled=False):  # the dtypes are chosen already
            return of(run, *arguments)

    for overload in (name, f"{name}.traced"):
        options = schema_of(LinearOptions, KEYWORDS, traced=overload != name)
        schema = f"({first}{TENSORS}, {options}, ScalarType dtype, bool[] needed) -> ({returns})"
        torch.library.define(f"labelsmooth::{overload}", schema)
        torch.library.impl(f"labelsmooth::{overload}", "CompositeExplicitAutograd", real)
        torch.library.register_fake(f"labelsmooth::{overload}", partial(of, fake))


def parsed(*arguments: Any) -> tuple[LinearInputs, LinearOptions, torch.dtype, list[bool]]:
    """What follows the operators' first tensors, in the order of their schema."""
    tensors, values, (dtype, needed) = arguments[:7], arguments[7:-2], arguments[-2:]
    options = LinearOptions(**dict(zip(KEYWORDS, values, strict=True)))
    return LinearInputs(*tensors), options, dtype, needed


_define(
    "linear_forward",
    "",
    f"Tensor loss, Tensor row_stats, Tensor predicted, {GRADIENTS}, Tensor pending",
    _forward,
    _fake_forward,
)
_define(
    "linear_backward", "Tensor grad_loss, Tensor row_stats, ", GRADIENTS, _backward, _fake_backward
)
