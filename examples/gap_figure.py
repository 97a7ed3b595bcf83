r"""Draws what label smoothing does to the logits: how far the target's comes to stand above the
others, against the smoothing, as theory has it and as small classifiers learn it.

With the smoothing a over C classes a row's target is q. The loss is H(q) + KL(q || p), smallest
where the softmax p is q, so that x_y - x_c = log(p_y / p_c) = log(q_y / q_c) for a class c beside
the target y:

    over all classes     q_y = 1 - a + a/C, q_c = a/C        gap = log(1 + (1 - a) C / a)
    over the others      q_y = 1 - a,       q_c = a/(C - 1)  gap = log((1 - a) (C - 1) / a)

Without smoothing there is no such gap: logits grow as long as training lasts, which here is a few
steps then. The images are scikit-learn's digits, 1,797 of 8 x 8, which come with the package. Every
classifier starts from the same seed and sees all training images in each step of L-BFGS, until it
fits them: there the median gap must be the theory's, exit status 1 if it is not. On images that it
has not seen it is nearly as sure.

The gap, after Szegedy et al. 2016, arXiv:1512.00567, and Mueller et al. 2019, arXiv:1906.02629. A
second picture shows smoothed targets, which compat.LabelSmoothing makes when asked.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from data import read_digits
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss
from labelsmooth.compat import LabelSmoothing

CLASSES, PIXELS, TEST_IMAGES = 10, 64, 360
Over = Literal["all", "others"]
OVER: tuple[Over, ...] = ("all", "others")
SMOOTHINGS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6)
UNSMOOTHED_STEPS = 15  # where no number of them is enough
# Of the median on training images. A row whose gap is e beside theory has a loss q_y (1 - q_y) e²/2
# above its least, about a e²/2: the search may end 5e-5 above it for a = 0.01, the flattest here.
TOLERANCE = 0.1
COLORS = {"all": "#0072B2", "others": "#D55E00"}  # Okabe and Ito's, which colour-blind eyes tell
STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def theory(over: Over, a: float) -> float:
    """The gap at a smoothing a > 0."""
    if over == "all":
        return math.log(1 + (1 - a) * CLASSES / a)
    return math.log((1 - a) * (CLASSES - 1) / a)


@dataclass
class Gaps:
    """Of one classifier, on training images and on others."""

    over: Over
    smoothing: float
    target: tuple[Tensor, Tensor]  # the target's logit minus the mean of the others, (N,)
    largest: tuple[Tensor, Tensor]  # the largest logit minus the mean of the others, (N,)
    accuracy: float  # on the other images

    @property
    def medians(self) -> tuple[float, float]:
        trained, unseen = self.target
        return trained.median().item(), unseen.median().item()


def train(over: Over, smoothing: float, images: Tensor, labels: Tensor, args: Any) -> Gaps:
    torch.manual_seed(args.seed)
    model = nn.Sequential(nn.Linear(PIXELS, args.width), nn.GELU(), nn.Linear(args.width, CLASSES))
    loss_fn = FusedLabelSmoothingLoss(label_smoothing=smoothing, smooth_over=over)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=args.steps if smoothing > 0 else min(args.steps, UNSMOOTHED_STEPS),
        history_size=20,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    trained, unseen = slice(TEST_IMAGES, None), slice(TEST_IMAGES)

    def closure() -> Tensor:
        loss: Tensor = loss_fn(model(images[trained]), labels[trained])
        optimizer.zero_grad()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        logits: Tensor = model(images)
    of_target = above_others(logits, labels)
    of_largest = above_others(logits, logits.argmax(1))
    right = logits[unseen].argmax(1) == labels[unseen]
    return Gaps(
        over,
        smoothing,
        (of_target[trained], of_target[unseen]),
        (of_largest[trained], of_largest[unseen]),
        right.float().mean().item(),
    )


def above_others(logits: Tensor, classes: Tensor) -> Tensor:
    """(N,): the logits (N, C) of the classes (N,) minus the mean of the row's other logits."""
    chosen = logits.gather(1, classes[:, None]).squeeze(1)
    return chosen - (logits.sum(1) - chosen) / (CLASSES - 1)


# ---- pictures ------------------------------------------------------------------------------------


def draw_gaps(results: Sequence[Gaps], file: Path) -> None:
    """Above theory and medians, below a row of distributions for each smoothing."""
    figure = plt.figure(figsize=(8, 9), layout="constrained")
    panels = figure.subplot_mosaic(
        [["gap", "gap"], list(OVER)], height_ratios=[1.0, 1.15], sharex=False
    )
    draw_medians(panels["gap"], results)
    for over in OVER:
        draw_distributions(panels[over], [r for r in results if r.over == over])
    panels[OVER[1]].tick_params(labelleft=False)
    panels[OVER[0]].set_ylabel("smoothing")
    unseen = Patch(color="0.3", alpha=0.5, label="unseen images")
    trained = Line2D([], [], color="0.2", lw=0.9, label="training images")
    least = Line2D([], [], color="black", marker="^", ls="", ms=6, label="theory")
    panels[OVER[1]].legend(
        handles=[unseen, trained, least], loc=(0.42, 0.1), fontsize=11, framealpha=1, edgecolor="w"
    )
    figure.savefig(file, dpi=200)
    plt.close(figure)


def draw_medians(panel: Axes, results: Sequence[Gaps]) -> None:
    smoothings = np.geomspace(0.006, 0.75, 200)
    for over in OVER:
        color = COLORS[over]
        line = [theory(over, a) for a in smoothings]
        panel.plot(smoothings, line, color=color, ls="-" if over == "all" else "--", lw=2)
        formula = {
            "all": r"all:  $\log(1+(1-a)\,C/a)$",
            "others": r"others:  $\log((1-a)(C-1)/a)$",
        }[over]
        panel.plot([], [], color=color, ls="-" if over == "all" else "--", lw=2, label=formula)
        measured = [r for r in results if r.over == over and r.smoothing > 0]
        at = [r.smoothing for r in measured]
        shape = "o" if over == "all" else "s"
        marks: dict[str, Any] = {"color": color, "marker": shape, "ls": "", "zorder": 3}
        panel.plot(at, [r.medians[0] for r in measured], ms=8, **marks)
        panel.plot(at, [r.medians[1] for r in measured], ms=13, mfc="none", mew=1.2, **marks)
    panel.plot([], [], "o", color="0.3", ms=8, label="median, training images")
    panel.plot([], [], "o", color="0.3", ms=13, mfc="none", label="median, unseen images")
    panel.set_xscale("log")
    ticks = sorted({r.smoothing for r in results} - {0.0})
    panel.set_xticks(ticks, [f"{a:g}" for a in ticks])
    panel.minorticks_off()
    panel.set_xlabel("smoothing a")
    panel.set_ylabel("target's logit - mean of the others")
    panel.set_title("The gap that label smoothing asks for, and what is learned", loc="left")
    panel.grid(alpha=0.25)
    panel.legend(frameon=False, fontsize=11)


def draw_distributions(panel: Axes, results: Sequence[Gaps]) -> None:
    """A row for each smoothing, whose highest bar has the same height: filled for unseen images, an
    outline for training images. A triangle is the theory."""
    bins, over = np.linspace(0, 24, 121), results[0].over
    rows = range(len(results) - 1, -1, -1)  # the first is the highest
    for row, result in zip(rows, results, strict=True):
        trained, unseen = (np.histogram(gaps.numpy(), bins)[0] for gaps in result.largest)
        panel.stairs(
            row + 0.8 * unseen / max(1, unseen.max()),
            bins,
            baseline=row,
            fill=True,
            color=COLORS[over],
            alpha=0.5,
        )
        panel.stairs(
            row + 0.8 * trained / max(1, trained.max()), bins, baseline=row, color="0.2", lw=0.9
        )
        if result.smoothing > 0:
            panel.plot(theory(over, result.smoothing), row - 0.1, "k^", ms=6)
    panel.set_yticks(rows, [f"{r.smoothing:g}" for r in results])
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    panel.set_xlim(0, bins[-1])
    panel.set_xlabel("largest logit - mean of the others")
    panel.set_title(f'smooth_over="{over}"', loc="left", fontsize=12)
    panel.grid(axis="x", alpha=0.25)


def draw_targets(images: Tensor, labels: Tensor, file: Path, smoothings: Sequence[float]) -> None:
    """Some images beside what they are to be taken for."""
    rows = [int((labels == c).nonzero()[0]) for c in range(CLASSES)]
    shown, target = images[rows], labels[rows]
    figure = plt.figure(figsize=(8, 4.6), layout="constrained")
    names: list[Any] = ["images", *(f"{a:g}" for a in smoothings)]
    panels = figure.subplot_mosaic([names], width_ratios=[1, *[CLASSES] * len(smoothings)])
    framed = nn.functional.pad(shown.view(-1, 8, 8), (1, 1, 1, 1))  # a white pixel around each
    panels["images"].imshow(framed.flatten(0, 1), cmap="gray_r", aspect="auto")
    panels["images"].set_axis_off()
    for a in smoothings:
        criterion, panel = LabelSmoothing(CLASSES, a), panels[f"{a:g}"]
        criterion(torch.zeros(CLASSES, CLASSES).log_softmax(1), target)
        assert criterion.true_dist is not None  # there is a last call, of which it is the target
        draw_matrix(panel, criterion.true_dist)
        panel.set_title(f"smoothing {a:g}", loc="left")
    figure.savefig(file, dpi=200)
    plt.close(figure)


def draw_matrix(panel: Axes, matrix: Tensor) -> None:
    panel.imshow(matrix, cmap="Blues", vmin=0, vmax=1.0, aspect="auto")
    for row, probs in enumerate(matrix.tolist()):
        for column, p in enumerate(probs):
            text = f"{p:.2f}" if p > 0.5 else f"{p:.3f}".removeprefix("0")
            color = "white" if p > 0.5 else "#1b3a57"
            panel.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    panel.set_xticks(range(CLASSES))
    panel.set_yticks([])
    panel.set_xlabel("class")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


# ---- what was measured ---------------------------------------------------------------------------


def show(results: Sequence[Gaps]) -> None:
    table = Table("smoothing", box=box.SIMPLE_HEAD, title="gap, median", title_justify="left")
    for heading in ("over", "theory", "training images", "unseen images", "accuracy there"):
        table.add_column(heading, justify="right")
    for result in results:
        expected = f"{theory(result.over, result.smoothing):.3f}" if result.smoothing else "none"
        medians = (f"{median:.3f}" for median in result.medians)
        accuracy = f"{result.accuracy:.1%}"
        table.add_row(f"{result.smoothing:g}", result.over, expected, *medians, accuracy)
    Console().print(table)


def follows(results: Sequence[Gaps]) -> bool:
    """Whether the medians on training images are the theory's, and says so."""
    apart = [
        abs(result.medians[0] - theory(result.over, result.smoothing))
        for result in results
        if result.smoothing > 0
    ]
    agree = all(difference <= TOLERANCE for difference in apart)  # not so if one is NaN
    verdict = "follow" if agree else "DO NOT follow"
    print(f"The medians {verdict} theory: {max(apart):.3f} apart, tolerance {TOLERANCE}.")
    return agree


def smoothing(text: str) -> float:
    a = float(text)
    if not 0 <= a < 1:
        raise ValueError
    return a


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoothings", type=smoothing, nargs="+", default=SMOOTHINGS)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--width", type=int, default=128, help="of the hidden layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=".", help="of the two pictures")
    args = parser.parse_args()
    if not any(args.smoothings):
        parser.error("expected a smoothing above 0 among those given")
    return args


def main() -> int:
    args = arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the images are small
    mpl.use("agg")
    images, labels = read_digits()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(args.seed))
    images, labels = images[order].flatten(1), labels[order]
    pairs: list[tuple[Over, float]] = [(over, a) for a in args.smoothings for over in OVER]
    results = [
        train(over, a, images, labels, args) for over, a in track(pairs, "training", transient=True)
    ]
    show(results)
    with mpl.rc_context(STYLE):
        draw_gaps(results, args.folder / "gap.png")
        draw_targets(images, labels, args.folder / "true_dist.png", (0.1, 0.4))
    print(f"gap.png and true_dist.png are in {args.folder}")
    return 0 if follows(results) else 1


if __name__ == "__main__":
    sys.exit(main())
