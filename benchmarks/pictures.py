"""The two pictures of the README, from the results on the AMD EPYC: `python -m benchmarks.pictures`
writes docs/images/time.png and memory.png. Each says in its metadata which results it shows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
DTYPES = ("float32", "bfloat16")
OURS, OURS_TOO, OTHER, OTHER_TOO = "#0072b2", "#56b4e9", "#8c8c8c", "#c4c4c4"
TIME = {
    "in_place": ("labelsmooth, in place", OURS),
    "fresh": ("labelsmooth, fresh gradient", OURS_TOO),
    "compiled": ("torch.compile of F.cross_entropy", OTHER_TOO),
    "cross_entropy": ("F.cross_entropy", OTHER),
}
CLASSES = (1_000, 32_768, 131_072)
MEMORY = {
    "plain": ("F.linear + F.cross_entropy", OTHER, "o-"),
    "compiled": ("torch.compile of it", OTHER_TOO, "o-"),
    "in_place": ("F.linear + labelsmooth in place", OURS_TOO, "o--"),
    "linear": ("labelsmooth, projection in the loss", OURS, "o-"),
}
FEATURES, VOCABULARY = 256, 32_768


def main() -> None:
    about, results, digest = read("loss-amd.json")
    save(time(results), "time.png", f"64M logits, {machine(about)}; less is better", digest)
    about, results, digest = read("linear-amd.json")
    shape = f"{VOCABULARY:,} classes, {FEATURES} features"
    save(memory(results), "memory.png", f"{shape}, gradients included, {machine(about)}", digest)


def read(name: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    text = (ROOT / "benchmarks" / "results" / name).read_bytes()
    found = json.loads(text)
    return found["environment"], found["results"], hashlib.sha256(text).hexdigest()


def machine(about: dict[str, Any]) -> str:
    torch = about["torch"].partition("+")[0]
    return f"{about['threads']} cores of an {about['cpu']} with AVX-512, torch {torch}"


def time(results: list[dict[str, Any]]) -> Figure:
    """A step, in copies of the logits."""
    found = {
        (case["dtype"], case["classes"]): {e["key"]: e["to_copy"] for e in result["entries"]}
        for result in results
        if (case := result["case"])["part"] == "main" and not case["huge_pages"]
    }
    figure, axes = panels()
    width = 0.86 / len(TIME)
    for axis, dtype in zip(axes, DTYPES, strict=True):
        for index, (key, (label, colour)) in enumerate(TIME.items()):
            at = [x + (index - (len(TIME) - 1) / 2) * width for x in range(len(CLASSES))]
            heights = [found[dtype, classes][key] for classes in CLASSES]
            bars = axis.bar(at, heights, width * 0.92, label=label, color=colour)
            axis.bar_label(bars, [f"{h:.1f}" if h < 10 else f"{h:.0f}" for h in heights], padding=2)
        axis.set_xticks(range(len(CLASSES)), [f"{classes:,}" for classes in CLASSES])
        axis.set(title=dtype, xlabel="classes")
        axis.tick_params(axis="x", length=0)
    axes[0].set_ylabel("forward and backward,\ncopies of the logits")
    return figure


def memory(results: list[dict[str, Any]]) -> Figure:
    """The peak of a step over the number of rows."""
    figure, axes = panels()
    for axis, dtype in zip(axes, DTYPES, strict=True):
        chosen = [
            result
            for result in results
            if result["case"]["dtype"] == dtype
            and (result["case"]["classes"], result["case"]["features"]) == (VOCABULARY, FEATURES)
        ]
        rows = [result["case"]["rows"] for result in chosen]
        for key, (label, colour, style) in MEMORY.items():
            peaks = [
                next(e["extra_bytes"] for e in result["entries"] if e["key"] == key) / 2**30
                for result in chosen
            ]
            axis.plot(rows, peaks, style, label=label, color=colour, linewidth=2.5)
            if key != "compiled":
                said = f"{peaks[-1]:.2g} GiB"
                axis.annotate(
                    said, (rows[-1], peaks[-1]), (0, 7), textcoords="offset points", ha="right"
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(rows, [f"{n:,}" for n in rows])
        axis.yaxis.set_major_locator(FixedLocator([1 / 8, 1 / 4, 1 / 2, 1, 2, 4]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set(title=dtype, xlabel="rows (tokens)", ylim=(1 / 16, 11))
    axes[0].set_ylabel("peak memory of a step, GiB")
    return figure


def panels() -> tuple[Figure, list[Axes]]:
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11})
    figure, axes = plt.subplots(1, 2, figsize=(8.8, 4.2), sharey=True)
    for axis in axes:
        axis.set_axisbelow(True)
        axis.grid(axis="y", linewidth=0.5, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save(figure: Figure, name: str, caption: str, digest: str) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=2, frameon=False)
    figure.text(0.5, 0.012, caption, ha="center", fontsize=9, color="#555555")
    figure.tight_layout(rect=(0, 0.04, 1, 0.88))
    about = {"Source": digest}
    figure.savefig(IMAGES / name, dpi=180, facecolor="white", metadata=about)
    plt.close(figure)


if __name__ == "__main__":
    main()
