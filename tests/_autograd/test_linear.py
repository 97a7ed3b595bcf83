"""The fused projection under autograd: which gradients are made, how often, and compiled."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from _autograd.test_compile import compiles_once
from checks import COMPILES, REDUCTIONS
from linear_checks import SMOOTHING, C, D, N, Projection, loss_of, plain, projection, targets
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from labelsmooth import (
    FusedLinearLabelSmoothingLoss,
    SparseTarget,
    linear_label_smoothing_loss,
)
from labelsmooth._backends.linear import loop
from labelsmooth._call.problem import LinearInputs, LinearOptions

# ---- which gradients -----------------------------------------------------------------------------


class Made(TorchDispatchMode):
    """The operators that run, and the shapes of what they return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[tuple[int, ...]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        outs = out if isinstance(out, tuple | list) else [out]
        shapes = [tuple(t.shape) for t in outs if isinstance(t, Tensor)]
        self.calls.append((func.overloadpacket.__name__, shapes))
        return out

    def products(self) -> int:
        return sum(name in ("mm", "addmm", "addmm_") for name, _ in self.calls)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("needed", list(product([False, True], repeat=3)))
def test_any_subset(
    needed: tuple[bool, ...],
    recompute: bool,
    reduction: str,
    given: Projection,
    target: Tensor,
    backend: str,
) -> None:
    """A frozen head, a probe on frozen hidden states: each gets its own gradient, or None."""
    results = []
    for function in (loss_of, plain):
        leaves = Projection(
            *(t.detach().requires_grad_(n) for t, n in zip(given, needed, strict=True))
        )
        extra = {"recompute": recompute, "backend": backend} if function is loss_of else {}
        loss = function(leaves, target, reduction=reduction, **extra)
        assert loss.requires_grad == any(needed)
        if any(needed):
            loss.sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*results, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("needed", "products"), [((True, True), 3), ((True, False), 2), ((False, True), 2)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_products_that_are_needed(
    needed: tuple[bool, bool], products: int, dtype: torch.dtype
) -> None:
    """And of a frozen head no memory of its size."""
    rows, features, classes = 20, 4, 50
    hidden = torch.randn(rows, features).to(dtype).requires_grad_(needed[0])
    weight = torch.randn(classes, features).to(dtype).requires_grad_(needed[1])
    target = torch.randint(classes, (rows,))
    inputs = LinearInputs(hidden.detach(), weight.detach(), None, target)
    with Made() as made:
        loop.forward(inputs, LinearOptions(chunk_rows=20), dtype, [*needed, False])
    assert made.products() == products
    sizes = [shape for _, shapes in made.calls for shape in shapes]
    assert ((classes, features) in [s for n, ss in made.calls if n != "t" for s in ss]) == needed[1]
    assert (rows, classes) in sizes  # the slab


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_grad_nothing_is_made(
    mode: Any, reduction: str, given: Projection, target: Tensor, backend: str
) -> None:
    with mode():
        loss = loss_of(given, target, reduction=reduction, backend=backend)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(given, target, reduction=reduction).detach())


# ---- how often -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_second_backward(
    dtype: torch.dtype, recompute: bool, reduction: str, target: Tensor, backend: str
) -> None:
    """Gradients are neither scaled twice nor given away."""
    given = projection(N, D, C, bias=True, dtype=dtype).leaves()
    options = {"reduction": reduction, "recompute": recompute, "backend": backend}
    loss = loss_of(given, target, **options)
    cotangent = torch.rand_like(loss)
    first = torch.autograd.grad(loss, given.tensors(), 2 * cotangent, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(loss, given.tensors(), 4 * cotangent, retain_graph=True)
    third = torch.autograd.grad(loss, given.tensors(), 2 * cotangent)
    for a, before, b, c in zip(first, kept, second, third, strict=True):
        assert torch.equal(a, before)
        torch.testing.assert_close(b, 2 * a)
        torch.testing.assert_close(c, a)


@pytest.mark.parametrize("shape", ["uniform", "stride 0", "strided"])
def test_incoming_gradients_of_rows(
    shape: str, given: Projection, target: Tensor, backend: str
) -> None:
    grad_loss = torch.rand(2 * N, dtype=torch.float64)[::2]
    if shape == "uniform":
        grad_loss = torch.full((N,), 0.3, dtype=torch.float64)
    elif shape == "stride 0":
        grad_loss = torch.tensor(0.3, dtype=torch.float64).expand(N)
    results = [
        torch.autograd.grad(function(given, target, reduction="none", **extra), given, grad_loss)
        for function, extra in ((loss_of, {"backend": backend}), (plain, {}))
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_checkpoint(use_reentrant: bool, reduction: str, given: Projection, target: Tensor) -> None:
    def step(*leaves: Tensor) -> Any:
        return loss_of(Projection(*leaves), target, reduction=reduction)

    loss = checkpoint(step, *given, use_reentrant=use_reentrant)
    loss.sum().backward()
    expected = torch.autograd.grad(plain(given, target, reduction=reduction).sum(), given)
    torch.testing.assert_close([leaf.grad for leaf in given], list(expected))


def test_who_writes_between_forward_and_backward(given: Projection, target: Tensor) -> None:
    """What backward reads again is under autograd's versions, as F.linear's."""
    loss = loss_of(given, target, recompute=True)
    with torch.no_grad():
        given.linear_weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batched_incoming_gradients(dtype: torch.dtype, target: Tensor, backend: str) -> None:
    given = projection(N, D, C, bias=True, dtype=dtype).leaves()
    loss = loss_of(given, target, backend=backend)
    cotangents = torch.tensor([1.0, 2.0, -0.5], dtype=loss.dtype)
    grads = torch.autograd.grad(
        loss, given.tensors(), cotangents, is_grads_batched=True, retain_graph=True
    )
    once = torch.autograd.grad(loss, given.tensors())
    for batch, single in zip(grads, once, strict=True):
        for row, cotangent in zip(batch, cotangents, strict=True):
            torch.testing.assert_close(row, (single * cotangent).to(dtype), rtol=1e-2, atol=1e-3)


# ---- compiled ------------------------------------------------------------------------------------


class TestCompiled:
    pytestmark = COMPILES

    def calls(self, *, bias: bool = False) -> list[tuple[Any, ...]]:
        made = []
        for rows, smoothing in ((4, 0.1), (6, 0.2), (9, 0.3), (5, 0.0)):
            given = projection(rows, D, C, bias=bias, dtype=torch.float32).leaves()
            made.append((*given.tensors(), targets(rows, C), smoothing))
        return made

    @pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
    def test_several_classes_and_row_weights(self, compiler: str) -> None:
        def function(hidden: Tensor, weight: Tensor, rows: Tensor, y: Tensor) -> Tensor:
            target = SparseTarget.mix(y, y.flip(0), rows)
            made = linear_label_smoothing_loss(
                hidden, weight, target, row_weight=rows, label_smoothing=0.1, chunk_rows=4
            )
            assert isinstance(made, Tensor)
            return made

        calls = [
            (hidden, weight, torch.rand(len(hidden)), y.clamp(min=0))
            for hidden, weight, y, *_ in self.calls()
        ]
        compiles_once(function, calls, compiler)

    @pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_one_graph_for_all_sizes_and_smoothings(self, reduction: str, compiler: str) -> None:
        def function(hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float) -> Any:
            return linear_label_smoothing_loss(
                hidden, weight, target, label_smoothing=smoothing, reduction=reduction, chunk_rows=2
            )

        compiles_once(function, self.calls(), compiler)

    def test_module_with_a_bias(self) -> None:
        torch.manual_seed(0)
        module = FusedLinearLabelSmoothingLoss(D, C, bias=True, label_smoothing=SMOOTHING)
        hidden, target = torch.randn(N, D), targets(N, C)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        grads = []
        for called in (module, compiled):
            module.zero_grad()
            called(hidden, target).backward()
            grads.append([p.grad for p in module.parameters()])
        torch.testing.assert_close(*grads)

    def test_statistics_and_autocast(self) -> None:
        def function(hidden: Tensor, weight: Tensor, target: Tensor) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss, stats = linear_label_smoothing_loss(
                    hidden, weight, target, return_stats=True, chunk_rows=3
                )
            return loss, stats.nll, stats.predicted

        given, target = projection(N, D, C, dtype=torch.float32).leaves(), targets(N, C)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        results = [f(given.hidden, given.linear_weight, target) for f in (function, compiled)]
        torch.testing.assert_close(*([t.detach() for t in r] for r in results))
        grads = [torch.autograd.grad(r[0], given[:2]) for r in results]
        assert [g.dtype for g in grads[1]] == [torch.float32] * 2
        torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-4)  # forward rounds elsewhere

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_formulas_of_16_bits(self, dtype: torch.dtype) -> None:
        given, target = projection(N, D, C, dtype=dtype).leaves(), targets(N, C)
        of_classes = torch.ones(C, requires_grad=True)

        def function(hidden: Tensor, weight: Tensor) -> Any:
            return linear_label_smoothing_loss(hidden, weight, target, weight=of_classes)

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        leaves = (*given[:2], of_classes)
        results = [torch.autograd.grad(f(*given[:2]), leaves) for f in (function, compiled)]
        torch.testing.assert_close(*results, rtol=2e-2, atol=1e-3)

    @pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    def test_traced_by_torch_jit(self) -> None:
        given, target = projection(N, D, C).leaves(), targets(N, C)
        arguments = (given.hidden.detach(), given.linear_weight.detach(), target)
        traced = torch.jit.trace(linear_label_smoothing_loss, arguments, check_trace=False)
        torch.testing.assert_close(traced(*arguments), linear_label_smoothing_loss(*arguments))

    def test_torch_func_inside_a_graph(self) -> None:
        given, target = projection(N, D, C).leaves(), targets(N, C)

        def function(hidden: Tensor, weight: Tensor) -> Any:
            return torch.func.grad(
                lambda h: linear_label_smoothing_loss(h, weight, target, label_smoothing=0.1)
            )(hidden)

        arguments = [t.detach() for t in given[:2]]
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), function(*arguments))

    @pytest.mark.parametrize("strict", [False, True])
    def test_export_keeps_the_gradient(self, strict: bool) -> None:
        module = FusedLinearLabelSmoothingLoss(D, C, label_smoothing=SMOOTHING)
        hidden, target = torch.randn(N, D), targets(N, C)
        exported = torch.export.export(module, (hidden, target), strict=strict).module()
        grads = []
        for called in (module, exported):
            leaf = hidden.clone().requires_grad_()
            called(leaf, target).backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(*grads)
