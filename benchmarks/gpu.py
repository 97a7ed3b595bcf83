"""Time, memory and accuracy of the loss on a GPU, alone and with the projection.

Logits to gradient (forward and backward) by labelsmooth in place and with a fresh gradient, its
Triton kernel, F.cross_entropy, torch.compile of it, and Liger where liger-kernel is installed; the
floor is a copy of the logits. What options and kinds of targets cost. Logits (N, C, ...), whose
classes are not adjacent. Calls so small that the host sets the pace. Then hidden states and weight
to their gradients: labelsmooth with the projection in it, F.linear and the loss,
F.linear_cross_entropy of torch in its chunks, and the fused ones of Liger and of cut-cross-entropy
where they are installed; the floor is the three matrix products. Torch's and cut-cross-entropy's
take no smoothing, and the latter leaves out gradients that it deems too small.

Contestants take turns, each from fresh logits. Times are between two events on the GPU's stream,
those of small calls the host's; reported is the median over rounds. GB/s are of the logits read
once and the gradient written once. Memory is the peak within a step above what was allocated
before.

Writes JSON, and beside it the table as Markdown. Without a GPU it says so and exits with status 2;
--rehearse goes through all of it on the CPU, small, and writes numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks import environment, linear, projection, report, targets
from benchmarks.accuracy import Outcome, largest_errors
from benchmarks.contestants import (
    SMOOTHING,
    TORCH,
    Contestant,
    cross_entropy,
    fused,
    in_place,
    many_calls,
    ours,
    small,
    torch_own,
    training,
    variants,
)
from benchmarks.device import CPU, GPU, Device
from benchmarks.measure import DTYPES, Case, Entry, Result, compete, warm_up
from benchmarks.problem import Problem
from benchmarks.projection import WAYS, Projection, Way
from benchmarks.report import Sheet, describe, memory, number, plain_sheet

RESULTS = Path(__file__).parent / "results"
ROUNDS = 20


class Sizes(NamedTuple):
    logits: int
    classes: list[int]
    typical: int  # classes of what is measured once
    images: list[tuple[int, ...]]
    small: list[tuple[int, int]]
    projection: tuple[int, int, int]  # rows, classes, features


FULL = Sizes(
    logits=1 << 28,
    classes=[1000, 32768, 131072, 262144],
    typical=32768,
    images=[(8, 21, 512, 512), (1, 50257, 64)],
    small=[(32, 1000), (8, 32768)],
    projection=(8192, 128256, 4096),
)
REHEARSED = Sizes(
    logits=1 << 14,
    classes=[100],
    typical=256,
    images=[(2, 5, 8, 8), (1, 500, 4)],
    small=[(4, 100)],
    projection=(64, 500, 32),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", nargs="+", type=int, metavar="C", help="with 256M logits")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU; no numbers come of it")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu_times.json")


def run(args: argparse.Namespace) -> None:
    device, sizes = (CPU, REHEARSED) if args.rehearse else (GPU, FULL)
    if device is GPU and not torch.cuda.is_available():
        print("benchmarks gpu: torch.cuda finds no GPU", file=sys.stderr)
        raise SystemExit(2)
    about = environment.environment(torch.get_num_threads())
    about |= {"gpu": "none: rehearsed"} if args.rehearse else environment.gpu()
    console = Console()
    report.show_environment(console, about)
    progress = Console(stderr=True)
    results = [
        PARTS[case.part].run(case, device)
        for case in track(cases(args, sizes), "timing", console=progress, transient=True)
    ]
    sheets = [sheet for result in results for sheet in PARTS[result.case.part].sheets(result)]
    report.show(console, sheets)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(args.json, about, results)
    report.write_markdown(args.json, about, sheets)


def cases(args: argparse.Namespace, sizes: Sizes) -> list[Case]:
    def case(part: str, dtype: str, rows: int, classes: int, *spatial: int) -> Case:
        return Case(part, rows, classes, dtype, 1, args.rounds, spatial)

    main = [
        case("main", dtype, sizes.logits // classes, classes)
        for dtype in args.dtypes
        for classes in args.classes or sizes.classes
    ]
    dtype, typical = args.dtypes[-1], (sizes.logits // sizes.typical, sizes.typical)
    rows, classes, features = sizes.projection
    return [
        *main,
        *(case(part, dtype, *typical) for part in ("variants", "targets")),
        *(case("images", dtype, *shape) for shape in sizes.images),
        *(case("small", dtype, *shape) for shape in sizes.small),
        replace(case("linear", "bfloat16", rows, classes), features=features),
    ]


# Who takes part.


def everyone(problem: Problem, device: Device) -> list[Contestant]:
    return [
        *fused(problem),
        *triton_in_place(problem, device),
        *torch_own(problem),
        *(training(problem, "liger", "Liger, in place", loss, TORCH) for loss in liger(device)),
    ]


def triton_in_place(problem: Problem, device: Device) -> list[Contestant]:
    label = "labelsmooth, Triton, in place"
    losses = [in_place(backend=backend) for backend in device.triton]
    return [training(problem, "triton", label, loss, TORCH) for loss in losses]


def liger(device: Device) -> list[Callable[[Tensor, Tensor], Any]]:
    """Its loss, if it is installed and can run."""
    if device is not GPU:
        return []
    try:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
    except ImportError:
        return []
    options = (None, -100, 0.0, SMOOTHING, "mean")  # weight, ..., reduction
    return [lambda logits, target: LigerCrossEntropyFunction.apply(logits, target, *options)[0]]


def with_images(problem: Problem, device: Device) -> list[Contestant]:
    return [*fused(problem), *triton_in_place(problem, device), *torch_own(problem)]


def small_calls(problem: Problem, device: Device) -> list[Contestant]:
    compiled = torch.compile(cross_entropy, dynamic=False)
    return [
        *small(problem),
        *(
            many_calls(problem, "triton", "labelsmooth, Triton", ours(backend=b))
            for b in device.triton
        ),
        many_calls(problem, "compiled", "F.cross_entropy, compiled", compiled),
        *(many_calls(problem, "liger", "Liger", loss) for loss in liger(device)),
    ]


def fused_projections() -> dict[str, Way]:
    rivals = {}
    with suppress(ImportError):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        def liger(hidden: Tensor, weight: Tensor, target: Tensor) -> Any:
            options = (None, None, -100, 0.0, SMOOTHING)  # bias, ..., label_smoothing
            return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, target, *options)[0]

        rivals["liger"] = Way("Liger", liger)
    with suppress(ImportError):
        from cut_cross_entropy import linear_cross_entropy

        rivals["cut"] = Way("cut-cross-entropy", linear_cross_entropy)
    return rivals


# How a case is measured.


def run_main(case: Case, device: Device) -> Result:
    problem = Problem(case.shape, DTYPES[case.dtype], device=device.name)
    contestants = everyone(problem, device)
    warm_up(contestants, problem.refresh)
    details = [inspect(contestant, problem, device) for contestant in contestants]
    return Result(case, compete(contestants, details, problem.refresh, case.rounds, device.time))


def inspect(contestant: Contestant, problem: Problem, device: Device) -> dict[str, Any]:
    problem.refresh()
    extra, result = device.peak(contestant.step)
    if contestant.convention is None:
        return {"extra_bytes": extra}
    assert problem.grad is not None
    outcome = Outcome(result.item(), problem.grad, contestant.convention)
    [(loss_error, grad_error)] = largest_errors(problem.pristine, problem.target, [outcome])
    return {"extra_bytes": extra, "loss_error": loss_error, "grad_error": grad_error}


def run_times(
    case: Case, device: Device, line_up: Callable[[Problem, Device], list[Contestant]]
) -> Result:
    """Times alone; the host's where a step is many calls."""
    problem = Problem(case.shape, DTYPES[case.dtype], device=device.name)
    contestants = line_up(problem, device)
    details = warm_up(contestants, problem.refresh)
    timed = device.host_time if case.part == "small" else device.time
    return Result(case, compete(contestants, details, problem.refresh, case.rounds, timed))


def run_projection(case: Case, device: Device) -> Result:
    """With fewer rows where the GPU has too little memory."""
    if device is GPU:
        free, _ = torch.cuda.mem_get_info()
        weight = case.classes * case.features * DTYPES[case.dtype].itemsize
        while case.rows > 1024 and 6 * (case.logits_bytes + weight) > free:
            case = replace(case, rows=case.rows // 2)
    ways = WAYS | (fused_projections() if device is GPU else {})
    sizes = (case.rows, case.classes, case.features)
    problem = Projection(sizes, DTYPES[case.dtype], device=device.name)
    contestants = projection.contestants(problem, ["products", *ways], ways)
    warm_up(contestants, problem.refresh)
    details = []
    for contestant in contestants:
        problem.refresh()
        details.append({"extra_bytes": device.peak(contestant.step)[0]})
    return Result(case, compete(contestants, details, problem.refresh, case.rounds, device.time))


# What is shown of it.


def main_sheet(result: Result) -> Sheet:
    size = result.case.logits_bytes

    def row(entry: Entry) -> list[str]:
        ratio = functools.partial(result.ratio, entry.key)
        return [
            *(entry.label, number(entry.ms, ".3f"), number(2 * size / entry.ms / 1e6, ".0f")),
            *(number(ratio("copy"), ".2f"), number(ratio("in_place"), ".2f")),
            *(memory(entry.extra_bytes, size), number(entry.loss_error, ".0e")),
            number(entry.grad_error, ".0e"),
        ]

    return Sheet(
        f"Forward and backward, {describe(result.case)}",
        "",
        ["contestant"],
        ["ms", "GB/s", "x\ncopy", "x in\nplace", "memory\n/ logits", "loss\nerror", "grad\nerror"],
        [row(entry) for entry in result.entries],
    )


class Part(NamedTuple):
    run: Callable[[Case, Device], Result]
    sheets: Callable[[Result], list[Sheet]]


def times(title: str, base: str, line_up: Callable[[Problem, Device], list[Contestant]]) -> Part:
    """A part that is times alone, in microseconds and as multiples of one contestant's."""

    def sheets(result: Result) -> list[Sheet]:
        label = next(entry.label for entry in result.entries if entry.key == base)
        return [plain_sheet(result, title, base, f"x {label}", 1e3, "µs")]

    return Part(functools.partial(run_times, line_up=line_up), sheets)


PARTS = {
    "main": Part(run_main, lambda result: [main_sheet(result)]),
    "variants": times("What options cost, in place", "plain", lambda p, _: variants(p)),
    "targets": times("By the kind of target", "indices", lambda p, _: targets.contestants(p)),
    "images": times("Images, forward and backward", "in_place", with_images),
    "small": times("The host's time per call", "cross_entropy", small_calls),
    "linear": Part(run_projection, lambda result: linear.sheets([result])),
}
