"""What the Triton kernel reads and writes, and by which instructions; in the simulator."""

from __future__ import annotations

import re

import pytest
import torch
from _backends.triton.steps import one_step
from ptxsim.counters import bytes_moved
from ptxsim.triton_driver import simulated_triton

from labelsmooth._backends.triton import call, ops
from labelsmooth._backends.triton.plan import Gpu
from labelsmooth._call.problem import Inputs, Options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("dtype", "classes", "processors", "reads"),
    [
        (torch.float32, 1000, 1, 1),
        (torch.float32, 32768, 1, 1),
        (torch.bfloat16, 32001, 1, 1),
        (torch.float64, 8192, 1, 1),
        (torch.float32, 32769, 1, 2),
        (torch.bfloat16, 66000, 1, 2),
        (torch.bfloat16, 66000, 132, 2),
        (torch.float64, 8193, 1, 2),
    ],
)
def test_traffic(
    dtype: torch.dtype,
    classes: int,
    processors: int,
    reads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A row of up to 32768 logits (float64: 8192) is read once, a longer one twice, and the
    gradient is written once. Beside that, every thread asks for the target's logit."""
    monkeypatch.setattr(call, "gpu_of", lambda device: Gpu(processors, 32))
    logits = torch.randn(2, classes).to(dtype)
    with simulated_triton(90) as gpu:
        one_step(logits)
    whole = logits.numel() * logits.element_size()
    read = bytes_moved(gpu.reports, logits)
    threads = sum(report.grid[0] * report.grid[1] * report.block[0] for report in gpu.reports)
    assert reads * whole <= read <= reads * whole + 8 * threads * logits.element_size()
    written = sum(report.written_bytes for report in gpu.reports)
    assert whole <= written <= 1.02 * whole
    assert not any(report.warnings for report in gpu.reports)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 4096), (2, 21, 4096)])
def test_warps_read_and_write_whole_sectors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    with simulated_triton(90) as gpu:
        one_step(torch.randn(shape).to(dtype))
    (report,) = gpu.reports
    assert report.read_efficiency > 0.95
    assert report.write_efficiency > 0.9


WIDE = re.compile(r"(ld|st)\.global\.v4\.b32|cp\.async\.cg\.shared\.global")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1001, 33001, 50257])
def test_rows_that_begin_anywhere_are_read_and_written_wide(
    classes: int, dtype: torch.dtype
) -> None:
    """16 bytes at a time, but for the few logits before the first such place and after the last."""
    logits = torch.randn(2, classes).to(dtype)
    with simulated_triton(90) as gpu:
        one_step(logits)
    (report,) = gpu.reports
    for write in (False, True):
        wide = sum(a.bytes for a in report.accesses if a.write == write and WIDE.match(a.op))
        passes = 2 if classes > 32768 and not write else 1
        whole = passes * logits.numel() * logits.element_size()
        assert whole - 64 * passes <= wide <= whole


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1000, 32768, 50257, 131072])
def test_instructions_for_a_logit(classes: int, dtype: torch.dtype, arch: int) -> None:
    """Of a warp, times 32: as many as a GPU issues while memory moves the bytes, or fewer."""
    logits = torch.randn(2, classes).to(dtype)
    with simulated_triton(arch) as gpu:
        one_step(logits)
    (report,) = gpu.reports
    assert 32 * report.instructions / logits.numel() <= 26


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [32768, 50257])
def test_long_rows_are_read_ahead(classes: int, dtype: torch.dtype, arch: int) -> None:
    """All that is summed up tile by tile, the one read of two; its first and last logits may lie
    amid 16 bytes."""
    logits = torch.randn(2, classes).to(dtype)
    with simulated_triton(arch) as gpu:
        one_step(logits)
    (report,) = gpu.reports
    ahead = sum(a.bytes for a in report.accesses if "cp.async" in a.op)
    whole = logits.numel() * logits.element_size() if classes > 32768 else 0
    assert max(0, whole - 64) <= ahead <= whole


def test_every_position_of_an_image_of_odd_size() -> None:
    """Rows that lie side by side are read side by side, whatever their number."""
    with simulated_triton(90) as gpu:
        one_step(torch.randn(2, 21, 4095))
    assert gpu.reports[0].read_efficiency > 0.8


@pytest.mark.parametrize(("classes", "processors"), [(32000, 1), (66000, 1), (66000, 132)])
def test_traffic_of_parts(classes: int, processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits are read once for a part of a row however long; to combine the ranks' parts, only
    these."""
    monkeypatch.setattr(call, "gpu_of", lambda device: Gpu(processors, 32))
    logits, vector = torch.randn(2, classes), torch.rand(3 * classes)
    target = torch.tensor([5, classes + 5])  # elsewhere, here
    inputs = Inputs(logits, target, weight=vector, prior=vector)
    options = Options(
        reduction="none", label_smoothing=0.1, class_offset=classes, num_classes=3 * classes
    )
    with simulated_triton(90) as gpu:
        part = ops.partial(inputs, options)
    whole = logits.numel() * logits.element_size()
    read = bytes_moved(gpu.reports, logits)
    threads = sum(report.grid[0] * report.grid[1] * report.block[0] for report in gpu.reports)
    assert whole <= read <= whole + 8 * threads * logits.element_size()
    parts = torch.stack([part, part, part])
    with simulated_triton(90) as gpu:
        ops.combine(parts, inputs, options)
    (report,) = gpu.reports
    assert parts.numel() * parts.element_size() <= report.read_bytes
    assert report.read_bytes <= 2 * parts.numel() * parts.element_size()
