"""One benchmark, from its cases to what is shown and written."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import report
from benchmarks.environment import cpu_maker, environment
from benchmarks.measure import Case, Result
from benchmarks.workers import measure

RESULTS = Path(__file__).parent / "results"


def publish(
    name: str,
    args: argparse.Namespace,
    cases: list[Case],
    run_case: Callable[[Case], Result],
    sheets_of: Callable[[list[Result]], list[report.Sheet]],
    draw: Callable[[Path, dict[str, Any], list[Result]], list[Path]] | None = None,
) -> None:
    """Measures the cases; results go to `args.json`, or to the folder of results, by the maker
    of the processor."""
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
