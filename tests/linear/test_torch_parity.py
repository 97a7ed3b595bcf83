"""The same as torch's own functions and module, by name, default, shape and value."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import REDUCTIONS
from linear_checks import projection, targets
from torch import nn

from labelsmooth import FusedLinearLabelSmoothingLoss, linear_label_smoothing_loss

N, D, C = 9, 5, 11
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
if TORCH >= (2, 13):  # which has them
    PAIRS = [
        (linear_label_smoothing_loss, F.linear_cross_entropy),
        (FusedLinearLabelSmoothingLoss, nn.LinearCrossEntropyLoss),
    ]
else:
    PAIRS = []
RENAMED = {"input": "hidden"}  # as logits are, for whoever reads it
NOT_OURS = {"options", "out_features"}  # torch's rule for chunks; losses of several dimensions


@pytest.mark.parametrize(("ours", "torchs"), PAIRS)
def test_names_kinds_and_defaults(ours: Any, torchs: Any) -> None:
    have = inspect.signature(ours).parameters
    for name, parameter in inspect.signature(torchs).parameters.items():
        if name in NOT_OURS:
            continue
        mine = have[RENAMED.get(name, name)]
        default = -100 if name == "ignore_index" else parameter.default  # which None stands for
        assert (mine.kind, mine.default) == (parameter.kind, default), name


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_values(soft: bool, bias: bool, reduction: str, backend: str) -> None:
    hidden, weight, linear_bias = projection(N, D, C, bias=bias).leaves()
    target = torch.rand(N, C, dtype=torch.float64).softmax(1) if soft else targets(N, C)
    options: dict[str, Any] = {"weight": torch.rand(C).double() + 0.5, "label_smoothing": 0.1}
    ours = linear_label_smoothing_loss(
        *(hidden, weight, target),
        linear_bias=linear_bias,
        reduction=reduction,
        backend=backend,
        **options,
    )
    logits = F.linear(hidden, weight, linear_bias)
    theirs = F.cross_entropy(logits, target, reduction=reduction, **options)
    torch.testing.assert_close(ours, theirs)
    if PAIRS:
        torch.testing.assert_close(
            ours,
            F.linear_cross_entropy(
                hidden, weight, target, linear_bias=linear_bias, reduction=reduction, **options
            ),
        )


@pytest.mark.skipif(not PAIRS, reason="this torch has no LinearCrossEntropyLoss")
@pytest.mark.parametrize("bias", [False, True])
def test_the_modules_state_is_torchs(bias: bool) -> None:
    theirs = nn.LinearCrossEntropyLoss(D, C, bias=bias, weight=torch.rand(C) + 0.5)
    ours = FusedLinearLabelSmoothingLoss(D, C, bias=bias, weight=torch.ones(C))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    hidden, target = torch.randn(N, D), targets(N, C)
    torch.testing.assert_close(ours(hidden, target), theirs(hidden, target))
    theirs.load_state_dict(ours.state_dict())
