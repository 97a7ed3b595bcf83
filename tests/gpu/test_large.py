"""Memory: how much a step takes, and more of it than 32 bits count. One process at a time."""

from __future__ import annotations

import pytest
import torch
from gpu_steps import SMOOTHING, problem, step

from labelsmooth import label_smoothing_loss, linear_label_smoothing_loss


@pytest.mark.parametrize("classes", [1000, 40_961, 1_000_003])
def test_beyond_two_to_the_31_elements(classes: int, backend: str) -> None:
    rows = 2**31 // classes + 2
    if torch.cuda.mem_get_info()[0] < 4 * 2 * rows * classes:
        pytest.skip("needs 17 GB of free GPU memory")
    torch.use_deterministic_algorithms(False)  # without poison: that is as much again to write
    logits = torch.empty(rows, classes, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.randint(classes, (rows,), device="cuda")
    last, last_target = logits[-3:].clone().requires_grad_(), target[-3:]
    expected_loss, expected = step(last, last_target, reduction="none", backend=backend)
    hidden = logits.requires_grad_() * 1
    loss = label_smoothing_loss(
        hidden, target, label_smoothing=SMOOTHING, reduction="none", inplace=True, backend=backend
    )
    (grad,) = torch.autograd.grad(loss.sum(), hidden)
    torch.testing.assert_close(loss[-3:].detach(), expected_loss)
    one_rounding = {
        "rtol": torch.finfo(torch.bfloat16).eps,
        "atol": 0.0,
    }  # few rows go in more parts
    torch.testing.assert_close(grad[-3:], expected, **one_rounding)


def test_the_gradient_is_the_only_large_tensor(backend: str) -> None:
    logits, target = problem(512, 32768)
    size = logits.numel() * logits.itemsize
    step(logits, target, backend=backend)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _, grad = step(logits, target, backend=backend)
    assert torch.cuda.max_memory_allocated() - before < 1.02 * size
    assert grad.shape == logits.shape


def test_projection(backend: str) -> None:
    """The slab, the float32 sums, the gradients; no logits of all rows."""
    rows, features, classes, chunk_rows = 4096, 256, 32768, 1024
    hidden = torch.randn(rows, features, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(classes, features, device="cuda").bfloat16().requires_grad_()
    target = torch.randint(classes, (rows,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_label_smoothing_loss(
        hidden, weight, target, chunk_rows=chunk_rows, backend=backend
    ).backward()
    slab, sums, grads = 2 * chunk_rows * classes, 4 * classes * features, 2 * rows * features
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 1.1 * (slab + sums + grads) + (64 << 20)  # cuBLAS's workspace
