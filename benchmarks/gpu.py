"""Time, memory and accuracy of the loss on a GPU, alone and with the projection.

Logits to gradient (forward and backward) by labelsmooth in place and with a fresh gradient, its
Triton kernel, F.cross_entropy, torch.compile of it, and Liger where liger-kernel is installed; the
floor is a copy of the logits. Then hidden states and weight to their gradients: labelsmooth with
the projection in it, F.linear and the loss, F.linear_cross_entropy of torch in its chunks, and the
fused ones of Liger and of cut-cross-entropy where they are installed; the floor is the three matrix
products. Torch's and cut-cross-entropy's take no smoothing, and the latter leaves out gradients
that it deems too small.

Contestants take turns, and each starts from fresh logits. Times are between two events on the GPU's
stream; reported is the median over rounds. GB/s are the bytes that a step must move, the logits
read once and the gradient written once, in that time. Memory is the peak within a step above what
was allocated before it.

Writes JSON, and beside it the table as Markdown. Without a GPU it says so and exits with status 2.
"""

from __future__ import annotations

import argparse
import functools
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks import linear, projection, report
from benchmarks.accuracy import Outcome, largest_errors
from benchmarks.contestants import (
    SMOOTHING,
    TORCH,
    Contestant,
    fused,
    in_place,
    torch_own,
    training,
)
from benchmarks.environment import environment
from benchmarks.measure import (
    DTYPES,
    Case,
    Entry,
    Result,
    compete,
    peak_extra_bytes,
    wall_time,
    warm_up,
)
from benchmarks.problem import Problem
from benchmarks.projection import WAYS, Projection, Way
from benchmarks.report import Sheet, describe, memory, number

RESULTS = Path(__file__).parent / "results"
LOGITS = 1 << 28
CLASSES = [1000, 32768, 131072, 262144]
PROJECTION = (8192, 128256, 4096)  # rows, classes, features, in bfloat16
ROUNDS = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", nargs="+", type=int, default=CLASSES, metavar="C", help="with 256M logits"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json")


def run(args: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        print("benchmarks gpu: torch.cuda finds no GPU", file=sys.stderr)
        raise SystemExit(2)
    about = environment(torch.get_num_threads()) | gpu_environment()
    console = Console()
    report.show_environment(console, about)
    cases = [
        Case("gpu", LOGITS // classes, classes, dtype, threads=1, rounds=args.rounds)
        for dtype in args.dtypes
        for classes in args.classes
    ]
    cases.append(projection_case(args.rounds))
    progress = Console(stderr=True)
    results = [
        run_projection(case) if case.features else run_case(case)
        for case in track(cases, "timing", console=progress, transient=True)
    ]
    sheets = [*map(sheet, results[:-1]), *linear.sheets(results[-1:])]
    report.show(console, sheets)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    report.write_json(args.json, about, results)
    report.write_markdown(args.json, about, sheets)


def gpu_environment() -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "gpu_memory_gib": round(gpu.total_memory / 2**30, 1),
        "cuda": torch.version.cuda or torch.version.hip,
    }


def contestants(problem: Problem) -> list[Contestant]:
    triton = in_place(backend="triton")
    everyone = [
        *fused(problem),
        training(problem, "triton", "labelsmooth, Triton, in place", triton, TORCH),
        *torch_own(problem),
    ]
    if loss := liger():
        everyone.append(training(problem, "liger", "Liger, in place", loss, TORCH))
    return everyone


def liger() -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        from liger_kernel.ops.cross_entropy import LigerCrossEntropyFunction
    except ImportError:
        return None

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        made: Tensor = LigerCrossEntropyFunction.apply(
            logits, target, None, -100, 0.0, SMOOTHING, "mean"
        )[0]
        return made

    return loss


def run_case(case: Case) -> Result:
    problem = Problem((case.rows, case.classes), DTYPES[case.dtype], device="cuda")
    taking_part = contestants(problem)
    warm_up(taking_part, problem.refresh)
    details = [inspect(contestant, problem) for contestant in taking_part]
    return Result(case, compete(taking_part, details, problem.refresh, case.rounds, event_time))


def event_time(step: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds between events before and after a step, and its result."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    result = step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3, result


def peak_allocated(step: Callable[[], Any]) -> tuple[int, Any]:
    """Peak of allocated bytes within a step above those before, and its result."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = step()
    return torch.cuda.max_memory_allocated() - before, result


def inspect(contestant: Contestant, problem: Problem) -> dict[str, Any]:
    problem.refresh()
    extra, result = peak_allocated(contestant.step)
    if contestant.convention is None:
        return {"extra_bytes": extra}
    assert problem.grad is not None
    outcome = Outcome(result.item(), problem.grad, contestant.convention)
    [(loss_error, grad_error)] = largest_errors(problem.pristine, problem.target, [outcome])
    return {"extra_bytes": extra, "loss_error": loss_error, "grad_error": grad_error}


def projection_case(rounds: int) -> Case:
    """With fewer rows where the GPU has too little memory."""
    rows, classes, features = PROJECTION
    case = Case("linear", rows, classes, "bfloat16", threads=1, rounds=rounds, features=features)
    free, _ = torch.cuda.mem_get_info()
    weight = classes * features * DTYPES[case.dtype].itemsize
    while case.rows > 1024 and 6 * (case.logits_bytes + weight) > free:
        case = replace(case, rows=case.rows // 2)
    return case


def fused_rivals() -> dict[str, Way]:
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


def run_projection(case: Case, device: str = "cuda") -> Result:
    on_gpu = device == "cuda"  # else it is only tried
    timed, peak = (event_time, peak_allocated) if on_gpu else (wall_time, peak_extra_bytes)
    ways = WAYS | (fused_rivals() if on_gpu else {})
    sizes = (case.rows, case.classes, case.features)
    problem = Projection(sizes, DTYPES[case.dtype], device=device)
    taking_part = projection.contestants(problem, ["products", *ways], ways)
    warm_up(taking_part, problem.refresh)
    details = []
    for contestant in taking_part:
        problem.refresh()
        details.append({"extra_bytes": peak(contestant.step)[0]})
    return Result(case, compete(taking_part, details, problem.refresh, case.rounds, timed))


def sheet(result: Result) -> Sheet:
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
