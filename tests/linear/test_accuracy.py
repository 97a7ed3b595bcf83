"""Errors against float64: no larger than those of torch's plain way in the same dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import REDUCTIONS, ROUNDING
from linear_checks import Projection, error, projection, run, targets, truth
from torch import Tensor

from labelsmooth._backends.linear import sizes

N, D, C = 128, 64, 1000
HALF = [torch.bfloat16, torch.float16]
# How much larger than torch's our error may be: it is the same numbers, rounded at the same places.
HAIR = 1.02


def plain(given: Projection, target: Tensor, grad_loss: Tensor | None, **options: Any) -> Any:
    leaves = given.leaves()
    logits = F.linear(*leaves)
    loss = F.cross_entropy(logits.float(), target, **options)
    grad_loss = torch.ones_like(loss) if grad_loss is None else grad_loss
    return [grad.cpu() for grad in torch.autograd.grad(loss, leaves.tensors(), grad_loss)]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("chunk_rows", [40, N])
@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_no_worse_than_torch(
    factor: float, dtype: torch.dtype, reduction: str, chunk_rows: int, backend: str
) -> None:
    """An incoming gradient may cost one rounding more, where gradients are made in forward; so may
    a chunk's product, where the CPU has no products of 16 bits with sums in float32."""
    given, target = projection(N, D, C, bias=True, dtype=dtype), targets(N, C)
    options: dict[str, Any] = {"label_smoothing": 0.1, "reduction": reduction}
    grad_loss = factor * (torch.rand(N) + 0.5 if reduction == "none" else torch.ones(()))
    true = truth(given, target, grad_loss=grad_loss, **options)
    ours = run(
        given, target, grad_loss=grad_loss, chunk_rows=chunk_rows, backend=backend, **options
    )
    grads = plain(given, target, grad_loss, **options)
    roundings = (factor != 1.0) + (chunk_rows != N)
    for grad, of_torch, expected in zip(ours.grads, grads, true.grads, strict=True):
        assert grad.dtype == dtype
        allowed = HAIR * error(of_torch, expected) + roundings * ROUNDING[dtype]
        assert error(grad, expected) <= allowed + 4 * ROUNDING[torch.float32]


@pytest.mark.parametrize("dtype", HALF)
def test_the_weights_gradient_does_not_lose_digits_with_the_chunks(
    dtype: torch.dtype, backend: str
) -> None:
    """Far better than sums that are rounded after each chunk."""
    rows = 512
    given, target = projection(rows, D, C, dtype=dtype), torch.randint(C, (rows,))
    expected = truth(given, target, reduction="sum").grads[1]

    def error_of(chunk_rows: int) -> float:
        ours = run(given, target, reduction="sum", chunk_rows=chunk_rows, backend=backend)
        return error(ours.grads[1], expected)

    many = error_of(rows // 64)
    assert many <= 1.1 * error_of(rows // 2)
    assert many <= error_of(rows) + ROUNDING[dtype]
    rounded = torch.zeros(C, D, dtype=dtype)
    for part, y in zip(given.hidden.split(8), target.split(8), strict=True):
        rounded += truth(given._replace(hidden=part), y, reduction="sum").grads[1].to(dtype)
    assert many < 0.7 * error(rounded, expected)


def test_the_targets_gradient_survives(backend: str) -> None:
    """p - 1 of a confident row is as small as 1 - p: not what is left of p rounded to bfloat16."""
    logit = 7.0  # p = 0.9991 of two classes; the nearest bfloat16 is 1
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.bfloat16)
    given = Projection(torch.tensor([[logit]], dtype=torch.bfloat16), weight, None)
    ours = run(given, torch.tensor([0]), backend=backend)
    expected = truth(given, torch.tensor([0]))
    for grad, true in zip(ours.grads, expected.grads, strict=True):
        torch.testing.assert_close(grad.double(), true, rtol=2**-7, atol=0)


@pytest.mark.parametrize("weight_scale", [1.0, 500.0])
@pytest.mark.parametrize("recompute", [False, True])
def test_float16_neither_underflows_nor_overflows(
    weight_scale: float, recompute: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a/C of 128k classes is 7.8e-7, subnormal in float16, and p of the same order; with products
    in float16, as a GPU has them. The mean's 1/N comes with the loss scaler's factor."""
    on_a_gpu(monkeypatch)
    classes, rows = 131_072, 4
    given, target = projection(rows, 4, classes, dtype=torch.float16), torch.tensor([0, 1, 2, 3])
    options: dict[str, Any] = {"label_smoothing": 0.1}
    options["weight"] = torch.full((classes,), weight_scale)
    factor = torch.tensor(65536.0)
    ours = run(
        given,
        target,
        grad_loss=factor,
        recompute=recompute,
        chunk_rows=2,
        backend=backend,
        **options,
    )
    expected = truth(given, target, grad_loss=factor, **options)
    for grad, true in zip(ours.grads, expected.grads, strict=True):
        assert error(grad, true) < 4 * ROUNDING[torch.float16]
    grad, true = ours.grads[1], expected.grads[1]
    small = true.abs() < true.abs().median()  # of classes that are no target
    assert error(grad[small], true[small]) < 4 * ROUNDING[torch.float16]


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "product_dtype", lambda dtype, device: dtype)


@pytest.mark.parametrize("recompute", [False, True])
def test_float16_is_not_divided_by_the_rows_before_it_is_scaled(
    recompute: bool, backend: str
) -> None:
    """Gradients of the mean are 1/N of those of a row: subnormal, until the loss scaler's factor
    comes with the incoming gradient."""
    rows = 8192
    given = projection(rows, 16, 64, dtype=torch.float16)
    given = given._replace(linear_weight=given.linear_weight / 16)  # small, as initialised layers
    target, factor = torch.randint(64, (rows,)), torch.tensor(65536.0)
    ours = run(given, target, grad_loss=factor, recompute=recompute, backend=backend)
    expected = truth(given, target, grad_loss=factor)
    for grad, true in zip(ours.grads, expected.grads, strict=True):
        assert error(grad, true) < 2 * ROUNDING[torch.float16]


@pytest.mark.parametrize(
    "options", [{"lse_square_scale": 1.0}, {"logit_scale": 300.0}, {"weight_scale": 900.0}], ids=str
)
def test_float16_has_room_for_large_gradients(
    options: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    given = projection(12, 4, 50, dtype=torch.float16)
    options = dict(options)
    if scale := options.pop("weight_scale", None):
        options["weight"] = torch.full((50,), scale)
    if "logit_scale" in options:
        given = given._replace(hidden=given.hidden / 100)
    target, factor = torch.randint(50, (12,)), torch.tensor(1 / 1024)
    options |= {"reduction": "sum", "chunk_rows": 5}
    ours = run(given, target, grad_loss=factor, backend=backend, **options)
    options.pop("chunk_rows")
    expected = truth(given, target, grad_loss=factor, **options)
    for grad, true in zip(ours.grads, expected.grads, strict=True):
        assert error(grad, true) < 8 * ROUNDING[torch.float16]


def test_float16_sums_of_many_rows_of_one_class(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch)
    given = projection(2048, 4, 9, dtype=torch.float16)
    given = given._replace(hidden=given.hidden.abs())
    target = torch.zeros(2048, dtype=torch.int64)
    ours = run(given, target, chunk_rows=1024, backend=backend)
    for grad, true in zip(ours.grads, truth(given, target).grads, strict=True):
        assert error(grad, true) < 4 * ROUNDING[torch.float16]


def test_float16_products_of_a_large_weight(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states in float32 under autocast, after a layer norm, say."""
    on_a_gpu(monkeypatch)
    given, target = projection(9, 8, 9, dtype=torch.float32), torch.randint(9, (9,))
    given = given._replace(linear_weight=100 * given.linear_weight, hidden=given.hidden / 10)
    with torch.autocast("cpu", dtype=torch.float16):
        ours = run(given, target, reduction="sum", backend=backend)
    for grad, true in zip(ours.grads, truth(given, target, reduction="sum").grads, strict=True):
        assert error(grad, true) < 16 * ROUNDING[torch.float16]


def test_a_large_common_offset_costs_no_digits(backend: str) -> None:
    """Logits that float32 holds exactly, with an offset of 1e4: the loss has all its digits."""
    weight = torch.randint(-1000, 1000, (50, 6)) / 512
    given = Projection(torch.eye(6), weight, torch.full((50,), 1e4))
    target = torch.randint(50, (6,))
    expected = F.cross_entropy(weight.T.double(), target)
    ours = run(given, target, backend=backend).loss
    torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=0)
