"""Rows over ranks, with one GPU in the place of all: each rank's calls after the other's."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, check
from gpu_steps import SMOOTHING, nothing_waits, problem
from shards import InShards

from labelsmooth import SparseTarget
from labelsmooth._backends.choose import choose_backend
from labelsmooth._call.problem import Inputs, Options

CLASSES = 50257


@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = problem(5, CLASSES, dtype)
    target[1] = -100
    pair = SparseTarget.mix(target, target.flip(0), torch.rand(5, device="cuda"))
    ranks = InShards(choose_backend(backend, logits.device))
    monkeypatch.setattr("labelsmooth._backends.sharded.choose_backend", lambda *_: ranks)
    options = {"label_smoothing": SMOOTHING, "backend": backend}
    weight = torch.rand(CLASSES, device="cuda")
    check(logits, target, **options, weight=weight, smooth_over="others")
    check(logits, target, **options, objective="kl_div")
    check(logits, target, **options, smooth_over="unmasked", reduction="none")
    check(logits, logits.detach().float().softmax(1), **options)
    check(logits, pair, **options, row_weight=torch.rand(5, device="cuda"))


def test_nothing_waits_for_the_gpu(backend: str) -> None:
    logits, target = problem(33, CLASSES)
    rank = choose_backend(backend, logits.device)
    inputs = Inputs(logits.detach(), target, weight=torch.rand(4 * CLASSES, device="cuda"))
    options = Options(label_smoothing=SMOOTHING, class_offset=CLASSES, num_classes=4 * CLASSES)

    def steps() -> None:
        part = rank.partial(inputs, options)
        loss, row_stats, _ = rank.combine(torch.stack([part] * 4), inputs, options)
        rank.backward(torch.ones_like(loss), row_stats, inputs, options, inplace=True)

    steps()  # Triton's compiler may wait
    with nothing_waits():
        steps()
