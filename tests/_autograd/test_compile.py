"""torch.compile: whole graphs, compiled once, with the results of eager mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import COMPILES
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from labelsmooth import FusedLabelSmoothingLoss, SparseTarget, label_smoothing_loss
from labelsmooth.compat import LabelSmoothing, LabelSmoothingLoss

pytestmark = COMPILES

D, C = 5, 7
WEIGHT = torch.rand(C) + 0.5
PRIOR = torch.rand(C).softmax(0)
# Batches of four sizes: what is compiled for the first stands for that size, for the second for all
SIZES = [4, 6, 9, 5]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "in place": {"inplace": True},
    "all options": {
        "weight": WEIGHT,
        "prior": PRIOR,
        "label_smoothing": 0.1,
        "smooth_over": "others",
        "objective": "kl_div",
        "softcap": 3.0,
        "lse_square_scale": 0.01,
    },
}


def copies(arguments: tuple[Any, ...]) -> list[Any]:
    return [
        a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a
        for a in arguments
    ]


def compiles_once(
    function: Callable[..., Tensor],
    calls: list[tuple[Any, ...]],
    compiler: str = "aot_eager",
    **tolerance: float,
) -> None:
    """One graph for the first call and one, with sizes and numbers as variables, for all others;
    losses and gradients are those of eager mode, for incoming gradients other than 1 too."""
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for number, arguments in enumerate(calls, start=1):
        results = []
        for called in (compiled, function):
            given = copies(arguments)
            loss = called(*given)
            if loss.requires_grad:
                (loss.sum() * number).backward()
            results.append([loss, *(a.grad for a in given if isinstance(a, Tensor))])
        torch.testing.assert_close(*results, **tolerance)
        assert counter.frame_count == min(number, 2)


def batches(*rest: int, target: tuple[int, ...] = ()) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(n, *rest, requires_grad=True), torch.randint(C, (n, *target))) for n in SIZES
    ]


@pytest.mark.parametrize(
    ("options", "reduction"),
    [
        ("plain", "sum"),
        ("plain", "none"),
        ("in place", "mean"),
        ("in place", "none"),
        ("all options", "mean"),
    ],
)
def test_training_step(options: str, reduction: str, backend: str) -> None:
    projection = torch.randn(C, D)

    def step(hidden: Tensor, target: Tensor) -> Tensor:
        return label_smoothing_loss(
            hidden @ projection.t(),
            target,
            reduction=reduction,
            backend=backend,
            **OPTIONS[options],
        )

    compiles_once(step, batches(D))


def test_changing_smoothing_and_normalizer(backend: str) -> None:
    """They are variables of the graph."""

    def step(logits: Tensor, target: Tensor, smoothing: float, count: float) -> Tensor:
        return label_smoothing_loss(
            logits,
            target,
            label_smoothing=smoothing,
            normalizer=count,
            backend=backend,
        )

    numbers = [(0.1, 3.0), (0.2, 5.0), (0.05, 40.0), (0.4, 1.5)]
    calls = [(*b, *n) for b, n in zip(batches(C), numbers, strict=True)]
    compiles_once(step, calls)


@pytest.mark.parametrize("name", ["lse_square_scale", "logit_scale", "softcap"])
def test_other_numbers_may_change(name: str) -> None:
    def step(logits: Tensor, target: Tensor, number: float) -> Tensor:
        return label_smoothing_loss(logits, target, **{name: number})

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    logits, target = batches(C)[0]
    for number in (0.5, 0.75, 2.0):
        torch.testing.assert_close(compiled(logits, target, number), step(logits, target, number))


def test_module_whose_smoothing_changes() -> None:
    loss = FusedLabelSmoothingLoss(WEIGHT, label_smoothing=0.1)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for number, (logits, target) in enumerate(batches(C), start=1):
        loss.label_smoothing = 0.1 * number
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))
    assert counter.frame_count <= 2


def test_images() -> None:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return label_smoothing_loss(logits, target, label_smoothing=0.1)

    compiles_once(loss, batches(C, 3, 2, target=(3, 2)))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_the_other_inputs(reduction: str) -> None:
    def loss(logits: Tensor, scores: Tensor, weight: Tensor) -> Tensor:
        return label_smoothing_loss(
            logits,
            scores.softmax(1),
            weight,
            reduction=reduction,
            label_smoothing=0.1,
        )

    def leaf(*shape: int) -> Tensor:
        return torch.rand(shape, requires_grad=True)

    compiles_once(loss, [(leaf(n, C), leaf(n, C), leaf(C)) for n in SIZES])


def test_float16() -> None:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return label_smoothing_loss(logits.half(), target, label_smoothing=0.1)

    compiles_once(loss, batches(C))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_from_outside_in_place(reduction: str) -> None:
    """The graph begins with the logits: what it does to them shows."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return label_smoothing_loss(logits, target, reduction=reduction, inplace=True)

    leaf, target = batches(C)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    grads = [
        torch.autograd.grad(called(leaf * 1, target).sum(), leaf)[0] for called in (compiled, loss)
    ]
    torch.testing.assert_close(*grads)


def test_learned_scale() -> None:
    """Its gradient too; other numbers as tensors are an error rather than no gradient."""

    def loss(logits: Tensor, target: Tensor, scale: Tensor) -> Tensor:
        return label_smoothing_loss(logits, target, logit_scale=scale.exp(), inplace=True)

    scales = torch.rand(len(SIZES), 1).unbind()
    compiles_once(loss, [(*b, s.requires_grad_()) for b, s in zip(batches(C), scales, strict=True)])
    compiled = torch.compile(label_smoothing_loss, backend="aot_eager")
    for name in ("label_smoothing", "softcap"):
        with pytest.raises(TypeError, match=f"{name}: .* requires grad"):
            compiled(*batches(C)[0], **{name: torch.tensor(0.5, requires_grad=True)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_class_probabilities_of_another_dtype(dtype: torch.dtype) -> None:
    def loss(logits: Tensor, scores: Tensor) -> Tensor:
        return label_smoothing_loss(logits.to(dtype), scores.softmax(1), label_smoothing=0.1)

    calls = [(logits, torch.rand(len(logits), C)) for logits, _ in batches(C)]
    # In eager mode forward has rounded the gradient when it meets the incoming one.
    compiles_once(loss, calls, rtol=max(torch.finfo(dtype).eps, 1e-6), atol=1e-6)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("inplace", [False, True])
def test_sparse_targets_and_row_weights(inplace: bool, compiler: str) -> None:
    """Their gradients too; the target is made inside the graph."""

    def loss(x: Tensor, y: Tensor, lam: Tensor, rows: Tensor) -> Tensor:
        target = SparseTarget.mix(y, y.flip(0), lam)
        return label_smoothing_loss(
            x * 2, target, label_smoothing=0.1, row_weight=rows, inplace=inplace, reduction="sum"
        )

    for with_grad in (False, True):
        calls = [
            (x, y, torch.rand(len(x), requires_grad=with_grad), torch.rand(len(x)))
            for x, y in batches(C)
        ]
        torch._dynamo.reset()
        compiles_once(loss, calls, compiler)


@pytest.mark.parametrize("smooth_over", ["unmasked", "all"])
def test_masked_logits(smooth_over: str) -> None:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        masked = x.masked_fill(x < -0.5, torch.finfo(x.dtype).min)
        masked = masked.scatter(1, y[:, None], 0.0)
        return label_smoothing_loss(masked, y, label_smoothing=0.1, smooth_over=smooth_over)

    compiles_once(loss, batches(C))


def test_statistics() -> None:
    def stats(logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        loss, statistics = label_smoothing_loss(logits, target, return_stats=True)
        return loss, *statistics

    compiled = torch.compile(stats, fullgraph=True, backend="aot_eager")
    for logits, target in batches(C):
        torch.testing.assert_close(compiled(logits, target), stats(logits, target))


@pytest.mark.parametrize("seed", [LabelSmoothing(C, 0.1), LabelSmoothingLoss(C, 0.1)])
def test_seeds(seed: nn.Module) -> None:
    compiles_once(lambda x, y: seed(x, y), batches(C))


def test_wrong_target_is_an_error_of_the_compiled_kernel() -> None:
    compiled = torch.compile(label_smoothing_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match=r"row 1 is 99\b"):
        compiled(torch.randn(2, C), torch.tensor([0, 99]))


def test_wrong_target_is_nan_where_nobody_looks() -> None:
    """The eager formulas in a graph, like a GPU's kernels: that row alone is lost."""
    compiled = torch.compile(label_smoothing_loss, fullgraph=True, backend="aot_eager")
    target = torch.tensor([0, 99, 3, -1])
    right = torch.tensor([True, False, True, False])
    for reduction in ("none", "mean"):
        options: dict[str, Any] = {"reduction": reduction, "weight": WEIGHT}
        logits = torch.randn(4, C, requires_grad=True)
        loss = compiled(logits, target, **options, backend="eager")
        expected = label_smoothing_loss(logits[right], target[right], **options)
        ours, theirs = (torch.autograd.grad(x.sum(), logits)[0] for x in (loss, expected))
        assert ours[~right].isnan().all()
        torch.testing.assert_close(ours[right], theirs[right])
        if reduction == "none":
            assert loss[~right].isnan().all()
            torch.testing.assert_close(loss[right], expected)


def test_generated_code() -> None:
    """The default compiler, which reuses memory."""
    projection = torch.randn(C, D, requires_grad=True)

    def step(hidden: Tensor, projection: Tensor, target: Tensor, smoothing: float) -> Tensor:
        return label_smoothing_loss(
            hidden @ projection.t(),
            target,
            label_smoothing=smoothing,
            inplace=True,
        )

    calls = [(h, projection, t, 0.1 * i) for i, (h, t) in enumerate(batches(D))]
    compiles_once(step, calls, compiler="inductor")
