"""The fused projection on the built CUDA kernels, in the simulator; the products are torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from cuda_kernels import ARCHS, needs_cuda, simulated_cuda
from linear_checks import assert_exact, error, projection, run, targets, truth

from labelsmooth._backends import eager, sharded
from labelsmooth._backends.linear import loop, sizes

pytestmark = needs_cuda

N, D, C = 10, 4, 129


@pytest.fixture(params=ARCHS)
def on_the_simulator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loop chooses for a GPU: its kernel, its dtypes; no rows are left out."""
    gpu: Any = simulated_cuda(request.param)
    gpu.scaled_ = eager.scaled_
    monkeypatch.setattr(sharded, "choose_backend", lambda name, device: gpu)
    monkeypatch.setattr("labelsmooth._autograd.linear.choose_backend", lambda name, device: gpu)
    monkeypatch.setattr(sizes, "product_dtype", lambda dtype, device: dtype)
    monkeypatch.setattr(loop._Call, "_rows_that_count", lambda call: None)


@pytest.mark.usefixtures("on_the_simulator")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values(reduction: str) -> None:
    given, target = projection(N, D, C, bias=True), targets(N, C)
    options: dict[str, Any] = {
        "reduction": reduction,
        "label_smoothing": 0.1,
        "smooth_over": "others",
        "weight": torch.rand(C, dtype=torch.float64) + 0.5,
        "lse_square_scale": 0.01,
    }
    for recompute in (False, True):
        ours = run(given, target, chunk_rows=4, recompute=recompute, **options)
        assert_exact(ours, truth(given, target, **options))


@pytest.mark.usefixtures("on_the_simulator")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_16_bits(reduction: str, dtype: torch.dtype) -> None:
    """float16 in one step too, its slab times a power of two."""
    given, target = projection(N, D, C, dtype=dtype), targets(N, C)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    ours = run(given, target, chunk_rows=4, **options)
    for grad, true in zip(ours.grads, truth(given, target, **options).grads, strict=True):
        assert error(grad, true) < 4 * torch.finfo(dtype).eps
