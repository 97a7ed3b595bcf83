"""Every sample input that torch ships for its own cross_entropy, with torch's own answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import DTYPES, loss_dtype
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db

from labelsmooth import label_smoothing_loss

(CROSS_ENTROPY,) = (op for op in op_db if op.name == "nn.functional.cross_entropy")


def loss_and_gradients(function: Any, *arguments: Any, **options: Any) -> list[Tensor]:
    """Of all arguments that require one, class probabilities among them."""
    leaves = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    loss = function(*arguments, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, torch.ones_like(loss))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_sample_inputs(dtype: torch.dtype, backend: str) -> None:
    """torch computes as we do, in float32 or float64; then the gradient is rounded."""
    samples = list(CROSS_ENTROPY.sample_inputs("cpu", dtype, requires_grad=True))
    assert len(samples) > 20
    for sample in samples:
        arguments = (sample.input, *sample.args)

        def in_loss_dtype(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return value.to(loss_dtype(value))

        def theirs(*arguments: Any, **options: Any) -> Tensor:
            return CROSS_ENTROPY.op(*map(in_loss_dtype, arguments), **options)

        options = {name: in_loss_dtype(value) for name, value in sample.kwargs.items()}
        expected = loss_and_gradients(theirs, *arguments, **options)
        ours = loss_and_gradients(label_smoothing_loss, *arguments, **options, backend=backend)
        torch.testing.assert_close(ours, expected, equal_nan=True)
