"""The test of the tests: faults of the kinds that kernels have, each of which must be seen."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from ptxsim import CudaLibrary, Device, Report, SimError, build_library

SOURCE = Path(__file__).parent / "cuda" / "faults.cu"

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> CudaLibrary:
    return CudaLibrary(build_library([SOURCE], tmp_path_factory.mktemp("faults"), archs=[90]))


def numbers(library: CudaLibrary) -> dict[str, int]:
    names = library.handle.fault_names
    names.restype = ctypes.c_char_p
    return {name: n for n, name in enumerate(names().decode().split())}


def run(
    library: CudaLibrary,
    launcher: str,
    fault: str,
    sched: str,
    *,
    columns: int = 1003,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, Report]:
    """(result, float64 truth, report) of five rows, one of which begins with masked classes."""
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(0))
    x[3, :700] = -torch.inf
    lse = torch.empty(5)
    gpu = library.on(Device.of(90), sched=sched, seed=seed, noise=2)
    gpu.output(lse)
    assert gpu.call(launcher, numbers(library)[fault], x, lse, 5, columns) == 0
    assert gpu.written(lse)
    return lse, x.double().logsumexp(1), gpu.reports[-1]


def right(result: torch.Tensor, truth: torch.Tensor) -> bool:
    return bool((result.double() - truth).abs().max() < 1e-5)


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize("launcher", ["launch_rows", "launch_clusters"])
def test_without_a_fault(library: CudaLibrary, launcher: str, sched: str) -> None:
    for columns in (1003, 1024):
        result, truth, report = run(library, launcher, "none", sched, columns=columns)
        assert right(result, truth)
        assert not report.warnings
        assert report.read_bytes == 5 * columns * 4
        assert report.written_bytes == 5 * 4
    assert report.read_efficiency == 1


@pytest.mark.parametrize("sched", ["minpc", "random"])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing_sync", "race|uninitialised"),
        ("missing_second_sync", "race"),
        ("out_of_bounds", "out-of-bounds global access"),
        ("misaligned", "misaligned 16-byte access"),
        ("wrong_mask", "mask does not name"),
        ("wrong_stride", "out-of-bounds global access"),
        ("uninitialised", "uninitialised shared memory"),
    ],
)
def test_faults_that_raise(library: CudaLibrary, fault: str, message: str, sched: str) -> None:
    with pytest.raises(SimError, match=message):
        run(library, "launch_rows", fault, sched)


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_faults_that_change_the_result(library: CudaLibrary, sched: str) -> None:
    result, truth, _ = run(library, "launch_rows", "lost_tail", sched, columns=1026)
    assert not right(result, truth)
    result, truth, _ = run(library, "launch_rows", "nan_on_inf", sched)
    assert result.isnan().all()  # the unused partial sums of every row are -inf


def test_uncoalesced_access_shows_in_the_traffic(library: CudaLibrary) -> None:
    result, truth, report = run(library, "launch_rows", "uncoalesced", "minpc")
    assert right(result, truth)
    assert report.read_bytes == 5 * 1003 * 4
    assert report.read_efficiency < 0.5


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_missing_first_cluster_sync(library: CudaLibrary, sched: str) -> None:
    with pytest.raises(SimError, match=r"race|uninitialised"):
        run(library, "launch_clusters", "missing_first_cluster_sync", sched)


@pytest.mark.parametrize("sched", ["minpc", "random"])
def test_missing_last_cluster_sync(library: CudaLibrary, sched: str) -> None:
    with pytest.raises(SimError, match=r"has exited|may end before"):
        run(library, "launch_clusters", "missing_last_cluster_sync", sched)
