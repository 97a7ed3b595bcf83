"""Every option and every pair of options, each reduction, against the dense reference."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from checks import REDUCTIONS
from linear_checks import IGNORED, assert_exact, projection, run, targets, truth
from torch import Tensor

from labelsmooth import SparseTarget

N, D, C = 13, 5, 37  # chunks of 4 rows, the last of one
MASKED = [1, 7, 20]  # by the bias, where masks are looked for


def class_weight() -> Tensor:
    return torch.rand(C, dtype=torch.float64) + 0.5


def class_prior() -> Tensor:
    return torch.rand(C, dtype=torch.float64).softmax(0)


def probabilities() -> Tensor:
    logits = torch.randn(N, C, dtype=torch.float64)
    logits[:, MASKED] = -torch.inf
    return logits.softmax(1)


def sparse() -> SparseTarget:
    classes = torch.randint(C, (N, 3))
    classes[::3, 1] = IGNORED
    classes[5] = IGNORED
    classes[6, 1] = classes[6, 0]
    return SparseTarget(_unmasked(classes), torch.rand(N, 3, dtype=torch.float64))


def rows() -> Tensor:
    weight = torch.rand(N, dtype=torch.float64)
    weight[4:6] = 0.0
    return weight


def _unmasked(target: Tensor) -> Tensor:
    """Another class for those that are masked below."""
    return torch.where(torch.isin(target, torch.tensor(MASKED)), 0, target)


def counted() -> Tensor:
    return torch.tensor(11.0)


# One change of the default call each; a function is called after the seed is set.
CHANGES: list[tuple[str, Any]] = [
    ("label_smoothing", 0.1),
    ("label_smoothing", 1.0),
    ("weight", class_weight),
    ("prior", class_prior),
    ("smooth_over", "others"),
    ("smooth_over", "unmasked"),
    ("weight_over", "target"),
    ("objective", "kl_div"),
    ("lse_square_scale", 0.01),
    ("logit_scale", -1.5),
    ("softcap", 2.0),
    ("ignore_index", 3),
    ("normalizer", 11.0),
    ("normalizer", counted),
    ("row_weight", rows),
    ("target", probabilities),
    ("target", sparse),
    ("bias", True),
    ("recompute", True),
    ("chunk_rows", 1),
    ("chunk_rows", N),
]


IMPOSSIBLE = [
    {("smooth_over", "others"), ("target", probabilities)},
    {("smooth_over", "others"), ("target", sparse)},
    {("ignore_index", 3), ("target", probabilities)},
]


def possible(*changes: tuple[str, Any], reduction: str) -> bool:
    if "normalizer" in dict(changes) and reduction != "mean":
        return False
    return not any(impossible <= set(changes) for impossible in IMPOSSIBLE)


def check(changes: list[tuple[str, Any]], reduction: str, backend: str) -> None:
    options: dict[str, Any] = {"label_smoothing": 0.3, "chunk_rows": 4}
    options |= {name: value() if callable(value) else value for name, value in changes}
    given = projection(N, D, C, bias=options.pop("bias", False))
    masks = options.get("smooth_over") == "unmasked" and options.get("logit_scale", 1.0) > 0
    if masks and given.linear_bias is not None:
        given.linear_bias[MASKED[0]] = torch.finfo(torch.float64).min
        given.linear_bias[MASKED[1:]] = -torch.inf
    target = options.pop("target", None)
    if target is None:
        target = _unmasked(targets(N, C))
        target[3] = 3
    named = target.classes if isinstance(target, SparseTarget) else target
    if "ignore_index" in options:
        named[named == IGNORED] = options["ignore_index"]
    grad_loss = torch.randn(N, dtype=torch.float64) if reduction == "none" else torch.tensor(0.7)
    ours = run(given, target, grad_loss=grad_loss, reduction=reduction, backend=backend, **options)
    of_reference = {k: v for k, v in options.items() if k not in ("chunk_rows", "recompute")}
    assert_exact(
        ours, truth(given, target, grad_loss=grad_loss, reduction=reduction, **of_reference)
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change[0]}")
def test_each(change: tuple[str, Any], reduction: str, backend: str) -> None:
    if possible(change, reduction=reduction):
        check([change], reduction, backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_pair(reduction: str, backend: str) -> None:
    for pair in combinations(CHANGES, 2):
        if pair[0][0] != pair[1][0] and possible(*pair, reduction=reduction):
            check(list(pair), reduction, backend)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_at_once(reduction: str, backend: str) -> None:
    names = ("weight", "prior", "smooth_over", "objective", "lse_square_scale", "logit_scale")
    chosen = dict(reversed(CHANGES))
    changes = [(name, chosen[name]) for name in (*names, "softcap", "bias")]
    check(changes, reduction, backend)
