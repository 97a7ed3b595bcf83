"""Results as plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.measure import Entry, Result

COLOURS = {
    "copy": "#9a9a9a",
    "in_place": "#0072b2",
    "fresh": "#56b4e9",
    "compiled": "#009e73",
    "cross_entropy": "#e69f00",
    "seed_1": "#cc79a7",
    "seed_2": "#d55e00",
}
LINEAR_COLOURS = {
    "products": "#9a9a9a",
    "linear": "#0072b2",
    "recompute": "#56b4e9",
    "linear_compiled": "#00355a",
    "in_place": "#cc79a7",
    "plain": "#e69f00",
    "compiled": "#009e73",
    "torch_chunked": "#d55e00",
    "torch": "#7a5200",
}


def draw(path: Path, about: dict[str, Any], results: list[Result]) -> list[Path]:
    """The plots that the results suffice for, beside `path`, named after it."""
    written = []
    for part, make in (("main", bars), ("classes", lines), ("threads", lines)):
        chosen = [r for r in results if r.case.part == part and not r.case.huge_pages]
        if chosen:
            file = path.with_name(path.stem + ("" if part == "main" else f"_{part}") + ".png")
            written.append(save(make(chosen), file, about))
    return written


def save(figure: Figure, file: Path, about: dict[str, Any]) -> Path:
    caption = "{cpu}, {threads} threads, {instruction_set}, torch {torch}".format(**about)
    figure.text(0.99, 0.01, caption, ha="right", va="bottom", fontsize=8, color="#666666")
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file


def draw_over_rows(path: Path, about: dict[str, Any], results: list[Result]) -> list[Path]:
    """Time and memory, for the first C and D with most rows."""
    groups: dict[tuple[int, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result.case.classes, result.case.features), []).append(result)
    chosen = max(groups.values(), key=len)
    if len({result.case.rows for result in chosen}) < 2:
        return []

    def time(result: Result, entry: Entry) -> float | None:
        return result.ratio(entry.key, "products")

    def mebibytes(result: Result, entry: Entry) -> float | None:
        return entry.extra_bytes / 2**20 if entry.extra_bytes else None

    return [
        save(over_rows(chosen, value, label), path.with_name(f"{path.stem}_{name}.png"), about)
        for name, value, label in (
            ("time", time, "forward and backward, times of the products"),
            ("memory", mebibytes, "peak memory, MiB"),
        )
    ]


def over_rows(
    results: list[Result], value: Callable[[Result, Entry], float | None], label: str
) -> Figure:
    dtypes = list(dict.fromkeys(result.case.dtype for result in results))
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(6.5 * len(dtypes), 4.8), sharey=True, squeeze=False
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        group = [result for result in results if result.case.dtype == dtype]
        lines: dict[tuple[str, str], dict[int, float]] = {}
        for result in group:
            for entry in result.entries:
                if y := value(result, entry):
                    lines.setdefault((entry.key, entry.label), {})[result.case.rows] = y
        for (key, name), points in lines.items():
            style = "o--" if key in ("products", "torch") else "o-"
            at, values = list(points), list(points.values())
            axis.plot(at, values, style, markersize=4, label=name, color=LINEAR_COLOURS[key])
        case, at = group[0].case, [result.case.rows for result in group]
        axis.set(
            title=f"{dtype}, {case.classes:,} classes, {case.features:,} features",
            xlabel="rows",
            yscale="log",
        )
        axis.set_xscale("log", base=2)
        axis.set_xticks(at, [f"{n:,}" for n in at])
        tidy(axis)
    axes[0][0].set_ylabel(label)
    return finish(figure, axes[0][0], columns=3 * len(dtypes))


def bars(results: list[Result]) -> Figure:
    """Time of everybody, in copies of the logits."""
    dtypes = list(dict.fromkeys(result.case.dtype for result in results))
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(6.5 * len(dtypes), 4.8), sharey=True, squeeze=False
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        group = [result for result in results if result.case.dtype == dtype]
        keys = {
            entry.key: entry.label
            for result in group
            for entry in result.entries
            if entry.key != "copy"
        }
        width = 0.84 / len(keys)
        for index, (key, label) in enumerate(keys.items()):
            at = [x + (index - (len(keys) - 1) / 2) * width for x in range(len(group))]
            heights = [result.ratio(key, "copy") or 0.0 for result in group]
            drawn = axis.bar(at, heights, width, label=label, color=COLOURS[key])
            axis.bar_label(
                drawn,
                [f"{h:.1f}" if h < 10 else f"{h:.0f}" for h in heights],
                fontsize=6,
                padding=1,
            )
        axis.axhline(1.0, color=COLOURS["copy"], linewidth=1, linestyle="--")
        axis.set_xticks(range(len(group)), [f"{result.case.classes:,}" for result in group])
        axis.set(title=dtype, xlabel="classes", yscale="log")
        tidy(axis)
    axes[0][0].set_ylim(bottom=0.5)
    axes[0][0].set_ylabel("forward and backward, copies of the logits")
    return finish(figure, axes[0][0], columns=3 * len(dtypes))


def lines(results: list[Result]) -> Figure:
    """Time over the number of classes or of threads."""
    part = results[0].case.part
    at = [getattr(result.case, part) for result in results]
    figure, axis = plt.subplots(figsize=(7.5, 4.8))
    for index, entry in enumerate(results[0].entries):
        ms = [result.entries[index].ms for result in results]
        style = "o--" if entry.key == "copy" else "o-"
        axis.plot(at, ms, style, markersize=4, label=entry.label, color=COLOURS[entry.key])
    case = results[0].case
    axis.set(
        title=f"forward and backward, {case.dtype}, {case.millions}M logits",
        xlabel=part,
        ylabel="ms",
        yscale="log",
    )
    if part == "classes":
        axis.set_xscale("log")
    else:
        axis.set_xscale("log", base=2)
        axis.set_xticks(at, [str(n) for n in at])
    tidy(axis)
    return finish(figure, axis, columns=3)


def tidy(axis: Axes) -> None:
    """A logarithmic axis, with plain numbers at 1, 2 and 5."""
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.set_axisbelow(True)
    axis.grid(axis="y", which="major", linewidth=0.4, alpha=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def finish(figure: Figure, axis: Axes, columns: int) -> Figure:
    """One legend above, and room for the caption below."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=columns, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.03, 1, 0.94 if columns > 3 else 0.9))
    return figure
