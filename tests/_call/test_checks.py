"""Values are read only where that is possible: under no mode, transform or tracer of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss
from labelsmooth._call.checks import can_be_read

N, C = 4, 7


def seen_in(function: Callable[..., Any]) -> list[bool]:
    """What can_be_read says of the argument, in the transform that the function applies."""
    seen: list[bool] = []

    def look(tensor: Tensor) -> Tensor:
        seen.append(can_be_read(tensor))
        return tensor.sum()

    function(look)(torch.ones(3))
    return seen


def test_plain_tensors_can_be_read() -> None:
    for tensor in (torch.ones(3), torch.nn.Parameter(torch.ones(3)), torch.ones(3).bfloat16()):
        assert can_be_read(tensor)
    with torch.no_grad(), torch.autocast("cpu"), torch.device("cpu"):
        assert can_be_read(torch.ones(3))


@pytest.mark.parametrize(
    "transform",
    [torch.func.grad, torch.vmap, torch.func.functionalize, make_fx],
    ids=["grad", "vmap", "functionalize", "make_fx"],
)
def test_not_in_transforms(transform: Callable[..., Any]) -> None:
    def applied(look: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
        if transform is torch.vmap:
            return lambda tensor: torch.vmap(look)(tensor.expand(2, 3))
        if transform is make_fx:
            return lambda tensor: make_fx(look)(tensor)
        return transform(look)

    assert seen_in(applied) == [False]


def test_not_elsewhere() -> None:
    fake = FakeTensorMode()
    assert not can_be_read(fake.from_tensor(torch.ones(3)))
    for mode in (fake, FlopCounterMode(display=False)):
        with mode:
            assert not can_be_read(torch.ones(3))
    assert not can_be_read(torch.ones(3, device="meta"))
    assert not can_be_read(torch.eye(3).to_sparse())
    assert not can_be_read(TwoTensor(torch.ones(3), torch.ones(3)))
    assert not can_be_read([1.0])


def loss_with_prior(logits: Tensor, target: Tensor, backend: str) -> Tensor:
    prior = torch.full((C,), 1 / C)
    module = FusedLabelSmoothingLoss(prior=prior, label_smoothing=0.1, backend=backend)
    module.label_smoothing = 0.2
    called = label_smoothing_loss(logits, target, prior=prior, label_smoothing=0.2, backend=backend)
    return module(logits, target) + called


def test_fake_tensors_and_tracing_read_nothing(backend: str) -> None:
    logits, target = torch.randn(N, C), torch.arange(N)
    expected = loss_with_prior(logits, target, backend)
    graph = make_fx(loss_with_prior)(logits, target, backend)
    torch.testing.assert_close(graph(logits, target, backend), expected)
    with FlopCounterMode(display=False):
        torch.testing.assert_close(loss_with_prior(logits, target, backend), expected)
    with FakeTensorMode() as mode:
        fakes = mode.from_tensor(logits), mode.from_tensor(target)
        assert loss_with_prior(*fakes, backend).shape == ()
