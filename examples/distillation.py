"""Trains a student from the likeliest words of a teacher, kept as a SparseTarget; beside it from
the same target written out over the whole vocabulary, and from hard labels.

The text is Python's standard library. The teacher has counted what follows two words, in many
modules. The student, a small network, learns from a few others, where it has at each place the
word that came and what the teacher expected there; of that the `--top` likeliest words are kept
with their probabilities, a few numbers a place in the place of one for each word. Both are one
target:

    SparseTarget(classes=[label, *words], probs=[1 - trust, *(trust * probs)])

All trainings start from the same seed and see the same places, each in a process of its own, a step
of each in turn. Exit status 1 if the curves of the two forms of the target disagree, or if the
student foretells modules that nobody has seen no better with the teacher than from hard labels.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from multiprocessing.connection import Connection

import torch
from data import TOKEN, library, read
from rich.progress import track
from side_by_side import answer, compare, show, train_in_turns, training_options
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, SparseTarget

TARGETS = HARD, DENSE, SPARSE = "hard labels", "dense target", "SparseTarget"
CONTEXT = 4  # words that the student sees; the teacher looks at the last two
Words = tuple[int, ...]


def read_texts(args: argparse.Namespace) -> tuple[list[list[int]], int]:
    """The texts of the student, the test and the teacher as word numbers (0: a rare word), no
    module in two of them; and the size of the vocabulary."""
    files = library()
    random.Random(args.seed).shuffle(files)
    texts: list[list[str]] = [[], [], []]
    sizes = [args.student_words, args.test_words, args.teacher_words]
    for module in read(files):
        wanting = [text for text, size in zip(texts, sizes, strict=True) if len(text) < size]
        if not wanting:
            break
        wanting[0] += TOKEN.findall(module)
    common = Counter(chain.from_iterable(texts)).most_common(args.vocabulary - 1)
    number = {word: index for index, (word, _) in enumerate(common, start=1)}
    return [[number.get(word, 0) for word in text] for text in texts], len(common) + 1


class Teacher:
    """What follows two words, in a text that it has counted: the share of a word there, after the
    last word alone, and anywhere. Each is mixed with the next, which weighs as many counts as
    different words were seen (Witten and Bell 1991).

    Args:
        asked: the pairs of words that `top` will be called with.
        k: how many words it will tell.
    """

    def __init__(self, text: Sequence[int], asked: Iterable[Words], k: int) -> None:
        self.k = k
        self.after = {some: Counter[int]() for pair in asked for some in endings(pair)}
        for first, second, word in zip(text, text[1:], text[2:], strict=False):
            for some in endings((first, second)):
                if some in self.after:
                    self.after[some][word] += 1
        self.totals = {some: counter.total() for some, counter in self.after.items()}
        self.frequent = {
            some: [word for word, _ in counter.most_common(k)]
            for some, counter in self.after.items()
        }

    def top(self, pair: Words) -> tuple[list[int], list[float]]:
        """The likeliest of the words that are frequent after any of the endings, and their
        probabilities."""
        words = {word for some in endings(pair) for word in self.frequent[some]}
        probs = dict.fromkeys(words, 0.0)
        for some in endings(pair):
            counter, total, different = self.after[some], self.totals[some], len(self.after[some])
            if total:
                for word in words:
                    probs[word] = (counter[word] + different * probs[word]) / (total + different)
        likeliest = heapq.nlargest(self.k, words, key=probs.__getitem__)
        return likeliest, [probs[word] for word in likeliest]


def endings(pair: Words) -> tuple[Words, ...]:
    return (), pair[1:], pair


def ask(teacher: Sequence[int], text: Sequence[int], k: int) -> SparseTarget:
    """The words (N, k), and their probabilities, that the teacher expects at each place of the
    student's text from the third on; at the first two, as at the third."""
    pairs = [*[tuple(text[:2])] * 2, *pairwise(text[:-1])]
    different = set(pairs)
    counted = Teacher(teacher, different, k)
    told = {pair: counted.top(pair) for pair in track(different, "asking", transient=True)}
    words = torch.tensor([told[pair][0] for pair in pairs])
    return SparseTarget(words, torch.tensor([told[pair][1] for pair in pairs]))


class Student(nn.Module):
    """Logits (N, C) of the words that follow contexts (N, K)."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(CONTEXT * width, width)
        self.projection = nn.Linear(width, vocabulary)

    def forward(self, context: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.hidden(self.embedding(context).flatten(1)))
        logits: Tensor = self.projection(hidden)
        return logits


def train(
    parent: Connection,
    name: str,
    text: Tensor,
    expected: SparseTarget,
    tested: Tensor,
    args: argparse.Namespace,
) -> None:
    """One training, in its own process; its result is the perplexity of the text to test on."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    student = Student(args.vocabulary, args.width)
    kind = FusedLabelSmoothingLoss if name == SPARSE else nn.CrossEntropyLoss
    loss_fn = kind(label_smoothing=args.smoothing)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.learning_rate)
    before = torch.arange(-CONTEXT, 0)
    trust = torch.tensor([1 - args.trust, *[args.trust] * args.top])

    def step() -> Tensor:
        at = torch.randint(CONTEXT, len(text), (args.batch,))
        logits, label = student(text[at[:, None] + before]), text[at]
        target: Tensor | SparseTarget = label
        if name != HARD:
            classes = torch.cat([label[:, None], expected.classes[at]], 1)
            probs = trust * torch.cat([torch.ones(args.batch, 1), expected.probs[at]], 1)
            target = SparseTarget(classes, probs)
            if name == DENSE:
                target = torch.zeros_like(logits).scatter_add_(1, classes, probs)
        loss: Tensor = loss_fn(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    @torch.no_grad()
    def perplexity() -> float:
        places = torch.arange(CONTEXT, len(tested)).split(args.batch)
        total = sum(
            nn.functional.cross_entropy(
                student(tested[at[:, None] + before]), tested[at], reduction="sum"
            ).item()
            for at in places
        )
        return math.exp(total / (len(tested) - CONTEXT))

    answer(parent, step, perplexity)


def show_targets(places: int, args: argparse.Namespace) -> None:
    """What the teacher's words take for all places of the student's text."""
    sparse, dense = args.top * (8 + 4), args.vocabulary * 4  # bytes a place
    print(
        f"The teacher's target for {places:,} places: {places * dense / 2**30:.1f} GiB dense, "
        f"{places * sparse / 2**20:.0f} MiB as {args.top} words and their probabilities"
    )


def arguments() -> argparse.Namespace:
    parser = training_options(__doc__, learning_rate=4e-3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=512, help="places of a step")
    parser.add_argument("--top", type=int, default=8, help="words that are kept of the teacher")
    parser.add_argument("--trust", type=float, default=0.7, help="the share of the teacher's words")
    parser.add_argument("--smoothing", type=float, default=0.05)
    parser.add_argument("--student-words", type=int, default=100_000, help="at least, of its text")
    parser.add_argument("--test-words", type=int, default=30_000, help="at least")
    parser.add_argument("--teacher-words", type=int, default=3_000_000, help="or all there are")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=64)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    (text, tested, counted), args.vocabulary = read_texts(args)
    print(
        f"{args.vocabulary:,} words; the student has {len(text):,} places, the teacher has counted "
        f"{len(counted):,}, {len(tested):,} are to test on"
    )
    expected = ask(counted, text, args.top)
    print(f"Their {args.top} words hold {expected.probs.sum(1).mean():.0%} of the probability")
    show_targets(len(text), args)
    texts = torch.tensor(text), expected, torch.tensor(tested)
    runs = train_in_turns(train, TARGETS, args.steps, *texts, args)
    show(runs)
    hard, *taught = runs
    agree = compare(taught)
    for run in runs:
        print(f"Perplexity of unseen modules with {run.name}: {run.result:.1f}")
    better = all(run.result < hard.result for run in taught)
    print(f"The teacher {'helps' if better else 'DOES NOT help'}.")
    return 0 if agree and better else 1


if __name__ == "__main__":
    sys.exit(main())
