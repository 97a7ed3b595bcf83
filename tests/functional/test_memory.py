"""Which tensors of the logits' size are made, counted by torch's own allocator records."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from labelsmooth import label_smoothing_loss, release_memory

# torch 2.10's, of any profile
pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
KEEPS_NONE = TORCH < (2, 11)  # which takes no memory of others
N, C = 64, 4096


def large_allocations(function: Any) -> list[int]:
    """In bytes, of blocks that could hold a sixteenth of the bfloat16 logits."""
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

    ROWS, CLASSES = 70, 131_072
    BYTES = ROWS * CLASSES * 4

    def gradient(self, scale: float = 1.0, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        """Of the sum of the row losses, which is p - 1 on class 0 and p elsewhere; and p."""
        logits = scale * torch.arange(self.CLASSES).div(self.CLASSES).expand(rows, -1)
        leaf = logits.clone().requires_grad_()
        target = torch.zeros(rows, dtype=torch.int64)
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
        release_memory()
        places = []
        for _ in range(3):
            grad, _ = self.gradient()
            places.append(grad.data_ptr())
            del grad
        assert len(set(places)) == 1 or KEEPS_NONE

    @pytest.mark.parametrize("made", [0, 1, 3, 5])
    def test_at_most_three_are_kept_until_they_are_released(self, made: int) -> None:
        release_memory()
        grads = [self.gradient() for _ in range(made)]
        del grads
        assert_about(released_bytes(), 0 if KEEPS_NONE else min(made, 3) * self.BYTES)

    @pytest.mark.parametrize("requests", [15, 16])
    def test_what_was_of_no_use_so_often_is_given_up(self, requests: int) -> None:
        release_memory()
        self.gradient(rows=2 * self.ROWS)
        for _ in range(requests):
            self.gradient()
        kept = self.BYTES if requests == 16 else 3 * self.BYTES
        assert_about(released_bytes(), 0 if KEEPS_NONE else kept)

    @pytest.mark.skipif(KEEPS_NONE, reason="all memory is torch's own")
    def test_the_storage_is_not_resizable(self) -> None:
        grad, _ = self.gradient()
        copy, place = grad.clone(), grad.data_ptr()
        assert not grad.untyped_storage().resizable()
        with pytest.raises(RuntimeError, match="resize storage that is not resizable"):
            grad.untyped_storage().resize_(0)
        assert torch.equal(grad, copy)

        copy.untyped_storage().resize_(0)  # one remedy
        assert copy.untyped_storage().nbytes() == 0
        grad.set_()  # the other: the memory is free for the next
        assert self.gradient()[0].data_ptr() == place


class TestManyRows:
    """From 32 MiB on the statistics of rows are kept too: 16 bytes a row, 24 where the caller gets
    some of them."""

    ROWS = 1_800_000

    def places(self, logits: Tensor, reduction: str) -> set[int]:
        leaf = logits.requires_grad_()
        target = torch.zeros(len(leaf), dtype=torch.int64)
        loss, stats = label_smoothing_loss(
            leaf, target, reduction=reduction, return_stats=True, backend="cpu"
        )
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return {place_of(grad), place_of(stats.lse)}

    @pytest.mark.parametrize("reduction", ["sum", "none"])
    @pytest.mark.parametrize("classes", [5, 6, 7, 10])
    def test_gradients_of_about_their_size_take_none_from_them(
        self, classes: int, reduction: str
    ) -> None:
        """Whichever is made first: after two calls no memory is new, and at most three blocks of
        the larger size are kept."""
        release_memory()
        logits = torch.randn(self.ROWS, classes)
        first, second, third, fourth = (self.places(logits, reduction) for _ in range(4))
        assert len(third) == 2
        assert third | fourth <= first | second or KEEPS_NONE
        largest = self.ROWS * max(4 * classes, 24)
        assert released_bytes() < 3.1 * largest

    def test_alone_they_are_kept_for_the_next_call(self) -> None:
        release_memory()
        logits = torch.randn(2_200_000, 2, requires_grad=True) * 1
        loss = label_smoothing_loss(
            logits, torch.zeros(len(logits)).long(), inplace=True, backend="cpu"
        )
        loss.backward()
        del loss
        kept = 0 if KEEPS_NONE else 16 * len(logits)
        assert abs(released_bytes() - kept) < 4e6


def place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def assert_about(size: int, expected: int) -> None:
    assert abs(size - expected) < TestLargeGradients.BYTES / 10


def released_bytes() -> int:
    before = resident_bytes()
    release_memory()
    return before - resident_bytes()


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()
