"""The projection's weight as a DTensor: equal to one process, on any mesh."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from checks import REDUCTIONS
from gloo import on_ranks
from linear_checks import Outcome, assert_exact, projection, truth
from meshes import LINE, S0, S1, SQUARE, SUM, Placements, R, mesh_of
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from labelsmooth import (
    FusedLinearLabelSmoothingLoss,
    SparseTarget,
    linear_label_smoothing_loss,
)

Group = Any  # ProcessGroup
N, D, C = 7, 3, 11

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
