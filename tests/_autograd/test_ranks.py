"""The loss over ranks in compiled code: one graph, whose collective is one of torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import on_ranks

from labelsmooth import (
    FusedLabelSmoothingLoss,
    FusedLinearLabelSmoothingLoss,
    label_smoothing_loss,
)

Group = Any
N, C_R, D = 6, 5, 3


@on_ranks(2)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled(group: Group, reduction: str, inplace: bool, compiler: str) -> None:
    torch.compiler.reset()

    def step(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return label_smoothing_loss(
            hidden * 2,
            target,
            process_group=group,
            reduction=reduction,
            inplace=inplace,
            label_smoothing=0.1,
        )

    hidden = torch.randn(N, C_R, requires_grad=True)
    target = torch.arange(N)
    expected = step(hidden, target)
    (grad,) = torch.autograd.grad(expected.sum(), hidden)
    loss = torch.compile(step, fullgraph=True, backend=compiler)(hidden, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), hidden)[0], grad)


@on_ranks(2)
def test_the_graph_has_the_collective(group: Group) -> None:
    torch.compiler.reset()
    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    module = FusedLabelSmoothingLoss(process_group=group)
    step = torch.compile(module, fullgraph=True, backend=aot_autograd(fw_compiler=keep))
    step(torch.randn(N, C_R, requires_grad=True), torch.arange(N)).backward()
    assert sum("_c10d_functional.all_gather" in target for target in seen) == 1
    assert sum("_c10d_functional" in target for target in seen) == 2  # and its wait


@on_ranks(2)
def test_compiled_projection(group: Group) -> None:
    torch.compiler.reset()
    classes = C_R * dist.get_world_size(group)
    module = FusedLinearLabelSmoothingLoss(D, classes, process_group=group, label_smoothing=0.1)
    hidden, target = torch.randn(N, D, requires_grad=True), torch.arange(N)
    expected = module(hidden, target)
    expected.backward()
    grads = [hidden.grad, module.linear.weight.grad]
    hidden.grad = module.linear.weight.grad = None
    loss = torch.compile(module, fullgraph=True)(hidden, target)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for grad, of in zip(grads, (hidden, module.linear.weight), strict=True):
        torch.testing.assert_close(of.grad, grad)
