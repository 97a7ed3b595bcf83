"""How the tensors of a call lie over a device mesh, and what this rank has of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from .._autograd.sharded import summed_in_backward
from .._call.checks import GATHER_PARAMETERS

Placements = tuple[Placement, ...]


class Layout(NamedTuple):
    """Over the dimensions of a mesh."""

    mesh: DeviceMesh
    classes: int | None  # the dimension over which they lie
    rows: Placements  # of a tensor with one entry a row

    def with_axis(self, axis: int, *, of_classes: bool = False) -> Placements:
        """Of a tensor with one axis more than the rows: the classes, or one that is not sharded."""
        placements: list[Placement] = [
            Shard(p.dim + 1) if isinstance(p, Shard) and p.dim >= axis else p for p in self.rows
        ]
        if of_classes and self.classes is not None:
            placements[self.classes] = Shard(axis)
        return tuple(placements)

    @property
    def replicated(self) -> Placements:
        return (Replicate(),) * self.mesh.ndim

    @property
    def of_classes(self) -> Placements:
        """Of a tensor with one entry a class."""
        placements: list[Placement] = list(self.replicated)
        if self.classes is not None:
            placements[self.classes] = Shard(0)
        return tuple(placements)

    @property
    def of_sum(self) -> Placements:
        """Of a sum over this rank's rows."""
        return tuple(Partial() if isinstance(p, Shard) else p for p in self.rows)

    @property
    def class_group(self) -> str | None:
        return None if self.classes is None else self._group(self.classes)

    @property
    def row_groups(self) -> list[str]:
        return [self._group(dim) for dim, p in enumerate(self.rows) if isinstance(p, Shard)]

    def _group(self, dim: int) -> str:
        return self.mesh.get_group(dim).group_name


def class_group_of(tensor: Any, axis: int) -> str | None:
    """Over which the classes, an axis of the tensor, lie; None where there is none."""
    sharding = [dim for dim, p in enumerate(_normal(tensor)) if p == Shard(axis)]
    return tensor.device_mesh.get_group(sharding[0]).group_name if len(sharding) == 1 else None


# ---- of a call -----------------------------------------------------------------------------------


def layout_of_logits(logits: Any, axis: int) -> Layout:
    """By the placements of the logits, whose axis of classes is `axis`."""
    placements = _normal(logits)
    sharding = [dim for dim, p in enumerate(placements) if p == Shard(axis)]
    if len(sharding) > 1 or not all(type(p) in (Shard, Replicate) for p in placements):
        raise ValueError(
            f"logits: expected placements of Replicate() and Shard(), of which at most one is "
            f"Shard({axis}), that of the classes, got {logits.placements}"
        )

    def of_rows(placement: Placement) -> Placement:
        if not isinstance(placement, Shard) or placement.dim == axis:
            return Replicate()
        return Shard(placement.dim - (placement.dim > axis))

    return Layout(
        logits.device_mesh, sharding[0] if sharding else None, tuple(map(of_rows, placements))
    )


def layout_of_projection(hidden: Any, linear_weight: Any) -> Layout:
    """By the placements of the weight and of hidden states in a DTensor."""
    mesh, placements = linear_weight.device_mesh, _normal(linear_weight)
    sharding = [dim for dim, p in enumerate(placements) if p == Shard(0)]
    if len(sharding) > 1 or not all(type(p) is Replicate or p == Shard(0) for p in placements):
        raise TypeError(
            "linear_weight: expected a plain tensor, or a DTensor of placements Replicate() and at "
            f"most one Shard(0), got a DTensor of {linear_weight.placements}: {GATHER_PARAMETERS}"
        )
    classes = sharding[0] if sharding else None
    rows: Placements = (Replicate(),) * mesh.ndim
    if isinstance(hidden, DTensor):
        _check_mesh("hidden", hidden, mesh)
        rows = _normal(hidden)
        of_rows = {Replicate(), *map(Shard, range(hidden.dim() - 1))}
        if not of_rows.issuperset(rows) or (classes is not None and rows[classes] != Replicate()):
            raise ValueError(
                "hidden: expected placements of Replicate() and, where linear_weight is not "
                f"sharded, Shard() of an axis of rows, got {hidden.placements} beside "
                f"{linear_weight.placements}"
            )
    return Layout(mesh, classes, rows)


def placements_of_target(
    given: Any, layout: Layout, rows: torch.Size, axis: int
) -> dict[str, Placements]:
    """Few classes a row, probabilities of all, or an index."""
    target, few = given.target, layout.with_axis(axis)
    if given.target_probs is not None:
        return {"target": few, "target_probs": few}
    if isinstance(target, Tensor) and target.is_floating_point() and target.dim() == len(rows) + 1:
        return {"target": layout.with_axis(axis, of_classes=True)}
    return {"target": layout.rows}


# ---- of a tensor ---------------------------------------------------------------------------------


def _normal(tensor: Any) -> Placements:
    """Its placements, with dimensions from 0 on."""
    return tuple(Shard(p.dim % tensor.dim()) if type(p) is Shard else p for p in tensor.placements)


def _check_mesh(name: str, tensor: DTensor, mesh: DeviceMesh) -> None:
    if tensor.device_mesh != mesh:
        raise ValueError(f"{name}: expected {mesh}, got {tensor.device_mesh}")


def local_of(name: str, tensor: Any, placements: Placements, layout: Layout) -> Any:
    """What this rank has of a DTensor with the placements. A plain tensor fits where nothing is
    sharded."""
    if not isinstance(tensor, Tensor):
        return tensor  # about which others have more to say
    if not isinstance(tensor, DTensor):
        if any(isinstance(p, Shard) for p in placements):
            raise ValueError(
                f"{name}: expected a DTensor with placements {placements}, got a plain tensor, "
                "which would be the same on all ranks"
            )
        return tensor
    _check_mesh(name, tensor, layout.mesh)
    if _normal(tensor) != placements:
        raise ValueError(f"{name}: expected placements {placements}, got {tensor.placements}")
    return on_this_rank(tensor, placements)


def on_this_rank(tensor: DTensor, placements: Placements) -> Tensor:
    """Its local tensor, whose gradient has these placements."""
    local: Tensor = _Local.apply(tensor, placements)
    return local


class _Local(Function):
    """As to_local(), but the gradient has the tensor's own strides: from shards of unlike sizes
    torch computes others, for which autograd copies a leaf's gradient, and some versions gather
    it."""

    @staticmethod
    def forward(ctx: Any, tensor: DTensor, placements: Placements) -> Tensor:
        ctx.mesh, ctx.placements = tensor.device_mesh, placements
        ctx.shape, ctx.stride = tensor.shape, tensor.stride()
        local: Any = tensor.to_local()
        if hasattr(local, "trigger_wait"):  # a collective still makes it; for a view it is done
            local = torch.ops.aten.alias(local)
        return local.view_as(local)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _part_of(grad, ctx.mesh, ctx.placements, ctx.shape, ctx.stride), None


def summed_over_rows(tensor: Any, layout: Layout) -> Any:
    """A tensor that all rows share: its gradient is summed over the ranks' rows."""
    for group in layout.row_groups if isinstance(tensor, Tensor) else ():
        tensor = summed_in_backward(tensor, group)
    return tensor


def over_mesh(layout: Layout, local: Tensor, placements: Placements, shape: torch.Size) -> Tensor:
    """A rank's result as a part of one over the mesh."""
    stride = torch.empty(shape, device="meta").stride()
    return _part_of(local, layout.mesh, placements, shape, stride)


def _part_of(
    local: Tensor, mesh: DeviceMesh, placements: Placements, shape: torch.Size, stride: Any
) -> Tensor:
    whole: Tensor = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=shape, stride=stride
    )
    return whole
