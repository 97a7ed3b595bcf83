"""One benchmark, from its cases to what is shown and written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import report
from benchmarks.environment import cpu_maker, environment
from benchmarks.measure import DTYPES, Case, Result
from benchmarks.workers import measure

RESULTS = Path(__file__).parent / "results"


def add_arguments(parser: argparse.ArgumentParser, name: str, *, quick: str) -> None:
    """Those of every benchmark that is published."""
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help=quick)
    where = f"benchmarks/results/{name}-MAKER.json"
    parser.add_argument("--json", type=Path, help=f"where the results go ({where})")


def publish(
    name: str,
    args: argparse.Namespace,
    cases: list[Case],
    run_case: Callable[[Case], Result],
    sheets_of: Callable[[list[Result]], list[report.Sheet]],
    draw: Callable[[Path, dict[str, Any], list[Result]], list[Path]] | None = None,
) -> None:
    """Results go to `args.json`, or to their folder, by the maker of the processor."""
    name = f"{name}-{cpu_maker()}{'-quick' if args.quick else ''}"
    path = args.json or RESULTS / f"{name}.json"
    about = environment(args.threads)
    console = Console()
    report.show_environment(console, about)
    results = measure(cases, run_case)
    sheets = sheets_of(results)
    report.show(console, sheets)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [report.write_json(path, about, results), report.write_markdown(path, about, sheets)]
    if draw is not None:
        written += draw(path, about, results)
    console.print("written:", *(file.name for file in written), f"in {path.parent.name}/")
