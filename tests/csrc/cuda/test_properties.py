"""The properties of every call, of the CUDA kernels in the simulator: of whole rows, and of rows
that lie over ranks."""

from __future__ import annotations

import pytest
from cuda_kernels import needs_cuda, simulated_cuda
from functional.test_properties import *  # noqa: F403, every property, of the backend below

from labelsmooth._backends import eager

pytestmark = needs_cuda


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> str:
    gpu = simulated_cuda(90)
    gpu.scaled_ = eager.scaled_
    monkeypatch.setattr("labelsmooth._backends.sharded.choose_backend", lambda *_: gpu)
    return "auto"  # of tensors on the CPU, also where there is a GPU
