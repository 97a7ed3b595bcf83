"""What a step takes: the slab, the sums of a 16-bit weight's gradient, a few numbers a row."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import accumulate
from typing import Any

import pytest
import torch
from functional.test_memory import large_allocations as allocations
from linear_checks import IGNORED
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from labelsmooth import linear_label_smoothing_loss
from labelsmooth._backends.linear import sums
from labelsmooth._backends.linear.sizes import product_dtype, rows_of_chunk

pytestmark = pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")

D, C, R = 16, 4096, 64
ROWS = [256, 1024]  # 4 and 16 chunks; large enough that (N, D) is seen


def large(function: Any, rows: int) -> list[int]:
    """Tensors of at least half of a few numbers a row."""
    return sorted(size for size in allocations(function) if size >= rows * 16)


def leaves(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(rows, D).to(dtype).requires_grad_()
    weight = torch.randn(C, D).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(C, (rows,))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"reduction": "none"}], ids=str)
def test_a_step(
    options: dict[str, Any], dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing grows with N but the gradient of the hidden states."""
    monkeypatch.setattr(sums, "BLOCK", 1 << 12)  # much smaller than all that must not be made
    hidden, weight, target = leaves(rows, dtype)
    bias = torch.zeros(C, dtype=dtype, requires_grad=True)

    def step() -> None:
        loss = linear_label_smoothing_loss(
            *(hidden, weight, target),
            linear_bias=bias,
            label_smoothing=0.1,
            chunk_rows=R,
            **options,
        )
        loss.sum().backward()

    made = large(step, rows)
    of_products = product_dtype(dtype, torch.device("cpu"))
    slab = R * C * of_products.itemsize
    expected = [rows * D * dtype.itemsize, C * D * dtype.itemsize, slab]
    if "reduction" in options or "recompute" in options:
        expected.append(slab)  # one in forward, one in backward
    if dtype == torch.bfloat16:
        expected.append(C * D * 4)  # the sums
        if of_products != dtype:  # no fast products: the weight widened
            expected += [C * D * 4] * (2 if options else 1)
    small = 1 << 16  # the bias, a chunk's hidden states, blocks
    large_ones = Counter(size for size in made if size > small)
    others = large_ones - Counter(size for size in expected if size > small)
    assert large_ones >= Counter(size for size in expected if size > small)
    if dtype == torch.bfloat16:  # oneDNN copies matrices to layouts of its own, by CPU
        assert all(size < slab for size in others)
    else:
        assert not others
    assert rows * C * dtype.itemsize not in made


def test_without_grad_the_slab_alone() -> None:
    hidden, weight, target = leaves(256, torch.float32)
    with torch.no_grad():
        made = large(lambda: linear_label_smoothing_loss(hidden, weight, target, chunk_rows=R), 256)
    assert made == [R * C * 4]


def test_a_frozen_weight_has_no_gradient_of_its_size() -> None:
    hidden, weight, target = leaves(256, torch.float32)
    weight.requires_grad_(False)

    def step() -> None:
        linear_label_smoothing_loss(hidden, weight, target, chunk_rows=R).backward()

    assert C * D * 4 not in large(step, 256)


def test_statistics_and_ignored_rows_take_a_few_numbers_a_row() -> None:
    hidden, weight, target = leaves(256, torch.float32)
    target[::3] = IGNORED

    def step() -> None:
        for more in ({}, {"return_stats": True}):
            result: Any = linear_label_smoothing_loss(hidden, weight, target, chunk_rows=R, **more)
            (result[0] if more else result).backward()

    made = large(step, 256)
    assert made.count(R * C * 4) == made.count(C * D * 4) == 2  # of the outputs no zeros
    assert max(made) == R * C * 4


def peak(function: Any) -> int:
    """As torch's allocator counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = recorded.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(accumulate(changes, initial=0))


def second_derivatives(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    loss = linear_label_smoothing_loss(hidden, weight, target, chunk_rows=R)
    torch.autograd.grad(loss, (hidden, weight), create_graph=True)


def class_weights(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    of_classes = torch.ones(C, requires_grad=True)
    linear_label_smoothing_loss(hidden, weight, target, weight=of_classes, chunk_rows=R).backward()


def transformed(hidden: Tensor, weight: Tensor, target: Tensor) -> None:
    def loss(hidden: Tensor, weight: Tensor) -> Any:
        return linear_label_smoothing_loss(hidden, weight, target, chunk_rows=R)

    torch.func.grad(loss, (0, 1))(hidden.detach(), weight.detach())


@pytest.mark.parametrize("step", [second_derivatives, class_weights, transformed])
def test_formulas_take_a_chunk_at_a_time(step: Any) -> None:
    """But for the rows' own gradient."""
    few, many = (peak(lambda rows=rows: step(*leaves(rows, torch.float32))) for rows in (256, 1024))
    assert many - few < 10 * (1024 - 256) * (D + 8) * 4  # an eighth of a row of logits
    assert few < 12 * R * C * 4


def test_chunks_depend_on_shapes_alone() -> None:
    cpu, gpu, f32, bf16 = *map(torch.device, ("cpu", "cuda")), torch.float32, torch.bfloat16
    bounds = [(cpu, f32, 512, 1024), (gpu, f32, 1024, 4096), (gpu, bf16, 1024, 4096)]
    for rows in (1, 7, 512, 513, 5000, 16384, 10**6):
        for features in (64, 512, 1000, 4096, 8192):
            for device, dtype, least, most in bounds:
                step = rows_of_chunk(rows, features, dtype, device, None)
                bound = min(max(features, least), most)
                assert 1 <= step < bound + 128  # rounded up to whole tiles
                chunks = -(-rows // step)
                assert chunks == -(-rows // bound)  # as few as that bound allows, equal
    assert rows_of_chunk(100, 64, f32, cpu, 7) == 7
    assert rows_of_chunk(100, 64, f32, cpu, 1000) == 100
    assert rows_of_chunk(0, 64, f32, cpu, None) >= 1


PEAK = """
import re, sys, torch
from labelsmooth import linear_label_smoothing_loss
rows, classes, features = (int(a) for a in sys.argv[1:])
torch.set_num_threads(1)
hidden = torch.randn(rows, features, requires_grad=True)
weight = torch.randn(classes, features, requires_grad=True)
target = torch.randint(classes, (rows,))
def status(name):
    return int(re.search(name + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
linear_label_smoothing_loss(hidden[:8], weight, target[:8]).backward()  # libraries' own memory
hidden.grad = weight.grad = None
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
linear_label_smoothing_loss(hidden, weight, target, label_smoothing=0.1).backward()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_of_the_process() -> None:
    """The system's count, of a process of its own: twice the rows, the same peak but for (N, D)."""
    classes, features = 16384, 64
    slab, gradient = 512 * classes * 4, classes * features * 4

    def peak(rows: int) -> int:
        command = [sys.executable, "-c", PEAK, *map(str, (rows, classes, features))]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    few, many = peak(1024), peak(2048)
    own = 16 << 20  # threads, buffers of the BLAS
    assert few <= slab + gradient + 1024 * features * 4 + own
    assert many - few <= 1024 * (features * 4 + 64) + (4 << 20)
    assert 2048 * classes * 4 > many  # the logits alone would be more
