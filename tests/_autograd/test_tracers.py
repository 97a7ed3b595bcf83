"""Tensors without numbers: fakes, make_fx, AOT autograd, joint export. Nothing of them is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_export_module, aot_function, make_boxed_compiler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal import optests
from torch.utils.flop_counter import FlopCounterMode

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss

N, D, C = 4, 5, 7
DTYPES = [torch.float32, torch.float16]  # a gradient made in forward, and one in backward

# torch's own, where it traces
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

Loss = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture(params=[False, True], ids=["fresh", "in place"])
def inplace(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(params=REDUCTIONS)
def loss(request: pytest.FixtureRequest, inplace: bool, backend: str) -> Loss:
    options: dict[str, Any] = {
        "reduction": request.param,
        "label_smoothing": 0.1,
        "inplace": inplace,
        "backend": backend,
    }
    return lambda logits, target: label_smoothing_loss(logits * 1, target, **options).sum()


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(N, C).to(dtype).requires_grad_(), torch.randint(C, (N,))


def gradient(loss: Loss, logits: Tensor, target: Tensor) -> Tensor:
    return torch.autograd.grad(loss(logits, target), logits)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_tensors(dtype: torch.dtype, loss: Loss) -> None:
    with FakeTensorMode():
        logits, target = problem(dtype)
        grad = gradient(loss, logits, target)
    assert (grad.shape, grad.dtype) == (logits.shape, dtype)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_make_fx(dtype: torch.dtype, mode: str, loss: Loss) -> None:
    """The graph computes what was traced, of other numbers too."""
    graph = make_fx(lambda x, y: gradient(loss, x, y), tracing_mode=mode)(*problem(dtype))
    logits, target = problem(dtype)
    torch.testing.assert_close(graph(logits, target), gradient(loss, logits, target))


@pytest.mark.parametrize("dtype", DTYPES)
def test_aot_function(dtype: torch.dtype, loss: Loss) -> None:
    traced = aot_function(loss, fw_compiler=make_boxed_compiler(lambda graph, _: graph))
    logits, target = problem(dtype)
    torch.testing.assert_close(gradient(traced, logits, target), gradient(loss, logits, target))


def test_joint_graph(loss: Loss) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, C)

        def forward(self, hidden: Tensor, target: Tensor) -> tuple[Tensor]:
            return (loss(self.layer(hidden), target),)

    _, target = problem()
    inputs = (torch.randn(N, D), target)
    aot_export_module(Model(), inputs, trace_joint=True, output_loss_index=0)


def test_torchs_own_checks(loss: Loss) -> None:
    logits, target = problem()
    optests.fake_check(loss, (logits, target), {})
    optests.aot_autograd_check(loss, (logits, target), {}, dynamic=True)
    optests.make_fx_check(loss, (logits, target), {}, tracing_mode="symbolic")


def test_under_a_mode_that_looks_on(loss: Loss) -> None:
    """Numbers are at hand, and the results those of every day."""
    logits, target = problem()
    expected = gradient(loss, logits, target)
    with FlopCounterMode(display=False):
        grad = gradient(loss, logits, target)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("where", [torch.device("meta"), FakeTensorMode()], ids=["meta", "fake"])
def test_a_module_without_numbers(where: Any, inplace: bool, backend: str) -> None:
    """As models are made before their weights are sharded or loaded."""
    with where:
        module = FusedLabelSmoothingLoss(
            torch.ones(C),
            prior=torch.full((C,), 1 / C),
            label_smoothing=0.1,
            inplace=inplace,
            backend=backend,
        )
        logits, target = problem()
        grad = gradient(lambda x, y: module(x * 1, y), logits, target)
    assert grad.shape == (N, C)
