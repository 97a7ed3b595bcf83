"""The loss with the vocabulary spread over ranks: equal to one process, the same bits on all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checks import ACCUMULATION, DTYPES, REDUCTIONS, Outcome, assert_equals_reference
from functional.rank_cases import CASES, CUTS, C, N, case_of, check, part_of, run, target_of
from gloo import on_ranks
from reference import reference

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss

Group = Any  # ProcessGroup


@on_ranks(4)
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize(("kind", "options"), CASES)
def test_every_option(group: Group, kind: str, options: str, backend: str) -> None:
    for reduction in REDUCTIONS:
        logits, target, made = case_of(options, kind)
        if reduction != "mean":
            made.pop("normalizer", None)
        terms = 20 if made.get("objective") == "kl_div" else 1
        check(
            group,
            logits,
            target,
            terms,
            reduction=reduction,
            label_smoothing=0.1,
            backend=backend,
            **made,
        )


@on_ranks(1, 2, 3)
@pytest.mark.parametrize("options", ["weight", "prior", "unmasked"])
def test_any_number_of_ranks(group: Group, options: str) -> None:
    logits, target, made = case_of(options, "classes")
    check(group, logits, target, label_smoothing=0.1, **made)


@on_ranks(4)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", ["weight", "everything"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(group: Group, dtype: torch.dtype, options: str, inplace: bool) -> None:
    logits, target, made = case_of(options, "classes", dtype)
    check(group, logits, target, label_smoothing=0.1, inplace=inplace, **made)


@on_ranks(3)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", ["classes", "few", "probabilities"])
def test_class_axis_inside(group: Group, kind: str, inplace: bool) -> None:
    logits, target, made = case_of("everything", kind, shape=(N, C, 2, 3))
    check(group, logits, target, label_smoothing=0.1, inplace=inplace, **made)


@on_ranks(2)
def test_one_row_alone(group: Group) -> None:
    logits, target = torch.randn(C).double(), torch.tensor(20)
    begin, end = part_of(group, C, CUTS[2])
    leaf = logits[begin:end].clone().requires_grad_()
    options: dict[str, Any] = {"process_group": group, "class_offset": begin, "num_classes": C}
    loss = label_smoothing_loss(leaf, target, label_smoothing=0.1, **options)
    loss.backward()
    truth = reference(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(loss.detach(), truth.loss)
    torch.testing.assert_close(leaf.grad, truth.grad_logits[begin:end])


# ---- numerics ------------------------------------------------------------------------------------


@on_ranks(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [1e4, -1e4, 1e6])
def test_a_common_offset_costs_no_digits(group: Group, offset: float, dtype: torch.dtype) -> None:
    """Of logits that float32 holds with the offset."""
    logits = torch.randint(-64, 64, (N, C)) / 8 if offset < 1e6 else torch.randint(-8, 8, (N, C))
    target = target_of("classes", (N, C))
    plain, _ = run(group, logits.to(dtype), target, label_smoothing=0.1)
    moved, _ = run(group, (logits + offset).to(dtype), target, label_smoothing=0.1)
    tolerance = {"rtol": 2 * ACCUMULATION[dtype], "atol": ACCUMULATION[dtype]}
    torch.testing.assert_close(moved.loss, plain.loss, **tolerance)
    torch.testing.assert_close(moved.grad_logits, plain.grad_logits, **tolerance)


@on_ranks(4)
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("smooth_over", ["all", "unmasked"])
def test_a_rank_whose_classes_are_all_masked(group: Group, smooth_over: str, backend: str) -> None:
    """exp(-inf - -inf) is NaN, where it is taken; +inf is the loss where smoothing reaches one."""
    logits, target = 3 * torch.randn(N, C).double(), target_of("classes", (N, C))
    logits[:, 8:19] = -torch.inf  # rank 2's
    target[(target >= 8) & (target < 19)] = 0
    options: dict[str, Any] = {"reduction": "none", "label_smoothing": 0.1}
    options |= {"smooth_over": smooth_over}
    check(group, logits, target, backend=backend, **options)
    logits[3] = -torch.inf  # all ranks'
    ours, _ = run(group, logits, target, backend=backend, **options)
    whole = label_smoothing_loss(logits, target, backend=backend, **options)
    torch.testing.assert_close(ours.loss, whole, equal_nan=True)


@on_ranks(4)
def test_ranks_far_apart(group: Group) -> None:
    """Alone they would overflow or underflow beside the others'."""
    logits = torch.randn(N, C).double()
    for begin, end, level in ((0, 8, -2000.0), (8, 19, 3000.0), (19, C, 0.0)):
        logits[:, begin:end] += level
    check(group, logits.float(), target_of("classes", (N, C)), 3000, label_smoothing=0.1)


@on_ranks(4)
def test_nan_and_inf_are_on_all_ranks(group: Group) -> None:
    logits, target = torch.randn(N, C), torch.full((N,), 2)
    logits[0, 20], logits[1, 9], logits[2, 28] = torch.nan, torch.inf, -torch.inf
    ours, stats = run(group, logits, target, reduction="none")
    whole, expected = label_smoothing_loss(logits, target, reduction="none", return_stats=True)
    torch.testing.assert_close(ours.loss, whole, equal_nan=True)
    assert torch.equal(stats.predicted, expected.predicted)


# ---- padding -------------------------------------------------------------------------------------


@on_ranks(4)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("classes", [30, 24, 21, 17])
def test_padding_in_equal_parts(group: Group, classes: int, backend: str, inplace: bool) -> None:
    """The last columns are none, a few or all padding, full of NaN."""
    whole, target = torch.randn(N, classes).double(), torch.arange(N) * 5 % classes
    weight, begin = torch.rand(classes) + 0.5, 8 * dist.get_rank(group)
    padded = torch.full((N, 32), torch.nan).double()
    padded[:, :classes] = whole
    leaf = padded[:, begin : begin + 8].clone().requires_grad_()
    loss = label_smoothing_loss(
        leaf * 1 if inplace else leaf,
        target,
        weight,
        label_smoothing=0.1,
        process_group=group,
        num_classes=classes,
        inplace=inplace,
        backend=backend,
    )
    (grad,) = torch.autograd.grad(loss, leaf)
    truth = reference(whole, target, weight, label_smoothing=0.1)
    torch.testing.assert_close(loss.detach(), truth.loss)
    expected = torch.zeros(N, 32).double()
    expected[:, :classes] = truth.grad_logits
    torch.testing.assert_close(grad, expected[:, begin : begin + 8])


@on_ranks(2, 3, 4)
@pytest.mark.parametrize("classes", [29, 5, 4, 2])
def test_parts_of_chunk(group: Group, classes: int) -> None:
    """Of the last ranks smaller, or missing: where they begin need not be said."""
    logits, target = torch.randn(N, classes).double(), torch.arange(N) % classes
    parts = [*logits.chunk(dist.get_world_size(group), 1), logits[:, :0], logits[:, :0]]
    leaf = parts[dist.get_rank(group)].clone().requires_grad_()
    loss = label_smoothing_loss(leaf, target, process_group=group, num_classes=classes)
    loss.backward()
    truth = reference(logits, target)
    torch.testing.assert_close(loss.detach(), truth.loss)
    grads = [*truth.grad_logits.chunk(dist.get_world_size(group), 1), *[logits[:, :0]] * 2]
    torch.testing.assert_close(leaf.grad, grads[dist.get_rank(group)])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_padding_in_one_process(reduction: str, inplace: bool, backend: str) -> None:
    logits, target = torch.randn(N, C), torch.arange(N) * 3 % 20
    leaf = logits.clone().requires_grad_()
    loss = label_smoothing_loss(
        leaf * 1 if inplace else leaf,
        target,
        label_smoothing=0.1,
        reduction=reduction,
        num_classes=20,
        inplace=inplace,
        backend=backend,
    )
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    truth = reference(logits[:, :20], target, label_smoothing=0.1, reduction=reduction)
    assert_equals_reference(Outcome(loss.detach(), grad[:, :20]), truth, logits)
    assert not grad[:, 20:].any()


# ---- memory, derivatives, options ----------------------------------------------------------------


@on_ranks(2)
def test_the_gradient_takes_the_logits_place(group: Group) -> None:
    for reduction in REDUCTIONS:
        logits, seen = torch.randn(N, 8, requires_grad=True) * 1, []
        place = logits.data_ptr()
        logits.register_hook(lambda grad, seen=seen: seen.append(grad.data_ptr()))
        loss = label_smoothing_loss(
            logits, torch.arange(N), process_group=group, inplace=True, reduction=reduction
        )
        loss.sum().backward()
        assert seen == [place]


@on_ranks(2)
def test_a_learned_scale(group: Group) -> None:
    """On every rank the whole gradient."""
    logits, target = torch.randn(N, C).double(), target_of("classes", (N, C))
    begin, end = part_of(group, C, CUTS[2])
    scale, whole = (torch.tensor(0.7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    label_smoothing_loss(logits, target, logit_scale=whole).backward()
    options: dict[str, Any] = {"process_group": group, "class_offset": begin, "num_classes": C}
    label_smoothing_loss(logits[:, begin:end], target, logit_scale=scale, **options).backward()
    torch.testing.assert_close(scale.grad, whole.grad)


@on_ranks(2)
@pytest.mark.parametrize("name", ["weight", "prior", "row_weight", "normalizer"])
def test_what_one_rank_cannot_derive(group: Group, name: str) -> None:
    sizes = {"weight": (2 * C,), "prior": (2 * C,), "row_weight": (N,), "normalizer": ()}
    tensor = torch.full(sizes[name], 1 / (2 * C), requires_grad=True)
    logits, target = torch.randn(N, C, requires_grad=True), torch.arange(N)
    with pytest.raises(TypeError, match=f"{name}.*beside process_group"):
        label_smoothing_loss(logits, target, process_group=group, **{name: tensor})
    with torch.no_grad():
        label_smoothing_loss(logits, target, process_group=group, **{name: tensor})
    loss = label_smoothing_loss(logits, target, process_group=group)
    with pytest.raises(RuntimeError, match=r"process_group.*create_graph"):
        torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match=r"process_group.*transform"):
        torch.func.grad(lambda x: label_smoothing_loss(x, target, process_group=group))(logits)


@on_ranks(2)
def test_the_module(group: Group) -> None:
    """Its options may be set between calls; copies are of the same group."""
    module = copy.deepcopy(FusedLabelSmoothingLoss(process_group=group, label_smoothing=0.1))
    logits, target = torch.randn(N, C), torch.arange(N)
    begin, end = part_of(group, C, CUTS[2])
    module.num_classes, module.class_offset = C, begin
    whole = FusedLabelSmoothingLoss(label_smoothing=0.1)
    torch.testing.assert_close(module(logits[:, begin:end], target), whole(logits, target))
    assert f"num_classes={C}" in repr(module)


@on_ranks(2)
def test_a_second_backward(group: Group) -> None:
    logits, target = torch.randn(N, C, requires_grad=True), torch.arange(N)
    for reduction in ("mean", "none"):
        loss = label_smoothing_loss(logits, target, process_group=group, reduction=reduction).sum()
        first = torch.autograd.grad(loss, logits, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(2 * loss, logits)[0], 2 * first)
