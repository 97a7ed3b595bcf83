"""Every option and every pair of options, each reduction, against the dense reference."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from linear_checks import IGNORED, assert_exact, projection, run, targets, truth
from torch import Tensor

N, D, C = 13, 5, 37  # chunks of 4 rows, the last of one


def class_weight() -> Tensor:
    return torch.rand(C, dtype=torch.float64) + 0.5


def class_prior() -> Tensor:
    return torch.rand(C, dtype=torch.float64).softmax(0)


def probabilities() -> Tensor:
    return torch.randn(N, C, dtype=torch.float64).softmax(1)


def counted() -> Tensor:
    return torch.tensor(11.0)


# One change of the default call each; a function is called after the seed is set.
CHANGES: list[tuple[str, Any]] = [
    ("label_smoothing", 0.1),
    ("label_smoothing", 1.0),
    ("weight", class_weight),
    ("prior", class_prior),
    ("smooth_over", "others"),
    ("objective", "kl_div"),
    ("lse_square_scale", 0.01),
    ("logit_scale", -1.5),
    ("softcap", 2.0),
    ("ignore_index", 3),
    ("normalizer", 11.0),
    ("normalizer", counted),
    ("target", probabilities),
    ("bias", True),
    ("recompute", True),
    ("chunk_rows", 1),
    ("chunk_rows", N),
]


def possible(names: set[str], reduction: str) -> bool:
    if "normalizer" in names and reduction != "mean":
        return False
    return not ("target" in names and names & {"smooth_over", "ignore_index"})


def check(changes: list[tuple[str, Any]], reduction: str, backend: str) -> None:
    options: dict[str, Any] = {"label_smoothing": 0.3, "chunk_rows": 4}
    options |= {name: value() if callable(value) else value for name, value in changes}
    given = projection(N, D, C, bias=options.pop("bias", False))
    target = options.pop("target", None)
    if target is None:
        target = targets(N, C)
        target[3] = 3
        if "ignore_index" in options:
            target[target == IGNORED] = options["ignore_index"]
    grad_loss = torch.randn(N, dtype=torch.float64) if reduction == "none" else torch.tensor(0.7)
    ours = run(given, target, grad_loss=grad_loss, reduction=reduction, backend=backend, **options)
    of_reference = {k: v for k, v in options.items() if k not in ("chunk_rows", "recompute")}
    assert_exact(
        ours, truth(given, target, grad_loss=grad_loss, reduction=reduction, **of_reference)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]}")
def test_each(change: tuple[str, Any], reduction: str, backend: str) -> None:
    if possible({change[0]}, reduction):
        check([change], reduction, backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_pair(reduction: str, backend: str) -> None:
    for pair in combinations(CHANGES, 2):
        names = {name for name, _ in pair}
        if len(names) == 2 and possible(names, reduction):
            check(list(pair), reduction, backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_at_once(reduction: str, backend: str) -> None:
    names = ("weight", "prior", "smooth_over", "objective", "lse_square_scale", "logit_scale")
    chosen = dict(reversed(CHANGES))
    changes = [(name, chosen[name]) for name in (*names, "softcap", "bias")]
    check(changes, reduction, backend)
