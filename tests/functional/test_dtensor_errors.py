"""Logits in a DTensor that the loss cannot take, or beside them what does not lie as they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from gloo import on_ranks
from meshes import S0, S1, SUM, Placements, R, mesh_of, on_square
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from labelsmooth import SparseTarget, label_smoothing_loss

Group = Any  # ProcessGroup


def given_of(placements: Placements, **changed: Any) -> dict[str, Any]:
    """A call of logits of (6, 8) with these placements, of which some arguments are changed."""
    mesh = mesh_of(2, 2)
    logits = distribute_tensor(torch.randn(6, 8), mesh, placements)
    made = {"logits": logits, "target": torch.randint(8, (6,))}
    return made | {k: v() if callable(v) else v for k, v in changed.items()}


def of_sums() -> Tensor:
    return DTensor.from_local(torch.randn(6, 8), mesh_of(2, 2), (SUM, S1))


ROWS = on_square(torch.zeros(6, dtype=torch.int64), S0, R)
ERRORS: dict[str, tuple[Placements, dict[str, Any], type[Exception], str]] = {
    "partial logits": (
        (R, S1),
        {"logits": of_sums},
        ValueError,
        r"logits: expected placements of Replicate\(\) and Shard\(\), of which at most one is "
        r"Shard\(1\), that of the classes, got \(Partial\(sum\), Shard\(dim=1\)\)",
    ),
    "classes over two dimensions": (
        (S1, S1),
        {},
        ValueError,
        r"at most one is Shard\(1\), that of the classes, got \(Shard\(dim=1\), Shard",
    ),
    "plain target beside rows on the mesh": (
        (S0, S1),
        {},
        ValueError,
        r"target: expected a DTensor with placements \(Shard\(dim=0\), Replicate\(\)\), "
        "got a plain tensor, which would be the same on all ranks",
    ),
    "target that lies otherwise": (
        (R, S1),
        {"target": ROWS},
        ValueError,
        r"target: expected placements \(Replicate\(\), Replicate\(\)\), got \(Shard\(dim=0\)",
    ),
    "target of another mesh": (
        (R, S1),
        {"target": lambda: distribute_tensor(torch.zeros(6).long(), mesh_of(4), (R,))},
        ValueError,
        "target: expected DeviceMesh",
    ),
    "plain probabilities": (
        (R, S1),
        {"target": torch.rand(6, 8)},
        ValueError,
        r"target: expected a DTensor with placements \(Replicate\(\), Shard\(dim=1\)\)",
    ),
    "plain classes of a SparseTarget": (
        (S0, S1),
        {"target": SparseTarget(torch.zeros(6, 2).long(), torch.ones(6, 2))},
        ValueError,
        r"target\.classes: expected a DTensor with placements \(Shard\(dim=0\), Replicate",
    ),
    "plain row_weight": (
        (S0, S1),
        {"target": ROWS, "row_weight": torch.ones(6)},
        ValueError,
        r"row_weight: expected a DTensor with placements \(Shard\(dim=0\), Replicate",
    ),
    "sharded weight": (
        (R, S1),
        {"weight": on_square(torch.ones(8), R, S0)},
        ValueError,
        r"weight: expected placements \(Replicate\(\), Replicate\(\)\), got \(Replicate",
    ),
    "weight that requires grad": (
        (R, S1),
        {"weight": torch.ones(8, requires_grad=True)},
        TypeError,
        "weight: expected a tensor that does not require grad beside process_group or a DTensor",
    ),
    "process_group": (
        (R, S1),
        {"process_group": lambda: mesh_of(2, 2).get_group(1)},
        ValueError,
        "process_group: expected None beside logits in a DTensor",
    ),
    "class_offset": (
        (R, S1),
        {"class_offset": 0, "num_classes": 8},
        ValueError,
        "class_offset: expected None beside logits in a DTensor, whose placements tell it, got 0",
    ),
    "num_classes": (
        (R, S1),
        {"num_classes": 9},
        ValueError,
        "num_classes: expected at most 8, the classes of the logits, got 9",
    ),
    "target of another shape": (
        (S0, S1),
        {"target": on_square(torch.zeros(4, dtype=torch.int64), S0, R)},
        ValueError,
        r"target: expected shape \(3,\) for logits of shape \(3, 4\), got \(2,\)",
    ),
    "float target": (
        (R, S1),
        {"target": torch.zeros(6)},
        TypeError,
        "target: expected an integer dtype for class indices",
    ),
    "no tensor for a target": ((S0, S1), {"target": 3}, TypeError, "target: expected a tensor"),
    "a target that is no class": (
        (R, S1),
        {"target": torch.full((6,), 8)},
        IndexError,
        r"target of row 0 on rank 0: expected a class in \[0, 8\)",
    ),
}


@on_ranks(4)
@pytest.mark.parametrize("case", ERRORS)
def test_errors(group: Group, case: str) -> None:
    placements, changed, kind, said = ERRORS[case]
    with pytest.raises(kind, match=said):
        label_smoothing_loss(**given_of(placements, **changed))
    label_smoothing_loss(**given_of((R, S1)))  # nothing is left of it


@on_ranks(4)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_one_rank_alone_sees(group: Group, reduction: str) -> None:
    """No other one waits for it, in its group of classes, nor for "mean" on the mesh."""
    rank = torch.distributed.get_rank()
    target = torch.zeros(2 if rank == 3 else 3, dtype=torch.int64)
    given = given_of((S0, S1), target=lambda: DTensor.from_local(target, mesh_of(2, 2), (S0, R)))
    kind, said = RuntimeError, "the call failed on"
    if rank == 3:
        kind, said = ValueError, "target: expected shape"
    if rank in (2, 3) or reduction == "mean":
        with pytest.raises(kind, match=said):
            label_smoothing_loss(**given, reduction=reduction)
    else:
        label_smoothing_loss(**given, reduction=reduction)
    label_smoothing_loss(**given_of((R, S1)))


@on_ranks(4)
def test_shares_that_are_none_of_the_placement(group: Group) -> None:
    logits = DTensor.from_local(
        torch.randn(6, 1 + torch.distributed.get_rank()),
        mesh_of(4),
        (S1,),
        shape=torch.Size((6, 10)),
        stride=(10, 1),
    )
    with pytest.raises((ValueError, RuntimeError), match=r"classes on this rank|failed on rank"):
        label_smoothing_loss(logits, torch.zeros(6).long())


@on_ranks(4)
def test_plain_logits_beside_dtensors(group: Group) -> None:
    target = distribute_tensor(torch.zeros(6).long(), mesh_of(4), (R,))
    with pytest.raises(TypeError, match=r"target: expected a plain tensor, got a DTensor"):
        label_smoothing_loss(torch.randn(6, 8), target)
