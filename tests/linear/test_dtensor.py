"""The projection's weight as a DTensor: equal to one process, on any mesh."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checks import REDUCTIONS
from gloo import on_ranks
from linear_checks import Outcome, assert_exact, projection, truth
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

from labelsmooth import (
    FusedLinearLabelSmoothingLoss,
    SparseTarget,
    linear_label_smoothing_loss,
)

Group = Any  # ProcessGroup
Placements = tuple[Any, ...]
R, S0, S1, SUM = Replicate(), Shard(0), Shard(1), Partial("sum")
N, D, C = 7, 3, 11
LINE, SQUARE = (4,), (2, 2)

# The shape of a mesh, the placements of the weight, of the hidden states (None: a plain tensor)
# and of the loss's sum.
LAYOUTS: list[tuple[tuple[int, ...], Placements, Placements | None, Placements]] = [
    (LINE, (S0,), None, (R,)),
    (LINE, (S0,), (R,), (R,)),
    (LINE, (R,), None, (R,)),
    (LINE, (R,), (S0,), (SUM,)),
    (SQUARE, (R, S0), None, (R, R)),
    (SQUARE, (S0, R), (R, R), (R, R)),
    (SQUARE, (R, S0), (S0, R), (SUM, R)),
    (SQUARE, (S0, R), (R, S0), (R, SUM)),
    (SQUARE, (R, R), (S0, S0), (SUM, SUM)),
]


@cache
def mesh_of(*shape: int) -> DeviceMesh:
    return init_device_mesh("cpu", shape)


def placed(whole: Tensor, mesh: Any, placements: Placements | None) -> Tensor:
    return whole if placements is None else distribute_tensor(whole, mesh, placements)


def whole_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check(
    layout: tuple[Any, ...],
    classes: int = C,
    kind: str = "index",
    *,
    recompute: bool = False,
    **options: Any,
) -> None:
    """Loss and gradients, by a backward of the loss as it comes and of the whole one."""
    mesh_shape, of_weight, of_hidden, of_sum = layout
    mesh = mesh_of(*mesh_shape)
    given = projection(N, D, classes, bias=True)
    target: Any = torch.randint(classes, (N,))
    target[[0, 1, 6]] = -100
    rows = None if of_hidden in (None, (R,) * mesh.ndim) else of_hidden
    of_target = rows
    if kind == "few":
        target = SparseTarget.mix(target, target.roll(1), 0.3)
    elif kind == "probabilities":
        target = torch.rand(N, classes).double().softmax(1)
        of_target = tuple(
            S1 if weight == S0 else hidden
            for weight, hidden in zip(of_weight, of_hidden or of_weight, strict=True)
        )
    of_classes, of_rows = torch.rand(classes).double(), torch.rand(N).double()
    expected = truth(given, target, weight=of_classes, row_weight=of_rows, **options)
    placements = (of_hidden, of_weight, of_weight)
    for of_whole in (False, True):
        whole = zip(given, placements, strict=True)
        leaves = [placed(t, mesh, p).clone().detach().requires_grad_() for t, p in whole]
        loss = linear_label_smoothing_loss(
            *leaves[:2],
            SparseTarget(*(placed(t, mesh, rows) for t in target))
            if kind == "few"
            else placed(target, mesh, of_target),
            linear_bias=leaves[2],
            weight=of_classes,
            row_weight=placed(of_rows, mesh, rows),
            chunk_rows=2,
            recompute=recompute,
            **options,
        )
        assert isinstance(loss, DTensor)
        if options["reduction"] == "none":
            assert loss.placements == (of_hidden or (R,) * mesh.ndim)
        else:
            assert loss.placements == of_sum
        backward = loss.full_tensor() if of_whole else loss
        backward.backward(torch.ones_like(backward))
        for leaf, place in zip(leaves, placements, strict=True):
            assert place is None or leaf.grad.placements == place
        grads = [whole_of(leaf.grad) for leaf in leaves]
        assert_exact(Outcome(loss.full_tensor().detach(), grads), expected)


@on_ranks(4)
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_layouts(group: Group, layout: int, reduction: str) -> None:
    for kind in ("index", "few", "probabilities"):
        check(LAYOUTS[layout], kind=kind, reduction=reduction, label_smoothing=0.1)


@on_ranks(4)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("classes", [5, 2])
def test_uneven_and_empty_shards(group: Group, classes: int, recompute: bool) -> None:
    for layout in (0, 6):
        check(LAYOUTS[layout], classes, reduction="mean", recompute=recompute)


@on_ranks(4)
def test_more_axes_and_none(group: Group) -> None:
    mesh = mesh_of(2, 2)
    given = projection(24, D, C)
    linear_weight = distribute_tensor(given.linear_weight, mesh, (R, S0))
    target = torch.randint(C, (24,))
    whole = linear_label_smoothing_loss(given.hidden, given.linear_weight, target, reduction="none")
    hidden = distribute_tensor(given.hidden.view(4, 6, D), mesh, (S1, R))
    loss, stats = linear_label_smoothing_loss(
        hidden,
        linear_weight,
        distribute_tensor(target.view(4, 6), mesh, (S1, R)),
        reduction="none",
        return_stats=True,
    )
    for made in (loss, *stats):
        assert made.placements == (S1, R)
        assert made.shape == (4, 6)
    torch.testing.assert_close(loss.full_tensor(), whole.view(4, 6))
    loss = linear_label_smoothing_loss(given.hidden[0], linear_weight, target[0], reduction="none")
    torch.testing.assert_close(loss.to_local(), whole[0])


@on_ranks(4)
def test_partial_hidden_gradients(group: Group) -> None:
    """Left to be summed by whoever has a better place for it."""
    given, target = projection(6, D, C), torch.randint(C, (6,))
    expected = truth(given, target)
    mesh = mesh_of(2, 2)
    hidden = distribute_tensor(given.hidden, mesh, (S0, R)).requires_grad_()
    linear_weight = distribute_tensor(given.linear_weight, mesh, (R, S0))
    rows = distribute_tensor(target, mesh, (S0, R))
    linear_label_smoothing_loss(hidden, linear_weight, rows, partial_hidden_grad=True).backward()
    assert hidden.grad.placements == (S0, SUM)
    torch.testing.assert_close(hidden.grad.full_tensor(), expected.grads[0])
    plain = given.hidden.clone().requires_grad_()
    linear_label_smoothing_loss(plain, linear_weight, target, partial_hidden_grad=True).backward()
    dist.all_reduce(plain.grad, group=mesh.get_group(1))
    torch.testing.assert_close(plain.grad, expected.grads[0])


@on_ranks(4)
def test_a_learned_scale(group: Group) -> None:
    given, target = projection(6, D, C, bias=True), torch.randint(C, (6,))
    alone = torch.tensor(0.7).double().requires_grad_()
    linear_label_smoothing_loss(
        *given[:2], target, linear_bias=given[2], logit_scale=alone
    ).backward()
    for mesh_shape, of_weight, of_hidden, _ in LAYOUTS:
        mesh = mesh_of(*mesh_shape)
        rows = None if of_hidden in (None, (R,) * mesh.ndim) else of_hidden
        for partial in (False, True):
            scale = alone.detach().clone().requires_grad_()
            linear_label_smoothing_loss(
                placed(given.hidden, mesh, of_hidden).requires_grad_(),
                placed(given.linear_weight, mesh, of_weight),
                placed(target, mesh, rows),
                linear_bias=placed(given[2], mesh, of_weight),
                logit_scale=scale,
                partial_hidden_grad=partial,
            ).backward()
            torch.testing.assert_close(scale.grad, alone.grad)


@on_ranks(4)
@pytest.mark.parametrize("bias", [False, True])
def test_module(group: Group, bias: bool) -> None:
    """Its parameters may be distributed, as parallelize_module does it."""
    module = FusedLinearLabelSmoothingLoss(D, C, bias=bias, label_smoothing=0.1)
    hidden, target = torch.randn(N, D), torch.randint(C, (N,))
    expected = module(hidden, target)
    expected.backward()
    whole = [parameter.grad for parameter in module.parameters()]
    for name, parameter in list(module.linear.named_parameters()):
        spread = distribute_tensor(parameter.detach(), mesh_of(4), (S0,))
        module.linear.register_parameter(name, nn.Parameter(spread))
    loss = module(hidden, target)
    loss.backward()
    torch.testing.assert_close(loss.to_local(), expected)
    for parameter, grad in zip(module.parameters(), whole, strict=True):
        assert parameter.grad.placements == (S0,)
        torch.testing.assert_close(parameter.grad.full_tensor(), grad)


# ---- errors --------------------------------------------------------------------------------------


def on_mesh(tensor: Tensor, *placements: Any) -> Any:
    return lambda: distribute_tensor(tensor, mesh_of(2, 2), placements)


def partial_weight() -> Tensor:
    return DTensor.from_local(torch.randn(C, D), mesh_of(2, 2), (R, SUM))


WEIGHT, HIDDEN = torch.randn(C, D), torch.randn(6, D)
GATHER = r"apply fully_shard\(\) to the FusedLinear"
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "features in parts": (
        {"linear_weight": on_mesh(WEIGHT, R, S1)},
        TypeError,
        rf"linear_weight: expected a plain tensor, or a DTensor of .*Shard\(dim=1\)\): {GATHER}",
    ),
    "classes over two dimensions": (
        {"linear_weight": on_mesh(WEIGHT, S0, S0)},
        TypeError,
        rf"at most one Shard\(0\), got a DTensor of \(Shard\(dim=0\), Shard\(dim=0\)\): {GATHER}",
    ),
    "partial weight": ({"linear_weight": partial_weight}, TypeError, r"Partial\(sum\)"),
    "rows over the dimension of the classes": (
        {"hidden": on_mesh(HIDDEN, R, S0)},
        ValueError,
        r"hidden: expected placements of Replicate\(\) and, where linear_weight is not sharded, "
        r"Shard\(\) of an axis of rows, got \(Replicate\(\), Shard\(dim=0\)\) beside",
    ),
    "hidden states in parts": (
        {"hidden": on_mesh(HIDDEN, S1, R)},
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
        {"hidden": on_mesh(HIDDEN, S0, R)},
        ValueError,
        r"target: expected a DTensor with placements \(Shard\(dim=0\), Replicate\(\)\)",
    ),
    "plain weight": (
        {"hidden": on_mesh(HIDDEN, R, R), "linear_weight": WEIGHT},
        TypeError,
        "hidden: expected a plain tensor, got a DTensor",
    ),
    "bias alone": (
        {"linear_weight": WEIGHT, "linear_bias": on_mesh(torch.randn(C), R, S0)},
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
        "linear_weight": on_mesh(WEIGHT, R, S0),
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
        call(hidden=on_mesh(HIDDEN, S0, R), target=lambda: DTensor.from_local(rows, mesh, (S0, R)))
    call()
