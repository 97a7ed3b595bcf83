"""Time, memory and bytes of the loss on the CPU with the classes spread over the ranks of a group.

Logits to gradient (forward and backward), label smoothing 0.1: labelsmooth over the ranks, in place
and with a fresh gradient; in place of a rank's share alone, as if there were no other classes, the
least that it has to do; and the usual three all-reduces (of the largest logit, of the target's, of
the sum of exponentials) in plain torch, with the sum of the logits beside the target's for the
smoothing.

The ranks are processes of one machine, which talk by gloo and share its cores and memory: a run
says what the loss adds to that of a share, not what a network does. A step begins when all ranks
are there and takes as long as the slowest; memory is rank 0's peak within the first step above what
was resident before. Collectives and bytes are counted, on rank 0, as the tensors that go in and
come out. Writes JSON, and beside it the tables as Markdown. benchmarks/measure.py says how it
measures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import publish
from benchmarks.contestants import SMOOTHING, TORCH, Contestant, in_place, ours, training
from benchmarks.loss import TYPICAL, shape
from benchmarks.measure import DTYPES, Case, Result, compete, peak_extra_bytes, wall_time
from benchmarks.problem import Problem
from benchmarks.report import Sheet, describe, memory, number
from benchmarks.workers import die_with_parent

RANKS = [1, 2, 4]
FULL = [shape(str(TYPICAL))]
QUICK = [(512, TYPICAL)]
LIMIT = timedelta(seconds=120)  # that ranks wait for each other


def add_arguments(parser: argparse.ArgumentParser) -> None:
    publish.add_arguments(parser, "ranks", quick="512 rows")
    parser.set_defaults(threads=1)  # of each rank
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="C|NxC", help="of all ranks")
    parser.add_argument("--rounds", type=int, default=7)


def run(args: argparse.Namespace) -> None:
    cases = [
        Case("ranks", *size, dtype, args.threads, args.rounds, ranks=ranks)
        for dtype in args.dtypes
        for size in args.shapes or (QUICK if args.quick else FULL)
        for ranks in args.ranks
    ]
    publish.publish("ranks", args, cases, run_case, sheets)


def run_case(case: Case) -> Result:
    """In processes of its own, one a rank."""
    processes = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(case.ranks, processes, initializer=die_with_parent) as pool,
    ):
        store = f"file://{folder}/store"
        everywhere = [pool.submit(run_rank, case, rank, store) for rank in range(case.ranks)]
        of_rank_0, *_ = [of_rank.result() for of_rank in everywhere]
        return of_rank_0


def run_rank(case: Case, rank: int, store: str) -> Result:
    torch.set_num_threads(case.threads)
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=case.ranks, timeout=LIMIT
    )
    problem, classes = share(case, rank)
    everyone, details, losses = contestants(problem, classes), [], {}
    for contestant in everyone:
        problem.refresh()
        extra, result = peak_extra_bytes(contestant.step)
        losses[contestant.key] = result.detach()
        problem.refresh()
        with Counter() as counter:
            contestant.step()
        details.append({"extra_bytes": extra, **vars(counter.counts)})
    for key in ("in_place", "fresh"):
        torch.testing.assert_close(losses[key], losses["reduces"], rtol=1e-4, atol=0.0)
    entries = compete(everyone, details, problem.refresh, case.rounds, slowest)
    dist.destroy_process_group()
    return Result(case, entries)


@dataclass(frozen=True)
class Classes:
    """Of this rank: `count` of them, from class `first` on of `all`."""

    first: int
    count: int
    all: int


def share(case: Case, rank: int) -> tuple[Problem, Classes]:
    """This rank's columns of the logits, and the target, which is the same on all."""
    most = -(-case.classes // case.ranks)
    first = min(rank * most, case.classes)
    classes = Classes(first, min(most, case.classes - first), case.classes)
    problem = Problem((case.rows, classes.count), DTYPES[case.dtype], seed=rank)
    generator = torch.Generator().manual_seed(case.ranks)
    problem.target = torch.randint(case.classes, (case.rows,), generator=generator)
    return problem, classes


def contestants(problem: Problem, classes: Classes) -> list[Contestant]:
    over_ranks = {
        "process_group": dist.group.WORLD,
        "class_offset": classes.first,
        "num_classes": classes.all,
    }
    alone = in_place()

    def loss_of_share(logits: Tensor, target: Tensor) -> Any:
        return alone(logits, target % classes.count)

    def reduces(logits: Tensor, target: Tensor) -> Any:
        return _ThreeAllReduces.apply(logits, target, classes)

    def contestant(key: str, label: str, loss: Callable[..., Any]) -> Contestant:
        return training(problem, key, label, loss, TORCH)

    return [
        contestant("share", "labelsmooth, the share alone", loss_of_share),
        contestant("in_place", "labelsmooth, in place", in_place(**over_ranks)),
        contestant("fresh", "labelsmooth, fresh gradient", ours(**over_ranks)),
        contestant("reduces", "three all-reduces, plain torch", reduces),
    ]


class _ThreeAllReduces(torch.autograd.Function):
    """The mean over the rows, smoothed over the classes of all ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, classes: Classes) -> Tensor:
        largest = logits.amax(1).float()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        work = logits - largest.unsqueeze(1)  # float32, and the gradient in the end
        ctx.share = SMOOTHING / classes.all
        ctx.own = (target >= classes.first) & (target < classes.first + classes.count)
        ctx.column = (target - classes.first).where(ctx.own, 0).unsqueeze(1)
        of_target = work.gather(1, ctx.column).squeeze(1).where(ctx.own, 0.0)
        sums = torch.stack([of_target, work.sum(1)])
        dist.all_reduce(sums)
        sum_exp = work.exp_().sum(1)
        dist.all_reduce(sum_exp)
        work.div_(sum_exp.unsqueeze(1))
        ctx.dtype, ctx.work = logits.dtype, work
        loss = sum_exp.log() - (1 - SMOOTHING) * sums[0] - ctx.share * sums[1]
        return loss.mean()

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        of_target = ctx.own.float().mul_(SMOOTHING - 1).unsqueeze(1)
        grad = ctx.work.sub_(ctx.share).scatter_add_(1, ctx.column, of_target)
        return grad.mul_(grad_loss / len(grad)).to(ctx.dtype), None, None


# ---- ranks ---------------------------------------------------------------------------------------


def slowest(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that it takes until all ranks have done a step, and this rank's result."""
    dist.barrier()
    seconds, result = wall_time(step)
    longest = torch.tensor(seconds)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.item(), result


@dataclass
class Counts:
    collectives: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Counter(TorchDispatchMode):
    """Of the collectives within: how many, and the bytes of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        if operator.namespace in ("c10d", "_c10d_functional") and name != "wait_tensor":
            self.counts.collectives += 1
            self.counts.sent_bytes += size(args)
            self.counts.received_bytes += size(result)
        return result


def size(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


# ---- tables --------------------------------------------------------------------------------------


def sheets(results: list[Result]) -> list[Sheet]:
    return [sheet(result) for result in results]


def sheet(result: Result) -> Sheet:
    bases = {"share": "x share\nalone", "reduces": "x three\nreduces"}
    case = result.case
    return Sheet(
        f"On {case.ranks} rank{'s' if case.ranks > 1 else ''}, forward and backward, "
        f"{describe(case)} in all",
        "",
        ["contestant"],
        ["ms", *bases.values(), "memory\n/ share", "collectives", "KiB in", "KiB out"],
        [
            [
                entry.label,
                number(entry.ms, ".1f"),
                *(number(result.ratio(entry.key, base), ".2f") for base in bases),
                memory(entry.extra_bytes, case.logits_bytes // case.ranks),
                number(entry.collectives, "d"),
                *(kibibytes(count) for count in (entry.sent_bytes, entry.received_bytes)),
            ]
            for entry in result.entries
        ],
    )


def kibibytes(count: int | None) -> str:
    return number(None if count is None else count / 1024, ",.0f")
