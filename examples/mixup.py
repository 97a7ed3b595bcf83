"""Trains one classifier with mixup twice: with a dense target and nn.CrossEntropyLoss, and with
SparseTarget.mix and FusedLabelSmoothingLoss.

The images are scikit-learn's digits: 1,797 of 8 x 8, which come with the package. Both trainings
start from the same seed and see the same mixtures, each in a process of its own, a step of each in
turn, so that the loss curves must agree. Ten classes are few; what a dense target costs shows where
there are many: then follow a few steps of the loss alone, of random logits (--rows x --classes).
Exit status 1 if a curve disagrees.
"""

from __future__ import annotations

import argparse
import sys
from multiprocessing.connection import Connection

import torch
from data import read_digits
from side_by_side import Run, answer, compare, show, train_in_turns
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, SparseTarget

SMOOTHING = 0.1
LOSSES = ("dense, nn.CrossEntropyLoss", "sparse, FusedLabelSmoothingLoss")
CLASSES = 10
TEST_IMAGES = 360


class MixupLoss(nn.Module):
    """The loss (a scalar) of logits (N, C) of images that are mixed: lam (N,) of the classes y1 and
    the rest of y2."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.sparse = name.startswith("sparse")
        kind = FusedLabelSmoothingLoss if self.sparse else nn.CrossEntropyLoss
        self.loss = kind(label_smoothing=SMOOTHING)

    def forward(self, logits: Tensor, y1: Tensor, y2: Tensor, lam: Tensor) -> Tensor:
        if self.sparse:
            target: Tensor | SparseTarget = SparseTarget.mix(y1, y2, lam)
        else:
            target = torch.zeros_like(logits)
            target.scatter_(1, y1[:, None], lam[:, None])
            target.scatter_add_(1, y2[:, None], 1 - lam[:, None])
        loss: Tensor = self.loss(logits, target)
        return loss


def train(
    parent: Connection, name: str, images: Tensor, labels: Tensor, args: argparse.Namespace
) -> None:
    """One training, in its own process; its result is the accuracy on the test images."""
    torch.set_num_threads(1)  # the images are small
    torch.manual_seed(args.seed)
    model = nn.Sequential(  # smooth, so that roundings do not part the curves
        nn.Conv2d(1, 16, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, CLASSES),
    )
    mixup_loss = MixupLoss(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate, momentum=0.9)
    share = torch.distributions.Beta(args.alpha, args.alpha)
    order = torch.randperm(len(images))
    tested, trained = order[:TEST_IMAGES], order[TEST_IMAGES:]

    def step() -> Tensor:
        first, second = trained[torch.randint(len(trained), (2, args.batch))]
        lam = share.sample((args.batch,))
        mixed = torch.lerp(images[second], images[first], lam.view(-1, 1, 1, 1))
        loss: Tensor = mixup_loss(model(mixed), labels[first], labels[second], lam)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    @torch.no_grad()
    def accuracy() -> float:
        right = model(images[tested]).argmax(1) == labels[tested]
        return int(right.sum()) / TEST_IMAGES

    answer(parent, step, accuracy)


def loss_alone(parent: Connection, name: str, args: argparse.Namespace) -> None:
    """The loss of many classes and its gradient, without a model."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    logits = torch.randn(args.rows, args.classes, requires_grad=True)
    y1, y2 = torch.randint(args.classes, (2, args.rows))
    lam = torch.rand(args.rows)
    mixup_loss = MixupLoss(name)

    def step() -> Tensor:
        logits.grad = None
        loss: Tensor = mixup_loss(logits, y1, y2, lam)
        loss.backward()
        return loss

    answer(parent, step)


def show_costs(runs: list[Run], args: argparse.Namespace) -> None:
    size = args.rows * args.classes * 4
    print(f"The loss alone, {args.rows:,} x {args.classes:,} logits, {size / 2**20:.0f} MiB:")
    for run in runs:
        extra = run.peak - run.before
        print(f"  {run.name}: {extra / 2**20:.0f} MiB beyond them, {run.step_ms:.0f} ms a step")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=0.4, help="of mixup's beta distribution")
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--rows", type=int, default=2048, help="of the loss alone")
    parser.add_argument("--classes", type=int, default=32_768, help="of the loss alone")
    parser.add_argument("--loss-steps", type=int, default=5, help="of the loss alone")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of the loss alone"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    images, labels = read_digits()
    print(f"{len(images):,} digits, {TEST_IMAGES} of them to test on")
    runs = train_in_turns(train, LOSSES, args.steps, images.unsqueeze(1), labels, args)
    show(runs)
    agree = compare(runs)
    for run in runs:
        print(f"Test accuracy with {run.name}: {run.result:.1%}")
    alone = train_in_turns(loss_alone, LOSSES, args.loss_steps, args)
    show_costs(alone, args)
    return 0 if compare(alone) and agree else 1


if __name__ == "__main__":
    sys.exit(main())
