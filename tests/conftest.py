"""What every test runs under: new memory holds NaN, every backend gets its turn."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from labelsmooth._backends.choose import CUDA_ARCHITECTURES, HAS_TRITON, choose_backend

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks: poisoned_memory, below
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core already; test_determinism takes more
    torch.set_num_threads(1)

# Backends of a device that is not here are left out rather than skipped, test by test.
HAS_GPU = torch.cuda.is_available()
GPU_BACKENDS = [
    *(["cuda"] if HAS_GPU and CUDA_ARCHITECTURES else []),
    *(["triton"] if HAS_GPU and HAS_TRITON else []),
]
BACKENDS = ["cpu", "eager", *GPU_BACKENDS]

# Property tests: "quick" draws the same calls each time; `make fuzz` takes "long", and others.
COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("quick", derandomize=True, max_examples=15, **COMMON)
settings.register_profile("long", max_examples=2000, print_blob=True, **COMMON)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before each file, since torch.testing._internal loads a profile of its own."""
    settings.load_profile(collector.config.getoption("--hypothesis-profile") or "quick")


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.gpu if name in GPU_BACKENDS else ())
        for name in BACKENDS
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not HAS_GPU:
        pytest.skip("needs a GPU, and torch finds none")


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """What a test makes the machine look like is no other's."""
    forget = getattr(choose_backend, "cache_clear", lambda: None)  # gpu_stand_in.py has no memory
    forget()
    yield
    forget()


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where a GPU's backend takes tensors; a bad target is seen as on the CPU."""
    names = request.fixturenames
    if "backend" not in names or request.getfixturevalue("backend") not in GPU_BACKENDS:
        yield
        return
    monkeypatch.setenv("LABELSMOOTH_CHECK", "1")
    with torch.device("cuda"):
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """An output left unwritten shows: NaN (integers: the largest)."""
    torch.use_deterministic_algorithms(True, warn_only=HAS_GPU)  # where torch has no other
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
