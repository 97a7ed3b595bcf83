"""Every option and every pair of options, each reduction, against the dense reference."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from checks import REDUCTIONS, check
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

N, C = 6, 37  # 37: no vector width divides it, and every one up to 32 fits into it
PAD = 5  # the class without weight or prior mass in the options below
MASKED = [1, 7, 20]  # which no target below names, where masks are looked for


def class_weight() -> Tensor:
    weight = torch.rand(C) + 0.5
    weight[PAD] = 0.0
    return weight


def class_prior() -> Tensor:
    prior = torch.rand(C, dtype=torch.float64)  # sums to 1 in float64 too
    prior[PAD] = 0.0
    return prior / prior.sum()


def probabilities() -> Tensor:
    logits = torch.randn(N, C, dtype=torch.float64)
    logits[:, MASKED] = -torch.inf
    return logits.softmax(1)


def sparse() -> SparseTarget:
    """The second row's classes are ignored with ignore_index=3, and so is one of the first's."""
    classes = torch.tensor(
        [[0, 3, 0], [3, 3, 3], [PAD, 17, 2], [9, 8, 9], [C - 1, 4, 3], [17, 0, 5]]
    )
    return SparseTarget(classes, torch.rand(N, 3, dtype=torch.float64))


def rows() -> Tensor:
    return torch.tensor([0.5, 2.0, 0.0, 1.0, -0.3, 1.5], dtype=torch.float64)


def counted() -> Tensor:
    return torch.tensor(11.0)


# One change of the default call each. A function is called after the seed is set. Two of one name
# are values of one option and form no pair.
CHANGES: list[tuple[str, Any]] = [
    ("label_smoothing", 0.0),
    ("label_smoothing", 0.1),
    ("label_smoothing", 1.0),
    ("weight", class_weight),
    ("prior", class_prior),
    ("smooth_over", "others"),
    ("smooth_over", "unmasked"),
    ("weight_over", "target"),
    ("objective", "kl_div"),
    ("from_log_probs", True),
    ("lse_square_scale", 0.01),
    ("logit_scale", 0.7),
    ("logit_scale", -1.5),
    ("softcap", 2.0),
    ("ignore_index", 3),  # a class that some rows have, see `call`
    ("ignore_index", -7),  # outside [0, C)
    ("normalizer", 11.0),
    ("normalizer", counted),
    ("row_weight", rows),
    ("target", probabilities),
    ("target", sparse),
]
# Several classes have no "others", log-probabilities no lse: tests/_call. Torch takes no
# ignore_index among the classes beside class probabilities.
IMPOSSIBLE = [
    {("smooth_over", "others"), ("target", probabilities)},
    {("smooth_over", "others"), ("target", sparse)},
    {("from_log_probs", True), ("lse_square_scale", 0.01)},
    {("ignore_index", 3), ("target", probabilities)},
]
PAIRS = [
    pair
    for pair in combinations(CHANGES, 2)
    if pair[0][0] != pair[1][0] and set(pair) not in IMPOSSIBLE
]


def reductions(*changes: tuple[str, Any]) -> list[str]:
    return ["mean"] if "normalizer" in dict(changes) else REDUCTIONS


EACH = [((), r) for r in REDUCTIONS] + [((c,), r) for c in CHANGES for r in reductions(c)]
EACH_PAIR = [(pair, r) for pair in PAIRS for r in reductions(*pair)]


def name(parameter: tuple[tuple[str, Any], ...] | str) -> str:
    """For pytest: prior=class_prior+softcap=2.0-mean."""
    if isinstance(parameter, str):
        return parameter
    return "+".join(f"{key}={getattr(value, '__name__', value)}" for key, value in parameter)


def call(changes: tuple[tuple[str, Any], ...], dtype: torch.dtype) -> dict[str, Any]:
    """Smoothing is 0.3 where no change says otherwise, so that the conventions differ."""
    options: dict[str, Any] = {"label_smoothing": 0.3}
    options |= {key: value() if callable(value) else value for key, value in changes}
    logits = 2 * torch.randn(N, C, dtype=dtype)
    if options.get("smooth_over") == "unmasked" and options.get("logit_scale", 1.0) > 0:
        logits[:, MASKED[0]], logits[:, MASKED[1:]] = torch.finfo(dtype).min, -torch.inf
        logits[::2, MASKED[2]] = 0.5  # each row has a mask of its own
    options["logits"] = logits.log_softmax(1) if options.get("from_log_probs") else logits
    target = torch.tensor([0, 3, PAD, 3, C - 1, 17])
    if options.get("ignore_index", 3) != 3:
        target[1] = options["ignore_index"]
    options.setdefault("target", target)
    for key in ("weight", "prior", "row_weight"):
        if key in options:
            options[key] = options[key].to(dtype)
    if isinstance(target := options["target"], Tensor) and target.is_floating_point():
        options["target"] = target.to(dtype)
    return options


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("changes", "reduction"), EACH, ids=name)
def test_each_option(
    changes: tuple[tuple[str, Any], ...], reduction: str, dtype: torch.dtype, backend: str
) -> None:
    arguments = call(changes, dtype)
    grad_loss = torch.randn(N if reduction == "none" else (), dtype=dtype)
    check(**arguments, reduction=reduction, grad_loss=grad_loss, backend=backend, roundings=2)


@pytest.mark.parametrize(("pair", "reduction"), EACH_PAIR, ids=name)
def test_each_pair_of_options(
    pair: tuple[tuple[str, Any], ...], reduction: str, backend: str
) -> None:
    check(**call(pair, torch.float64), reduction=reduction, backend=backend)


def test_all_options_at_once(backend: str) -> None:
    changes = (
        ("weight", class_weight),
        ("prior", class_prior),
        ("smooth_over", "others"),
        ("objective", "kl_div"),
        ("lse_square_scale", 0.01),
        ("logit_scale", 0.7),
        ("softcap", 2.0),
        ("ignore_index", 3),
        ("normalizer", 11.0),
    )
    check(**call(changes, torch.float64), backend=backend)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_class_tensors_may_be_more_precise_than_the_logits(
    dtype: torch.dtype, backend: str
) -> None:
    """Weight and prior are held in float32 by a model whose logits are half."""
    logits, target = torch.randn(N, C, dtype=dtype), torch.randint(C, (N,))
    options = {"weight": class_weight(), "prior": class_prior(), "label_smoothing": 0.1}
    check(logits, target, **options, backend=backend)


def test_the_class_without_mass_gets_no_smoothing_gradient(backend: str) -> None:
    """Its gradient is its probability alone, and never negative."""
    logits = torch.randn(N, C, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3, 4, 6])
    ours = check(
        logits,
        target,
        label_smoothing=0.3,
        prior=class_prior(),
        reduction="sum",
        backend=backend,
    )
    torch.testing.assert_close(ours.grad_logits[:, PAD], logits.softmax(1)[:, PAD])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_smoothing_may_change_from_call_to_call(reduction: str, backend: str) -> None:
    logits, target = torch.randn(N, C), torch.randint(C, (N,))
    for step in range(5):
        check(logits, target, label_smoothing=step / 4, reduction=reduction, backend=backend)


@pytest.mark.parametrize("given", [False, True])
def test_a_uniform_prior_is_no_prior(given: bool, backend: str) -> None:
    prior = torch.full((C,), 1 / C, dtype=torch.float64) if given else None
    logits, target = torch.randn(N, C, dtype=torch.float64), torch.randint(C, (N,))
    expected = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.2)
    loss = label_smoothing_loss(logits, target, label_smoothing=0.2, prior=prior, backend=backend)
    torch.testing.assert_close(loss, expected)
