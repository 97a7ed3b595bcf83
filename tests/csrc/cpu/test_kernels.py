"""The kernels on numpy buffers, without torch: ranges of rows, odd addresses, strides."""

from typing import Any

import labelsmooth_kernels
import numpy as np
import pytest

POISON = 77
SMOOTHING = 0.1
DTYPES = {"float32": np.float32, "float64": np.float64, "float16": np.float16}


def dense(logits: Any, target: Any) -> tuple[Any, Any]:
    """Loss and gradient of each row in float64, from the definition."""
    x = logits.astype(np.float64)
    log_p = x - x.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    q = np.full_like(x, SMOOTHING / x.shape[1])
    q[np.arange(len(target)), target] += 1 - SMOOTHING
    return -(q * log_p).sum(1), np.exp(log_p) - q


def run(dtype: str, logits: Any, target: Any, grad: Any, begin: int, end: int) -> Any:
    """The loss of the rows, POISON where [begin, end) left it."""
    accumulate = np.float64 if dtype == "float64" else np.float32
    loss, row_stats = (np.full((*of, len(target)), POISON, accumulate) for of in ((), (4,)))
    labelsmooth_kernels.forward(dtype, logits, target, grad, loss, row_stats, SMOOTHING, begin, end)
    return loss


def bits(array: Any) -> Any:
    """float16 as the kernels' bindings take it."""
    return array.view(np.uint16) if array.dtype == np.float16 else array


# One class, a part of a vector, whole vectors, the unrolled step and a tail, two tiles.
@pytest.mark.parametrize("classes", [1, 5, 16, 70, 20000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "odd address", "padded rows", "columns"])
def test_rows_of_every_layout(layout: str, dtype: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    rows, element = 4, DTYPES[dtype]
    values = (3 * rng.standard_normal((rows, classes))).astype(element)
    target = rng.integers(0, classes, rows)

    def place(fill: Any) -> tuple[Any, Any]:
        """A buffer of POISON and, within it, a matrix of the layout."""
        buffer = np.full(2 * rows * (classes + 8), POISON, element)
        if layout == "columns":
            matrix = buffer[: rows * classes].reshape(classes, rows).T
        elif layout == "padded rows":
            matrix = buffer[: rows * (classes + 3)].reshape(rows, classes + 3)[:, :classes]
        else:
            start = 1 if layout == "odd address" else 0
            matrix = buffer[start : start + rows * classes].reshape(rows, classes)
        matrix[:] = fill
        return buffer, matrix

    _, logits = place(values)
    buffer, grad = place(POISON)
    loss = run(dtype, bits(logits), target, bits(grad), 1, 3)

    expected_loss, expected_grad = dense(values, target)
    tolerance = {"float32": 2e-6, "float64": 1e-13, "float16": 1e-3}[dtype]
    np.testing.assert_allclose(loss[1:3], expected_loss[1:3], rtol=2e-6)
    np.testing.assert_allclose(grad[1:3], expected_grad[1:3], atol=tolerance)
    assert (loss[[0, 3]] == POISON).all()
    assert (np.delete(grad, [1, 2], 0) == POISON).all()
    grad[1:3] = POISON
    assert (buffer == POISON).all()
    assert (logits == values).all()


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((3, 100)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    values = (logits.astype(np.uint32) << 16).view(np.float32)
    target = np.array([0, 50, 99])
    grad = np.zeros_like(logits)
    loss = run("bfloat16", logits, target, grad, 0, 3)
    expected_loss, expected_grad = dense(values, target)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    made = (grad.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(made, expected_grad, rtol=2**-8, atol=1e-9)
