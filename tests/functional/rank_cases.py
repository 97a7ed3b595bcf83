"""Rows whose classes lie on several ranks: each kind of call, and what all must have of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from checks import ACCUMULATION, Outcome, assert_equals_reference
from reference import reference
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

Group = Any  # ProcessGroup
N, C = 6, 29
CUTS = {1: (), 2: (11,), 3: (3, 20), 4: (8, 8, 19)}  # of 4 ranks, one has none

OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "others": {"smooth_over": "others"},
    "unmasked": {"smooth_over": "unmasked"},
    "weight": {"weight": "classes"},
    "weight over the target": {"weight": "classes", "weight_over": "target"},
    "prior": {"prior": "classes", "smooth_over": "others", "weight": "classes"},
    "row weight": {"row_weight": "rows", "weight": "classes"},
    "ignored class": {"ignore_index": 3},
    "z-loss": {"lse_square_scale": 0.01},
    "softcap": {"softcap": 5.0, "logit_scale": 0.7},
    "log-probabilities": {"from_log_probs": True},
    "kl_div": {"objective": "kl_div", "prior": "classes"},
    "kl_div over the unmasked": {"objective": "kl_div", "smooth_over": "unmasked"},
    "normalizer": {"normalizer": 7.0},
    "everything": {
        "weight": "classes",
        "prior": "classes",
        "row_weight": "rows",
        "smooth_over": "unmasked",
        "weight_over": "target",
        "lse_square_scale": 0.01,
        "softcap": 20.0,
    },
}


def vectors(options: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """The options with tensors where they name some."""
    made = dict(options)
    for name in ("weight", "prior", "row_weight"):
        if name in made:
            of_classes = made[name] == "classes"
            values = torch.rand(shape[1] if of_classes else shape[:1] + shape[2:]).double()
            made[name] = values.softmax(0) if name == "prior" else values
    return made


def target_of(kind: str, shape: tuple[int, ...]) -> Any:
    rows = shape[:1] + shape[2:]
    if kind == "probabilities":
        return torch.rand(shape).double().softmax(1)
    if kind == "few":
        classes = torch.randint(shape[1], (shape[0], 3, *shape[2:]))
        classes[0] = classes[1, 0] = -100
        return SparseTarget(classes, torch.rand(classes.shape).double())
    target = torch.randint(shape[1], rows)
    target[0] = -100
    target[1:5] = torch.tensor([0, 10, 15, shape[1] - 1]).view(4, *(1,) * (target.dim() - 1))
    return target


def part_of(group: Group, classes: int, cuts: tuple[int, ...]) -> tuple[int, int]:
    rank = dist.get_rank(group)
    return (0, *cuts)[rank], (*cuts, classes)[rank]


def columns(target: Any, begin: int, end: int) -> Any:
    soft = isinstance(target, Tensor) and target.is_floating_point()
    return target[:, begin:end] if soft else target


def run(
    group: Group, logits: Tensor, target: Any, *, inplace: bool = False, **options: Any
) -> tuple[Outcome, Any]:
    """The loss on this rank, the whole gradient, and the statistics."""
    cuts = CUTS[dist.get_world_size(group)]
    begin, end = part_of(group, logits.shape[1], cuts)
    leaf = logits[:, begin:end].clone().requires_grad_()
    shard = leaf * 1 if inplace else leaf
    loss, stats = label_smoothing_loss(
        shard,
        columns(target, begin, end),
        process_group=group,
        class_offset=begin,
        num_classes=logits.shape[1],
        inplace=inplace,
        return_stats=True,
        **options,
    )
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    parts = [torch.empty(0)] * dist.get_world_size(group)
    dist.all_gather_object(parts, grad, group)
    return Outcome(loss.detach(), torch.cat(parts, 1)), stats


def assert_same_bits(group: Group, tensor: Tensor) -> None:
    came: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(came, tensor, group)
    assert all(torch.equal(other.nan_to_num(-7), tensor.nan_to_num(-7)) for other in came)


def check(group: Group, logits: Tensor, target: Any, terms: float = 1.0, **options: Any) -> None:
    ours, stats = run(group, logits, target, **options)
    options.pop("inplace", None)
    backend = options.pop("backend", None)
    truth = reference(logits, target, **options)
    assert_equals_reference(ours, truth, logits, terms=terms)
    for tensor in (ours.loss, stats.nll, stats.lse):
        assert_same_bits(group, tensor)
    tolerance = ACCUMULATION[logits.dtype]
    close = {"rtol": tolerance, "atol": tolerance * terms}
    torch.testing.assert_close(stats.nll.double(), truth.nll, **close)
    counts = truth.nll != 0
    torch.testing.assert_close(stats.lse.double()[counts], truth.lse[counts], **close)
    assert torch.equal(stats.predicted[counts], truth.predicted[counts]), backend


def case_of(
    options: str, kind: str, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (N, C)
) -> tuple[Tensor, Any, dict[str, Any]]:
    made = vectors(OPTIONS[options], shape)
    logits = 3 * torch.randn(shape).double()
    if made.get("from_log_probs"):
        logits = logits.log_softmax(1)
    target = target_of(kind, shape)
    if "ignore_index" in made:
        target = target.where(target != -100, made["ignore_index"])
    if made.get("smooth_over") == "unmasked":
        logits[:, 4:7] = -torch.inf
        logits[2, 20:] = torch.finfo(dtype).min
        if kind == "probabilities":
            target = target.masked_fill(logits <= torch.finfo(dtype).min, 0.0)
        elif kind == "few":
            target.classes[target.classes > 3] = 12
        else:
            target[(target > 3) & (target < 7)] = 8
            target[2:5] = 12
    return logits.to(dtype), target, made


KINDS = {"classes": [*OPTIONS]}
KINDS["few"] = KINDS["probabilities"] = [
    name
    for name, options in OPTIONS.items()
    if options.get("smooth_over") != "others" and options.get("ignore_index", -1) < 0
]
CASES = [(kind, name) for kind, names in KINDS.items() for name in names]
