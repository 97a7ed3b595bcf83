"""inplace=True and what hangs on the logits: hooks, kept gradients, views, the memory of a leaf."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from labelsmooth import label_smoothing_loss

N, C = 6, 13
TARGET = torch.randint(C, (N,))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_used_after_backward(reduction: str, backend: str) -> None:
    """Whichever call overwrote them; no node between saved them."""
    leaf = torch.randn(N, C, requires_grad=True)
    for view in (lambda x: x, lambda x: x.view(2, N // 2, C).view(N, C)):
        logits = leaf.clone()
        options: dict[str, Any] = {"reduction": reduction, "inplace": True, "backend": backend}
        label_smoothing_loss(view(logits), TARGET, **options).sum().backward()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logits.logsumexp(1).sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("view", [False, True])
def test_a_gradient_that_is_to_be_kept(view: bool, reduction: str, backend: str) -> None:
    leaf = torch.randn(N, C, requires_grad=True)
    kept = []
    for inplace in (False, True):
        logits = leaf.clone().view(2, N // 2, C) if view else leaf.clone()
        logits.retain_grad()
        options: dict[str, Any] = {"reduction": reduction, "inplace": inplace, "backend": backend}
        label_smoothing_loss(logits.view(N, C), TARGET, **options).sum().backward()
        kept.append(logits.grad)
    assert torch.equal(*kept)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_hooks(reduction: str, backend: str) -> None:
    """On logits that are a view, after the call and after backward, too: no crash. A hook from
    before the call sees the gradient."""
    for shape in ((N, C), (2, C, N // 2)):
        logits = torch.randn(N * C, requires_grad=True).clone().view(shape)
        seen: list[Tensor] = []
        logits.register_hook(seen.append)
        target = TARGET.view(shape[0], *shape[2:])
        options: dict[str, Any] = {"reduction": reduction, "inplace": True, "backend": backend}
        loss = label_smoothing_loss(logits, target, **options)
        logits.register_hook(lambda grad: None)
        loss.sum().backward()
        logits.register_hook(lambda grad: None)
        assert [grad.shape for grad in seen] == [shape]


def test_parts_keep_their_values(backend: str) -> None:
    logits = torch.randn(N, C, requires_grad=True).clone()
    before = logits.detach().clone()
    for part in (logits[:2], logits[:, ::2], *logits.chunk(2), logits.unbind()[0].unsqueeze(0)):
        target = torch.zeros(len(part), dtype=torch.int64)
        label_smoothing_loss(part, target, inplace=True, backend=backend).backward()
        assert torch.equal(logits, before)


def test_a_leaf_that_is_a_view(backend: str) -> None:
    leaf = torch.randn(N, C).view(C, N).view(N, C).requires_grad_()
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="leaf"):
        label_smoothing_loss(leaf, TARGET, inplace=True, backend=backend)
    assert torch.equal(leaf, before)


def test_values_without_a_gradient_may_be_read(backend: str) -> None:
    """By whoever wants the gradient that is there now."""
    leaf = torch.randn(N, C, requires_grad=True)
    logits = leaf * 1
    loss = label_smoothing_loss(logits, TARGET, inplace=True, backend=backend)
    norm = logits.detach().norm()
    loss.backward()
    assert norm == leaf.grad.norm()


def test_what_others_hold_lives_no_longer(backend: str) -> None:
    """Without the loss the logits' memory is free."""
    logits = torch.randn(N, C, requires_grad=True) * 1
    dead = weakref.ref(logits)
    loss = label_smoothing_loss(logits, TARGET, inplace=True, backend=backend)
    del logits
    loss.backward()
    assert dead() is None
