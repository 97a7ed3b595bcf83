"""Who takes part: every contestant is a name and a step, which does the whole work once.

The two classes that labelsmooth replaces, in plain torch:

    seed 1   sum_rows sum_c q_c (log q_c - logp_c)   KL divergence, summed, from log-probabilities
    seed 2   mean_rows sum_c -q_c logp_c / C         from logits

with q_y = 1 - s on the target and q_c = s / (C - 1) elsewhere. Both build q, N x C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.problem import Problem
from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss

SMOOTHING = 0.1
SMALL_CALLS = 200  # calls per timing where one call takes microseconds

Loss = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class Convention:
    """For the accuracy check: what a loss means. `scale(N, C)` times the rows' losses, summed."""

    target_keeps_share: bool  # q_y = 1 - s + s/C, else 1 - s
    entropy: bool  # the entropy of q is part of the loss
    scale: Callable[[int, int], float]


TORCH = Convention(True, False, lambda rows, classes: 1 / rows)
SEED_1 = Convention(False, True, lambda rows, classes: 1.0)
SEED_2 = Convention(False, False, lambda rows, classes: 1 / (rows * classes))


@dataclass(frozen=True)
class Contestant:
    key: str
    label: str
    step: Callable[[], Any]
    convention: Convention | None = None  # None: makes no gradient to be checked
    calls: int = 1  # calls in one step


def seed_1(logits: Tensor, target: Tensor) -> Tensor:
    log_probs = logits.log_softmax(1)
    smoothed = torch.full_like(log_probs, SMOOTHING / (logits.size(1) - 1))
    smoothed.scatter_(1, target.unsqueeze(1), 1 - SMOOTHING)
    return F.kl_div(log_probs, smoothed, reduction="sum")


def seed_2(logits: Tensor, target: Tensor) -> Tensor:
    log_probs = logits.log_softmax(-1)
    with torch.no_grad():
        smoothed = torch.full_like(log_probs, SMOOTHING / (logits.size(-1) - 1))
        smoothed.scatter_(1, target.unsqueeze(1), 1 - SMOOTHING)
    return torch.mean(torch.sum(-smoothed * log_probs * (1 / logits.size(-1)), dim=-1))


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target, label_smoothing=SMOOTHING)


def ours(**options: Any) -> Loss:
    return FusedLabelSmoothingLoss(label_smoothing=SMOOTHING, **options)


def in_place(**options: Any) -> Loss:
    return ours(inplace=True, **options)


def training(
    problem: Problem, key: str, label: str, loss: Loss, convention: Convention
) -> Contestant:
    """Forward and backward, from the logits to their gradient."""

    def step() -> Any:
        result = loss(problem.logits(), problem.target)
        result.backward()
        return result

    return Contestant(key, label, step, convention)


def copy(problem: Problem) -> Contestant:
    return Contestant("copy", "copy of the logits", lambda: problem.copy.copy_(problem.buffer))


def fused(problem: Problem) -> list[Contestant]:
    """The floor, and labelsmooth in its two modes."""
    return [
        copy(problem),
        training(problem, "in_place", "labelsmooth, in place", in_place(), TORCH),
        training(problem, "fresh", "labelsmooth, fresh gradient", ours(), TORCH),
    ]


def torch_own(problem: Problem) -> list[Contestant]:
    torch.compiler.reset()  # else the ninth shape would silently run uncompiled
    compiled = torch.compile(cross_entropy, dynamic=False)
    compiled(problem.logits(), problem.target).backward()  # here it compiles, in nobody's time
    return [
        training(problem, "cross_entropy", "F.cross_entropy", cross_entropy, TORCH),
        training(problem, "compiled", "F.cross_entropy, compiled", compiled, TORCH),
    ]


def everyone(problem: Problem) -> list[Contestant]:
    return [
        *fused(problem),
        *torch_own(problem),
        training(problem, "seed_1", "seed 1, LabelSmoothing", seed_1, SEED_1),
        training(problem, "seed_2", "seed 2, LabelSmoothingLoss", seed_2, SEED_2),
    ]


def plain(problem: Problem) -> list[Contestant]:
    return [
        *fused(problem),
        training(problem, "cross_entropy", "F.cross_entropy", cross_entropy, TORCH),
    ]


def forward_only(problem: Problem) -> list[Contestant]:
    def without_grad(key: str, label: str, loss: Loss) -> Contestant:
        return Contestant(key, label, lambda: loss(problem.buffer, problem.target))

    return [
        Contestant("sum", "logits.sum()", lambda: problem.buffer.sum()),
        without_grad("forward", "labelsmooth", ours()),
        without_grad("cross_entropy", "F.cross_entropy", cross_entropy),
    ]


def variants(problem: Problem) -> list[Contestant]:
    """Options that cost something, in place; the first is the plain case."""
    classes, device = problem.buffer.size(1), problem.buffer.device
    generator = torch.Generator(device).manual_seed(1)
    weight = torch.rand(classes, generator=generator, device=device) + 0.5
    prior = torch.rand(classes, generator=generator, device=device)
    prior /= prior.sum()

    def with_options(key: str, label: str, **options: Any) -> Contestant:
        return training(problem, key, label, in_place(**options), TORCH)

    def with_stats(key: str, label: str) -> Contestant:
        loss_and_stats = in_place(return_stats=True)
        return training(problem, key, label, lambda x, y: loss_and_stats(x, y)[0], TORCH)

    return [
        with_options("plain", "plain"),
        with_options("weight", "weight", weight=weight),
        with_options("prior", "prior", prior=prior),
        with_options("weight_prior", "weight and prior", weight=weight, prior=prior),
        with_options("others", 'smooth_over="others"', smooth_over="others"),
        with_options("kl_div", 'objective="kl_div"', objective="kl_div"),
        with_options("lse_square", "lse_square_scale", lse_square_scale=1e-4),
        with_options("logit_scale", "logit_scale", logit_scale=0.5),
        with_options("softcap", "softcap", softcap=30.0),
        with_stats("stats", "return_stats"),
    ]


def many_calls(problem: Problem, key: str, label: str, loss: Loss) -> Contestant:
    """Overhead per call: forward and backward, many in a row."""
    logits = problem.pristine.clone().requires_grad_()
    target = problem.target

    def step() -> None:
        for _ in range(SMALL_CALLS):
            logits.grad = None
            loss(logits, target).backward()

    return Contestant(key, label, step, calls=SMALL_CALLS)


def small(problem: Problem) -> list[Contestant]:
    def fused_function(x: Tensor, y: Tensor) -> Any:
        return label_smoothing_loss(x, y, label_smoothing=SMOOTHING)

    losses = [
        ("function", "labelsmooth, function", fused_function),
        ("module", "labelsmooth, module", ours()),
        ("cross_entropy", "F.cross_entropy", cross_entropy),
        ("module_torch", "nn.CrossEntropyLoss", nn.CrossEntropyLoss(label_smoothing=SMOOTHING)),
        ("unsmoothed", "F.cross_entropy, no smoothing", F.cross_entropy),
    ]
    return [many_calls(problem, *loss) for loss in losses]


LINE_UPS: dict[str, Callable[[Problem], list[Contestant]]] = {
    "main": everyone,
    "forward": forward_only,
    "variants": variants,
    "small": small,
    "images": plain,
    "classes": plain,
    "threads": plain,
    "row": plain,
}
