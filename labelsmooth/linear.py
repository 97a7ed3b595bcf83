"""The projection and label-smoothed cross-entropy in one, as a function."""

from typing import Any

import torch
from torch import Tensor

from ._autograd import linear
from ._autograd.sharded import summed_in_backward
from ._backends.exchange import together
from ._backends.linear.sizes import from_logits
from ._backends.ranks import resolved
from ._call.check_call import check_call, check_row_weight
from ._call.checks import check_dtypes, check_linear, check_logit_scale, check_prior, check_tensor
from ._call.declare import options_of
from ._call.problem import LinearInputs, LinearOptions, Target
from ._call.signatures import LinearCallArguments, LinearCallWithoutStats, LinearCallWithStats
from ._call.values import described
from .functional import (
    Denominator,
    LossStats,
    Result,
    as_tensor,
    computed,
    group_of,
    loss_function_of,
    scaled,
    scaled_but_masks,
    widened,
)
from .targets import classes_and_probs

__all__ = ["linear_label_smoothing_loss"]


@loss_function_of(LinearCallWithoutStats, LinearCallWithStats, LinearCallArguments)
def linear_label_smoothing_loss(
    hidden: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    prior: Tensor | None = None,
    logit_scale: Tensor | float = 1.0,
    normalizer: Tensor | float | None = None,
    row_weight: Tensor | None = None,
    **keywords: Any,
) -> Result:
    """Label-smoothed cross-entropy of ``hidden @ linear_weight.T + linear_bias``, whose logits
    never exist whole.

    A drop-in for :func:`torch.nn.functional.linear_cross_entropy`, whose ``input`` is ``hidden``
    here; ``ignore_index`` is a number. The arguments are those of
    :class:`labelsmooth.FusedLinearLabelSmoothingLoss`. Here ``logit_scale`` may also be a tensor of
    one element, which gets its gradient; hidden states and bias are then multiplied by it before
    all else.

    Shape:
        hidden (D,), (N, D) or (..., D); linear_weight (C, D); linear_bias (C,); target (), (N,) or
        (...) of class indices, (C,), (N, C) or (..., C) of class probabilities, or a SparseTarget
        of (K,), (N, K) or (..., K). The loss is a scalar, or for ``"none"`` has the shape of a
        class-index target; so has row_weight.
    """
    number, scale = (1.0, logit_scale) if isinstance(logit_scale, Tensor) else (logit_scale, None)
    group = group_of(linear_weight, keywords.get("process_group"), of_weight=True)
    with together(group, hidden):
        first = (hidden, linear_weight, target)
        options = options_of(
            LinearOptions, linear_label_smoothing_loss, first, logit_scale=number, **keywords
        )
        check_prior(prior, options)
        given = LinearInputs(
            *(hidden, linear_weight, linear_bias, *classes_and_probs(target)),
            *(weight, prior, None, row_weight),
        )
        return loss(given, normalizer, options, scale)


def loss(
    given: LinearInputs,
    normalizer: Tensor | float | None,
    options: LinearOptions,
    scale: Tensor | None = None,
) -> Result:
    """`linear_label_smoothing_loss` with its options made; hidden states and bias are multiplied by
    the scale."""
    return computed(_loss, given, given.linear_weight, normalizer, options, scale)


def _loss(
    given: LinearInputs,
    normalizer: Tensor | float | None,
    options: LinearOptions,
    scale: Tensor | None,
    denominator: Denominator | None = None,
) -> Result:
    hidden, linear_weight, linear_bias, target, probs, *_, row_weight = given
    check_linear(hidden, linear_weight, linear_bias, options)
    options = resolved(options, linear_weight.shape[0])
    dtype = _projection_dtype(given)
    shape = hidden.shape[:-1]
    _check_rows(given, shape)
    if scale is not None:
        check_logit_scale(scale, hidden)
        of_rank = scale
        if options.process_group is not None:
            of_rank = summed_in_backward(scale, str(options.process_group))
        hidden = scaled(hidden, of_rank if options.partial_hidden_grad else scale)
        if linear_bias is not None:
            linear_bias = scaled_but_masks(linear_bias, of_rank, options)
    rows = hidden.flatten(0, -2) if hidden.dim() > 1 else hidden.unsqueeze(0)
    inputs = given._replace(
        hidden=rows,
        linear_bias=linear_bias,
        target=_in_rows(target, shape),
        target_probs=None if probs is None else _in_rows(probs, shape),
        row_weight=None if row_weight is None else _in_rows(row_weight, shape),
    )
    from_rows = from_logits(inputs, dtype)
    check_call(from_rows, normalizer, options)
    inputs = inputs._replace(
        target=widened(inputs.target), normalizer=as_tensor(normalizer, from_rows.logits)
    )
    if denominator is not None:
        inputs = inputs._replace(normalizer=denominator(from_logits(inputs, dtype), options))
    made, row_stats, predicted = linear.apply(inputs, options, dtype)
    result = made.view(shape) if options.reduction == "none" else made
    if not options.return_stats:
        return result
    *_, lse, nll = row_stats
    return result, LossStats(nll.view(shape), lse.view(shape), predicted.view(shape))


# ---- shapes and dtypes ---------------------------------------------------------------------------


def _projection_dtype(inputs: LinearInputs) -> torch.dtype:
    """As F.linear has it: autocast's, which leaves float64 alone, or the one that all have."""
    projected = {
        name: tensor
        for name, tensor in zip(LinearInputs._fields[:3], inputs, strict=False)
        if tensor is not None
    }
    device = inputs.hidden.device.type
    check_dtypes(projected)
    if (
        device != "meta"  # which has no autocast
        and torch.is_autocast_enabled(device)
        and torch.float64 not in (tensor.dtype for tensor in projected.values())
    ):
        return torch.get_autocast_dtype(device)
    check_dtypes(projected, of=inputs.hidden)
    return inputs.hidden.dtype


def _in_rows(tensor: Tensor, shape: torch.Size) -> Tensor:
    """(..., K) as (N, K), (...) as (N,)."""
    return tensor.reshape(shape.numel(), *tensor.shape[len(shape) :])


def _check_rows(given: LinearInputs, rows: torch.Size) -> None:
    """Raises unless what has an entry for each row has their shape; check_call does the rest."""
    target, probs, classes = given.target, given.target_probs, given.linear_weight.shape[0]
    check_tensor("target", target)
    if probs is not None:
        check_tensor("target.probs", probs)
        for name, tensor in (("target.classes", target), ("target.probs", probs)):
            if tensor.dim() != len(rows) + 1 or tensor.shape[:-1] != rows:
                raise ValueError(
                    f"{name}: expected shape ({', '.join(map(str, (*rows, 'K')))}), "
                    f"got {tuple(tensor.shape)}"
                )
    else:
        expected = (*rows, classes) if target.is_floating_point() else rows
        if target.shape not in (expected, rows):  # check_call has more to say of the second
            raise ValueError(
                f"target: expected class indices of shape {tuple(rows)}, or class probabilities of "
                f"shape {(*rows, classes)}, got {described(target)}"
            )
    if given.row_weight is not None:
        check_row_weight(given.row_weight, rows, given.hidden.device)
