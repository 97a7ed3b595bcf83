"""What only a GPU can show: streams, graphs, waiting, memory. `make gpu` runs these.

The rest of the suite also runs on a GPU's backends where there is one; see conftest.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import check
from conftest import GPU_BACKENDS
from shards import InShards
from torch import Tensor

from labelsmooth import (
    FusedLabelSmoothingLoss,
    SparseTarget,
    label_smoothing_loss,
    linear_label_smoothing_loss,
)
from labelsmooth._backends.choose import choose_backend
from labelsmooth._call.problem import Inputs, Options

pytestmark = pytest.mark.gpu
SMOOTHING = 0.1
CYCLES = 50_000_000  # some tens of milliseconds


@pytest.fixture(params=GPU_BACKENDS or ["gpu"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def unchecked(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are not looked at, which waits for the GPU."""
    monkeypatch.delenv("LABELSMOOTH_CHECK", raising=False)


def problem(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    logits = torch.randn(rows, classes, device="cuda").to(dtype).requires_grad_()
    return logits, torch.randint(classes, (rows,), device="cuda")


def step(logits: Tensor, target: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    loss = label_smoothing_loss(logits, target, label_smoothing=SMOOTHING, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("classes", [10, 1000, 50257, 262144])
def test_every_kernel(classes: int, dtype: torch.dtype, backend: str) -> None:
    logits, target = problem(5, classes, dtype)
    target[1] = -100
    options = {"label_smoothing": SMOOTHING, "backend": backend}
    check(logits, target, **options, grad_loss=torch.tensor(3.0, device="cuda"), roundings=2)
    check(logits, logits.detach().softmax(1), **options)
    check(logits, logits.detach().float().softmax(1), **options)
    pair = SparseTarget.mix(target, target.flip(0), torch.rand(5, device="cuda"))
    check(logits, pair, **options, row_weight=torch.rand(5, device="cuda"))
    few = SparseTarget(*(t.expand(5, 70) for t in (target[:, None], pair.probs[:, :1] / 70)))
    check(logits, few, **options)
    masks = torch.rand(5, classes, device="cuda") < 0.3
    masks.scatter_(1, target.clamp(min=0)[:, None], False)
    masked = logits.detach().masked_fill(masks, torch.finfo(dtype).min)
    check(masked, target, **options, smooth_over="unmasked")
    columns = logits.detach().t().contiguous().t()
    check(columns, target, **options)


def test_more_rows_than_the_gpu_holds(backend: str) -> None:
    logits, target = problem(4099, 32001, torch.bfloat16)
    check(logits, target, label_smoothing=SMOOTHING, backend=backend)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_waits_for_the_gpu(reduction: str, inplace: bool, backend: str) -> None:
    logits, target = problem(33, 5000)
    weight = torch.rand(5000, device="cuda")
    options = {"reduction": reduction, "weight": weight, "backend": backend}
    step(logits, target, **options)  # Triton's compiler may wait
    hidden = logits * 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = label_smoothing_loss(
            hidden, target, label_smoothing=SMOOTHING, inplace=inplace, **options
        )
        loss.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("share", ["number", "0-d", "rows"])
def test_mixed_targets_and_row_weights_wait_neither(share: str, backend: str) -> None:
    logits, target = problem(33, 5000)
    rows = torch.rand(33, device="cuda")
    lam = {"number": 0.3, "0-d": rows[0], "rows": rows}[share]

    def mixed_step() -> None:
        mixed = SparseTarget.mix(target, target.flip(0), lam)
        step(logits, mixed, row_weight=rows, smooth_over="unmasked", backend=backend)

    mixed_step()  # Triton's compiler may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_stream_that_torch_is_on(backend: str) -> None:
    """The logits are written late on a side stream; only work on that stream sees them."""
    logits, target = problem(64, 4096)
    expected = step(logits, target, backend=backend)
    late = torch.zeros_like(logits)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES)
        late.copy_(logits.detach())
        made = step(late.requires_grad_(), target, backend=backend)
    side.synchronize()
    assert all(map(torch.equal, made, expected))


@pytest.mark.parametrize("classes", [100, 8192, 131072])
def test_captured_in_a_graph(classes: int, backend: str) -> None:
    logits, target = problem(8, classes, torch.bfloat16)
    loss_fn = FusedLabelSmoothingLoss(label_smoothing=SMOOTHING, backend=backend)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up, as torch asks
        loss_fn(logits, target).backward()
    torch.cuda.current_stream().wait_stream(side)
    logits.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = loss_fn(logits, target)
        loss.backward()
    for _ in range(2):
        with torch.no_grad():
            logits.normal_()
            target.random_(classes)
        graph.replay()
        assert logits.grad is not None
        expected_loss, expected_grad = step(logits, target, backend=backend)
        assert torch.equal(loss, expected_loss)
        assert torch.equal(logits.grad, expected_grad)


def test_the_gpu_of_the_logits(backend: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    logits, target = problem(16, 3000)
    expected = step(logits, target, backend=backend)
    other = logits.detach().to("cuda:1").requires_grad_()
    assert torch.cuda.current_device() == 0
    made = step(other, target.to("cuda:1"), backend=backend)
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(m.cpu(), e.cpu()) for m, e in zip(made, expected, strict=True))


@pytest.mark.parametrize("shape", [(70_001, 5), (65, 8193), (3, 300_001)])
def test_the_same_bits_each_run(shape: tuple[int, int], backend: str) -> None:
    logits, target = problem(*shape)
    first = step(logits, target, backend=backend)
    for _ in range(5):
        assert all(map(torch.equal, step(logits, target, backend=backend), first))


def test_beyond_two_to_the_31_elements(backend: str) -> None:
    classes = 40_961
    rows = 2**31 // classes + 2
    if torch.cuda.mem_get_info()[0] < 3 * 2 * rows * classes:
        pytest.skip("needs 13 GB of free GPU memory")
    torch.use_deterministic_algorithms(False)  # without poison: that is as much again to write
    logits, target = problem(rows, classes, torch.bfloat16)
    last, last_target = logits[-3:].detach().clone().requires_grad_(), target[-3:]
    expected_loss, expected = step(last, last_target, reduction="none", backend=backend)
    hidden = logits * 1
    loss = label_smoothing_loss(
        hidden, target, label_smoothing=SMOOTHING, reduction="none", inplace=True, backend=backend
    )
    (grad,) = torch.autograd.grad(loss.sum(), hidden)
    assert torch.equal(loss[-3:], expected_loss)
    assert torch.equal(grad[-3:], expected)


def test_the_gradient_is_the_only_large_tensor(backend: str) -> None:
    logits, target = problem(512, 32768)
    size = logits.numel() * logits.itemsize
    step(logits, target, backend=backend)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _, grad = step(logits, target, backend=backend)
    assert torch.cuda.max_memory_allocated() - before < 1.02 * size
    assert grad.shape == logits.shape


def test_a_target_that_is_no_class(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = problem(4, 1000)
    good = step(logits, target, reduction="none", backend=backend)
    target[2] = 1000
    loss, grad = step(logits, target, reduction="none", backend=backend)
    others = torch.tensor([0, 1, 3], device="cuda")
    assert loss[2].isnan()
    assert grad[2].isnan().all()
    assert torch.equal(loss[others], good[0][others])
    assert torch.equal(grad[others], good[1][others])
    monkeypatch.setenv("LABELSMOOTH_CHECK", "1")
    with pytest.raises(IndexError, match="target of row 2 is 1000"):
        step(logits, target, backend=backend)


def test_compiled_whole(backend: str) -> None:
    logits, target = problem(32, 1000)

    def loss_of(logits: Tensor, target: Tensor) -> Tensor:
        return label_smoothing_loss(logits, target, label_smoothing=SMOOTHING, backend=backend)

    compiled = torch.compile(loss_of, fullgraph=True)
    loss = compiled(logits, target)
    (grad,) = torch.autograd.grad(loss, logits)
    expected_loss, expected = step(logits, target, backend=backend)
    torch.testing.assert_close(loss.detach(), expected_loss)
    torch.testing.assert_close(grad, expected)


class TestOverRanks:
    """One GPU in the place of all: each rank's calls after the other's."""

    CLASSES = 50257

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_values(
        self, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logits, target = problem(5, self.CLASSES, dtype)
        target[1] = -100
        pair = SparseTarget.mix(target, target.flip(0), torch.rand(5, device="cuda"))
        ranks = InShards(choose_backend(backend, logits.device))
        monkeypatch.setattr("labelsmooth._backends.sharded.choose_backend", lambda *_: ranks)
        options = {"label_smoothing": SMOOTHING, "backend": backend}
        weight = torch.rand(self.CLASSES, device="cuda")
        check(logits, target, **options, weight=weight, smooth_over="others")
        check(logits, target, **options, objective="kl_div")
        check(logits, target, **options, smooth_over="unmasked", reduction="none")
        check(logits, logits.detach().float().softmax(1), **options)
        check(logits, pair, **options, row_weight=torch.rand(5, device="cuda"))

    def test_nothing_waits_for_the_gpu(self, backend: str) -> None:
        logits, target = problem(33, self.CLASSES)
        rank = choose_backend(backend, logits.device)
        inputs = Inputs(logits.detach(), target, weight=torch.rand(4 * self.CLASSES, device="cuda"))
        options = Options(
            label_smoothing=SMOOTHING, class_offset=self.CLASSES, num_classes=4 * self.CLASSES
        )

        def steps() -> None:
            part = rank.partial(inputs, options)
            loss, row_stats, _ = rank.combine(torch.stack([part] * 4), inputs, options)
            rank.backward(torch.ones_like(loss), row_stats, inputs, options, inplace=True)

        steps()  # Triton's compiler may wait
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps()
        finally:
            torch.cuda.set_sync_debug_mode("default")


class TestFusedProjection:
    ROWS, FEATURES, CLASSES = 96, 64, 5000

    def given(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.randn(self.ROWS, self.FEATURES, device="cuda").to(dtype).requires_grad_()
        weight = torch.randn(self.CLASSES, self.FEATURES, device="cuda").div_(8).to(dtype)
        target = torch.randint(self.CLASSES, (self.ROWS,), device="cuda")
        target[::5] = -100
        return hidden, weight.requires_grad_(), target

    def step(self, given: tuple[Tensor, Tensor, Tensor], **options: Any) -> list[Tensor]:
        hidden, weight, target = given
        loss = linear_label_smoothing_loss(
            hidden, weight, target, label_smoothing=SMOOTHING, chunk_rows=32, **options
        )
        return [loss.detach(), *torch.autograd.grad(loss.sum(), (hidden, weight))]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_values(self, reduction: str, dtype: torch.dtype, backend: str) -> None:
        """Of the CPU, which the rest of the suite holds against the truth."""
        given = self.given(dtype)
        there = self.step(given, reduction=reduction, backend=backend)
        on_cpu = [t.detach().cpu().requires_grad_(t.requires_grad) for t in given]
        here = self.step((on_cpu[0], on_cpu[1], on_cpu[2]), reduction=reduction, backend="eager")
        for ours, expected in zip(there, here, strict=True):
            off = (ours.cpu().double() - expected.double()).norm() / expected.double().norm()
            assert off < 4 * torch.finfo(dtype).eps

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_nothing_waits_for_the_gpu(
        self, reduction: str, dtype: torch.dtype, backend: str
    ) -> None:
        given = self.given(dtype)
        self.step(given, reduction=reduction, backend=backend)
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.step(given, reduction=reduction, backend=backend)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_captured_in_a_graph(self, dtype: torch.dtype, backend: str) -> None:
        given = self.given(dtype)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.step(given, backend=backend)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = self.step(given, backend=backend)
        for _ in range(2):
            with torch.no_grad():
                given[0].normal_()
                given[2].random_(self.CLASSES)
            graph.replay()
            assert all(map(torch.equal, made, self.step(given, backend=backend)))

    def test_memory(self, backend: str) -> None:
        """The slab, the float32 sums, the gradients; no logits of all rows."""
        rows, features, classes, step = 4096, 256, 32768, 1024
        hidden = torch.randn(rows, features, device="cuda").bfloat16().requires_grad_()
        weight = torch.randn(classes, features, device="cuda").bfloat16().requires_grad_()
        target = torch.randint(classes, (rows,), device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        linear_label_smoothing_loss(
            hidden, weight, target, chunk_rows=step, backend=backend
        ).backward()
        slab, sums, grads = 2 * step * classes, 4 * classes * features, 2 * rows * features
        extra = torch.cuda.max_memory_allocated() - before
        assert extra < 1.1 * (slab + sums + grads) + (64 << 20)  # cuBLAS's workspace
