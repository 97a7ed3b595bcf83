"""A term of coefficient 0 is 0, whatever it multiplies: an infinite or NaN class weight too.

Weights of 1 / count are infinite for a class that never occurs, 0 / 0 is NaN. What no row gives
anything must reach neither the loss nor any gradient; what has a coefficient must show.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import (
    DTYPES,
    FORWARD_MODE,
    REDUCTIONS,
    Outcome,
    assert_equals_reference,
    check,
    loss_dtype,
    run,
)
from reference import reference
from torch import Tensor
from torch.func import hessian, jvp, vmap

from labelsmooth import label_smoothing_loss
from labelsmooth._backends.choose import choose_backend
from labelsmooth._call.problem import Inputs, Options

pytestmark = FORWARD_MODE

N, C = 6, 37
UNUSED = [0, 5, 36]  # classes without a target; the first is where kernels look for ignored rows
VALUES = [math.inf, math.nan]
# One step, but for "none" and float16
DTYPES_AND_REDUCTIONS = [
    *((torch.float32, reduction) for reduction in REDUCTIONS),
    (torch.float64, "mean"),
    (torch.bfloat16, "sum"),
    (torch.bfloat16, "none"),
    (torch.float16, "mean"),
]
each_value = pytest.mark.parametrize("value", VALUES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def weights(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.rand(C, dtype=dtype) + 0.5
    weight[UNUSED] = value
    return weight


def prior() -> Tensor:
    prior = torch.rand(C, dtype=torch.float64) + 0.1
    prior[UNUSED] = 0.0
    return prior / prior.sum()


def uniform() -> Tensor:
    return torch.full((C,), 1 / C, dtype=torch.float64)


def problem(dtype: torch.dtype, *positions: int, probabilities: bool = False) -> Any:
    logits = torch.randn(N, C, *positions).to(dtype)
    if probabilities:
        target = torch.randn(logits.shape).softmax(1)
        target[:, UNUSED] = 0.0
        return logits, target.to(dtype)
    target = torch.randint(C, (N, *positions))
    target[torch.isin(target, torch.tensor(UNUSED))] = 7
    target[1] = -100
    return logits, target


# Calls that give the unused classes nothing. A function is called after the seed is set.
CALLS: dict[str, dict[str, Any]] = {
    "unsmoothed": {"label_smoothing": 0.0},
    "unsmoothed, others": {"label_smoothing": 0.0, "smooth_over": "others"},
    "unsmoothed kl_div": {"label_smoothing": 0.0, "objective": "kl_div"},
    "prior of 0": {"prior": prior},
    "prior of 0, others": {"prior": prior, "smooth_over": "others"},
    "prior of 0, kl_div": {"prior": prior, "objective": "kl_div"},
    "prior of 0, others, kl_div": {
        "prior": prior,
        "smooth_over": "others",
        "objective": "kl_div",
    },
    "smoothing 1": {"prior": prior, "label_smoothing": 1.0},
    "lse squared": {"prior": prior, "lse_square_scale": 0.01},
    "softcap": {"label_smoothing": 0.0, "logit_scale": -0.7, "softcap": 2.0},
    "log-probabilities": {"label_smoothing": 0.0, "from_log_probs": True},
}
each_call = pytest.mark.parametrize(
    ("call", "probabilities"),
    [
        (call, probabilities)
        for call, options in CALLS.items()
        for probabilities in (False, True)
        if not (probabilities and "smooth_over" in options)  # they have no others
    ],
)


def options_of(call: str, **more: Any) -> dict[str, Any]:
    options = {"label_smoothing": 0.1, **CALLS[call], **more}
    return {name: value() if callable(value) else value for name, value in options.items()}


# ---- against the truth ---------------------------------------------------------------------------


@each_call
@each_value
@pytest.mark.parametrize(("dtype", "reduction"), DTYPES_AND_REDUCTIONS)
@pytest.mark.parametrize("positions", [(), (3,)])
def test_finite_and_right(
    positions: tuple[int, ...],
    dtype: torch.dtype,
    reduction: str,
    value: float,
    call: str,
    probabilities: bool,
    backend: str,
) -> None:
    options = options_of(call, weight=weights(value), reduction=reduction)
    loss, grad = check(
        *problem(dtype, *positions, probabilities=probabilities), **options, backend=backend
    )
    assert loss.isfinite().all()
    assert grad.isfinite().all()


@each_value
@each_reduction
@each_dtype
def test_equals_torch(dtype: torch.dtype, reduction: str, value: float, backend: str) -> None:
    logits, target = problem(dtype)
    kept = target[target >= 0]
    weight = 1 / torch.bincount(kept, minlength=C)
    weight = weight.where(weight.isfinite(), value)
    leaf = logits.double().requires_grad_()
    theirs = F.cross_entropy(leaf, target, weight.double(), reduction=reduction)
    (expected,) = torch.autograd.grad(theirs.sum(), leaf)
    grad_loss = torch.ones(theirs.shape)
    ours = run(
        logits,
        target,
        weight=weight,
        reduction=reduction,
        grad_loss=grad_loss.to(loss_dtype(logits)),
        backend=backend,
    )
    torch.testing.assert_close(ours.loss.double(), theirs.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad_logits, expected.to(dtype), check_stride=False)


@each_value
@pytest.mark.parametrize("probabilities", [False, True])
def test_statistics(probabilities: bool, value: float, backend: str) -> None:
    logits, target = problem(torch.float32, probabilities=probabilities)
    options = {"weight": weights(value), "label_smoothing": 0.0}
    _, stats = label_smoothing_loss(logits, target, **options, return_stats=True, backend=backend)
    truth = reference(logits, target, **options)
    kept = slice(None) if probabilities else target >= 0
    torch.testing.assert_close(stats.nll.double(), truth.nll, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(stats.lse.double()[kept], truth.lse[kept], rtol=1e-6, atol=1e-6)
    assert torch.equal(stats.predicted[kept], truth.predicted[kept])


@each_value
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("smooth_over", ["all", "others"])
def test_nothing_is_left_of_the_target(
    smooth_over: str, reduction: str, value: float, backend: str
) -> None:
    logits, _ = problem(torch.float32)
    target = torch.tensor(UNUSED * 2)
    options = {"prior": prior(), "label_smoothing": 1.0, "smooth_over": smooth_over}
    loss, grad = check(
        logits, target, weight=weights(value), reduction=reduction, backend=backend, **options
    )
    assert loss.isfinite().all()
    assert grad.isfinite().all()


@each_value
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("one_step", [False, True])
def test_a_prior_where_nothing_is_spread(
    one_step: bool, probabilities: bool, value: float, backend: str
) -> None:
    """Given to the backend itself, for where a prior can be read it must be a distribution."""
    logits, target = problem(torch.float32, probabilities=probabilities)
    bad_prior = prior().float()
    bad_prior[UNUSED] = value
    inputs = Inputs(logits, target, weight=weights(value), prior=bad_prior)
    options = Options(reduction="sum", objective="kl_div")
    chosen = choose_backend(backend, logits.device)
    loss, row_stats, _, grad = chosen.forward(inputs, options, with_grad=one_step)
    if not one_step:
        grad = chosen.backward(torch.ones(()), row_stats, inputs, options, inplace=False)
    truth = reference(logits, target, inputs.weight, reduction="sum", objective="kl_div")
    assert_equals_reference(Outcome(loss, grad), truth, logits)


@each_value
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@each_reduction
def test_what_has_a_coefficient_shows(
    reduction: str, label_smoothing: float, value: float, backend: str
) -> None:
    logits, target = problem(torch.float32)
    if label_smoothing == 0:
        target[3] = UNUSED[1]
    loss = label_smoothing_loss(
        logits,
        target,
        weights(value),
        label_smoothing=label_smoothing,
        reduction=reduction,
        backend=backend,
    )
    shows = ~loss.isfinite()
    expected = (target >= 0) if label_smoothing > 0 else torch.arange(N) == 3
    assert torch.equal(shows, expected if reduction == "none" else torch.tensor(True))


# ---- other derivatives: as if the unused classes had a weight of 1 -------------------------------


@each_call
@each_value
@each_reduction
def test_gradients_of_the_other_inputs(
    reduction: str, value: float, call: str, probabilities: bool, backend: str
) -> None:
    options = options_of(call, reduction=reduction)
    logits, target = problem(torch.float64, probabilities=probabilities)
    vectors = {"weight": weights(value, torch.float64), "prior": options.pop("prior", uniform())}
    grad_loss = torch.randn(N if reduction == "none" else (), dtype=torch.float64)

    def gradients(**given: Tensor) -> list[Tensor]:
        leaves = {name: vector.clone().requires_grad_() for name, vector in given.items()}
        leaves |= {"logits": logits.clone().requires_grad_()}
        if probabilities:
            leaves |= {"target": target.clone().requires_grad_()}
        loss = label_smoothing_loss(**{"target": target, **options, **leaves}, backend=backend)
        return list(torch.autograd.grad(loss, list(leaves.values()), grad_loss))

    ours = gradients(**vectors)
    expected = gradients(**vectors | {"weight": vectors["weight"].nan_to_num(1.0, 1.0)})
    used = torch.ones(C, dtype=torch.bool).index_fill(0, torch.tensor(UNUSED), False)
    for one, other in zip(ours, expected, strict=True):
        at = (Ellipsis, used) if one.shape[-1:] == (C,) else ...
        torch.testing.assert_close(one[at], other[at])
        assert one[at].isfinite().all()
    assert ours[2].isfinite().all()  # of the logits, the unused classes' too


@each_value
def test_second_derivatives(value: float, backend: str) -> None:
    logits, target = problem(torch.float64)
    weight = weights(value, torch.float64)

    def loss_with(weight: Tensor) -> Any:
        return lambda x: label_smoothing_loss(x, target, weight, softcap=3.0, backend=backend)

    ours, expected = (loss_with(w) for w in (weight, weight.nan_to_num(1.0, 1.0)))
    torch.testing.assert_close(hessian(ours)(logits), hessian(expected)(logits))
    tangent = torch.randn_like(logits)
    along = [jvp(loss, (logits,), (tangent,))[1] for loss in (ours, expected)]
    torch.testing.assert_close(*along)


@each_value
def test_weights_of_samples(value: float, backend: str) -> None:
    logits, target = problem(torch.float32)
    weight = torch.stack([weights(value), weights(1.0)])
    options: dict[str, Any] = {"backend": backend}
    losses = vmap(lambda w: label_smoothing_loss(logits, target, w, **options))(weight)
    expected = torch.stack([label_smoothing_loss(logits, target, w, **options) for w in weight])
    torch.testing.assert_close(losses, expected)
    assert losses.isfinite().all()
