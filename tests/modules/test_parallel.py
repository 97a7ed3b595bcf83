"""Under DistributedDataParallel, FSDP, FSDP2 and DataParallel: the gradients of one large batch.

Two processes, each with two batches to accumulate, of unlike numbers of tokens. With the number of
all tokens for a normalizer, every token counts the same, wherever it is.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.distributed.tensor import DTensor

from labelsmooth import FusedLabelSmoothingLoss

D, C, ROWS, WORLD = 8, 12, 32, 2


class Model(nn.Module):
    """The loss inside of what is wrapped, in its usual place in such trainers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(D, C)
        weight, prior = torch.rand(C) + 0.5, torch.rand(C).softmax(0)
        self.loss = FusedLabelSmoothingLoss(weight, prior=prior, label_smoothing=0.1, inplace=True)

    def forward(self, hidden: Tensor, target: Tensor, normalizer: float | None = None) -> Any:
        return self.loss(self.layer(hidden), target, normalizer=normalizer)


def large_batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    target = torch.randint(C, (ROWS,))
    target[[0, 1, 2, 3, 4, 9, 20]] = -100
    return torch.randn(ROWS, D), target


def token_weight(model: Model, target: Tensor) -> float:
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
    """What each process does; an error here is the parent's."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD
    )
    model = Model()
    model(*large_batch()).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    normalizer = token_weight(model, large_batch()[1])
    ddp = nn.parallel.DistributedDataParallel(model)
    torch.testing.assert_close(accumulate(ddp, normalizer, rank, "ddp"), expected)
    mesh = distributed.init_device_mesh("cpu", (WORLD,))
    fsdp = fully_shard(Model(), mesh=mesh)
    torch.testing.assert_close(accumulate(fsdp, normalizer, rank, "fsdp"), expected)
    check_buffers_of_fsdp()
    distributed.destroy_process_group()


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
    """Without a GPU it calls the module itself; with several it makes replicas of it."""
    model = Model()
    hidden, target = large_batch()
    torch.testing.assert_close(nn.DataParallel(model)(hidden, target).mean(), model(hidden, target))
