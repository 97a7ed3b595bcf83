"""The swap beside SpeechBrain's losses. The file is loaded by itself, its mask of lengths from
SpeechBrain's own: the package wants more than is installed here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drop_ins import DTYPES, assert_same
from integrations.original import load
from torch import Tensor

from labelsmooth.compat import speechbrain

LOGGER = {"speechbrain.utils.logger": None}
DATAIO = load(
    "speechbrain.dataio.dataio",
    {"speechbrain.dataio": None, "speechbrain.utils.torch_audio_backend": None} | LOGGER,
)
LOSSES = load(
    "speechbrain.nnet.losses",
    {
        "speechbrain.dataio.dataio": DATAIO,
        "speechbrain.decoders.ctc": None,
        "speechbrain.utils.data_utils": None,
    }
    | LOGGER,
)
TARGETS = torch.tensor([[3, 0, 5, 1, 2, 6, 7], [2, 2, 0, 0, 0, 0, 0], [4, 9, 1, 0, 0, 0, 0]])
LENGTH = torch.tensor([1.0, 2 / 7, 3 / 7])
REDUCTIONS = ["mean", "batch", "batchmean", "sum", "none", "anything"]


def log_probs(dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(3, 7, 11)).log_softmax(-1).to(dtype)


def assert_swap(name: str, x: Tensor, *arguments: Any, **keywords: Any) -> None:
    old, new = getattr(LOSSES, name), getattr(speechbrain, name)
    assert_same(
        lambda x: new(x, *arguments, **keywords), lambda x: old(x, *arguments, **keywords), x
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("length", [None, LENGTH, LENGTH.double(), LENGTH.half()])
@pytest.mark.parametrize("weighted", [False, True])
def test_nll(
    weighted: bool,
    length: Tensor | None,
    label_smoothing: float,
    reduction: str,
    dtype: torch.dtype,
) -> None:
    """Targets of -100, torch's index of rows to be ignored, among them."""
    x, targets = log_probs(dtype), TARGETS.masked_fill(TARGETS == 5, -100)
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": reduction}
    if not weighted:
        assert_swap("nll_loss", x, targets, length, **options)
    elif dtype != torch.bfloat16:  # the original takes a weight of the log-probabilities' dtype
        weight = torch.linspace(0, 2, 11, dtype=dtype)
        assert_swap("nll_loss", x, targets, length, weight=weight, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [-0.1, 0.0, 0.1, 1.0])
@pytest.mark.parametrize("pad_idx", [0, 2, -1])
def test_kldiv(pad_idx: int, label_smoothing: float, reduction: str, dtype: torch.dtype) -> None:
    targets = TARGETS
    if pad_idx == -1 and label_smoothing > 0:
        targets = TARGETS.masked_fill(TARGETS == 0, -1)
    assert_swap(
        *("kldiv_loss", log_probs(dtype), targets, LENGTH, label_smoothing, 3, pad_idx, reduction)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["nll_loss", "kldiv_loss"])
def test_without_frames(name: str, label_smoothing: float, reduction: str) -> None:
    length = LENGTH if (name, label_smoothing) == ("kldiv_loss", 0.1) else None
    frame, options = log_probs()[:, 0], {"reduction": reduction, "label_smoothing": label_smoothing}
    if (name, label_smoothing, reduction) == ("nll_loss", 0.1, "batch"):
        with pytest.raises(IndexError):
            LOSSES.nll_loss(frame, TARGETS[:, 0], **options)
        return
    assert_swap(name, frame, TARGETS[:, 0], length, **options)


@pytest.mark.parametrize(("frames", "of_targets"), [(7, 5), (5, 7), (7, 3)])
def test_frames_that_differ(frames: int, of_targets: int) -> None:
    x, targets = log_probs()[:, :frames], TARGETS[:, :of_targets]
    if abs(frames - of_targets) <= 3:
        assert_swap("nll_loss", x, targets, LENGTH, 0.1)
        return
    for module in (LOSSES, speechbrain):
        with pytest.raises(ValueError, match="got"):
            module.nll_loss(x, targets, LENGTH, 0.1)


def test_nothing_counts() -> None:
    """NaN in both; the gradient, which is NaN there, is 0 here."""
    for reduction in ("mean", "batch"):
        for a in (0.0, 0.1):
            for module in (LOSSES, speechbrain):
                loss = module.nll_loss(log_probs(), TARGETS, LENGTH * 0, a, reduction=reduction)
                assert loss.isnan().all()


@pytest.mark.parametrize("frames", [1, 3, 10, 49, 1000])
def test_the_same_frames_count(frames: int) -> None:
    length = torch.arange(1, frames + 1) / frames
    targets = torch.zeros(frames, frames, dtype=torch.int64)
    expected = LOSSES.compute_length_mask(targets, length)
    assert torch.equal(speechbrain._counted(length, targets), expected.bool())
