"""The swap beside NeMo's losses. The file is loaded by itself, on plain modules in place of NeMo's
base classes, whose checks of types are left out: the package wants more than is installed here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drop_ins import DTYPES, assert_same
from integrations.original import load
from torch import Tensor, nn

from labelsmooth.compat import nemo

BASES = {
    "Loss": nn.Module,
    "NeuralModule": nn.Module,
    "Exportable": object,
    "typecheck": lambda: lambda forward: forward,
}
LOSSES = load(
    "nemo.collections.common.losses.smoothed_cross_entropy",
    {"nemo.core.classes": SimpleNamespace(**BASES), "nemo.core.neural_types": None},
)
LABELS = torch.tensor([[3, 0, 5, 1], [2, 2, 0, 0], [4, 0, 0, 0]])
MASK = torch.tensor([[1.0, 0.5, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]])
REDUCTIONS = ["mean", "batch", "batchmean", "none"]


def log_probs(dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(3, 4, 11)).log_softmax(-1).to(dtype)


def assert_swap(name: str, settings: dict[str, Any], x: Tensor, **given: Any) -> None:
    old, new = (getattr(module, name)(**settings) for module in (LOSSES, nemo))
    tolerance = given.pop("tolerance", {})
    assert_same(
        lambda x: new(log_probs=x, **given), lambda x: old(log_probs=x, **given), x, **tolerance
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_token_reduction", [False, True])
@pytest.mark.parametrize("predict_last_k", [0, 1, 3, 9, -1])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("mask", [None, MASK, MASK.bool(), MASK.double()])
def test_smoothed_cross_entropy(
    mask: Tensor | None,
    label_smoothing: float,
    predict_last_k: int,
    per_token_reduction: bool,
    dtype: torch.dtype,
) -> None:
    settings = {
        "pad_id": 0,
        "label_smoothing": label_smoothing,
        "predict_last_k": predict_last_k,
        "per_token_reduction": per_token_reduction,
    }
    x = log_probs(dtype)
    assert_swap("SmoothedCrossEntropyLoss", settings, x, labels=LABELS, output_mask=mask)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_epsilon(eps: float) -> None:
    settings = {"pad_id": 0, "label_smoothing": 0.1, "eps": eps}
    assert_swap("SmoothedCrossEntropyLoss", settings, log_probs(), labels=LABELS)
    assert_swap("SmoothedCrossEntropyLoss", settings, log_probs(), labels=LABELS * 0)


def test_neither_mask_nor_padding() -> None:
    for module in (LOSSES, nemo):
        with pytest.raises(ValueError, match="output_mask"):
            module.SmoothedCrossEntropyLoss()(log_probs=log_probs(), labels=LABELS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    "given",
    [{"output_mask": MASK}, {"output_mask": MASK.bool()}, {"lengths": torch.tensor([4, 2, 1])}],
)
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_smoothed_nll(
    ignore_index: int,
    given: dict[str, Tensor],
    label_smoothing: float,
    reduction: str,
    dtype: torch.dtype,
) -> None:
    """Up to the epsilon of 1e-8 that the original leaves out of one of two denominators."""
    settings = {"reduction": reduction, "label_smoothing": label_smoothing}
    settings["ignore_index"] = ignore_index
    if dtype != torch.bfloat16:  # the original takes a weight of the log-probabilities' dtype
        settings["weight"] = torch.linspace(0, 2, 11, dtype=dtype)
    x = log_probs(dtype)
    tolerance = {"rtol": 1e-8} if dtype == torch.float64 and label_smoothing else {}
    assert_swap("SmoothedNLLLoss", settings, x, labels=LABELS, **given, tolerance=tolerance)


def test_state() -> None:
    old, new = (
        module.SmoothedNLLLoss(weight=torch.ones(11)).state_dict() for module in (LOSSES, nemo)
    )
    assert old.keys() == new.keys()
