"""Under DistributedDataParallel, FSDP, FSDP2 and DataParallel: the gradients of one large batch.

Two processes, each with two batches to accumulate, of unlike numbers of tokens. With the number of
all tokens for a normalizer, every token counts the same, wherever it is.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from labelsmooth import (
    FusedLabelSmoothingLoss,
    FusedLinearLabelSmoothingLoss,
    linear_label_smoothing_loss,
)

D, C, ROWS, WORLD = 8, 12, 32, 2


class Model(nn.Module):
    """Around the loss, as in such trainers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(D, C)
        weight, prior = torch.rand(C) + 0.5, torch.rand(C).softmax(0)
        self.loss = FusedLabelSmoothingLoss(weight, prior=prior, label_smoothing=0.1, inplace=True)

    def forward(self, hidden: Tensor, target: Tensor, normalizer: float | None = None) -> Any:
        return self.loss(self.layer(hidden), target, normalizer=normalizer)


class Tied(nn.Module):
    """The projection in the loss, as a submodule; the embedding is its weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(C, D)
        self.layer = nn.Linear(D, D)
        weight, prior = torch.rand(C) + 0.5, torch.rand(C).softmax(0)
        self.loss = FusedLinearLabelSmoothingLoss(
            D, C, bias=True, weight=weight, prior=prior, label_smoothing=0.1, chunk_rows=4
        )
        self.loss.linear.weight = self.embedding.weight

    def forward(self, hidden: Tensor, target: Tensor, normalizer: float | None = None) -> Any:
        hidden = hidden + self.embedding(target.clamp_min(0))
        return self.loss(torch.relu(self.layer(hidden)), target, normalizer=normalizer)


def large_batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    target = torch.randint(C, (ROWS,))
    target[[0, 1, 2, 3, 4, 9, 20]] = -100
    return torch.randn(ROWS, D), target


def token_weight(model: Model | Tied, target: Tensor) -> float:
    assert model.loss.weight is not None
    return model.loss.weight[target[target != -100]].sum().item()


def accumulate(model: Any, normalizer: float, rank: int, kind: str) -> list[Tensor]:
    """The rank's two batches; gradients are exchanged, as a mean over the ranks, after the last."""
    hidden, target = (part.chunk(WORLD)[rank].chunk(2) for part in large_batch())
    model.zero_grad()
    for last in (False, True):
        if kind == "fsdp":
            model.set_requires_gradient_sync(last)
        hold_back = kind == "ddp" and not last
        with model.no_sync() if hold_back else nullcontext():
            model(hidden[last], target[last], normalizer / WORLD).backward()
    grads = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]


def work(rank: int, store: str) -> None:
    """An error here is the parent's."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD
    )
    mesh = distributed.init_device_mesh("cpu", (WORLD,))
    for kind in (Model, Tied):
        model = kind()
        model(*large_batch()).backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]
        normalizer = token_weight(model, large_batch()[1])
        ddp = nn.parallel.DistributedDataParallel(model)
        torch.testing.assert_close(accumulate(ddp, normalizer, rank, "ddp"), expected)
        fsdp = fully_shard(kind(), mesh=mesh)
        torch.testing.assert_close(accumulate(fsdp, normalizer, rank, "fsdp"), expected)
    check_wrapped_apart(mesh)
    check_a_sharded_weight(mesh)
    check_buffers_of_fsdp()
    distributed.barrier()  # nobody leaves while another still has something to say
    distributed.destroy_process_group()


def check_wrapped_apart(mesh: Any) -> None:
    """As trainers wrap layers: in bfloat16."""
    hidden, target = large_batch()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = FusedLinearLabelSmoothingLoss(D, C, label_smoothing=0.1, chunk_rows=4)
    with torch.no_grad():
        model.linear.weight.copy_(torch.linspace(-1, 1, C * D).view(C, D))
    module = nn.Sequential(model)  # a root around it
    before = model.linear.weight.detach().clone()
    fully_shard(model, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh)
    model(hidden, target).backward()
    assert model.linear.weight.grad.dtype == torch.float32
    weight = before.bfloat16().requires_grad_()
    linear_label_smoothing_loss(
        hidden.bfloat16(), weight, target, label_smoothing=0.1, chunk_rows=4
    ).backward()
    torch.testing.assert_close(model.linear.weight.grad.full_tensor(), weight.grad.float())


def check_a_sharded_weight(mesh: Any) -> None:
    """Where the linear layer alone was wrapped its hooks never run: an error, on every rank."""
    model = FusedLinearLabelSmoothingLoss(D, C)
    fully_shard(model.linear, mesh=mesh)
    with pytest.raises(TypeError, match="got a DTensor: apply fully_shard"):
        model(*large_batch())


def check_buffers_of_fsdp() -> None:
    """FSDP of the first kind casts buffers; weight and prior are used, and saved, as they were."""
    model, batch = Model(), large_batch()
    fsdp = FullyShardedDataParallel(
        Model(),
        device_id=torch.device("cpu"),
        mixed_precision=MixedPrecision(buffer_dtype=torch.bfloat16),
    )
    loss = fsdp(*batch)
    assert fsdp.module.loss.prior.dtype == torch.bfloat16
    torch.testing.assert_close(loss, model(*batch))
    state = fsdp.state_dict()
    assert torch.equal(state["loss.weight"], model.loss.weight)
    assert torch.equal(state["loss.prior"], model.loss.prior)
    fsdp.load_state_dict(state | {"loss.prior": state["loss.prior"].flip(0)})
    model.loss.prior = model.loss.prior.flip(0)
    torch.testing.assert_close(fsdp(*batch), model(*batch))


def test_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=WORLD)


def test_data_parallel() -> None:
    """Without a GPU it calls the module itself."""
    model = Model()
    hidden, target = large_batch()
    torch.testing.assert_close(nn.DataParallel(model)(hidden, target).mean(), model(hidden, target))
