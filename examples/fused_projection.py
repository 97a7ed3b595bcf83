"""Trains a small language model whose projection is its embedding: with nn.Linear and
nn.CrossEntropyLoss, and with FusedLinearLabelSmoothingLoss, which never has the logits whole.

What a training has beside its loss, train_large_vocab.py leaves out, and is here:

- tied weights: the embedding and the projection are one parameter;
- accumulation: a step is of several micro-batches with different numbers of words. Each divides by
  the words of all (`normalizer`), so that the step is that of one large batch;
- perplexity, which is of the unsmoothed likelihood: in training from the same pass
  (`return_stats`), in evaluation from a pass that makes no logits either;
- a frozen projection: a second, short training of all but the embedding, where no gradient of the
  weight's size is made.

The rows of a micro-batch go in chunks through one slab of logits, (chunk_rows, C); its size is that
of a chunk, not of the batch. A third training takes smaller chunks than the default: less memory,
and more time, since each chunk reads the whole weight.

The text is the paragraphs of Python's standard library, some of them to test on. All trainings
start from the same seed and see the same batches, each in a process of its own. Exit status 1 if a
curve disagrees.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from multiprocessing.connection import Connection

import torch
from data import TOKEN, library, read
from side_by_side import Run, answer, compare, show, train_in_turns, training_options
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from labelsmooth import FusedLinearLabelSmoothingLoss

SMOOTHING = 0.1
PLAIN, FUSED, SMALL = LOSSES = (
    "nn.CrossEntropyLoss",
    "FusedLinearLabelSmoothingLoss",
    "the same, small chunks",
)
IGNORED, BEGIN = -100, 0  # a target that is none, as the losses have it; the first word


def read_paragraphs(args: argparse.Namespace) -> tuple[Tensor, list[int], int]:
    """Paragraphs as word numbers (1: a rare word), each behind BEGIN, in random order: all in one
    tensor, their lengths, and the size of the vocabulary."""
    paragraphs: list[list[str]] = []
    for module in read(library()[: args.modules]):
        tokens = (TOKEN.findall(paragraph) for paragraph in module.split("\n\n"))
        paragraphs += [found[: args.longest] for found in tokens if len(found) > 3]
    count = Counter(word for found in paragraphs for word in found)
    common = count.most_common(args.vocabulary - 2)
    number = {word: index for index, (word, _) in enumerate(common, start=2)}
    random.Random(0).shuffle(paragraphs)
    numbers = [[BEGIN, *(number.get(word, 1) for word in found)] for found in paragraphs]
    flat = torch.tensor(list(chain.from_iterable(numbers)))
    return flat, [len(found) for found in numbers], len(common) + 2


class PlainLoss(nn.Module):
    """A projection, and the loss and the likelihood of its logits, which are whole."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        vocabulary, width = weight.shape
        self.linear = nn.Linear(width, vocabulary, bias=False)
        self.linear.weight = weight
        self.smoothed = nn.CrossEntropyLoss(reduction="sum", label_smoothing=SMOOTHING)
        self.unsmoothed = nn.CrossEntropyLoss(reduction="sum")

    def forward(self, hidden: Tensor, target: Tensor, normalizer: Tensor) -> tuple[Tensor, Tensor]:
        logits, words = self.linear(hidden).flatten(0, 1), target.flatten()
        with torch.no_grad():  # reads all logits once more
            nll: Tensor = self.unsmoothed(logits, words)
        loss: Tensor = self.smoothed(logits, words) / normalizer
        return loss, nll


class FusedLoss(nn.Module):
    """The same without logits; the likelihood comes from the same pass."""

    def __init__(self, weight: Tensor, chunk_rows: int | None) -> None:
        super().__init__()
        vocabulary, width = weight.shape
        self.loss = FusedLinearLabelSmoothingLoss(
            width,
            vocabulary,
            label_smoothing=SMOOTHING,
            chunk_rows=chunk_rows,
            return_stats=True,
        )
        self.loss.linear.weight = weight

    def forward(self, hidden: Tensor, target: Tensor, normalizer: Tensor) -> tuple[Tensor, Tensor]:
        loss, stats = self.loss(hidden, target, normalizer=normalizer)
        return loss, stats.nll.sum()


class LanguageModel(nn.Module):
    """Embeddings, one layer of causal attention, and the embedding once more as the projection."""

    def __init__(self, loss: str, vocabulary: int, args: argparse.Namespace) -> None:
        super().__init__()
        width = args.width
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(args.longest, width))
        self.layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        tied = self.embedding.weight  # one parameter for both, whose gradients add up
        if loss == PLAIN:
            self.loss: nn.Module = PlainLoss(tied)
        else:
            self.loss = FusedLoss(tied, args.chunk_rows if loss == SMALL else None)

    def forward(self, batch: Tensor, normalizer: Tensor) -> tuple[Tensor, Tensor]:
        """Of paragraphs (B, T + 1): the sum of the words' losses over the normalizer, and the sum
        of their negative log-likelihoods."""
        words, target = batch[:, :-1].clamp(min=0), batch[:, 1:]  # behind the end: any word
        length = words.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        embedded = self.embedding(words) + self.position[:length]
        hidden = self.norm(self.layer(embedded, src_mask=mask, is_causal=True))
        loss, nll = self.loss(hidden, target, normalizer)
        return loss, nll


def padded(paragraphs: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(paragraphs), batch_first=True, padding_value=IGNORED)


def words_to_predict(batches: Iterable[Tensor]) -> Tensor:
    """How many there are, a 0-d tensor."""
    return torch.stack([(batch[:, 1:] != IGNORED).sum() for batch in batches]).sum()


def train(
    parent: Connection,
    name: str,
    tokens: Tensor,
    lengths: list[int],
    vocabulary: int,
    frozen: bool,
    args: argparse.Namespace,
) -> None:
    """One training, in its own process; its results are the perplexities of the last ten steps and
    of the paragraphs to test on."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = LanguageModel(name, vocabulary, args)
    model.embedding.weight.requires_grad_(not frozen)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.learning_rate)
    paragraphs = tokens.split(lengths)
    tested, trained = paragraphs[: args.tested], paragraphs[args.tested :]
    seen: list[float] = []

    def step() -> Tensor:
        at = torch.randint(len(trained), (args.accumulate, args.batch)).tolist()
        batches = [padded([trained[i] for i in of_batch]) for of_batch in at]
        count = words_to_predict(batches)
        optimizer.zero_grad()
        total, likelihood = torch.zeros(()), torch.zeros(())
        for batch in batches:
            loss, nll = model(batch, count)
            loss.backward()
            total, likelihood = total + loss.detach(), likelihood + nll
        optimizer.step()
        seen.append((likelihood / count).item())
        return total

    @torch.no_grad()
    def perplexities() -> tuple[float, float]:
        model.eval()
        starts = range(0, len(tested), args.batch)
        batches = [padded(tested[start : start + args.batch]) for start in starts]
        total = sum(model(batch, torch.ones(()))[1].item() for batch in batches)
        of_test = total / words_to_predict(batches).item()
        of_training = statistics.fmean(seen[-10:])
        return math.exp(of_training), math.exp(of_test)

    answer(parent, step, perplexities)


def report(runs: list[Run]) -> bool:
    show(runs)
    for run in runs:
        of_training, of_test = run.result
        print(f"Perplexity with {run.name}: {of_test:.2f}; in the last steps {of_training:.2f}")
    return compare(runs)


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__, learning_rate=2e-3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--frozen-steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="paragraphs of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--longest", type=int, default=64, help="words of a paragraph")
    parser.add_argument("--tested", type=int, default=256, help="paragraphs to test on")
    parser.add_argument("--modules", type=int, help="to read; if not given, all")
    parser.add_argument("--vocabulary", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--chunk-rows", type=int, default=128, help="of the small chunks")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    tokens, lengths, vocabulary = read_paragraphs(args)
    print(f"{len(lengths):,} paragraphs, a vocabulary of {vocabulary:,} words")
    rows = args.batch * args.longest
    size = rows * vocabulary * 4 / 2**20
    print(f"logits of a micro-batch: up to {rows:,} x {vocabulary:,}, {size:.0f} MiB")
    given = tokens, lengths, vocabulary
    runs = train_in_turns(train, LOSSES, args.steps, *given, False, args)
    agree = report(runs)
    print("\nWith the embedding, and so the projection, frozen:")
    frozen = train_in_turns(train, (PLAIN, FUSED), args.frozen_steps, *given, True, args)
    return 0 if report(frozen) and agree else 1


if __name__ == "__main__":
    sys.exit(main())
