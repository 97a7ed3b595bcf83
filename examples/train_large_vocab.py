"""Trains one next-token model three times: with nn.CrossEntropyLoss, FusedLabelSmoothingLoss and
FusedLinearLabelSmoothingLoss, which has the projection to the vocabulary in it.

The text is the source of Python's standard library, which every machine has; its vocabulary is
40,000 words. All trainings start from the same seed and see the same batches, each in a process of
its own, a step of each in turn. So the loss curves must agree, the times can be compared, and each
peak of memory is one training's own. Exit status 1 if a curve disagrees with the first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, track
from rich.table import Table
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, FusedLinearLabelSmoothingLoss

SMOOTHING = 0.1
LOSSES = ("nn.CrossEntropyLoss", "FusedLabelSmoothingLoss", "FusedLinearLabelSmoothingLoss")
LEAST_WORDS = 32_000
TOKEN = re.compile(r"[A-Za-z_]\w*|\d+|[^\w\s]")
TOLERANCE = 1e-3  # of the loss at any step; float32 sums in another order drift apart in training


def read_tokens(words: int) -> tuple[Tensor, int]:
    """The standard library as word numbers (0: a rare word), and the size of the vocabulary."""
    library = Path(sysconfig.get_paths()["stdlib"])
    foreign = {"site-packages", "dist-packages"}
    files = [f for f in sorted(library.rglob("*.py")) if foreign.isdisjoint(f.parts)]
    text: list[str] = []
    for file in track(files, "reading the standard library", transient=True):
        text += TOKEN.findall(file.read_text(encoding="utf-8", errors="ignore"))
    common = Counter(text).most_common(words - 1)
    if len(common) + 1 < LEAST_WORDS:
        sys.exit(f"expected at least {LEAST_WORDS} different words in {library}, got {len(common)}")
    number = {word: index for index, (word, _) in enumerate(common, start=1)}
    return torch.tensor([number.get(word, 0) for word in text]), len(common) + 1


@dataclass
class Run:
    """What a training, in its process, reported."""

    name: str
    pipe: Connection
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    before: int = 0  # bytes, peak memory before the first step
    peak: int = 0  # bytes, in the end
    result: Any = None  # what else it has to tell, in the end

    @property
    def step_ms(self) -> float:
        return statistics.median(self.seconds) * 1e3


class NextToken(nn.Module):
    """The loss (a scalar) of the words (N,) that follow contexts (N, K): embeddings, one hidden
    layer, the projection to the vocabulary."""

    def __init__(self, loss: str, vocabulary: int, context: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(context * width, width)
        self.loss = make_loss(loss, width, vocabulary)

    def forward(self, context: Tensor, target: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.embedding(context).flatten(1)))
        loss: Tensor = self.loss(hidden, target)
        return loss


class OfLogits(nn.Module):
    """A projection, then a loss of its logits (N, C)."""

    def __init__(self, width: int, vocabulary: int, loss: nn.Module) -> None:
        super().__init__()
        self.linear = nn.Linear(width, vocabulary)
        self.loss = loss

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = self.loss(self.linear(hidden), target)
        return loss


def make_loss(name: str, width: int, vocabulary: int) -> nn.Module:
    """From hidden states (N, D); its projection starts from the same weights in all."""
    if name == "FusedLinearLabelSmoothingLoss":
        return FusedLinearLabelSmoothingLoss(
            width, vocabulary, bias=True, label_smoothing=SMOOTHING
        )
    if name == "nn.CrossEntropyLoss":
        return OfLogits(width, vocabulary, nn.CrossEntropyLoss(label_smoothing=SMOOTHING))
    # A linear layer needs its output no more once it is made: the gradient may overwrite it.
    loss = FusedLabelSmoothingLoss(label_smoothing=SMOOTHING, inplace=True)
    return OfLogits(width, vocabulary, loss)


def train(
    parent: Connection, name: str, tokens: Tensor, vocabulary: int, args: argparse.Namespace
) -> None:
    """One training, in its own process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = NextToken(name, vocabulary, args.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    window = torch.arange(args.context + 1)

    def step() -> Tensor:
        at = torch.randint(len(tokens) - args.context, (args.batch, 1))
        batch = tokens[at + window]
        loss: Tensor = model(batch[:, :-1], batch[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    answer(parent, step)


def answer(
    parent: Connection, step: Callable[[], Tensor], result: Callable[[], Any] = lambda: None
) -> None:
    """A step for every message, answered by its loss and time; in the end memory and the result."""
    before = peak_bytes()
    while parent.recv():
        start = time.perf_counter()
        loss = step()
        parent.send((loss.item(), time.perf_counter() - start))
    parent.send((before, peak_bytes(), result()))


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def train_in_turns(
    train: Callable[..., None], names: Sequence[str], steps: int, *arguments: Any
) -> list[Run]:
    """Runs `train(parent, name, *arguments)` for each name, in processes of their own."""
    runs: list[Run] = []
    processes = multiprocessing.get_context("spawn")
    for name in names:
        ours, theirs = processes.Pipe()
        what = (theirs, name, *arguments)
        processes.Process(target=train, args=what, daemon=True).start()
        theirs.close()  # so that a child's death ends a wait for it
        runs.append(Run(name, ours))
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        for _ in progress.track(range(steps), description="training"):
            for run in runs:
                run.pipe.send(True)
                loss, seconds = run.pipe.recv()
                run.losses.append(loss)
                run.seconds.append(seconds)
    for run in runs:
        run.pipe.send(False)
        run.before, run.peak, run.result = run.pipe.recv()
    return runs


def show(runs: list[Run]) -> None:
    """The curves at some steps, then time and memory."""
    console = Console()
    steps = len(runs[0].losses)
    curve = Table("step", box=box.SIMPLE_HEAD, title="loss", title_justify="left")
    cost = Table("", box=box.SIMPLE_HEAD, title="cost", title_justify="left")
    for run in runs:
        heading = run.name.replace("Label", "\nLabel")
        for table in (curve, cost):
            table.add_column(heading, justify="right", no_wrap=True)
    for step in sorted({0, *range(9, steps, max(10, steps // 60 * 10)), steps - 1}):
        curve.add_row(str(step + 1), *(f"{run.losses[step]:.5f}" for run in runs))
    cost.add_row("time per step, median", *(f"{run.step_ms:.0f} ms" for run in runs))
    cost.add_row("peak memory", *(f"{run.peak / 2**20:.0f} MiB" for run in runs))
    cost.add_row(
        "of it since training began",
        *(f"{(run.peak - run.before) / 2**20:.0f} MiB" for run in runs),
    )
    console.print(curve, cost)


def compare(runs: list[Run]) -> bool:
    """Whether all losses are those of the first run, and says so."""
    first, *others = runs
    apart = [
        abs(loss - expected)
        for run in others
        for loss, expected in zip(run.losses, first.losses, strict=True)
    ]
    agree = all(difference <= TOLERANCE for difference in apart)  # not so if one is NaN
    verdict = "agree" if agree else "DISAGREE"
    print(f"The loss curves {verdict}: at most {max(apart):.1e} apart, tolerance {TOLERANCE:.0e}.")
    return agree


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=1024, help="tokens to predict in a step")
    parser.add_argument("--context", type=int, default=8, help="words to predict the next one from")
    parser.add_argument("--vocabulary", type=int, default=40_000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    tokens, vocabulary = read_tokens(args.vocabulary)
    print(f"{len(tokens):,} tokens, a vocabulary of {vocabulary:,} words")
    size = args.batch * vocabulary * 4 / 2**20
    print(f"logits of a step: {args.batch:,} x {vocabulary:,}, {size:.0f} MiB")
    runs = train_in_turns(train, LOSSES, args.steps, tokens, vocabulary, args)
    show(runs)
    agree = compare(runs)
    torch_run, *our_runs = runs
    for run in our_runs:
        times = torch_run.step_ms / run.step_ms
        print(f"With {run.name} a step is {times:.1f} times faster.")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
