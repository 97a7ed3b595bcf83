"""PyTorch's own losses, to the letter: signatures, results in the logits' dtype, isinstance.

For whoever patches them or calls them by keyword; `labelsmooth.label_smoothing_loss` and the
modules have more options, and return float32 for 16-bit logits.

    torch.nn.functional.cross_entropy = labelsmooth.compat.torch.cross_entropy
"""

import warnings
from typing import TYPE_CHECKING, Any

from torch import Tensor, compiler, nn
from torch.nn import functional as F

from ..functional import label_smoothing_loss
from ..linear import linear_label_smoothing_loss
from ._shared import in_dtype_of

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

__all__ = ["CrossEntropyLoss", "cross_entropy", "linear_cross_entropy"]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """:func:`torch.nn.functional.cross_entropy`.

    The loss has the dtype of ``input``, or what torch promotes it and that of class probabilities
    to; under autocast it is float32. ``size_average`` and ``reduce``, which are deprecated there,
    say what ``reduction`` is where one of them is given. Not for torch.jit.script.
    """
    loss = label_smoothing_loss(
        input,
        target,
        weight,
        ignore_index,
        _reduced(size_average, reduce, reduction),
        label_smoothing,
    )
    return in_dtype_of(input, loss, target)


class CrossEntropyLoss(nn.CrossEntropyLoss):
    """:class:`torch.nn.CrossEntropyLoss`, and a subclass of it."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: "LinearCrossEntropyOptions | None" = None,
) -> Tensor:
    """:func:`torch.nn.functional.linear_cross_entropy`, of torch 2.13 and later.

    Always in chunks, whose rows ``options.batch_chunk_size`` may set; the other ``options`` are not
    looked at: every call may be differentiated twice, and sums are float32. For a weight of shape
    (C, d1, ..., D) the logits are made.
    """
    classes, *outputs, features = linear_weight.shape
    if input.dim() not in (1, 2) or (outputs and input.dim() == 1) or input.shape[-1] != features:
        shape = f"(N, {features})" if outputs else f"({features},) or (N, {features})"
        raise RuntimeError(
            f"input: expected shape {shape} for a linear_weight of shape "
            f"{tuple(linear_weight.shape)}, got {tuple(input.shape)}"
        )
    if target.shape == (*input.shape[:-1], classes, *outputs) and ignore_index is not None:
        raise RuntimeError(
            f"ignore_index: expected None beside class probabilities, got {ignore_index}"
        )
    given: Any = {
        "weight": weight,
        "ignore_index": -100 if ignore_index is None else ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    if not outputs:
        chunk_rows = None if options is None else options.batch_chunk_size
        loss = linear_label_smoothing_loss(
            input, linear_weight, target, linear_bias=linear_bias, chunk_rows=chunk_rows, **given
        )
    else:
        bias = None if linear_bias is None else linear_bias.flatten()
        logits = F.linear(input, linear_weight.flatten(0, -2), bias)
        loss = label_smoothing_loss(logits.view(len(input), classes, *outputs), target, **given)
    return in_dtype_of(input, loss, target)


if TYPE_CHECKING or hasattr(nn, "LinearCrossEntropyLoss"):
    __all__ += ["LinearCrossEntropyLoss"]

    class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss):
        """:class:`torch.nn.LinearCrossEntropyLoss`, of torch 2.13 and later, and a subclass."""

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            shape, bias = (self.num_classes, *self.out_features), self.linear.bias
            return linear_cross_entropy(
                input,
                self.linear.weight.reshape(*shape, self.linear.in_features),
                target,
                linear_bias=None if bias is None else bias.reshape(shape),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )


def _reduced(size_average: bool | None, reduce: bool | None, reduction: str) -> Any:
    if size_average is None and reduce is None:
        return reduction
    reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    if not compiler.is_compiling():
        said = f"size_average and reduce are deprecated: give reduction={reduction!r}"
        warnings.warn(said, stacklevel=3)
    return reduction
