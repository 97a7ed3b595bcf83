"""The projection and the loss over ranks, each with rows of the weight: equal to one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from gloo import on_ranks
from torch import Tensor

from labelsmooth import FusedLinearLabelSmoothingLoss, SparseTarget, linear_label_smoothing_loss

Group = Any
N, D, C = 10, 6, 29
CUTS = {1: (), 2: (11,), 3: (3, 20), 4: (8, 8, 19)}  # of 4 ranks, one has none

OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "others": {"smooth_over": "others"},
    "unmasked": {"smooth_over": "unmasked"},
    "weight": {"weight": torch.linspace(0.5, 1.5, C)},
    "prior": {"prior": torch.linspace(1, 2, C).softmax(0), "smooth_over": "others"},
    "row weight": {"row_weight": torch.linspace(0, 2, N)},
    "z-loss, softcap": {"lse_square_scale": 0.01, "softcap": 5.0},
    "kl_div over the unmasked": {"objective": "kl_div", "smooth_over": "unmasked"},
    "normalizer": {"normalizer": 7.0},
    "one row a chunk": {"chunk_rows": 1},
    "recompute": {"recompute": True},
    "eager": {"backend": "eager"},
}


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, bias = torch.randn(N, D), torch.randn(C, D), torch.randn(C)
    target = torch.arange(N) * 3 % C
    target[2] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), target


def part_of(group: Group) -> tuple[int, int]:
    rank, cuts = dist.get_rank(group), CUTS[dist.get_world_size(group)]
    return (0, *cuts)[rank], (*cuts, C)[rank]


def alone(*tensors: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """By one process."""
    *leaves, target = tensors
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    hidden, weight, bias = leaves
    loss = linear_label_smoothing_loss(hidden, weight, target, linear_bias=bias, **options)
    return loss.detach(), list(torch.autograd.grad(loss.sum(), leaves))


def over(group: Group, *tensors: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The same on this rank: of weight and bias the gradients of its rows."""
    hidden, weight, bias, target = tensors
    begin, end = part_of(group)
    leaves = [
        leaf.clone().requires_grad_() for leaf in (hidden, weight[begin:end], bias[begin:end])
    ]
    loss = linear_label_smoothing_loss(
        *leaves[:2],
        target,
        linear_bias=leaves[2],
        process_group=group,
        class_offset=begin,
        num_classes=C,
        **options,
    )
    return loss.detach(), list(torch.autograd.grad(loss.sum(), leaves))


def check(group: Group, tensors: tuple[Tensor, ...], **options: Any) -> None:
    begin, end = part_of(group)
    expected, (hidden, *of_rows) = alone(*tensors, **options)
    loss, grads = over(group, *tensors, **options)
    torch.testing.assert_close(loss, expected)
    for ours, truth in zip(grads, (hidden, *(of[begin:end] for of in of_rows)), strict=True):
        torch.testing.assert_close(ours, truth)


@on_ranks(4)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_every_option(group: Group, reduction: str, options: str) -> None:
    """One process is held against a dense reference elsewhere."""
    made = {"label_smoothing": 0.1, "chunk_rows": 4, **OPTIONS[options], "reduction": reduction}
    if reduction != "mean":
        made.pop("normalizer", None)
    tensors = problem()
    if made.get("smooth_over") == "unmasked":
        tensors[2][5:9] = -torch.inf
        tensors[3][tensors[3] == 6] = 0
    check(group, tensors, **made)


@on_ranks(1, 2, 3)
def test_any_number_of_ranks(group: Group) -> None:
    check(group, problem(), label_smoothing=0.1, chunk_rows=4)


@on_ranks(4)
@pytest.mark.parametrize("kind", ["few", "probabilities", "none counts"])
def test_every_target(group: Group, kind: str) -> None:
    *tensors, target = problem()
    begin, end = part_of(group)
    probs = torch.rand(N, C).double().softmax(1)
    if kind == "few":
        target = SparseTarget(torch.stack([target, target.flip(0)], 1), torch.rand(N, 2).double())
        check(group, (*tensors, target), label_smoothing=0.1, chunk_rows=4)
    elif kind == "none counts":
        check(group, (*tensors, torch.full((N,), -100)), reduction="sum", label_smoothing=0.1)
    else:
        expected, whole = alone(*tensors, probs, label_smoothing=0.1)
        loss, grads = over(group, *tensors, probs[:, begin:end], label_smoothing=0.1)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(grads[0], whole[0])
        torch.testing.assert_close(grads[1], whole[1][begin:end])


@on_ranks(4)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(group: Group, dtype: torch.dtype) -> None:
    """What the ranks have of the hidden gradient is rounded once each, the sum is of float32."""
    tensors = problem(dtype)
    begin, end = part_of(group)
    expected, truth = alone(*(t.double() if t.is_floating_point() else t for t in tensors))
    loss, grads = over(group, *tensors)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=2e-2, atol=0)
    eps = torch.finfo(dtype).eps
    for ours, of in zip(grads, (truth[0], truth[1][begin:end], truth[2][begin:end]), strict=True):
        assert ours.dtype == dtype
        atol = 4 * eps * truth[0].abs().max().item()
        torch.testing.assert_close(ours.double(), of, rtol=4 * eps, atol=atol)


@on_ranks(4)
@pytest.mark.parametrize("recompute", [False, True])
def test_a_partial_gradient_sums_to_the_whole(group: Group, recompute: bool) -> None:
    tensors = problem()
    _, (hidden, *_) = alone(*tensors)
    _, (ours, *_) = over(group, *tensors, partial_hidden_grad=True, recompute=recompute)
    dist.all_reduce(ours, group=group)
    torch.testing.assert_close(ours, hidden)


@on_ranks(4)
def test_statistics(group: Group) -> None:
    hidden, weight, bias, target = problem()
    begin, end = part_of(group)
    options: dict[str, Any] = {"return_stats": True, "chunk_rows": 3}
    _, expected = linear_label_smoothing_loss(hidden, weight, target, linear_bias=bias, **options)
    options |= {"process_group": group, "class_offset": begin, "num_classes": C}
    _, ours = linear_label_smoothing_loss(
        hidden, weight[begin:end], target, linear_bias=bias[begin:end], **options
    )
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


@on_ranks(4)
@pytest.mark.parametrize("partial", [False, True])
def test_a_learned_scale(group: Group, partial: bool) -> None:
    """On every rank the whole gradient."""
    hidden, weight, bias, target = problem()
    begin, end = part_of(group)
    scale, whole = (torch.tensor(0.7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    linear_label_smoothing_loss(
        hidden, weight, target, linear_bias=bias, logit_scale=whole
    ).backward()
    linear_label_smoothing_loss(
        hidden,
        weight[begin:end],
        target,
        linear_bias=bias[begin:end],
        logit_scale=scale,
        process_group=group,
        class_offset=begin,
        num_classes=C,
        partial_hidden_grad=partial,
    ).backward()
    torch.testing.assert_close(scale.grad, whole.grad)


@on_ranks(2, 3, 4)
def test_the_module_has_its_share(group: Group) -> None:
    """As DTensor has them: ceil(C / R) rows on each rank, fewer on the last."""
    hidden, weight, bias, target = problem()
    module = FusedLinearLabelSmoothingLoss(
        D, C, bias=True, process_group=group, label_smoothing=0.1, dtype=torch.float64
    )
    most = -(-C // dist.get_world_size(group))
    begin = min(C, dist.get_rank(group) * most)
    assert module.class_offset == begin
    assert module.linear.weight.shape == (min(most, C - begin), D)
    with torch.no_grad():
        module.linear.weight.copy_(weight[begin : begin + most])
        assert module.linear.bias is not None
        module.linear.bias.copy_(bias[begin : begin + most])
    expected, (_, of_weight, _) = alone(hidden, weight, bias, target, label_smoothing=0.1)
    loss = module(hidden, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(module.linear.weight.grad, of_weight[begin : begin + most])
    module.process_group, module.class_offset = None, None
    assert "process_group" not in repr(module)


@on_ranks(3)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ranks_draw_other_weights_and_the_same_numbers_after(group: Group, device: str) -> None:
    module = FusedLinearLabelSmoothingLoss(D, C, bias=True, process_group=group, device=device)
    after, came = torch.rand(3), [torch.empty(0)] * 3
    dist.all_gather_object(came, after, group)
    assert all(torch.equal(other, after) for other in came)
    if device == "cpu":
        dist.all_gather_object(came, module.linear.weight.detach(), group)
        assert came[0].abs().max() <= D**-0.5
        assert not torch.equal(came[0], came[1])


@on_ranks(4)
def test_what_one_rank_cannot_derive(group: Group) -> None:
    hidden, weight, bias, target = problem()
    with pytest.raises(TypeError, match=r"row_weight.*does not require grad beside process_group"):
        over(group, hidden, weight, bias, target, row_weight=torch.ones(N, requires_grad=True))
    begin, end = part_of(group)
    leaf = hidden.clone().requires_grad_()
    options: dict[str, Any] = {"class_offset": begin, "num_classes": C, "process_group": group}
    loss = linear_label_smoothing_loss(leaf, weight[begin:end], target, **options)
    with pytest.raises(RuntimeError, match=r"process_group.*create_graph"):
        torch.autograd.grad(loss, leaf, create_graph=True)
