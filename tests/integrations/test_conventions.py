"""Lines of `labelsmooth.which` against the losses that they stand for: one file each of
Megatron-LM, MMPretrain and torchtune. OLMo is too large to install for one function, others are of
other frameworks and languages: those are held against their formulas alone."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from integrations.original import load
from torch import Tensor

import labelsmooth
from labelsmooth import which

B, T, C = 4, 6, 11
LOGITS = torch.randn(B, T, C, dtype=torch.float64, generator=torch.manual_seed(0))
LOGITS.requires_grad_()
TARGET = torch.randint(C, (B, T))


def line(*words: str) -> str:
    (row,) = which.matching(words)
    return row.write


def evaluated(text: str, **names: Any) -> Any:
    return eval(text, {"labelsmooth": labelsmooth, **names})


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """To the accuracy of float32, which they make of the logits, the labels or the weights."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=1e-6)
    upstream = torch.rand_like(ours)
    (grad,) = torch.autograd.grad(ours, LOGITS, upstream)
    (expected,) = torch.autograd.grad(theirs, LOGITS, upstream.to(theirs.dtype))
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-7)


def test_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one rank."""
    alone = SimpleNamespace(
        get_tensor_model_parallel_group=lambda: None,
        get_tensor_model_parallel_rank=lambda: 0,
        get_tensor_model_parallel_world_size=lambda: 1,
    )
    whole = SimpleNamespace(vocab_range_from_per_partition_vocab_size=lambda size, *_: (0, size))
    stand_ins = {
        "megatron.core.parallel_state": alone,
        "megatron.core.tensor_parallel.utils": SimpleNamespace(VocabUtility=whole),
    }
    megatron = load("megatron.core.tensor_parallel.cross_entropy", stand_ins)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
    theirs = megatron.vocab_parallel_cross_entropy(LOGITS, TARGET, 0.1)
    ours = evaluated(line("megatron"), vocab_parallel_logits=LOGITS, target=TARGET, group=None)
    assert_same(ours, theirs)


@pytest.mark.parametrize("mode", ["original", "classy_vision"])
def test_mmpretrain(mode: str) -> None:
    losses = "mmpretrain.models.losses"
    models = SimpleNamespace(register_module=lambda: lambda kind: kind)
    stand_ins: dict[str, Any] = {"mmpretrain.registry": SimpleNamespace(MODELS=models)}
    for name in ("utils", "cross_entropy_loss", "label_smooth_loss"):
        stand_ins[f"{losses}.{name}"] = load(f"{losses}.{name}", dict(stand_ins))
    kind = stand_ins[f"{losses}.label_smooth_loss"].LabelSmoothLoss
    weight, x, label = torch.rand(C).double(), LOGITS.flatten(0, 1), TARGET.flatten()
    theirs = kind(0.1, C, mode=mode, class_weight=weight.tolist())(x, label)
    ours = evaluated(line("mmpretrain", mode), cls_score=x, label=label, class_weight=weight)
    assert_same(ours, theirs)


def test_torchtune() -> None:
    torchtune = load("torchtune.modules.loss.ce_chunked_output_loss", {})
    loss_fn = torchtune.CEWithChunkedOutputLoss(num_output_chunks=3)
    labels = TARGET.clone()
    labels[0, 2:] = -100
    chunks = list(LOGITS.chunk(3, dim=1))
    theirs = loss_fn(chunks, labels)
    names = {"labelsmooth": labelsmooth, "functools": functools, "loss_fn": loss_fn}
    exec(line("torchtune").replace("=0.1", "=0.0"), names)
    assert_same(loss_fn(chunks, labels), theirs)
