"""Time and memory of the projection and the loss together on the CPU, against the alternatives.

Hidden states and weight to their gradients (forward and backward), label smoothing 0.1, by
labelsmooth (gradients in forward, in backward, and compiled), by F.linear with labelsmooth in place
or with F.cross_entropy (and torch.compile of that), and by F.linear_cross_entropy of torch, in its
chunks (which takes no smoothing) and whole. The floor is the three matrix products alone, in the
chunks of labelsmooth, into memory that is there already.

Left out, and empty in the tables: who needs more than half of the machine's memory for copies of
the logits; in cases of more than 10^13 operations (6 N C D; with --quick 3 x 10^11), which have one
round, what is recomputed or compiled and torch's whole one; and torch's chunks in bfloat16 but for
one cold step with fewest rows and at most 10^11 operations.

Memory is the peak within the first step above what was resident before, gradients included, of the
floor the slab and its outputs. Writes JSON, and beside it the tables as Markdown and plots over the
rows. benchmarks/measure.py says how it measures.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from benchmarks import plots, publish
from benchmarks.contestants import Contestant
from benchmarks.measure import (
    DTYPES,
    Case,
    Entry,
    Result,
    compete,
    give_back,
    peak_extra_bytes,
    settle,
    wall_time,
)
from benchmarks.projection import KEYS, WAYS, Projection, contestants
from benchmarks.report import Sheet, memory, number

FULL = [32768, 131072], [256, 1024, 4096], [1024, 4096, 16384]  # C, D, N
QUICK = [32768], [256, 1024], [1024, 4096]
LARGE, LARGE_QUICK = 1e13, 3e11  # operations; above it one round, without DISPENSABLE
SLOW = 1e11  # operations that torch's chunks in bfloat16 may have: half a minute
DISPENSABLE = {"recompute", "linear_compiled", "compiled", "torch"}
NOTE = (
    "D features, N rows; forward and backward. In place and plain: F.linear, then the loss. "
    "Chunked and whole: F.linear_cross_entropy. Empty: left out, by the rules in "
    "benchmarks/linear.py."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    publish.add_arguments(parser, "linear", quick="one C, two D, two N, one round")
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="NxCxD")
    parser.add_argument(
        "--only", nargs="+", choices=KEYS, default=KEYS, metavar="KEY", help=", ".join(KEYS)
    )
    parser.add_argument("--rounds", type=int, help="3; with --quick 1")


def shape(text: str) -> tuple[int, ...]:
    rows, classes, features = (int(size) for size in text.replace("_", "").split("x"))
    return rows, classes, features


def run(args: argparse.Namespace) -> None:
    draw = plots.draw_over_rows if args.only == KEYS else None
    publish.publish("linear", args, plan(args), run_case, sheets, draw)


def plan(args: argparse.Namespace) -> list[Case]:
    grid = product(*(QUICK if args.quick else FULL))
    shapes = args.shapes or [(N, C, D) for C, D, N in grid]
    rounds = args.rounds or (1 if args.quick else 3)
    large = LARGE_QUICK if args.quick else LARGE
    cases, fewest = [], min(rows for rows, _, _ in shapes)
    for dtype, (N, C, D) in product(args.dtypes, shapes):
        case = Case("linear", N, C, dtype, args.threads, rounds, features=D)
        keys = tuple(key for key in args.only if takes_part(key, case, large, fewest == N))
        cases.append(replace(case, only=keys, rounds=1 if operations(case) > large else rounds))
    return cases


def operations(case: Case) -> int:
    return 6 * case.rows * case.classes * case.features


def takes_part(key: str, case: Case, large: float, fewest_rows: bool) -> bool:
    """By the rules above."""
    if slow(key, case):
        return fewest_rows and operations(case) <= SLOW
    if key in DISPENSABLE and operations(case) > large:
        return False
    copies = WAYS[key].copies if key in WAYS else 0
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return copies * case.logits_bytes <= machine / 2


def slow(key: str, case: Case) -> bool:
    return key == "torch_chunked" and case.dtype == "bfloat16"


def run_case(case: Case) -> Result:
    settle(case.threads)
    problem = Projection((case.rows, case.classes, case.features), DTYPES[case.dtype])
    give_back()  # so that the floor's memory shows
    everyone = contestants(problem, case.only)
    first = {contestant.key: first_step(contestant, problem) for contestant in everyone}
    again = [contestant for contestant in everyone if not slow(contestant.key, case)]
    details = [{"extra_bytes": first[contestant.key].extra_bytes} for contestant in again]
    entries = compete(again, details, problem.refresh, case.rounds)
    return Result(case, list((first | {entry.key: entry for entry in entries}).values()))


def first_step(contestant: Contestant, problem: Projection) -> Entry:
    """Memory and time of the step that warms up."""
    problem.refresh()
    extra, (seconds, _) = peak_extra_bytes(lambda: wall_time(contestant.step))
    return Entry(contestant.key, contestant.label, [seconds * 1e3], extra)


def sheets(results: list[Result]) -> list[Sheet]:
    """Time and memory, for every dtype and number of classes."""
    labels = {entry.key: entry.label for result in results for entry in result.entries}
    groups: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case.dtype, result.case.classes), []).append(result)
    made = []
    for (dtype, classes), group in groups.items():
        of = f"{dtype}, {classes:,} classes"
        made += [
            sheet(f"Time in that of the products, {of}", NOTE, labels, group, time),
            sheet(f"Peak memory in MiB, {of}", "", labels, group, mebibytes),
            sheet(f"Peak memory in sizes of the logits, {of}", "", labels, group, copies),
        ]
    return made


def sheet(
    title: str,
    note: str,
    labels: dict[str, str],
    group: list[Result],
    cell: Callable[[Result, Entry], str],
) -> Sheet:
    columns = [{entry.key: cell(result, entry) for entry in result.entries} for result in group]
    return Sheet(
        title,
        note,
        ["contestant"],
        [f"D {result.case.features:,}\nN {result.case.rows:,}" for result in group],
        [[label, *(column.get(key, "") for column in columns)] for key, label in labels.items()],
    )


def time(result: Result, entry: Entry) -> str:
    if entry.key == "products":
        return f"{entry.ms:,.0f} ms"
    return number(result.ratio(entry.key, "products"), ".2f")


def mebibytes(result: Result, entry: Entry) -> str:
    return number(None if entry.extra_bytes is None else entry.extra_bytes / 2**20, ",.0f")


def copies(result: Result, entry: Entry) -> str:
    return memory(entry.extra_bytes, result.case.logits_bytes)
