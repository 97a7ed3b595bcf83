"""The properties of every call, of the CUDA kernels in the simulator: of whole rows, and of rows
that lie over ranks."""

from __future__ import annotations

from typing import Any

import pytest
from cuda_kernels import needs_cuda, simulated_cuda
from functional.test_properties import *  # noqa: F403, every property, of the backend below
from shards import InShards

from labelsmooth._backends import eager

pytestmark = needs_cuda


@pytest.fixture(params=["whole rows", "over ranks"])
def backend(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    gpu = simulated_cuda(90)
    gpu.scaled_ = eager.scaled_
    chosen = gpu if request.param == "whole rows" else InShards(gpu)
    monkeypatch.setattr("labelsmooth._backends.sharded.choose_backend", lambda *_: chosen)
    return "auto"  # of tensors on the CPU, also where there is a GPU
