"""Time, memory and accuracy of the loss on the CPU, against the alternatives.

Main table: logits to gradient (forward and backward) by labelsmooth in place and with a fresh
gradient, F.cross_entropy, torch.compile of it, and the two classes that labelsmooth replaces; the
floor is a copy of the logits. For one number of classes also with huge pages for everybody
(THP_MEM_ALLOC_ENABLE=1). Further: forward only, images (N, C, d1, d2), what options cost, overhead
per call, and scaling over classes and threads, of many rows and of one.

Writes JSON, and beside it the tables as Markdown and plots. benchmarks/measure.py says how it
measures.
"""

from __future__ import annotations

import argparse

from benchmarks import plots, publish, report
from benchmarks.measure import Case, run_case

LOGITS = 1 << 26
CLASSES = {
    "float32": [1000, 32768, 131072, 262144, 1_000_003],
    "bfloat16": [1000, 32768, 131072],
}
QUICK_CLASSES = [32768, 131072]
SCALING = [10, 21, 100, 200, 1000, 10_000, 100_000, 1_000_000]
TYPICAL = 32768
ONE_ROW = 1 << 22
IMAGES = [(8, 21, 512, 512), (8, 150, 512, 512)]
PARTS = ["main", "forward", "images", "variants", "small", "classes", "threads", "row"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    publish.add_arguments(parser, "loss", quick="two shapes, the small image")
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        metavar="C|NxC",
        help="classes (with as many rows as make 64M logits) or rows x classes, of the main table",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="X", help=", ".join(PARTS)
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="KEY", help="contestants (the JSON's keys)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the slow tables (3)")
    parser.add_argument("--no-huge-pages", action="store_true", help="torch's defaults only")


def shape(text: str) -> tuple[int, int]:
    *rows, classes = (int(size) for size in text.replace("_", "").split("x"))
    return (rows[0] if rows else max(1, LOGITS // classes), classes)


def run(args: argparse.Namespace) -> None:
    draw = None if args.only else plots.draw
    publish.publish("loss", args, plan(args), run_case, report.sheets, draw)


def plan(args: argparse.Namespace) -> list[Case]:
    few, many = args.rounds, 2 * args.rounds + 1
    dtypes, only = args.dtypes, tuple(args.only)

    def case(part: str, rows: int, classes: int, dtype: str, rounds: int, **more: object) -> Case:
        settings = {"threads": args.threads, "only": only, **more}
        return Case(part, rows, classes, dtype, rounds=rounds, **settings)

    cases: list[Case] = []
    for dtype in dtypes if "main" in args.parts else []:
        usual = QUICK_CLASSES if args.quick else CLASSES[dtype]
        for rows, classes in args.shapes or [shape(str(c)) for c in usual]:
            cases.append(case("main", rows, classes, dtype, few, details=True))
            if classes == TYPICAL and not args.no_huge_pages:
                cases.append(case("main", rows, classes, dtype, few, huge_pages=True))
    if "images" in args.parts:
        for rows, classes, *spatial in IMAGES[:1] if args.quick else IMAGES:
            cases.append(case("images", rows, classes, "float32", few, spatial=tuple(spatial)))
    for part, counts in (("forward", [1000, TYPICAL]), ("variants", [TYPICAL])):
        if part in args.parts:
            cases += [case(part, *shape(str(c)), d, many) for d in dtypes for c in counts]
    if "small" in args.parts:
        cases.append(case("small", 8, 50, "float32", many))
    if "classes" in args.parts:
        cases += [case("classes", *shape(str(c)), dtypes[0], few) for c in SCALING]
    powers = (1 << i for i in range(args.threads.bit_length()))
    threads = sorted({args.threads, *powers})
    for part, size in (("threads", shape(str(TYPICAL))), ("row", (1, ONE_ROW))):
        if part in args.parts:
            cases += [case(part, *size, dtypes[0], few, threads=n) for n in threads]
    return cases
