"""Kernels and launchers that nvcc compiled, in the simulator, against numpy in float64."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptxsim import CudaLibrary, Device, SimError, build_library
from ptxsim.testing import buffer

SOURCE = Path(__file__).parent / "cuda" / "functions.cu"
ARCHS = [80, 90, 100]

pytestmark = [
    pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    return CudaLibrary(build_library([SOURCE], tmp_path_factory.mktemp("functions"), archs=ARCHS))


FUNCTIONS: list[tuple[str, Callable[[Any], Any], float, float]] = [
    ("exp", np.exp, -80, 80),
    ("log", np.log, 0, 1e6),
    ("tanh", np.tanh, -12, 12),
    ("log1p", np.log1p, -0.99, 100),
    ("exp2", np.exp2, -120, 120),
    ("log2", np.log2, 0, 1e6),
    ("sqrt", np.sqrt, 0, 1e6),
    ("reciprocal", np.reciprocal, -5, 5),
    ("expm1", np.expm1, -20, 20),
]


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("which", range(len(FUNCTIONS)), ids=[f[0] for f in FUNCTIONS])
def test_mathematical_library(library: CudaLibrary, which: int, arch: int) -> None:
    """Within what NVIDIA states for the functions: 2 ulp in double, 3 in single precision."""
    _, fn, low, high = FUNCTIONS[which]
    gpu = library.on(Device.of(arch))
    for launcher, kind, ulps in (("launch_double", np.float64, 2), ("launch_float", np.float32, 3)):
        rng = np.random.default_rng(which)
        x = rng.uniform(low, high, 700).astype(kind)
        x[:6] = [0.0, 1.0, np.inf, -np.inf, np.nan, 1e-310 if kind is np.float64 else 1e-39]
        y = np.full_like(x, -7)
        assert gpu.call(launcher, x, y, which, x.size) == 0
        truth = fn(x.astype(np.float64))
        special = ~np.isfinite(truth.astype(kind))
        assert np.array_equal(y[special], truth[special].astype(kind), equal_nan=True)
        step = np.spacing(np.abs(truth[~special].astype(kind))).astype(np.float64)
        assert (np.abs(y[~special].astype(np.float64) - truth[~special]) <= ulps * step).all()


class Divisions(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("a", "b", "quotient", "remainder")]


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_pointers_inside_a_struct(library: CudaLibrary, sched: str) -> None:
    """64-bit divisions; the launcher has a C++ name and takes a struct of pointers."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-(2**62), 2**62, 300) >> rng.integers(0, 60, 300) for _ in range(2))
    b[b == 0] = 3
    quotient, remainder = np.zeros(300, np.int64), np.zeros(300, np.uint64)
    arrays = (a, b, quotient, remainder)
    d = Divisions(*[x.ctypes.data for x in arrays])
    gpu = library.on(Device.of(90), sched=sched)
    with pytest.raises(SimError, match="wild global access"):  # nobody said what the pointers are
        gpu.call("launch_divide", ctypes.byref(d), 300)
    for x in arrays[:2]:
        gpu.tensor(x)
    for x in arrays[2:]:
        gpu.output(x)
    assert gpu.call("launch_divide", ctypes.byref(d), 300) == 0
    assert gpu.written(quotient)
    for k in range(300):
        x, y = int(a[k]), int(b[k])
        assert quotient[k] == abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        x, y = x % 2**64, y % 2**64
        assert remainder[k] == (x % y + x % 1000003) % 2**64


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_pairs_of_halves(library: CudaLibrary, kind: torch.dtype, arch: int) -> None:
    x = torch.randn(32, 4, 2).to(kind)
    y = torch.empty_like(x)
    gpu = library.on(Device.of(arch))
    assert gpu.call("launch_halves", x, y, 3, int(kind is torch.bfloat16)) == 0
    exact = x.roll(-3, 1).double() * x.double() + x.double()
    assert torch.equal(y, exact.to(kind))


def reverse(
    library: CudaLibrary,
    arch: int,
    n: int,
    *,
    cluster: int = 0,
    opt_in: bool = True,
    grid: int = 16,
) -> int:
    gpu = library.on(Device.of(arch))
    x, y = buffer(n, "i4"), buffer(n * grid, "i4")
    x[:] = np.arange(n)
    status = gpu.call("launch_reverse", x, y, n, cluster, int(opt_in), grid)
    if status == 0:
        assert np.array_equal(y.reshape(grid, n), np.tile(x[::-1], (grid, 1)))
        report = gpu.reports[-1]
        assert (report.cluster[0], report.shared_bytes) == (max(cluster, 1), 4 * n)
        assert report.bank_conflicts == 0
    return status


def test_launches_that_the_device_refuses(library: CudaLibrary) -> None:
    """As a device does: shared memory past the default or its limit, clusters it has not."""
    kib = 256  # integers
    assert reverse(library, 90, 100 * kib, opt_in=False) == 1
    assert reverse(library, 90, 100 * kib) == 0
    assert reverse(library, 90, 228 * kib) == 1
    assert reverse(library, 80, 163 * kib) == 0
    assert reverse(library, 80, 164 * kib) == 1
    assert reverse(library, 90, 64, cluster=16) == 0
    assert reverse(library, 90, 64, cluster=32, grid=32) == 912
    assert reverse(library, 100, 64, cluster=16, opt_in=False) == 912
    assert reverse(library, 100, 64, cluster=8, opt_in=False) == 0
    assert reverse(library, 80, 64, cluster=2) == 9


def test_the_newest_ptx_that_the_device_takes_is_run(library: CudaLibrary) -> None:
    (kernel,) = {k for m in library.modules for k in m.kernels if "divide" in k}
    for arch, ptx in ((80, 80), (86, 80), (90, 90), (100, 100), (120, 100)):
        module = library.module_for(kernel, arch)
        assert module is not None
        assert module.arch == ptx
    assert library.module_for(kernel, 75) is None
