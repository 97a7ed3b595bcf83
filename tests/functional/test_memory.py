"""Which tensors of the logits' size are made, counted by torch's own allocator records."""

from __future__ import annotations

import math
import resource
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from labelsmooth import _C, label_smoothing_loss

# torch 2.10's, of any profile
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
N, C = 64, 4096


def large_allocations(function: Any) -> list[int]:
    """Sizes in bytes of the new blocks that could hold a sixteenth of the bfloat16 logits."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = recorded.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return [size for size in sizes if size > N * C * 2 / 16]


def test_the_record_shows_what_torch_allocates() -> None:
    logits = torch.randn(N, C)
    assert large_allocations(lambda: logits + 1) == [N * C * 4]
    assert large_allocations(lambda: logits.log_softmax(1).exp_()) == [N * C * 4]


def call(logits: Tensor, **options: Any) -> Tensor:
    target = torch.randint(logits.shape[1], logits.shape[:1] + logits.shape[2:])
    weight = torch.rand(logits.shape[1]).to(logits.dtype)
    return label_smoothing_loss(
        logits, target, weight, label_smoothing=0.1, backend="cpu", **options
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
class TestRows:
    def test_no_gradient_no_memory(self, reduction: str, dtype: torch.dtype) -> None:
        logits = torch.randn(N, C).to(dtype)
        assert large_allocations(lambda: call(logits, reduction=reduction)) == []
        leaf = logits.requires_grad_()
        with torch.no_grad():
            assert large_allocations(lambda: call(leaf, reduction=reduction)) == []

    def test_the_gradient_is_the_only_large_tensor(
        self, reduction: str, dtype: torch.dtype
    ) -> None:
        leaf = torch.randn(N, C).to(dtype).requires_grad_()

        def step() -> None:
            torch.autograd.grad(call(leaf, reduction=reduction).sum(), leaf)

        assert large_allocations(step) == [N * C * dtype.itemsize]

    def test_in_place_makes_none(self, reduction: str, dtype: torch.dtype) -> None:
        leaf = torch.randn(N, C).to(dtype).requires_grad_()
        logits = leaf.clone()  # its backward hands the gradient on as it is

        def step() -> None:
            torch.autograd.grad(call(logits, reduction=reduction, inplace=True).sum(), leaf)

        assert large_allocations(step) == []


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_class_axis_in_the_middle_makes_only_the_gradient(reduction: str) -> None:
    leaf = torch.randn(2, 256, 32, 32).requires_grad_()

    def step() -> None:
        torch.autograd.grad(call(leaf, reduction=reduction).sum(), leaf)

    assert large_allocations(step) == [leaf.numel() * 4]


def test_class_probabilities_are_neither_copied_nor_smoothed_into_a_tensor() -> None:
    leaf, target = torch.randn(N, C).requires_grad_(), torch.rand(N, C)

    def step() -> None:
        loss = label_smoothing_loss(leaf, target, label_smoothing=0.1, backend="cpu")
        torch.autograd.grad(loss, leaf)

    assert large_allocations(step) == [N * C * 4]


class TestLargeGradients:
    """From 32 MiB on a gradient's memory is kept for the next one, which then need not be cleared
    by the system."""

    SHAPE = (70, 131_072)

    def gradient(self, scale: float) -> tuple[Tensor, Tensor]:
        """Of the sum of the row losses, which is p - 1 on class 0 and p elsewhere; and p."""
        logits = scale * torch.arange(self.SHAPE[1]).div(self.SHAPE[1]).expand(self.SHAPE)
        leaf = logits.clone().requires_grad_()
        target = torch.zeros(self.SHAPE[0], dtype=torch.int64)
        loss = label_smoothing_loss(leaf, target, reduction="sum", backend="cpu")
        (grad,) = torch.autograd.grad(loss, leaf)
        return grad, logits[0].softmax(0)

    def test_gradients_that_live_at_once(self) -> None:
        made = [self.gradient(scale) for scale in (1.0, 2.0, 3.0)]
        del made[1]
        made.append(self.gradient(4.0))
        for grad, probs in made:
            assert torch.allclose(grad[:, 1:], probs[1:].expand(len(grad), -1), rtol=1e-5, atol=0)
            assert torch.allclose(grad[:, 0], probs[0] - 1)

    def test_the_next_gradient_takes_the_memory_of_the_last(self) -> None:
        _C.release_memory()
        places = []
        for _ in range(3):
            grad, _ = self.gradient(1.0)
            places.append(grad.data_ptr())
            del grad
        assert len(set(places)) == 1 or TORCH < (2, 11)  # which takes no memory of others

    def test_memory_that_is_kept_can_be_released(self) -> None:
        self.gradient(1.0)
        before = resident_bytes()
        _C.release_memory()
        freed = before - resident_bytes()
        assert freed > math.prod(self.SHAPE) * 4 * 0.9 or TORCH < (2, 11)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
