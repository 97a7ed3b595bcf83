"""Ordinary Triton launches, compiled by Triton and run in the simulator."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
from ptxsim import SimError  # noqa: E402
from ptxsim.triton_driver import simulated_triton  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@triton.jit
def softmax_kernel(x, y, lse, stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x, y = x + row * stride, y + row * columns
    best, total = -float("inf"), 0.0
    for start in range(0, columns, BLOCK):
        c = start + tl.arange(0, BLOCK)
        v = tl.load(x + c, mask=c < columns, other=float("-inf")).to(tl.float32)
        new = tl.maximum(best, tl.max(v, 0))
        total = total * tl.exp(best - new) + tl.sum(tl.exp(v - new), 0)
        best = new
    result = best + tl.log(total)
    tl.store(lse + row, result)
    for start in range(0, columns, BLOCK):
        c = start + tl.arange(0, BLOCK)
        v = tl.load(x + c, mask=c < columns, other=float("-inf")).to(tl.float32)
        tl.store(y + c, tl.exp(v - result).to(y.dtype.element_ty), mask=c < columns)


@triton.jit
def rows_kernel(x, out, where, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    inside = (r[:, None] < rows) & (c[None, :] < columns)
    v = tl.load(x + r[:, None] * columns + c[None, :], mask=inside, other=-float("inf"))
    best, at = tl.max(v.to(tl.float32), 1, return_indices=True)
    tl.store(out + r, best, mask=r < rows)
    tl.store(where + r, at, mask=r < rows)


@triton.jit
def beyond_kernel(x, out, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    tl.store(out + c, tl.load(x + c))


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("kind", TYPES)
def test_softmax(kind: torch.dtype, arch: int, sched: str) -> None:
    base = torch.randn(3, 1040).to(kind)
    x, rows, columns = base[:, :1003], 3, 1003
    y, lse = torch.empty(rows, columns, dtype=kind), torch.empty(rows)
    with simulated_triton(arch, sched=sched, noise=2) as gpu:
        gpu.output(y)
        gpu.output(lse)
        softmax_kernel[(rows,)](x, y, lse, x.stride(0), columns, BLOCK=512, num_warps=4)
        assert gpu.written(y)
        assert gpu.written(lse)
    truth = x.double().logsumexp(1)
    assert (lse - truth).abs().max() < 1e-5
    error = (y.double() - (x.double() - truth[:, None]).exp()).abs().max()
    assert error < {torch.bfloat16: 1e-4, torch.float16: 1e-5}.get(kind, 1e-7)
    report = gpu.reports[-1]
    assert not report.warnings
    size = rows * columns * kind.itemsize
    assert report.tensor(x).read_bytes == 2 * size
    assert report.tensor(y).written_bytes == size


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_several_rows_a_block(arch: int, sched: str) -> None:
    x = torch.randn(13, 50).bfloat16()
    out, where = torch.empty(13), torch.empty(13, dtype=torch.int32)
    with simulated_triton(arch, sched=sched) as gpu:
        gpu.output(out)
        rows_kernel[(2,)](x, out, where, 13, 50, ROWS=8, BLOCK=64)
        assert gpu.written(out)
    assert torch.equal(out, x.float().amax(1))
    assert torch.equal(where.long(), x.float().argmax(1))


def test_a_missing_mask_is_seen() -> None:
    with simulated_triton(90), pytest.raises(SimError, match="out-of-bounds global access"):
        beyond_kernel[(1,)](torch.zeros(100), torch.zeros(128), BLOCK=128)


def test_the_driver_is_put_back() -> None:
    before = triton.runtime.driver._active
    with simulated_triton(80):
        assert triton.runtime.driver.active.get_current_target().arch == 80
        with simulated_triton(90):
            assert triton.runtime.driver.active.get_current_target().arch == 90
    assert triton.runtime.driver._active is before
