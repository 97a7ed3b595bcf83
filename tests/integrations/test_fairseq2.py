"""The swap beside fairseq2's function, which computes float64 logits in float32. Its file is loaded
by itself: the package wants a library of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drop_ins import DTYPES, assert_same
from integrations.original import load
from torch import Tensor

from labelsmooth.compat import fairseq2

ORIGINAL = load("fairseq2.nn.functional.cross_entropy", {}).cross_entropy
TARGETS = torch.tensor([[3, 1, 5, 1], [2, 2, 0, 1], [4, 1, 1, 1]])
MASK = torch.tensor([[True, True, False, True], [False, True, True, True], [True] * 4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("target_mask", [None, MASK], ids=["all", "masked"])
@pytest.mark.parametrize("pad_idx", [1, None])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_the_swap(
    label_smoothing: float,
    pad_idx: int | None,
    target_mask: Tensor | None,
    reduction: Any,
    dtype: torch.dtype,
) -> None:
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    exact = {"rtol": 1e-5} if dtype == torch.float64 else {}
    x = 3 * torch.randn(3, 4, 11, dtype=dtype)
    for logits, targets, mask in (
        (x, TARGETS, target_mask),
        (x.flatten(0, 1), TARGETS.flatten(), target_mask),
        (x, TARGETS, None if target_mask is None else target_mask.flatten()),
    ):
        given = {**options, "target_mask": mask}
        assert_same(
            lambda x, y=targets, given=given: fairseq2.cross_entropy(x, y, pad_idx, **given),
            lambda x, y=targets, given=given: ORIGINAL(x, y, pad_idx, **given),
            logits,
            **exact,
        )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_nothing_but_padding(reduction: Any, label_smoothing: float) -> None:
    given = {"label_smoothing": label_smoothing, "reduction": reduction}
    padding = torch.ones(3, 4, dtype=torch.long)
    assert_same(
        lambda x: fairseq2.cross_entropy(x, padding, 1, **given),
        lambda x: ORIGINAL(x, padding, 1, **given),
        torch.randn(3, 4, 11),
    )
