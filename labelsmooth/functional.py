"""Label-smoothed cross-entropy as a function: shapes, choice of backend and phase, autograd."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import _eager, _ops
from ._checks import check_call, check_prior
from ._problem import Backend, Inputs, Objective, Options, Outputs, Reduction, SmoothOver


class LossStats(NamedTuple):
    """Statistics of each row, detached, in the shape of the class-index target.

    nll        the unsmoothed, unweighted negative log-likelihood; 0 where the row is ignored
    lse        log of the sum of exponentials of the logits (0 with ``from_log_probs``)
    predicted  the class of the largest logit, int64
    """

    nll: Tensor
    lse: Tensor
    predicted: Tensor


def label_smoothing_loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    *,
    smooth_over: SmoothOver = "all",
    prior: Tensor | None = None,
    objective: Objective = "cross_entropy",
    from_log_probs: bool = False,
    lse_square_scale: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    inplace: bool = False,
    return_stats: bool = False,
    backend: Backend = "auto",
    normalizer: Tensor | float | None = None,
) -> Tensor | tuple[Tensor, LossStats]:
    """Label-smoothed cross-entropy between logits and target.

    The arguments are those of :class:`labelsmooth.FusedLabelSmoothingLoss`, which describes them.
    """
    options = Options(
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        smooth_over=smooth_over,
        objective=objective,
        from_log_probs=from_log_probs,
        lse_square_scale=lse_square_scale,
        logit_scale=logit_scale,
        softcap=softcap,
        inplace=inplace,
        return_stats=return_stats,
        backend=backend,
    )
    if prior is not None and prior.device.type == "cpu":
        check_prior(prior, options)
    return loss(logits, target, weight, prior, normalizer, options)


def loss(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    prior: Tensor | None,
    normalizer: Tensor | float | None,
    options: Options,
) -> Tensor | tuple[Tensor, LossStats]:
    """`label_smoothing_loss`, its options made."""
    check_call(logits, target, weight, prior, normalizer, options)
    shape = target.shape
    if target.dtype == logits.dtype:  # class probabilities
        shape = logits.shape[:0] if logits.dim() == 1 else logits.shape[:1] + logits.shape[2:]
        target = _rows_and_classes(target)
    else:
        target = (
            target.reshape(1)
            if logits.dim() == 1
            else target.flatten(1)
            if target.dim() > 1
            else target
        )
    inputs = Inputs(
        _rows_and_classes(logits), target, weight, prior, _as_tensor(normalizer, logits)
    )

    backend = _choose_backend(logits, options)
    others = (target, weight, prior, inputs.normalizer)
    if not torch.is_grad_enabled():
        outputs = backend.forward(inputs, options, with_grad=False)
    elif any(tensor is not None and tensor.requires_grad for tensor in others):
        outputs = _eager.forward(inputs, options, with_grad=False)  # no kernel gives these
    elif logits.requires_grad:
        base = logits if logits._base is None else logits._base
        if options.inplace and base.is_leaf and base.requires_grad:
            raise RuntimeError(
                "inplace=True: a leaf Variable that requires grad is being used in an "
                "in-place operation"
            )
        one_step = options.reduction != "none" and logits.dtype != torch.float16
        outputs = Outputs(*_Loss.apply(*inputs, options, backend, one_step))
    else:
        outputs = backend.forward(inputs, options, with_grad=False)

    result: Tensor = outputs.loss.view(shape) if options.reduction == "none" else outputs.loss
    if not options.return_stats:
        return result
    _, _, lse, nll = outputs.row_stats
    return result, LossStats(nll.view(shape), lse.view(shape), outputs.predicted.view(shape))


class _Loss(torch.autograd.Function):
    """With `one_step`, forward makes the gradient too and backward hands it out; without, backward
    makes it from the logits and the row statistics. Second derivatives are the eager backend's."""

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        prior: Tensor | None,
        normalizer: Tensor | None,
        options: Options,
        backend: Any,
        one_step: bool,
    ) -> tuple[Tensor, ...]:
        inputs = Inputs(logits, target, weight, prior, normalizer)
        outputs = backend.forward(inputs, options, with_grad=one_step)
        if one_step and options.inplace:
            torch.autograd.graph.increment_version(logits)
            return (*outputs[:3], logits.new_empty(0))
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.options, ctx.backend, ctx.one_step = inputs
        _, row_stats, predicted, grad_logits = output
        ctx.mark_non_differentiable(row_stats, predicted, grad_logits)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, row_stats, grad_logits)

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad_logits = None if grad_loss is None else _backward(ctx, grad_loss)
        return (grad_logits, *(None,) * 7)


def _backward(ctx: Any, grad_loss: Tensor) -> Tensor:
    options: Options = ctx.options
    *tensors, row_stats, stored = ctx.saved_tensors
    inputs = Inputs(*tensors)
    overwritten = ctx.one_step and options.inplace
    if torch.is_grad_enabled():  # create_graph=True
        if overwritten:
            raise RuntimeError(
                "create_graph=True needs the logits, which inplace=True has overwritten"
            )
        return _eager.backward(grad_loss, row_stats, inputs, options, inplace=False)
    kept = _graph_is_kept()
    if not ctx.one_step:
        inplace = options.inplace and not kept
        grad_logits = ctx.backend.backward(grad_loss, row_stats, inputs, options, inplace=inplace)
        if inplace:
            torch.autograd.graph.increment_version(inputs.logits)
        return cast(Tensor, grad_logits)
    return _scaled(inputs.logits if overwritten else stored, grad_loss, kept=kept)


def _scaled(grad_logits: Tensor, grad_loss: Tensor, *, kept: bool) -> Tensor:
    """The stored gradient times the incoming one, nearly always 1; a copy where it is kept."""
    if kept:
        return grad_logits * grad_loss
    if grad_logits.device.type == "cpu" and grad_loss.item() == 1.0:
        return grad_logits
    return grad_logits.mul_(grad_loss)


def _graph_is_kept() -> bool:
    """Whether another backward through this graph may follow (retain_graph=True)."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


# ---- shapes, backends ----------------------------------------------------------------------------


def _rows_and_classes(tensor: Tensor) -> Tensor:
    """(C,) as (1, C); (N, C) as it is; (N, C, d1, ...) as (N, C, S), a view where strides allow."""
    if tensor.dim() == 1:
        return tensor.unsqueeze(0)
    return tensor.flatten(2) if tensor.dim() > 3 else tensor


def _as_tensor(normalizer: Tensor | float | None, logits: Tensor) -> Tensor | None:
    if normalizer is None or isinstance(normalizer, Tensor):
        return normalizer
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.full((), normalizer, dtype=dtype, device=logits.device)


def _choose_backend(logits: Tensor, options: Options) -> Any:
    device = logits.device.type
    name = options.backend
    if name == "auto":
        name = "cpu" if device in ("cpu", "meta") else "eager"
    if name == "eager":
        return _eager
    if name == "cpu":
        if device not in ("cpu", "meta"):
            raise RuntimeError(f"backend='cpu': expected logits on the CPU, got {logits.device}")
        return _ops
    raise RuntimeError(
        f"backend={name!r} is not part of this version: take 'auto', or 'eager', which runs on "
        "every device; `python -m labelsmooth` lists what is usable"
    )
