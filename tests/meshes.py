"""Meshes of the four ranks that tests run on, and tensors on them."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

Placements = tuple[Any, ...]
R, S0, S1, S2, SUM = Replicate(), Shard(0), Shard(1), Shard(2), Partial("sum")
LINE, SQUARE = (4,), (2, 2)


@cache
def mesh_of(*shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", shape)


def on_square(tensor: Tensor, *placements: Any) -> Any:
    """To be called where the ranks are."""
    return lambda: distribute_tensor(tensor, mesh_of(*SQUARE), placements)


def as_rows_lie(whole: Tensor, mesh: Any, rows: Placements) -> Tensor:
    """Plain where each rank has all of it."""
    return distribute_tensor(whole, mesh, rows) if any(p != R for p in rows) else whole
