"""Classes over one axis of a mesh, rows over the other: gradients of one process with all of both.

docs/many-gpus.md says how; these are its wrappers and options.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gloo import on_ranks
from torch import Tensor, distributed, nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from labelsmooth import FusedLinearLabelSmoothingLoss, label_smoothing_loss

Group = Any
D, C, ROWS = 8, 51, 24


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, target, the projection, and a layer before it."""
    torch.manual_seed(1)
    target = torch.randint(C, (ROWS,))
    target[:5] = -100
    return torch.randn(ROWS, D), target, torch.randn(C, D), torch.randn(D, D)


def fused(group: Group, **options: Any) -> FusedLinearLabelSmoothingLoss:
    """With its rows of the projection."""
    loss = FusedLinearLabelSmoothingLoss(D, C, process_group=group, label_smoothing=0.1, **options)
    with torch.no_grad():
        loss.linear.weight.copy_(own_rows(batch()[2], loss))
    return loss


def own_rows(whole: Tensor, loss: FusedLinearLabelSmoothingLoss) -> Tensor:
    first = loss.class_offset or 0
    return whole[first : first + loss.linear.out_features]


class Model(nn.Module):
    def __init__(self, group: Group) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(D, D, bias=False), fused(group)
        with torch.no_grad():
            self.layer.weight.copy_(batch()[3])

    def forward(self, hidden: Tensor, target: Tensor, normalizer: Tensor) -> Any:
        return self.loss(self.layer(hidden), target, normalizer=normalizer)


@on_ranks(4)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_data_parallel(group: Group, wrapper: str) -> None:
    hidden, target, *parameters = batch()
    projection, layer = (parameter.requires_grad_() for parameter in parameters)
    F.cross_entropy(hidden @ layer.t() @ projection.t(), target, label_smoothing=0.1).backward()

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    data, rank = mesh["data"].get_group(), mesh["data"].get_local_rank()
    hidden, target = hidden.chunk(2)[rank], target.chunk(2)[rank]
    tokens = (target != -100).sum()
    distributed.all_reduce(tokens, group=data)
    model: Any = Model(mesh["classes"].get_group())
    wrapped = model
    if wrapper == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model, process_group=data)
    else:
        fully_shard(model.loss, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
    wrapped(hidden, target, tokens / 2).backward()
    expected = [layer.grad, own_rows(projection.grad, model.loss)]
    torch.testing.assert_close([whole(p.grad) for p in model.parameters()], expected)


def whole(tensor: Any) -> Any:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@on_ranks(2)
def test_sequence_parallel(group: Group) -> None:
    """Each rank has some rows; the backward of their gather sums its partial gradients."""
    hidden, target, projection, _ = batch()
    expected = hidden.clone().requires_grad_()
    F.cross_entropy(expected @ projection.t(), target, label_smoothing=0.1).backward()
    rank = distributed.get_rank(group)
    rows = hidden.chunk(2)[rank].clone().requires_grad_()
    every = all_gather_tensor_autograd(rows, gather_dim=0, group=group)
    fused(group, partial_hidden_grad=True)(every, target).backward()
    assert expected.grad is not None
    torch.testing.assert_close(rows.grad, expected.grad.chunk(2)[rank])


@on_ranks(2)
def test_whole_logits_in_place_of_a_part(group: Group) -> None:
    """An error where each rank says which classes it has. Else they pass for parts of more classes,
    as nobody can tell."""
    hidden, target, projection, _ = batch()
    logits = hidden @ projection.t()
    with pytest.raises(ValueError, match=r"num_classes.*adjacent"):
        label_smoothing_loss(logits, target, process_group=group, class_offset=0, num_classes=C)
    loss = label_smoothing_loss(logits, target, process_group=group)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target) + math.log(2))
