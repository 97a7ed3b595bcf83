"""Label-smoothed cross-entropy as a function: shapes, choice of backend and phase, autograd."""

from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Protocol, overload

import torch
from torch import Tensor

from ._autograd.operator import apply, in_transform
from ._autograd.overwritten import look_at_node
from ._autograd.sharded import summed_in_backward
from ._backends.exchange import together
from ._backends.ranks import resolved
from ._call.check_call import check_call
from ._call.checks import check_logit_scale, check_prior, check_tensor, check_writable, is_dtensor
from ._call.declare import options_of, set_signature
from ._call.problem import CommonOptions, Inputs, LinearInputs, Options, Target, accumulate_dtype
from ._call.signatures import CallArguments, CallWithoutStats, CallWithStats
from ._call.values import as_number
from .targets import classes_and_probs

__all__ = ["LossStats", "label_smoothing_loss"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = ParamSpec("R")


class LossStats(NamedTuple):
    """Statistics of each row, detached, in the shape of the class-index target.

    nll        the unsmoothed, unweighted negative log-likelihood; 0 where the row is ignored
    lse        log of the sum of exponentials of the logits (0 with ``from_log_probs``)
    predicted  the class of the largest logit, int64
    """

    nll: Tensor
    lse: Tensor
    predicted: Tensor


Result = Tensor | tuple[Tensor, LossStats]
Denominator = Callable[[Inputs, CommonOptions], Tensor | None]  # where rows are on other ranks too


class LossFunction(Protocol[P, Q, R]):
    """A function whose loss comes with statistics where return_stats is True."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> tuple[Tensor, LossStats]: ...
    @overload
    def __call__(self, *args: R.args, **kwargs: R.kwargs) -> Result: ...


def loss_function_of(
    without_stats: Callable[P, Any], with_stats: Callable[Q, Any], either: Callable[R, Any]
) -> Callable[[Any], LossFunction[P, Q, R]]:
    """For a function that takes what is declared."""

    def decorate(function: Any) -> LossFunction[P, Q, R]:
        set_signature(function, either, returns=Result)
        decorated: LossFunction[P, Q, R] = function
        return decorated

    return decorate


@loss_function_of(CallWithoutStats, CallWithStats, CallArguments)
def label_smoothing_loss(
    logits: Tensor,
    target: Target,
    weight: Tensor | None = None,
    *positional: Any,
    prior: Tensor | None = None,
    logit_scale: Tensor | float = 1.0,
    normalizer: Tensor | float | None = None,
    row_weight: Tensor | None = None,
    **keywords: Any,
) -> Result:
    """Label-smoothed cross-entropy between logits and target.

    The arguments are those of :class:`labelsmooth.FusedLabelSmoothingLoss`. Here ``logit_scale``
    may also be a tensor of one element, which gets its gradient: a learned temperature. The logits
    are then multiplied by it before all else, in a tensor of their size; ``inplace`` overwrites
    that one.
    """
    number, scale = (1.0, logit_scale) if isinstance(logit_scale, Tensor) else (logit_scale, None)
    with together(group_of(logits, keywords.get("process_group")), logits):
        first = (logits, target, weight)
        options = options_of(
            Options, label_smoothing_loss, first, *positional, logit_scale=number, **keywords
        )
        check_prior(prior, options)
        given = Inputs(logits, *classes_and_probs(target), weight, prior, None, row_weight)
        return loss(given, normalizer, options, scale)


def loss(
    given: Inputs,
    normalizer: Tensor | float | None,
    options: Options,
    scale: Tensor | None = None,
) -> Result:
    """`label_smoothing_loss` with its options made; the logits are multiplied by the scale."""
    return computed(_loss, given, given.logits, normalizer, options, scale)


def computed(
    loss: Callable[..., Result],
    given: Inputs | LinearInputs,
    placed: Tensor,
    normalizer: Tensor | float | None,
    options: CommonOptions,
    scale: Tensor | None,
) -> Result:
    """`loss` of these arguments: over the mesh of the tensor that is placed, if it is a DTensor."""
    if is_dtensor(placed):
        from ._mesh.calls import loss_over_mesh

        result: Result = loss_over_mesh(loss, given, normalizer, options, scale)
        return result
    with together(options.process_group, given[0]):
        return loss(given, normalizer, options, scale)


def _loss(
    given: Inputs,
    normalizer: Tensor | float | None,
    options: Options,
    scale: Tensor | None,
    denominator: Denominator | None = None,
) -> Result:
    logits = given.logits
    options = _in_its_classes(given, options)
    check_call(given, normalizer, options)
    if scale is not None:
        check_logit_scale(scale, logits)
        if options.process_group is not None:
            scale = summed_in_backward(scale, str(options.process_group))
        logits = scaled_but_masks(logits, scale, options)
    if options.inplace and not in_transform():  # which takes a fresh gradient
        check_writable(logits)
    inputs = given._replace(
        logits=logits, target=widened(given.target), normalizer=as_tensor(normalizer, logits)
    )
    inputs = _in_rows(inputs)
    if denominator is not None:
        inputs = inputs._replace(normalizer=denominator(inputs, options))
    outputs = apply(inputs, options)
    if options.inplace and not torch.compiler.is_compiling():
        look_at_node(logits)
    if options.reduction != "none" and not options.return_stats:
        return outputs.loss
    shape = logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else logits.shape[:0]
    result = outputs.loss.view(shape) if options.reduction == "none" else outputs.loss
    if not options.return_stats:
        return result
    *_, lse, nll = outputs.row_stats
    return result, LossStats(nll.view(shape), lse.view(shape), outputs.predicted.view(shape))


def group_of(tensor: Any, given: Any, *, of_weight: bool = False) -> Any:
    """Over which the classes lie: as given, or as the placements of a DTensor say."""
    if not is_dtensor(tensor):
        return given
    from ._mesh.layout import class_group_of

    return class_group_of(tensor, 0 if of_weight else min(tensor.dim(), 2) - 1)


def _in_its_classes(given: Inputs, options: Options) -> Options:
    """The options with the range of classes that the logits' columns are."""
    logits = given.logits
    if options.num_classes is None and options.process_group is None:
        return options
    check_tensor("logits", logits)
    if logits.dim() == 0:
        return options  # about which there is more to say
    return resolved(options, logits.shape[0 if logits.dim() == 1 else 1])


# ---- shapes --------------------------------------------------------------------------------------


def _in_rows(inputs: Inputs) -> Inputs:
    """(C,) as (1, C); (N, C) as it is; (N, C, d1, ...) as (N, C, S), a view where strides allow, or
    where the classes lie side by side, as in (N, d1, ..., C).movedim(-1, 1), as (N S, C)."""
    dims = inputs.logits.dim()
    side_by_side = dims > 2 and _has_classes_side_by_side(inputs)
    if dims == 2 or (dims == 3 and not side_by_side):
        return inputs

    def in_rows(tensor: Any) -> Any:
        if tensor is None:
            return None
        if side_by_side:
            last = tensor.movedim(1, -1) if tensor.dim() == dims else tensor
            return last.flatten(0, dims - 2)
        return tensor.unsqueeze(0) if dims == 1 else tensor.flatten(2 - dims + tensor.dim())

    of_rows = ("logits", "target", "target_probs", "row_weight")
    return inputs._replace(**{name: in_rows(getattr(inputs, name)) for name in of_rows})


def _has_classes_side_by_side(inputs: Inputs) -> bool:
    """The logits, and probabilities of all classes if such is the target."""
    of_all = (inputs.logits, *([inputs.target] if inputs.target.is_floating_point() else []))
    return all(tensor.movedim(1, -1).is_contiguous() for tensor in of_all)


def widened(target: Tensor) -> Tensor:
    """Narrower integers hold neither every class nor every ignore_index."""
    return target if target.is_floating_point() else target.long()


def as_tensor(normalizer: Tensor | float | None, logits: Tensor) -> Tensor | None:
    """On the logits' device; from the CPU with the arguments of a kernel, not by a copy that
    waits."""
    if normalizer is None or (
        isinstance(normalizer, Tensor) and normalizer.device == logits.device
    ):
        return normalizer
    if not isinstance(normalizer, Tensor):
        normalizer = as_number("normalizer", normalizer)
    return torch.ones((), dtype=accumulate_dtype(logits), device=logits.device) * normalizer


def scaled(logits: Tensor, scale: Tensor) -> Tensor:
    """The product by autograd: one tensor of N x C more.

    16-bit logits are rounded once more, as in torch's own `cross_entropy(logits * scale)`. A scale
    on the CPU comes with the arguments of the product.
    """
    scale = scale.reshape(())  # so that it does not widen the logits
    return logits * (scale if scale.is_cpu else scale.to(logits.device))


def scaled_but_masks(logits: Tensor, scale: Tensor, options: CommonOptions) -> Tensor:
    """Masks that are looked for stay masks, and are nothing to the derivative."""
    if options.smooth_over != "unmasked":
        return scaled(logits, scale)
    masked = logits <= torch.finfo(logits.dtype).min
    return scaled(logits.masked_fill(masked, 0.0), scale).masked_fill(masked, -torch.inf)
