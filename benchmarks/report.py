"""Results as tables (terminal and Markdown) and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from benchmarks.measure import Case, Entry, Result


@dataclass
class Sheet:
    """A table: the first columns are names, the others numbers."""

    title: str
    note: str
    names: list[str]
    numbers: list[str]
    rows: list[list[str]]


# What is in the tables.


def sheets(results: list[Result]) -> list[Sheet]:
    def of(part: str, huge_pages: bool = False) -> list[Result]:
        return [r for r in results if r.case.part == part and r.case.huge_pages == huge_pages]

    main = of("main")
    huge = {place(result.case): result for result in of("main", huge_pages=True)}
    made = [main_sheet(result, huge.get(place(result.case))) for result in main]
    if main:
        made.append(summary_sheet(main, huge))
    made += [
        plain_sheet(result, "Forward only, no gradient", "sum", "x logits.sum()")
        for result in of("forward")
    ]
    made += [
        plain_sheet(result, "Images, forward and backward", "in_place", "x in place")
        for result in of("images")
    ]
    made += [
        plain_sheet(result, "What options cost, in place", "plain", "x plain")
        for result in of("variants")
    ]
    made += [
        plain_sheet(result, "Overhead per call", "cross_entropy", "x F.cross_entropy", 1e3, "µs")
        for result in of("small")
    ]
    for part, title, attribute in (
        ("classes", "Over classes", "classes"),
        ("threads", "Over threads", "threads"),
        ("row", "One row over threads", "threads"),
    ):
        if of(part):
            made.append(scaling_sheet(of(part), title, attribute))
    return made


def main_sheet(result: Result, huge: Result | None) -> Sheet:
    def row(entry: Entry) -> list[str]:
        cells = [entry.label, *times(result, entry.key)]
        cells += [
            memory(entry.extra_bytes, result.case.logits_bytes),
            number(entry.loss_error, ".0e"),
            number(entry.grad_error, ".0e"),
        ]
        return cells + (times(huge, entry.key) if huge else [])

    columns = ["ms", "x in\nplace", "x\ncopy"]
    beside = ["huge pages\nms", "x in\nplace", "x\ncopy"] if huge else []
    return Sheet(
        f"Forward and backward, {describe(result.case)}",
        "",
        ["contestant"],
        [*columns, "memory\n/ logits", "loss\nerror", "grad\nerror", *beside],
        [row(entry) for entry in result.entries],
    )


def summary_sheet(main: list[Result], huge: dict[tuple[Any, ...], Result]) -> Sheet:
    rivals = {
        "cross_entropy": "F.cross_entropy",
        "compiled": "compiled",
        "seed_1": "seed 1",
        "seed_2": "seed 2",
    }

    def cell(result: Result, key: str, to: str, style: str) -> str:
        pages = huge.get(place(result.case))
        beside = f" ({number(pages.ratio(key, to), style)})" if pages else ""
        return number(result.ratio(key, to), style) + beside

    def row(result: Result, key: str, label: str) -> list[str]:
        return [
            *(result.case.dtype, f"{result.case.classes:,}", label),
            *(cell(result, rival, key, ".1f") for rival in rivals),
            cell(result, key, "copy", ".2f"),
        ]

    return Sheet(
        "Summary: how many times faster labelsmooth is than",
        "Last column: its time in copies of the logits. "
        + ("In brackets: the same with huge pages for everybody." if huge else ""),
        ["dtype", "classes", "gradient"],
        [*rivals.values(), "/ copy"],
        [
            row(result, key, label)
            for key, label in (("in_place", "in place"), ("fresh", "fresh"))
            for result in main
        ],
    )


def plain_sheet(
    result: Result, title: str, base: str, ratio: str, factor: float = 1.0, unit: str = "ms"
) -> Sheet:
    return Sheet(
        f"{title}, {describe(result.case)}",
        "",
        ["contestant"],
        [unit, ratio],
        [
            [
                entry.label,
                number(entry.ms * factor, ".2f"),
                number(result.ratio(entry.key, base), ".2f"),
            ]
            for entry in result.entries
        ],
    )


def scaling_sheet(results: list[Result], title: str, attribute: str) -> Sheet:
    case = results[0].case
    return Sheet(
        f"{title}, forward and backward, {case.dtype}, {case.millions}M logits, ms",
        "",
        [attribute],
        [entry.label.replace(", ", "\n") for entry in results[0].entries],
        [
            [f"{getattr(result.case, attribute):,}", *(number(e.ms, ".1f") for e in result.entries)]
            for result in results
        ],
    )


def place(case: Case) -> tuple[Any, ...]:
    return (case.part, case.rows, case.classes, case.dtype, case.threads)


def describe(case: Case) -> str:
    size = case.logits_bytes / 2**20
    amount = f"{size:.0f} MiB" if size >= 1 else f"{case.logits_bytes:,} bytes"
    sizes = filter(None, (*case.shape, case.features))
    return f"{case.dtype} {' x '.join(f'{size:,}' for size in sizes)} ({amount})"


def times(result: Result, key: str) -> list[str]:
    return [
        number(result.ms(key), ".1f"),
        number(result.ratio(key, "in_place"), ".2f"),
        number(result.ratio(key, "copy"), ".2f"),
    ]


def number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def memory(extra: int | None, logits: int) -> str:
    return number(None if extra is None else extra / logits, ".2f")


# Where they are put.


def show_environment(console: Console, about: dict[str, Any]) -> None:
    text = "\n".join(
        f"{key.replace('_', ' '):>24}  [bold]{value}[/]" for key, value in about.items()
    )
    console.print(Panel.fit(text, title="environment", border_style="dim"))


def show(console: Console, made: list[Sheet]) -> None:
    wide = console if console.is_terminal else Console(width=120)
    for sheet in made:
        table = Table(box=box.SIMPLE_HEAD)
        for name in sheet.names:
            table.add_column(name, no_wrap=True)
        for column in sheet.numbers:
            table.add_column(column, justify="right")
        for row in sheet.rows:
            table.add_row(*row, style="bold green" if row[0].startswith("labelsmooth") else "")
        wide.print(f"[bold]{sheet.title}[/]")
        wide.print(table)
        if sheet.note:
            wide.print(f"[dim]{sheet.note}[/]\n")


def write_markdown(path: Path, about: dict[str, Any], made: list[Sheet]) -> Path:
    lines = [", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in about.items()), ""]
    for sheet in made:
        lines += [f"### {sheet.title}", ""]
        lines += [sheet.note, ""] if sheet.note else []
        lines.append(
            markdown_row([name.replace("\n", " ") for name in sheet.names + sheet.numbers])
        )
        lines.append(markdown_row(["---"] * len(sheet.names) + ["---:"] * len(sheet.numbers)))
        lines += [*map(markdown_row, sheet.rows), ""]
    file = path.with_suffix(".md")
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_json(path: Path, about: dict[str, Any], results: list[Result]) -> Path:
    def with_ratios(result: Result) -> dict[str, Any]:
        def ratios(entry: Entry) -> dict[str, float | None]:
            bases = [base for base in ("in_place", "copy", "products") if result.ms(base)]
            return {f"to_{base}": result.ratio(entry.key, base) for base in bases}

        return {
            "case": asdict(result.case),
            "entries": [asdict(e) | ratios(e) for e in result.entries],
        }

    content = {"environment": about, "results": [with_ratios(result) for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
