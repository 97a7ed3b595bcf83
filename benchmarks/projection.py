"""The projection and the loss together: a case's tensors, and who takes part.

From hidden states (N, D), a weight (C, D) and a target (N,) to the loss, and back to the gradients
of both. The floor is the three matrix products that nobody is spared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contestants import SMOOTHING, Contestant, cross_entropy
from labelsmooth import label_smoothing_loss, linear_label_smoothing_loss
from labelsmooth._backends.linear.sizes import rows_of_chunk

Loss = Callable[[Tensor, Tensor, Tensor], Any]


class Projection:
    """Random hidden states, weight and target; `refresh()` gives the last gradients back."""

    def __init__(
        self, sizes: tuple[int, int, int], dtype: torch.dtype, seed: int = 0, device: str = "cpu"
    ) -> None:
        rows, classes, features = sizes
        options: dict[str, Any] = {
            "generator": torch.Generator(device).manual_seed(seed),
            "device": device,
        }
        self.hidden = torch.randn(rows, features, **options).to(dtype).requires_grad_()
        weight = torch.randn(classes, features, **options).mul_(features**-0.5)
        self.weight = weight.to(dtype).requires_grad_()
        self.target = torch.randint(classes, (rows,), **options)

    def refresh(self) -> None:
        self.hidden.grad = self.weight.grad = None

    def train(self, loss: Loss) -> None:
        loss(self.hidden, self.weight, self.target).backward()


class Way(NamedTuple):
    """To get from hidden states to the loss."""

    label: str
    loss: Loss
    compiled: bool = False
    copies: int = 0  # of the logits, at the peak


def fused(hidden: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Any:
    return linear_label_smoothing_loss(hidden, weight, target, label_smoothing=SMOOTHING, **options)


def in_place(hidden: Tensor, weight: Tensor, target: Tensor) -> Any:
    logits = F.linear(hidden, weight)
    return label_smoothing_loss(logits, target, label_smoothing=SMOOTHING, inplace=True)


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(F.linear(hidden, weight), target)


def torch_chunked(hidden: Tensor, weight: Tensor, target: Tensor) -> Any:
    """Unsmoothed: with smoothing torch makes the logits whole."""
    options = nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, target, options=options)


def torch_whole(hidden: Tensor, weight: Tensor, target: Tensor) -> Any:
    return F.linear_cross_entropy(hidden, weight, target, label_smoothing=SMOOTHING)


WAYS = {
    "linear": Way("labelsmooth", fused),
    "recompute": Way("labelsmooth, recompute", partial(fused, recompute=True)),
    "linear_compiled": Way("labelsmooth, compiled", fused, compiled=True),
    "in_place": Way("labelsmooth, in place", in_place, copies=1),
    "plain": Way("torch, plain", plain, copies=3),
    "compiled": Way("torch, compiled", plain, compiled=True, copies=2),
}
if hasattr(nn, "LinearCrossEntropyOptions"):  # torch 2.13
    WAYS["torch_chunked"] = Way("torch, chunked", torch_chunked)
    WAYS["torch"] = Way("torch, whole", torch_whole, copies=3)
KEYS = ["products", *WAYS]


def contestants(
    problem: Projection, keys: Iterable[str], ways: Mapping[str, Way] = WAYS
) -> list[Contestant]:
    torch.compiler.reset()  # else the ninth shape would silently run uncompiled
    return [
        products(problem) if key == "products" else training(problem, key, ways[key])
        for key in keys
    ]


def training(problem: Projection, key: str, way: Way) -> Contestant:
    loss = way.loss
    if way.compiled:
        loss = torch.compile(loss, dynamic=False)
        problem.train(loss)  # here it compiles, in nobody's time
    return Contestant(key, way.label, lambda: problem.train(loss))


def products(problem: Projection) -> Contestant:
    """In the chunks of labelsmooth, into memory that is there already."""
    hidden, weight = problem.hidden.detach(), problem.weight.detach()
    step = rows_of_chunk(*hidden.shape, hidden.dtype, hidden.device, None)
    slab = hidden.new_empty(step, len(weight))
    grad_hidden, grad_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def multiply() -> None:
        for start in range(0, len(hidden), step):
            chunk = hidden[start : start + step]
            logits = torch.mm(chunk, weight.t(), out=slab[: len(chunk)])
            torch.mm(logits, weight, out=grad_hidden[start : start + step])
            grad_weight.addmm_(logits.t(), chunk, beta=min(start, 1))

    return Contestant("products", "products", multiply)
