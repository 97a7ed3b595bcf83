"""What every test runs under: new memory holds NaN, every backend gets its turn."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core already; test_determinism takes more
    torch.set_num_threads(1)

BACKENDS = ["cpu", "eager"]  # "cuda" and "triton" join here, each with its device in `device`

# Property tests: "quick" draws the same calls each time; `make fuzz` takes "long", and others.
COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
settings.register_profile("quick", derandomize=True, max_examples=30, **COMMON)
settings.register_profile("long", max_examples=2000, print_blob=True, **COMMON)
settings.load_profile("quick")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend in ("cuda", "triton") else "cpu")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch fills new memory with NaN (integers: the largest): an output left unwritten shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
