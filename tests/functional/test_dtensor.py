"""Logits as a DTensor: equal to one process, on any mesh, and back comes what lies as they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import REDUCTIONS, Outcome, assert_equals_reference
from gloo import on_ranks
from meshes import LINE, S0, S1, S2, SQUARE, SUM, Placements, R, as_rows_lie, mesh_of
from reference import reference
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel

from labelsmooth import FusedLabelSmoothingLoss, SparseTarget, label_smoothing_loss

Group = Any  # ProcessGroup

# The shape of a mesh, the placements of logits, those of the rows, and those of their sum.
LAYOUTS: list[tuple[tuple[int, ...], Placements, Placements, Placements]] = [
    (LINE, (S1,), (R,), (R,)),
    (LINE, (R,), (R,), (R,)),
    (LINE, (S0,), (S0,), (SUM,)),
    (SQUARE, (R, S1), (R, R), (R, R)),
    (SQUARE, (S1, R), (R, R), (R, R)),
    (SQUARE, (S0, S1), (S0, R), (SUM, R)),
    (SQUARE, (S1, S0), (R, S0), (R, SUM)),
    (SQUARE, (S0, S0), (S0, S0), (SUM, SUM)),
    (SQUARE, (S0, R), (S0, R), (SUM, R)),
    (SQUARE, (R, R), (R, R), (R, R)),
]
OF_IMAGES: list[tuple[tuple[int, ...], Placements, Placements, Placements]] = [
    (SQUARE, (S2, S1), (S1, R), (SUM, R)),
    (SQUARE, (S0, S2), (S0, S1), (SUM, SUM)),
    (SQUARE, (S1, Shard(3)), (R, S2), (R, SUM)),
]


def target_of(
    kind: str, logits: Tensor, mesh: Any, placements: Placements, rows: Placements
) -> tuple[Any, Any]:
    shape, classes = logits.shape, logits.shape[1]
    with_axis = tuple(R if p == S1 else p for p in placements)
    if kind == "probabilities":
        target = torch.rand(shape).double().softmax(1)
        return target, as_rows_lie(target, mesh, placements)
    if kind == "few":
        of = torch.randint(classes, (shape[0], 3, *shape[2:]))
        of[0] = of[1, 0] = -100
        pair = SparseTarget(of, torch.rand(of.shape).double())
        return pair, SparseTarget(*(as_rows_lie(part, mesh, with_axis) for part in pair))
    target = torch.randint(classes, shape[:1] + shape[2:])
    target[[0, 1, -1]] = -100
    return target, as_rows_lie(target, mesh, rows)


def check(
    layout: tuple[Any, ...],
    shape: tuple[int, ...],
    kind: str = "index",
    *,
    dtype: torch.dtype = torch.float64,
    weights: bool = True,
    **options: Any,
) -> None:
    """Loss, statistics and gradient, by a backward of the loss as it comes and of the whole one."""
    mesh_shape, placements, rows, of_sum = layout
    mesh = mesh_of(*mesh_shape)
    logits = (3 * torch.randn(shape).double()).to(dtype)
    whole, target = target_of(kind, logits, mesh, placements, rows)
    given: dict[str, Any] = dict(options)
    if weights:
        options["weight"], options["row_weight"] = (
            torch.rand(shape[1]),
            torch.rand(shape[:1] + shape[2:]),
        )
        given["weight"] = options["weight"]
        given["row_weight"] = as_rows_lie(options["row_weight"], mesh, rows)
    truth = reference(logits, whole, **options)
    for of_whole in (False, True):
        leaf = distribute_tensor(logits, mesh, placements).requires_grad_()
        loss, stats = label_smoothing_loss(leaf, target, return_stats=True, **given)
        assert isinstance(loss, DTensor)
        assert loss.placements == (rows if options["reduction"] == "none" else of_sum)
        value = loss.full_tensor()
        backward = value if of_whole else loss
        backward.backward(torch.ones_like(backward)) if backward.dim() else backward.backward()
        assert leaf.grad.placements == placements
        ours = Outcome(value.detach(), leaf.grad.full_tensor())
        assert_equals_reference(ours, truth, logits)
        for name in ("nll", "lse", "predicted"):
            stat = getattr(stats, name)
            assert stat.placements == rows
            assert stat.shape == getattr(truth, name).shape
            counts = truth.nll != 0
            came, expected = stat.full_tensor()[counts], getattr(truth, name)[counts]
            torch.testing.assert_close(came.to(expected.dtype), expected, rtol=1e-5, atol=1e-5)


@on_ranks(4)
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
@pytest.mark.parametrize("kind", ["index", "few", "probabilities"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_layouts(group: Group, layout: int, kind: str, reduction: str) -> None:
    check(LAYOUTS[layout], (6, 11), kind, reduction=reduction, label_smoothing=0.1)


@on_ranks(4)
@pytest.mark.parametrize("layout", range(len(OF_IMAGES)))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_further_axes(group: Group, layout: int, reduction: str) -> None:
    for kind in ("index", "few", "probabilities"):
        check(OF_IMAGES[layout], (4, 6, 5, 3), kind, reduction=reduction, label_smoothing=0.1)


@on_ranks(4)
@pytest.mark.parametrize("layout", [0, 2, 4, 5])
@pytest.mark.parametrize("shape", [(6, 5), (5, 4), (3, 2)])
def test_uneven_and_empty_shards(group: Group, layout: int, shape: tuple[int, int]) -> None:
    """As torch.chunk has them: 2, 2, 1 and none of 5."""
    for reduction in REDUCTIONS:
        check(LAYOUTS[layout], shape, reduction=reduction, label_smoothing=0.1)


@on_ranks(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(group: Group, dtype: torch.dtype) -> None:
    for layout in (0, 5):
        check(LAYOUTS[layout], (6, 11), dtype=dtype, reduction="mean", weights=False)


@on_ranks(4)
@pytest.mark.parametrize("layout", [0, 1])
def test_no_row_axis(group: Group, layout: int) -> None:
    mesh, placements = mesh_of(4), ((S0,), (R,))[layout]
    logits, target = torch.randn(11).double(), torch.tensor(7)
    for soft in (False, True):
        whole = torch.rand(11).double().softmax(0) if soft else target
        given = as_rows_lie(whole, mesh, placements) if soft else target
        for reduction in REDUCTIONS:
            options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
            leaf = distribute_tensor(logits, mesh, placements).requires_grad_()
            loss = label_smoothing_loss(leaf, given, **options)
            loss.backward()
            assert loss.shape == ()
            assert loss.placements == (R,)
            assert leaf.grad.placements == placements
            truth = reference(logits, whole, **options)
            ours = Outcome(loss.full_tensor().detach(), leaf.grad.full_tensor())
            assert_equals_reference(ours, truth, logits)


@on_ranks(4)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding(group: Group, reduction: str) -> None:
    logits, target = torch.randn(6, 12).double(), torch.randint(5, (6,))
    for mesh_shape, placements in ((LINE, (S1,)), (SQUARE, (S1, R)), (LINE, (R,))):
        leaf = distribute_tensor(logits, mesh_of(*mesh_shape), placements).requires_grad_()
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
        loss = label_smoothing_loss(leaf, target, num_classes=5, **options)
        loss.sum().backward()
        truth = reference(logits[:, :5], target, **options)
        torch.testing.assert_close(loss.full_tensor(), truth.loss)
        grad = F.pad(truth.grad_logits, (0, 7))
        torch.testing.assert_close(leaf.grad.full_tensor(), grad)


@on_ranks(4)
def test_normalizer_and_vectors_on_the_mesh(group: Group) -> None:
    mesh = mesh_of(2, 2)
    logits, target = torch.randn(6, 11).double(), torch.randint(11, (6,))
    weight, prior = torch.rand(11).double(), torch.rand(11).double().softmax(0)

    def everywhere(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, mesh, (R, R))

    options: dict[str, Any] = {"label_smoothing": 0.1, "weight": weight, "prior": prior}
    truth = reference(logits, target, normalizer=7.0, **options)
    for normalizer in (7.0, torch.tensor(7.0), everywhere(torch.tensor(7.0))):
        leaf = distribute_tensor(logits, mesh, (S0, S1)).requires_grad_()
        options["weight"], options["prior"] = everywhere(weight), everywhere(prior)
        loss = label_smoothing_loss(
            leaf, distribute_tensor(target, mesh, (S0, R)), normalizer=normalizer, **options
        )
        loss.backward()
        assert loss.placements == (SUM, R)
        torch.testing.assert_close(loss.full_tensor(), truth.loss)
        torch.testing.assert_close(leaf.grad.full_tensor(), truth.grad_logits)
    with pytest.raises(ValueError, match="prior: expected non-negative numbers that sum to 1"):
        label_smoothing_loss(everywhere(logits), target, prior=everywhere(weight))


@on_ranks(4)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_row_counts(group: Group, reduction: str) -> None:
    for ignored in (6, 3):
        target = torch.tensor([-100] * ignored + [1] * (6 - ignored))
        logits = torch.randn(6, 4).double()
        leaf = distribute_tensor(logits, mesh_of(2, 2), (S0, S1)).requires_grad_()
        loss = label_smoothing_loss(
            leaf, distribute_tensor(target, mesh_of(2, 2), (S0, R)), reduction=reduction
        )
        loss.sum().backward()
        alone = logits.clone().requires_grad_()
        expected = label_smoothing_loss(alone, target, reduction=reduction)
        expected.sum().backward()
        torch.testing.assert_close(loss.full_tensor(), expected, equal_nan=True)
        torch.testing.assert_close(leaf.grad.full_tensor(), alone.grad, equal_nan=True)


@on_ranks(4)
def test_a_learned_scale(group: Group) -> None:
    """Also where the rows lie over the mesh."""
    logits, target = torch.randn(6, 11).double(), torch.randint(11, (6,))
    alone = torch.tensor(0.7).double().requires_grad_()
    label_smoothing_loss(logits, target, logit_scale=alone).backward()
    for mesh_shape, placements, rows, _ in LAYOUTS:
        mesh = mesh_of(*mesh_shape)
        for scale in (alone.detach(), distribute_tensor(alone.detach(), mesh, (R,) * mesh.ndim)):
            scale = scale.clone().requires_grad_()
            loss = label_smoothing_loss(
                distribute_tensor(logits, mesh, placements),
                as_rows_lie(target, mesh, rows),
                logit_scale=scale,
            )
            loss.backward()
            grad = scale.grad.full_tensor() if isinstance(scale, DTensor) else scale.grad
            torch.testing.assert_close(grad, alone.grad)


@on_ranks(4)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_inplace(group: Group, reduction: str) -> None:
    """The gradient is a fresh one: who has saved the DTensor knows its versions, not those of the
    memory."""
    logits, target = torch.randn(6, 11).double(), torch.randint(11, (6,))
    truth = reference(logits, target, reduction=reduction)
    leaf = distribute_tensor(logits, mesh_of(2, 2), (S0, S1)).requires_grad_()
    rows = distribute_tensor(target, mesh_of(2, 2), (S0, R))
    given = leaf.clone()
    squares = given.square().sum()
    loss = label_smoothing_loss(given, rows, inplace=True, reduction=reduction)
    loss.sum().backward()
    (of_squares,) = torch.autograd.grad(squares, leaf)
    torch.testing.assert_close(of_squares.full_tensor(), 2 * logits)
    ours = Outcome(loss.full_tensor().detach(), leaf.grad.full_tensor())
    assert_equals_reference(ours, truth, logits)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        label_smoothing_loss(leaf, rows, inplace=True)


@on_ranks(4)
def test_logits_that_are_still_on_their_way(group: Group) -> None:
    """As parallelize_module leaves them: a collective has begun to make the local tensor."""
    logits, target = torch.randn(8, 12).double(), torch.randint(12, (8,))
    leaf = distribute_tensor(logits, mesh_of(4), (S0,)).requires_grad_()
    for placements in ((S1,), (R,)):
        pending = leaf.redistribute(placements=placements, async_op=True)
        label_smoothing_loss(pending, target).backward()
        truth = reference(logits, target)
        torch.testing.assert_close(leaf.grad.full_tensor(), truth.grad_logits)
        leaf.grad = None


@on_ranks(4)
def test_module(group: Group) -> None:
    logits, target = torch.randn(6, 11), torch.randint(11, (6,))
    weight = torch.rand(11)
    module = FusedLabelSmoothingLoss(weight, label_smoothing=0.1)
    loss = module(distribute_tensor(logits, mesh_of(4), (S1,)), target)
    torch.testing.assert_close(loss.to_local(), module(logits, target))


@on_ranks(4)
@pytest.mark.parametrize("layout", [0, 3, 4, 5, 6])
@pytest.mark.parametrize("reduction", ["sum", "none", "mean"])
def test_placements_of_loss_parallel(group: Group, layout: int, reduction: str) -> None:
    """torch's own, where it works: without smoothing, and for "mean", or until some version of
    torch, on a line alone."""
    mesh_shape, placements, rows, _ = LAYOUTS[layout]
    if mesh_shape != LINE and (
        reduction == "mean" or "multi-dimensional" not in str(loss_parallel.__doc__)
    ):
        return
    mesh = mesh_of(*mesh_shape)
    logits, target = torch.randn(6, 8).double(), torch.randint(8, (6,))
    theirs = distribute_tensor(logits, mesh, placements).requires_grad_()
    ours = distribute_tensor(logits, mesh, placements).requires_grad_()
    given = as_rows_lie(target, mesh, rows)
    with loss_parallel():
        expected = F.cross_entropy(theirs, given, reduction=reduction)
        expected.sum().backward()
    loss = label_smoothing_loss(ours, given, reduction=reduction)
    loss.sum().backward()
    assert loss.placements == expected.placements
    assert ours.grad.placements == theirs.grad.placements
    torch.testing.assert_close(loss.full_tensor(), expected.full_tensor())
    torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad.full_tensor())


@on_ranks(4)
def test_compiled(group: Group) -> None:
    """Beside the graph."""
    torch.compiler.reset()
    compiled = torch.compile(label_smoothing_loss, backend="aot_eager")
    logits, target = torch.randn(6, 11).double(), torch.randint(11, (6,))
    truth = reference(logits, target)
    for placements, rows in (((R, S1), (R, R)), ((S0, S1), (S0, R))):
        leaf = distribute_tensor(logits, mesh_of(2, 2), placements).requires_grad_()
        loss = compiled(leaf, as_rows_lie(target, mesh_of(2, 2), rows))
        loss.backward()
        torch.testing.assert_close(loss.full_tensor(), truth.loss)
        torch.testing.assert_close(leaf.grad.full_tensor(), truth.grad_logits)
