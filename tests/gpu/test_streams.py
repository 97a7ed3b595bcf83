"""Streams, threads and graphs: whose order the kernels keep, and that nothing waits for the GPU."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from checks import ROOT
from conftest import GPU_BACKENDS
from gpu_steps import CYCLES, SMOOTHING, nothing_waits, problem, step
from torch import Tensor

from labelsmooth import FusedLabelSmoothingLoss, SparseTarget, label_smoothing_loss

SIZES = [(64, 100), (33, 5000), (8, 8192), (5, 50257), (2, 262144)]  # each kernel of whole rows


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_waits_for_the_gpu(reduction: str, inplace: bool, backend: str) -> None:
    logits, target = problem(33, 5000)
    weight = torch.rand(5000, device="cuda")
    options = {"reduction": reduction, "weight": weight, "backend": backend}
    step(logits, target, **options)  # Triton's compiler may wait
    hidden = logits * 1
    with nothing_waits():
        loss = label_smoothing_loss(
            hidden, target, label_smoothing=SMOOTHING, inplace=inplace, **options
        )
        loss.sum().backward()


@pytest.mark.parametrize("share", ["number", "0-d", "rows"])
def test_mixed_targets_and_row_weights_wait_neither(share: str, backend: str) -> None:
    logits, target = problem(33, 5000)
    rows = torch.rand(33, device="cuda")
    lam = {"number": 0.3, "0-d": rows[0], "rows": rows}[share]

    def mixed_step() -> None:
        mixed = SparseTarget.mix(target, target.flip(0), lam)
        step(logits, mixed, row_weight=rows, smooth_over="unmasked", backend=backend)

    mixed_step()  # Triton's compiler may wait
    with nothing_waits():
        mixed_step()


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


def test_several_streams_at_once(backend: str) -> None:
    """Each call has memory of its own."""
    given = [problem(*size) for size in SIZES]
    expected = [step(*one, backend=backend) for one in given]
    streams = [torch.cuda.Stream() for _ in given]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    made = []
    for _ in range(10):
        for stream, one in zip(streams, given, strict=True):
            with torch.cuda.stream(stream):
                made.append(step(*one, backend=backend))
    torch.cuda.synchronize()
    for number, pair in enumerate(made):
        assert all(map(torch.equal, pair, expected[number % len(given)]))


def test_several_threads_at_once(backend: str) -> None:
    given = [problem(*size) for size in SIZES]
    expected = [step(*one, backend=backend) for one in given]

    def steps(one: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            made = [step(*one, backend=backend) for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        return made

    with ThreadPoolExecutor(len(given)) as threads:
        for made, truth in zip(threads.map(steps, given), expected, strict=True):
            assert all(torch.equal(m, t) for pair in made for m, t in zip(pair, truth, strict=True))


@pytest.mark.parametrize("classes", [100, 8192, 131072])
def test_captured_in_a_graph(classes: int, backend: str) -> None:
    logits, target = problem(8, classes, torch.bfloat16)
    loss_fn = FusedLabelSmoothingLoss(label_smoothing=SMOOTHING, backend=backend)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up, as torch asks
        step(logits, target, backend=backend)
    torch.cuda.current_stream().wait_stream(side)
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


# Triton compiles and loads in its first call; the CUDA kernels are there.
FIRST_CALL = """
import sys
sys.path[:0] = ["tests"]
import torch
from gpu_steps import problem, step

logits, target = problem(8, int(sys.argv[1]), torch.bfloat16)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    made = step(logits, target, backend="cuda")
graph.replay()
assert all(map(torch.equal, made, step(logits, target, backend="cuda")))
"""


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [name for name in GPU_BACKENDS if name == "cuda"])
@pytest.mark.parametrize("classes", [100, 8192, 131072, 600_000])
def test_the_first_call_of_a_process_may_be_captured(classes: int, backend: str) -> None:
    """Without a warm-up: what a kernel's first launch sets or asks is legal within a capture."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, str(classes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
