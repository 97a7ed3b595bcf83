"""Label-smoothed cross-entropy as a function: shapes, choice of backend and phase, autograd."""

from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from ._autograd.operator import apply
from ._call.checks import can_be_read, check_call, check_prior
from ._call.problem import (
    Backend,
    Inputs,
    Objective,
    Options,
    Reduction,
    SmoothOver,
    accumulate_dtype,
)


class LossStats(NamedTuple):
    """Statistics of each row, detached, in the shape of the class-index target.

    nll        the unsmoothed, unweighted negative log-likelihood; 0 where the row is ignored
    lse        log of the sum of exponentials of the logits (0 with ``from_log_probs``)
    predicted  the class of the largest logit, int64
    """

    nll: Tensor
    lse: Tensor
    predicted: Tensor


@overload
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
    return_stats: Literal[False] = False,
    backend: Backend = "auto",
    normalizer: Tensor | float | None = None,
) -> Tensor: ...


@overload
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
    return_stats: Literal[True],
    backend: Backend = "auto",
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, LossStats]: ...


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
    if prior is not None and can_be_read(prior):
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
    for name, tensor in (("logits", logits), ("target", target)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if target.dtype != logits.dtype and target.is_floating_point() and _in_autocast(logits):
        target = target.to(logits.dtype)
    check_call(logits, target, weight, prior, normalizer, options)
    if target.dtype != logits.dtype:
        target = target.long()  # narrower ones hold neither every class nor every ignore_index
    shape = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
    inputs = Inputs(*_in_rows(logits, target), weight, prior, _as_tensor(normalizer, logits))
    outputs = apply(inputs, options)
    result = outputs.loss.view(shape) if options.reduction == "none" else outputs.loss
    if not options.return_stats:
        return result
    _, _, lse, nll = outputs.row_stats
    return result, LossStats(nll.view(shape), lse.view(shape), outputs.predicted.view(shape))


# ---- shapes --------------------------------------------------------------------------------------


def _in_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) as (1, C); (N, C) as it is; (N, C, d1, ...) as (N, C, S), a view where strides allow."""
    if logits.dim() == 1:
        return logits.unsqueeze(0), target.unsqueeze(0)
    if logits.dim() > 3:
        return logits.flatten(2), target.flatten(2 if target.dim() == logits.dim() else 1)
    return logits, target


def _in_autocast(logits: Tensor) -> bool:
    """Where autocast is on, arguments of any floating-point dtype fit together."""
    return torch.is_autocast_enabled(logits.device.type)


def _as_tensor(normalizer: Tensor | float | None, logits: Tensor) -> Tensor | None:
    """On the logits' device; what is on the CPU gets there with the arguments of a kernel, not by a
    copy that waits."""
    if normalizer is None or (
        isinstance(normalizer, Tensor) and normalizer.device == logits.device
    ):
        return normalizer
    return torch.ones((), dtype=accumulate_dtype(logits), device=logits.device) * normalizer
