"""Trains one next-token model with its vocabulary spread over ranks, and once more on one rank.

    torchrun --nproc-per-node 4 examples/tensor_parallel.py

Each rank has its own classes of the projection and the rest of the model, and sees all rows: first
from the logits, then with the projection in the loss. Rank 0 at last trains the whole model alone,
with nn.CrossEntropyLoss; exit status 1 if the loss curves disagree. On GPUs if each rank has one.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, FusedLinearLabelSmoothingLoss

SMOOTHING, CONTEXT, WIDTH, BATCH = 0.1, 8, 64, 256
NAMES = LOGITS, FUSED, ONE = "from logits", "fused", "one rank"


def read_tokens() -> tuple[Tensor, int]:
    """The modules of the standard library as word numbers, and how many words there are."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    pattern = re.compile(r"[A-Za-z_]\w*|\d+|[^\w\s]")
    text = [w for f in files for w in pattern.findall(f.read_text("utf-8", errors="ignore"))]
    number = {word: index for index, word in enumerate(dict.fromkeys(text))}
    return torch.tensor([number[word] for word in text]), len(number)


def make_head(name: str, vocabulary: int) -> tuple[nn.Linear, Callable[..., Tensor], int]:
    """The projection to this rank's classes, the loss of hidden states (N, D) and target (N,), and
    the first of the classes."""
    if name == ONE:
        linear = nn.Linear(WIDTH, vocabulary, bias=False)
        alone = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        return linear, lambda hidden, target: alone(linear(hidden), target), 0
    group = dist.group.WORLD
    if name == FUSED:
        fused = FusedLinearLabelSmoothingLoss(
            WIDTH, vocabulary, label_smoothing=SMOOTHING, process_group=group
        )
        return fused.linear, fused, fused.class_offset or 0
    most = -(-vocabulary // dist.get_world_size())  # classes of a rank; the last has what is left
    first = min(dist.get_rank() * most, vocabulary)
    linear = nn.Linear(WIDTH, min(most, vocabulary - first), bias=False)
    of_logits = FusedLabelSmoothingLoss(
        label_smoothing=SMOOTHING,
        inplace=True,
        process_group=group,
        class_offset=first,
        num_classes=vocabulary,
    )

    def loss_of(hidden: Tensor, target: Tensor) -> Tensor:
        hidden.register_hook(summed)  # each rank has the gradient that its own classes give
        loss: Tensor = of_logits(linear(hidden), target)
        return loss

    return linear, loss_of, first


def summed(grad: Tensor) -> Tensor:
    total = grad.clone()
    dist.all_reduce(total)
    return total


def train(name: str, tokens: Tensor, vocabulary: int, steps: int) -> list[float]:
    """The losses. All ranks begin with the same model and draw the same batches."""
    linear, loss_of, first = make_head(name, vocabulary)
    torch.manual_seed(0)  # only now: projections of other sizes have drawn other numbers
    body = nn.Sequential(nn.Embedding(vocabulary, WIDTH), nn.Flatten())
    body.extend([nn.Linear(CONTEXT * WIDTH, WIDTH), nn.ReLU()])
    whole = torch.randn(vocabulary, WIDTH) / WIDTH**0.5
    linear.weight.data = whole[first : first + linear.out_features].clone()
    model = nn.ModuleList([body, linear]).to(tokens.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    window = torch.arange(CONTEXT + 1)
    losses: list[float] = []
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens) - CONTEXT, (BATCH, 1)) + window]
        loss = loss_of(body(batch[:, :-1]), batch[:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if dist.get_rank() == 0:
        row = linear.out_features * 4 / 2**20
        logits = "never whole" if name == FUSED else f"{row * BATCH:.1f} MiB"
        of_rank = f"{linear.out_features:,} of {vocabulary:,} classes on rank 0"
        print(f"{name}: {of_rank}; weight {row * WIDTH:.1f} MiB, logits {logits}", flush=True)
    return losses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    if "LOCAL_WORLD_SIZE" not in os.environ:
        sys.exit("this example needs: torchrun --nproc-per-node 2 examples/tensor_parallel.py")
    has_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if has_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if has_gpus else "gloo")
    tokens, vocabulary = read_tokens()
    tokens, agree = tokens.to("cuda" if has_gpus else "cpu"), True
    curves = [train(name, tokens, vocabulary, steps) for name in (LOGITS, FUSED)]
    if dist.get_rank() == 0:
        curves.append(train(ONE, tokens, vocabulary, steps))
        for step in sorted({*range(0, steps, 5), steps - 1}):
            losses = (f"{name} {c[step]:.5f}" for name, c in zip(NAMES, curves, strict=True))
            print(f"step {step + 1}:", ", ".join(losses))
        apart = [abs(x - one) for c in curves for x, one in zip(c, curves[-1], strict=True)]
        agree = all(difference <= 1e-3 for difference in apart)  # not so if one is NaN
        print(f"The loss curves {'agree' if agree else 'DISAGREE'}: {max(apart):.1e} apart.")
    dist.barrier()  # the others wait for rank 0
    dist.destroy_process_group()
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
