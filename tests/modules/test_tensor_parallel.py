"""Beside tensor parallelism on one mesh axis and FSDP2 on the other: the weights of one process.

Each half of the mesh has its rows of the batch, of unlike numbers of tokens that count. With the
number of all tokens for a normalizer, every token counts the same, wherever it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from labelsmooth import FusedLabelSmoothingLoss, FusedLinearLabelSmoothingLoss

Group = Any  # ProcessGroup
TOKENS, D, C, ROWS, STEPS = 11, 8, 14, 12, 4
WIDTHS = {"even": C, "uneven": 13}


@cache
def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, D)
        self.up = nn.Linear(D, 2 * D)
        self.down = nn.Linear(2 * D, D)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        result: Tensor = hidden + self.down(torch.relu(self.up(hidden)))
        return result


class WithHead(nn.Module):
    """Its logits go to the loss as they lie."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = Trunk(), nn.Linear(D, classes)
        weight = torch.rand(classes) + 0.5
        self.loss = FusedLabelSmoothingLoss(weight, label_smoothing=0.1)

    def forward(self, tokens: Tensor, target: Tensor, normalizer: float) -> Any:
        return self.loss(self.head(self.trunk(tokens)), target, normalizer=normalizer)


class WithProjection(nn.Module):
    """Has no logits: the head is the loss's own."""

    def __init__(self, classes: int, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = Trunk()
        weight = torch.rand(classes) + 0.5
        self.loss = FusedLinearLabelSmoothingLoss(
            D, classes, bias=True, weight=weight, label_smoothing=0.1, chunk_rows=4
        )

    def forward(self, tokens: Tensor, target: Tensor, normalizer: float) -> Any:
        return self.loss(self.trunk(tokens), target, normalizer=normalizer)


class WithItsShare(WithProjection):
    """Beside process_group: a plain weight of this rank's classes alone."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        whole = self.loss
        group, rank = mesh().get_group("tp"), mesh().get_local_rank("tp")
        self.loss = FusedLinearLabelSmoothingLoss(
            *(D, classes),
            bias=True,
            weight=whole.weight,
            label_smoothing=0.1,
            chunk_rows=4,
            process_group=group,
        )
        parts = zip(self.loss.linear.parameters(), whole.linear.parameters(), strict=True)
        with torch.no_grad():
            for part, parameter in parts:
                part.copy_(parameter.chunk(2)[rank])


def batch(classes: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    target = torch.randint(classes, (ROWS,))
    target[[0, 1, 2, 8]] = -100
    return torch.randint(TOKENS, (ROWS,)), target


def train(model: Any, tokens: Tensor, target: Tensor, normalizer: float) -> list[float]:
    """The loss of each step, whole over its classes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        loss = model(tokens, target, normalizer)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss.full_tensor() if isinstance(loss, DTensor) else loss).item())
    return losses


def check(make: Any, classes: int, apply: Any, of: Any = None) -> None:
    """`of`: the model of one process, where it is another."""
    tokens, target = batch(classes)
    alone = (of or make)(classes)
    count = alone.loss.weight[target[target != -100]].sum().item()
    expected = train(alone, tokens, target, count)
    model = make(classes)
    apply(model)
    fully_shard(model.trunk, mesh=mesh()["dp"])
    fully_shard(model, mesh=mesh()["dp"])
    half = mesh().get_local_rank("dp")
    # FSDP takes the mean over its ranks.
    losses = torch.tensor(train(model, tokens.chunk(2)[half], target.chunk(2)[half], count / 2))
    dist.all_reduce(losses, group=mesh().get_group("dp"))
    torch.testing.assert_close(losses / 2, torch.tensor(expected))
    for (name, ours), truth in zip(model.named_parameters(), alone.parameters(), strict=True):
        whole = ours.full_tensor()
        if whole.shape != truth.shape:
            truth = truth.chunk(2)[mesh().get_local_rank("tp")]
        torch.testing.assert_close(whole, truth, msg=lambda said, name=name: f"{name}: {said}")


MLP = {"trunk.up": ColwiseParallel(), "trunk.down": RowwiseParallel()}


@on_ranks(4)
@pytest.mark.parametrize("width", WIDTHS)
def test_logits(group: Group, width: str) -> None:
    def apply(model: WithHead) -> None:
        head = {"head": ColwiseParallel(use_local_output=False)}
        parallelize_module(model, mesh()["tp"], {**MLP, **head})

    check(WithHead, WIDTHS[width], apply)


@on_ranks(4)
@pytest.mark.parametrize("width", WIDTHS)
def test_projection(group: Group, width: str) -> None:
    """Of the linear layer parallelize_module takes the parameters apart; it is never called."""

    def apply(model: WithProjection) -> None:
        parallelize_module(model, mesh()["tp"], {**MLP, "loss.linear": ColwiseParallel()})

    check(WithProjection, WIDTHS[width], apply)


@on_ranks(4)
@pytest.mark.parametrize("width", WIDTHS)
def test_projection_beside_a_process_group(group: Group, width: str) -> None:
    def apply(model: WithItsShare) -> None:
        parallelize_module(model, mesh()["tp"], MLP)

    check(WithItsShare, WIDTHS[width], apply, of=WithProjection)
