"""Trains one next-token model three times: with nn.CrossEntropyLoss, FusedLabelSmoothingLoss and
FusedLinearLabelSmoothingLoss, which has the projection to the vocabulary in it.

The text is the source of Python's standard library, which every machine has; its vocabulary is
40,000 words. All trainings start from the same seed and see the same batches, each in a process of
its own, a step of each in turn. So the loss curves must agree, the times can be compared, and each
peak of memory is one training's own. Exit status 1 if a curve disagrees with the first.
"""

from __future__ import annotations

import argparse
import sys
from multiprocessing.connection import Connection

import torch
from data import read_tokens
from side_by_side import answer, compare, show, train_in_turns, training_options
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, FusedLinearLabelSmoothingLoss

SMOOTHING = 0.1
LOSSES = ("nn.CrossEntropyLoss", "FusedLabelSmoothingLoss", "FusedLinearLabelSmoothingLoss")


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


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__, learning_rate=2e-3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=1024, help="tokens to predict in a step")
    parser.add_argument("--context", type=int, default=8, help="words to predict the next one from")
    parser.add_argument("--modules", type=int, help="to read; if not given, all")
    parser.add_argument("--vocabulary", type=int, default=40_000)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    vocabulary = args.vocabulary
    tokens = read_tokens(vocabulary, args.modules)
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
