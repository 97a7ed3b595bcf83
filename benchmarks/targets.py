"""Time and memory of the loss on the CPU by the kind of its target.

Logits to gradient (forward and backward), label smoothing 0.1, by labelsmooth in place: with class
indices, with a SparseTarget of 2 and of 64 classes a row, and with class probabilities in float32,
given or made of two classes a row as by mixup, which F.cross_entropy takes too. The floor is a copy
of the logits.

Memory is the peak within the first step above what was resident before, without a target that is
given. Writes JSON, and beside it the tables as Markdown. benchmarks/measure.py says how it
measures.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from benchmarks import publish
from benchmarks.contestants import TORCH, Contestant, Loss, copy, cross_entropy, in_place, training
from benchmarks.loss import TYPICAL, shape
from benchmarks.measure import DTYPES, Case, Result, compete, peak_extra_bytes, settle
from benchmarks.problem import Problem
from benchmarks.report import Sheet, describe, memory, number
from labelsmooth import SparseTarget

FULL = [shape(str(TYPICAL))]
QUICK = [(512, TYPICAL)]
COUNTS = (2, 64)  # classes a row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    publish.add_arguments(parser, "targets", quick="512 rows")
    parser.add_argument("--shapes", nargs="+", type=shape, metavar="C|NxC")
    parser.add_argument("--rounds", type=int, default=7)


def run(args: argparse.Namespace) -> None:
    cases = [
        Case("targets", *size, dtype, args.threads, args.rounds)
        for dtype in args.dtypes
        for size in args.shapes or (QUICK if args.quick else FULL)
    ]
    publish.publish("targets", args, cases, run_case, sheets)


def run_case(case: Case) -> Result:
    settle(case.threads)
    problem = Problem(case.shape, DTYPES[case.dtype])
    everyone = contestants(problem)
    details = []
    for contestant in everyone:
        problem.refresh()
        details.append({"extra_bytes": peak_extra_bytes(contestant.step)[0]})
    return Result(case, compete(everyone, details, problem.refresh, case.rounds))


def contestants(problem: Problem) -> list[Contestant]:
    rows, classes = problem.buffer.shape
    device = problem.buffer.device
    options: dict[str, Any] = {
        "generator": torch.Generator(device).manual_seed(1),
        "device": device,
    }
    sparse = {
        count: SparseTarget(
            torch.randint(classes, (rows, count), **options),
            torch.rand(rows, count, **options).div_(count),
        )
        for count in COUNTS
    }
    probabilities = dense(sparse[2], classes)

    def with_target(key: str, label: str, loss: Loss, target: Any) -> Contestant:
        return training(problem, key, label, lambda logits, _: loss(logits, target), TORCH)

    loss = in_place()
    return [
        copy(problem),
        training(problem, "indices", "labelsmooth, class indices", loss, TORCH),
        *(
            with_target(f"sparse_{count}", f"labelsmooth, SparseTarget, K = {count}", loss, target)
            for count, target in sparse.items()
        ),
        with_target("dense", "labelsmooth, probabilities", loss, probabilities),
        with_target(
            "made",
            "labelsmooth, probabilities, made",
            lambda logits, target: loss(logits, dense(target, classes)),
            sparse[2],
        ),
        with_target("torch", "F.cross_entropy, probabilities", cross_entropy, probabilities),
    ]


def dense(target: SparseTarget, classes: int) -> Tensor:
    made = torch.zeros(len(target.probs), classes, device=target.probs.device)
    return made.scatter_add_(1, target.classes, target.probs)


def sheets(results: list[Result]) -> list[Sheet]:
    return [sheet(result) for result in results]


def sheet(result: Result) -> Sheet:
    bases = {"indices": "x class\nindices", "sparse_2": "x sparse\nK = 2", "copy": "x\ncopy"}
    return Sheet(
        f"By the kind of target, forward and backward, {describe(result.case)}",
        "",
        ["contestant"],
        ["ms", *bases.values(), "memory\n/ logits"],
        [
            [
                entry.label,
                number(entry.ms, ".1f"),
                *(number(result.ratio(entry.key, base), ".2f") for base in bases),
                memory(entry.extra_bytes, result.case.logits_bytes),
            ]
            for entry in result.entries
        ],
    )
