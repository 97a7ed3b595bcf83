"""Machine instructions that the GPU kernels execute for each logit, counted without a GPU.

Of the CUDA kernels that are built in place, and with --all of the Triton kernel and Liger's.
tests/ptxsim/executed.py says how. A case takes some seconds.
"""

from __future__ import annotations

import argparse
import itertools

from benchmarks.launches import DTYPES, VARIANTS, Case, available, plain_name, run_step
from benchmarks.occupancy import WARP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--archs", nargs="+", type=int, default=[90], metavar="SM")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--classes", nargs="+", type=int, default=[32768], metavar="C")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain"])
    parser.add_argument("--all", action="store_true", help="all implementations")


def run(args: argparse.Namespace) -> None:
    names = available() if args.all else ["labelsmooth, CUDA"]
    print("machine    PTX  of")
    for arch, dtype, classes, variant in itertools.product(
        args.archs, args.dtypes, args.classes, args.variants
    ):
        for name in names:
            if not (name == "Liger" and variant == "stats"):
                show(name, Case(arch, dtype, classes, variant))


def show(name: str, case: Case) -> None:
    """A line for each kernel, and their sum where there are several."""
    step = run_step(name, case)
    logits, described = step.logits.numel(), f"{name}, {case}"
    machine = [launch.instructions / logits for launch in step.launches]
    ptx = [launch.report.instructions * WARP / logits for launch in step.launches]
    for made, launch in zip(zip(machine, ptx, strict=True), step.launches, strict=True):
        needed = f"{launch.report.block[0]} threads, {launch.resources.registers} registers"
        blocks = f"cluster of {launch.report.cluster[0]}"
        print(line(*made, f"{described}: {plain_name(launch.report.kernel)}, {needed}, {blocks}"))
    if len(step.launches) > 1:
        print(line(sum(machine), sum(ptx), f"{described}: all kernels"))


def line(machine: float, ptx: float, of: str) -> str:
    return f"{machine:7.2f} {ptx:6.1f}  {of}"
