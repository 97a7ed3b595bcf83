"""The one collective of a call over ranks: how many there are, and that no error leaves a rank
waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from gloo import on_ranks
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from labelsmooth import (
    FusedLabelSmoothingLoss,
    FusedLinearLabelSmoothingLoss,
    label_smoothing_loss,
    linear_label_smoothing_loss,
)
from labelsmooth._backends import exchange, ranks
from labelsmooth._backends.linear import loop
from labelsmooth._call.problem import Inputs, Options

Group = Any
N, C_R, D = 6, 5, 3  # rows, classes of a rank, features


def loss(group: Group, *, rows: int = N, **options: Any) -> Tensor:
    """The same rows on all ranks."""
    torch.manual_seed(1)
    target = torch.arange(rows) % (C_R * dist.get_world_size(group))
    logits = torch.randn(rows, C_R + 2)[:, :C_R].clone().requires_grad_()
    if options.get("inplace"):
        logits = logits * 1
    given = {"logits": logits, "target": target, "label_smoothing": 0.1, **options}
    return label_smoothing_loss(process_group=group, **given)


def linear(group: Group, *, rows: int = N, **options: Any) -> Tensor:
    torch.manual_seed(1)
    target = torch.arange(rows) % (C_R * dist.get_world_size(group))
    hidden = torch.randn(rows, D, requires_grad=True)
    weight = torch.randn(C_R, D, requires_grad=True)
    given = {"target": target, "label_smoothing": 0.1, **options}
    hidden, weight = given.pop("hidden", hidden), given.pop("linear_weight", weight)
    return linear_label_smoothing_loss(hidden, weight, process_group=group, **given)


FORMS = {"logits": loss, "projection": linear}


# ---- collectives ---------------------------------------------------------------------------------


def collectives(work: Callable[[], Any]) -> dict[str, int]:
    with CommDebugMode() as mode:
        work()
    return {str(op).rpartition(".")[2]: n for op, n in mode.get_comm_counts().items() if n}


@on_ranks(4)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_one_gather_a_forward_and_none_in_backward(
    group: Group, reduction: str, inplace: bool
) -> None:
    made = []
    forward = collectives(lambda: made.append(loss(group, reduction=reduction, inplace=inplace)))
    assert list(forward.values()) == [1]
    assert "gather" in next(iter(forward))
    assert collectives(lambda: made[0].sum().backward()) == {}


@on_ranks(4)
def test_more_rows_than_ever_are_announced_once(group: Group) -> None:
    rows = 4096
    assert list(collectives(lambda: loss(group, rows=rows)).values()) in ([2], [1])  # announced
    assert list(collectives(lambda: loss(group, rows=rows)).values()) == [1]
    assert list(collectives(lambda: loss(group, rows=3)).values()) == [1]


@on_ranks(4)
def test_an_entropy_over_the_unmasked_takes_one_more(group: Group) -> None:
    made = collectives(lambda: loss(group, objective="kl_div", smooth_over="unmasked"))
    assert list(made.values()) == [2]


@on_ranks("first")
def test_a_rank_alone_gathers_nothing(group: Group) -> None:
    """The same bits as one process."""
    assert collectives(lambda: loss(group)) == {}
    assert collectives(lambda: linear(group)) == {}
    torch.manual_seed(1)
    logits = torch.randn(N, C_R + 2)[:, :C_R]
    alone = label_smoothing_loss(logits, torch.arange(N) % C_R, label_smoothing=0.1)
    assert torch.equal(loss(group), alone)


@on_ranks(4)
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_projection_gathers_once_a_chunk_and_sums_once(
    group: Group, recompute: bool, partial: bool
) -> None:
    options = {"chunk_rows": 2, "partial_hidden_grad": partial, "recompute": recompute}
    sums = 0 if partial else 1
    with (  # CommDebugMode does not see into an operator
        patch.object(exchange, "gathered", wraps=exchange.gathered) as gathers,
        patch.object(loop, "summed", wraps=loop.summed) as reductions,
    ):
        made = linear(group, **options)
        assert (gathers.call_count, reductions.call_count) == (3, 0 if recompute else sums)
        made.backward()
        assert (gathers.call_count, reductions.call_count) == (3, sums)


# ---- errors --------------------------------------------------------------------------------------


def bad(form: str, group: Group, **options: Any) -> None:
    """On rank 1 of the group, with these options; else without."""
    FORMS[form](group, **(options if dist.get_rank(group) == 1 else {}))


# What rank 1 is called with, and what is said there and on the others.
SEEN_BY_ONE: dict[str, tuple[dict[str, Any], str, str]] = {
    "an option out of range": ({"label_smoothing": 2.0}, "label_smoothing: expected", "rank 1"),
    "an option of no such name": ({"smoothing": 0.1}, "smoothing", "rank 1"),
    "a target of another shape": ({"target": torch.zeros(N + 1).long()}, "target", "rank 1"),
    "a target of another dtype": ({"target": torch.zeros(N).bool()}, "target", "rank 1"),
    "a weight of another size": ({"weight": torch.ones(3)}, "weight: expected", "rank 1"),
    "a prior that is none": ({"prior": torch.ones(4 * C_R)}, "prior: expected", "rank 1"),
}
SEEN_BY_ALL: dict[str, tuple[dict[str, Any], str]] = {
    "another option": ({"label_smoothing": 0.2}, "label_smoothing.*same on all ranks.*rank 1"),
    "another choice": ({"smooth_over": "others"}, "smooth_over.*same on all ranks.*rank 1"),
    "another reduction": ({"reduction": "sum"}, "reduction.*same on all ranks.*rank 1"),
    "statistics": ({"return_stats": True}, "return_stats.*same on all ranks.*rank 1"),
    "a weight": ({"weight": torch.ones(4 * C_R)}, "weight.*same on all ranks.*rank 1"),
    "fewer rows": ({"rows": N - 1}, "rows.*6 on rank 0, 5 on rank 1"),
    "many more rows": ({"rows": 30000}, "rows.*6 on rank 0, 30000 on rank 1"),
    "other targets": ({"target": torch.arange(N).flip(0)}, "target.*same on all ranks.*rank 1"),
    "other row weights": ({"row_weight": torch.rand(N)}, "row_weight.*same on all ranks.*rank 1"),
    "other classes": (
        {"class_offset": 3, "num_classes": 4 * C_R},
        r"class_offset.*adjacent.*\(0, 5\), \(3, 8\)",
    ),
    "more classes": ({"class_offset": C_R, "num_classes": 4 * C_R + 1}, "num_classes.*rank 1"),
}
each_form = pytest.mark.parametrize("form", FORMS)


@on_ranks(4)
@each_form
@pytest.mark.parametrize("case", SEEN_BY_ONE)
def test_an_error_that_one_rank_sees_is_raised_by_all(group: Group, case: str, form: str) -> None:
    options, own, others = SEEN_BY_ONE[case]
    kinds, said = (RuntimeError, others)
    if dist.get_rank(group) == 1:
        kinds, said = ((TypeError, ValueError), own)
    with pytest.raises(kinds, match=said):
        bad(form, group, **options)
    loss(group)  # the next call is none the worse


@on_ranks(4)
@each_form
@pytest.mark.parametrize("case", SEEN_BY_ALL)
def test_ranks_that_differ_all_raise(group: Group, case: str, form: str) -> None:
    options, said = SEEN_BY_ALL[case]
    with pytest.raises(ValueError, match=said):
        bad(form, group, **options)
    loss(group)


@on_ranks(3)
@each_form
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_target_that_is_no_class(group: Group, everywhere: bool, form: str) -> None:
    """The others learn of it, at the latest from the target's checksum."""
    target = torch.arange(N)
    if everywhere or dist.get_rank(group) == 2:
        target[4] = 3 * C_R
    with pytest.raises((IndexError, ValueError, RuntimeError), match=r"target|rank 2"):
        FORMS[form](group, target=target)
    FORMS[form](group)


@on_ranks(4)
def test_only_one_process_knows_of_the_bad_target(group: Group) -> None:
    """In a compiled graph: the row itself says so, on all ranks."""
    part = torch.zeros(4, N)
    if dist.get_rank(group) == 3:
        part[1, 2] = -1.0
    logits = torch.zeros(N, C_R)
    options = ranks.resolved(Options(process_group=group), C_R)
    gather = exchange.Gather(Inputs(logits, torch.zeros(N).long()), options)
    with pytest.raises(IndexError, match=r"row 2 on rank 3.*\[0, 20\)"):
        gather(part)


@on_ranks(2)
@pytest.mark.parametrize("differ", ["", "label_smoothing", "a gap", "too few", "target"])
def test_what_a_gpu_asserts(group: Group, differ: str) -> None:
    """The same comparison, as the device makes it: of the headers, without a look at them."""
    other, target = dist.get_rank(group) == 1, torch.arange(N)
    smoothing = 0.2 if differ == "label_smoothing" and other else 0.1
    offset = {"a gap": 4, "too few": dist.get_rank(group) * C_R}.get(differ)
    classes = 2 * C_R + (differ == "too few")
    options = Options(
        process_group=group,
        label_smoothing=smoothing,
        class_offset=offset,
        num_classes=None if offset is None else classes,
    )
    gather = exchange.Gather(
        Inputs(torch.zeros(N, C_R), target.flip(0) if differ == "target" and other else target),
        ranks.resolved(options, C_R),
    )
    with patch.object(exchange, "_check") as check:
        gather(torch.zeros(4, N))
    received = check.call_args.args[0]
    with patch.object(Tensor, "tolist") as look:
        if not differ:
            exchange._check(received, gather.header, read=False)
        else:
            with pytest.raises(RuntimeError, match="different arguments"):
                exchange._check(received, gather.header, read=False)
    assert not look.called


@on_ranks("even")
def test_whole_logits_by_mistake(group: Group) -> None:
    with pytest.raises(ValueError, match=r"logits.*this rank's classes.*5 columns.*num_classes=5"):
        loss(group, num_classes=C_R)


@on_ranks("even")
def test_messages_shrink_again(group: Group) -> None:
    loss(group, rows=4096)
    sent = []
    for _ in range(exchange.RECENT + 1):
        with patch.object(exchange, "gathered", wraps=exchange.gathered) as gathers:
            loss(group)
        sent.append(len(gathers.call_args.args[0]))
    assert sent[0] > exchange.ROOM
    assert sent[-1] == exchange.ROOM


@on_ranks("even")
def test_who_needs_the_hidden_gradient(group: Group) -> None:
    """All ranks, or none."""
    hidden = torch.ones(N, D, requires_grad=dist.get_rank(group) == 0)
    with pytest.raises(ValueError, match=r"grad_of_hidden.*rank 1"):
        linear(group, hidden=hidden)


@on_ranks("even")
def test_another_default_device(group: Group) -> None:
    with torch.device("meta"):
        logits, target = torch.zeros(2, C_R, device="cpu"), torch.zeros(2, device="cpu").long()
        assert label_smoothing_loss(logits, target, process_group=group).isfinite()


@on_ranks("even")
@each_form
def test_no_rows(group: Group, form: str) -> None:
    assert FORMS[form](group, rows=0, reduction="sum") == 0


@on_ranks("even")
def test_another_normalizer(group: Group) -> None:
    with pytest.raises(ValueError, match=r"normalizer.*same on all ranks.*rank 1"):
        loss(group, normalizer=7 + dist.get_rank(group))


@on_ranks("even")
def test_a_group_of_ranks_apart(group: Group) -> None:
    """Of ranks 0 and 2."""
    assert loss(group).isfinite()
    with pytest.raises(ValueError, match=r"rows.*6 on rank 0, 4 on rank 1"):
        bad("logits", group, rows=4)


@on_ranks(4)
def test_modules_announce_errors_too(group: Group) -> None:
    module = FusedLabelSmoothingLoss(process_group=group)
    with pytest.raises((TypeError, RuntimeError)):
        module(torch.zeros(2, 3), "target" if dist.get_rank(group) == 2 else torch.zeros(2).long())
    fused = FusedLinearLabelSmoothingLoss(D, 4 * C_R, process_group=group)
    if dist.get_rank(group) == 2:
        fused.linear = torch.nn.Identity()
    with pytest.raises((TypeError, RuntimeError)):
        fused(torch.zeros(2, D), torch.zeros(2).long())
    loss(group)


# ---- what one process can say --------------------------------------------------------------------


def test_a_group_that_is_none() -> None:
    logits, target = torch.zeros(2, 3), torch.zeros(2).long()
    with pytest.raises(TypeError, match=r"process_group.*ProcessGroup.*7"):
        label_smoothing_loss(logits, target, process_group=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"process_group.*exists.*'no such'"):
        label_smoothing_loss(logits, target, process_group="no such")


def test_classes_that_nobody_has() -> None:
    logits, target = torch.zeros(2, 3), torch.zeros(2).long()
    with pytest.raises(ValueError, match=r"num_classes.*at most 3.*num_classes=4"):
        label_smoothing_loss(logits, target, num_classes=4)
    with pytest.raises(ValueError, match=r"num_classes.*at most 3.*class_offset=1"):
        label_smoothing_loss(logits, target, num_classes=3, class_offset=1)
    with pytest.raises(ValueError, match=r"class_offset: expected num_classes beside it"):
        label_smoothing_loss(logits, target, class_offset=1)
