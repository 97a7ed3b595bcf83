"""A projection in DTensors that the loss cannot take, or beside it what does not lie as it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import on_ranks
from meshes import S0, S1, SUM, R, mesh_of, on_square
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from labelsmooth import FusedLinearLabelSmoothingLoss, linear_label_smoothing_loss

Group = Any  # ProcessGroup
D, C = 3, 11


def partial_weight() -> Tensor:
    return DTensor.from_local(torch.randn(C, D), mesh_of(2, 2), (R, SUM))


WEIGHT, HIDDEN = torch.randn(C, D), torch.randn(6, D)
GATHER = r"apply fully_shard\(\) to the FusedLinear"
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "features in parts": (
        {"linear_weight": on_square(WEIGHT, R, S1)},
        TypeError,
        rf"linear_weight: expected a plain tensor, or a DTensor of .*Shard\(dim=1\)\): {GATHER}",
    ),
    "classes over two dimensions": (
        {"linear_weight": on_square(WEIGHT, S0, S0)},
        TypeError,
        rf"at most one Shard\(0\), got a DTensor of \(Shard\(dim=0\), Shard\(dim=0\)\): {GATHER}",
    ),
    "partial weight": ({"linear_weight": partial_weight}, TypeError, r"Partial\(sum\)"),
    "rows over the dimension of the classes": (
        {"hidden": on_square(HIDDEN, R, S0)},
        ValueError,
        r"hidden: expected placements of Replicate\(\) and, where linear_weight is not sharded, "
        r"Shard\(\) of an axis of rows, got \(Replicate\(\), Shard\(dim=0\)\) beside",
    ),
    "hidden states in parts": (
        {"hidden": on_square(HIDDEN, S1, R)},
        ValueError,
        r"hidden: .* got \(Shard\(dim=1\), Replicate\(\)\)",
    ),
    "hidden states of another mesh": (
        {"hidden": lambda: distribute_tensor(HIDDEN, mesh_of(4), (R,))},
        ValueError,
        "hidden: expected DeviceMesh",
    ),
    "plain bias": (
        {"linear_bias": torch.randn(C)},
        ValueError,
        r"linear_bias: expected a DTensor with placements \(Replicate\(\), Shard\(dim=0\)\)",
    ),
    "plain target": (
        {"hidden": on_square(HIDDEN, S0, R)},
        ValueError,
        r"target: expected a DTensor with placements \(Shard\(dim=0\), Replicate\(\)\)",
    ),
    "plain weight": (
        {"hidden": on_square(HIDDEN, R, R), "linear_weight": WEIGHT},
        TypeError,
        "hidden: expected a plain tensor, got a DTensor",
    ),
    "bias alone": (
        {"linear_weight": WEIGHT, "linear_bias": on_square(torch.randn(C), R, S0)},
        TypeError,
        f"linear_bias: expected a plain tensor, got a DTensor: {GATHER}",
    ),
    "process_group": (
        {"process_group": lambda: mesh_of(2, 2).get_group(1)},
        ValueError,
        "process_group: expected None beside linear_weight in a DTensor",
    ),
    "num_classes": (
        {"num_classes": C + 1},
        ValueError,
        "num_classes: expected at most 11, the classes of the linear_weight, got 12",
    ),
    "no tensor": ({"hidden": [1.0]}, TypeError, "hidden: expected a tensor, got list"),
    "other features": (
        {"hidden": torch.randn(6, D + 1)},
        ValueError,
        r"linear_weight: expected shape \(C, 4\)",
    ),
}


def call(**changed: Any) -> Any:
    made = {
        "hidden": HIDDEN,
        "linear_weight": on_square(WEIGHT, R, S0),
        "target": torch.zeros(6, dtype=torch.int64),
        **changed,
    }
    return linear_label_smoothing_loss(**{k: v() if callable(v) else v for k, v in made.items()})


@on_ranks(4)
@pytest.mark.parametrize("case", ERRORS)
def test_errors(group: Group, case: str) -> None:
    changed, kind, said = ERRORS[case]
    with pytest.raises(kind, match=said):
        call(**changed)
    call()  # nothing is left of it


@on_ranks(4)
def test_a_weight_that_is_not_gathered(group: Group) -> None:
    """Its placements are those of a vocabulary in parts, but each rank has rows of its own."""
    rank = dist.get_rank()
    head = fully_shard(nn.Linear(D, C, bias=False), mesh=mesh_of(4))
    with pytest.raises(ValueError, match=rf"target: expected the same on all ranks .*{GATHER}"):
        linear_label_smoothing_loss(HIDDEN, head.weight, torch.full((6,), rank))
    with pytest.raises(ValueError, match=rf"rows: expected the same on all ranks .*{GATHER}"):
        linear_label_smoothing_loss(HIDDEN[rank:], head.weight, torch.zeros(6).long()[rank:])
    model = FusedLinearLabelSmoothingLoss(D, C)
    fully_shard(model.linear, mesh=mesh_of(4))
    with pytest.raises(TypeError, match=f"linear_weight: .* got a DTensor: {GATHER}"):
        model(HIDDEN, torch.zeros(6).long())


@on_ranks(4)
def test_what_one_rank_alone_sees(group: Group) -> None:
    mesh, rank = mesh_of(2, 2), dist.get_rank()
    rows = torch.zeros(2 if rank == 3 else 3, dtype=torch.int64)
    kind, said = (
        (ValueError, "target: expected") if rank == 3 else (RuntimeError, "the call failed on")
    )
    with pytest.raises(kind, match=said):
        call(
            hidden=on_square(HIDDEN, S0, R), target=lambda: DTensor.from_local(rows, mesh, (S0, R))
        )
    call()
