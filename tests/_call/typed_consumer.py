"""A user's code as type checkers see it: test_declare.py runs mypy on it, nobody runs it.

What must be an error is ignored as one: mypy says where such a comment has nothing to ignore.
"""

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

from labelsmooth import (
    FusedLabelSmoothingLoss,
    FusedLinearLabelSmoothingLoss,
    LossStats,
    label_smoothing_loss,
    linear_label_smoothing_loss,
)


def calls(logits: Tensor, target: Tensor, weight: Tensor, stats: bool) -> None:
    assert_type(label_smoothing_loss(logits, target), Tensor)
    assert_type(label_smoothing_loss(logits=logits, target=target, weight=weight), Tensor)
    assert_type(label_smoothing_loss(logits, target, weight, -100, "sum", 0.1), Tensor)
    assert_type(
        label_smoothing_loss(logits, target, return_stats=True, prior=weight),
        tuple[Tensor, LossStats],
    )
    assert_type(
        label_smoothing_loss(logits, target, return_stats=stats),
        Tensor | tuple[Tensor, LossStats],
    )
    label_smoothing_loss(
        logits,
        target,
        smooth_over="others",
        logit_scale=nn.Parameter(torch.ones(())),
        softcap=None,
        normalizer=3,
        backend="eager",
    )
    label_smoothing_loss(logits, target, smoothing=0.1)  # type: ignore[call-overload]
    label_smoothing_loss(logits, target, reduction="avg")  # type: ignore[call-overload]
    label_smoothing_loss(logits, target, None, -100, "mean", 0.1, "all")  # type: ignore[call-overload]
    label_smoothing_loss(logits)  # type: ignore[call-overload]
    label_smoothing_loss(logits, [0, 1])  # type: ignore[call-overload]


def modules(logits: Tensor, target: Tensor, weight: Tensor) -> None:
    loss = FusedLabelSmoothingLoss(weight, ignore_index=0, label_smoothing=0.1, prior=weight)
    FusedLabelSmoothingLoss(smoothing=0.1)  # type: ignore[call-arg]
    FusedLabelSmoothingLoss(label_smoothing="0.1")  # type: ignore[arg-type]
    FusedLabelSmoothingLoss(None, -100, "mean", 0.1, "all")  # type: ignore[call-arg]
    FusedLabelSmoothingLoss(logit_scale=weight)  # type: ignore[arg-type]

    assert_type(loss.label_smoothing, float)
    assert_type(loss.softcap, float | None)
    assert_type(loss.inplace, bool)
    assert_type(loss.weight, Tensor | None)
    loss.label_smoothing = 0.2
    loss.softcap = None
    loss.prior = weight
    loss.label_smoothing = "0.2"  # type: ignore[assignment]
    loss.reduction = "avg"  # type: ignore[assignment]
    loss.forward(logits, target, normalizer=3)
    loss.forward(logits, target, normaliser=3)  # type: ignore[call-arg]


def projections(hidden: Tensor, head: nn.Linear, target: Tensor) -> None:
    weight = head.weight
    assert_type(linear_label_smoothing_loss(hidden, weight, target), Tensor)
    assert_type(
        linear_label_smoothing_loss(hidden, weight, target, linear_bias=head.bias, chunk_rows=64),
        Tensor,
    )
    assert_type(
        linear_label_smoothing_loss(hidden, weight, target, return_stats=True),
        tuple[Tensor, LossStats],
    )
    linear_label_smoothing_loss(hidden, weight, target, None)  # type: ignore[call-overload]
    linear_label_smoothing_loss(hidden, weight, target, inplace=True)  # type: ignore[call-overload]

    loss = FusedLinearLabelSmoothingLoss(64, 1000, bias=True, label_smoothing=0.1, recompute=True)
    FusedLinearLabelSmoothingLoss(64, 1000, True)  # type: ignore[call-arg]
    assert_type(loss.chunk_rows, int | None)
    assert_type(loss.linear, nn.Linear)
    loss.chunk_rows = 128
    loss.recompute = "no"  # type: ignore[assignment]
    loss.forward(hidden, target, normalizer=3)
