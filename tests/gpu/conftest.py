"""These need a GPU: each test takes its turn with each of its backends."""

from __future__ import annotations

import pytest
from conftest import GPU_BACKENDS


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.gpu) for name in GPU_BACKENDS or ["gpu"]]
)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def unchecked(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are not looked at, which waits for the GPU."""
    monkeypatch.delenv("LABELSMOOTH_CHECK", raising=False)
