"""The loss as one operator of a graph: opcheck, torch.export, torch.func inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import COMPILES, REDUCTIONS
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.library import opcheck

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss
from labelsmooth._autograd.operator import KEYWORDS, NAMES
from labelsmooth._call.problem import Inputs, Options

N, D, C = 5, 4, 7
TARGET = torch.randint(C, (N,))

pytestmark = COMPILES


# ---- the operators themselves --------------------------------------------------------------------


def arguments(
    reduction: str, backend: str, tensors: Any = None, **options: Any
) -> tuple[tuple[Any, ...], Any]:
    options = {"label_smoothing": 0.1, "reduction": reduction, "backend": backend, **options}
    made = Options(**options)
    inputs = Inputs(torch.randn(N, C, requires_grad=True), TARGET)._replace(**tensors or {})
    return tuple(inputs), {name: getattr(made, name) for name in KEYWORDS}


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", [{}, {"return_stats": True, "softcap": 3.0}], ids=str)
def test_opcheck(options: dict[str, Any], reduction: str, backend: str) -> None:
    """For any number of rows."""
    tensors, keywords = arguments(reduction, backend, **options)
    opcheck(torch.ops.labelsmooth.loss.default, tensors, keywords)
    keywords["label_smoothing"] = torch.tensor(0.1, dtype=torch.float64)
    opcheck(torch.ops.labelsmooth.loss.traced, tensors, keywords)


TARGETS: dict[str, dict[str, Tensor]] = {
    "probabilities": {"target": torch.rand(N, C, dtype=torch.float64)},
    "sparse": {"target": torch.randint(C, (N, 3)), "target_probs": torch.rand(N, 3)},
    "row weight": {"row_weight": torch.rand(N)},
}


@pytest.mark.parametrize("tensors", TARGETS)
@pytest.mark.parametrize("smooth_over", ["all", "unmasked"])
def test_opcheck_of_targets(smooth_over: str, tensors: str, backend: str) -> None:
    options = {"smooth_over": smooth_over, "weight_over": "target", "return_stats": True}
    given, keywords = arguments("mean", backend, TARGETS[tensors], **options)
    opcheck(torch.ops.labelsmooth.loss.default, given, keywords)
    leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in given]
    opcheck(torch.ops.labelsmooth.loss.default, tuple(leaves), keywords)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_opcheck_in_place(reduction: str, backend: str) -> None:
    """Without grad, for a leaf that requires it cannot be overwritten."""
    (logits, *others), keywords = arguments(reduction, backend)
    tensors = (logits.detach(), *others)
    opcheck(torch.ops.labelsmooth.loss_.default, tensors, keywords)
    keywords["label_smoothing"] = torch.tensor(0.1, dtype=torch.float64)
    opcheck(torch.ops.labelsmooth.loss_.traced, tensors, keywords)


@pytest.mark.parametrize("name", NAMES)
def test_takes_every_option_but_inplace(name: str) -> None:
    operator, _, overload = name.partition(".")
    schema = getattr(getattr(torch.ops.labelsmooth, operator), overload or "default")._schema
    options = [a.name for a in schema.arguments if a.kwarg_only]
    assert {*options, "inplace"} == {*Options.__dataclass_fields__}
    written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    assert written == (["logits"] if operator == "loss_" else [])


# ---- torch.export --------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(D, C)
        self.loss = FusedLabelSmoothingLoss(label_smoothing=0.1, **options)

    def forward(self, hidden: Tensor, target: Tensor) -> Any:
        return self.loss(self.layer(hidden), target)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_exported_module_trains(
    reduction: str, inplace: bool, strict: bool, backend: str
) -> None:
    """For other rows than those it was exported with."""
    model = Model(reduction=reduction, inplace=inplace, backend=backend)
    rows = torch.export.Dim("rows")
    program = torch.export.export(
        model,
        (torch.randn(N, D), TARGET),
        dynamic_shapes=({0: rows}, {0: rows}),
        strict=strict,
    ).module()
    hidden, target = torch.randn(3, D), TARGET[:3]
    loss, expected = program(hidden, target).sum(), model(hidden, target).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    gradients = [p.grad for p in program.parameters()]
    expected.backward()
    torch.testing.assert_close(gradients, [p.grad for p in model.parameters()])


def test_exported_statistics() -> None:
    model = Model(reduction="none", return_stats=True)
    program = torch.export.export(model, (torch.randn(N, D), TARGET)).module()
    hidden = torch.randn(N, D)
    torch.testing.assert_close(program(hidden, TARGET), model(hidden, TARGET))


# ---- transforms and graphs -----------------------------------------------------------------------


def of_logits(loss: Callable[..., Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
    return lambda logits: loss(logits, TARGET, label_smoothing=0.1, **options)


def dual(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss(forward_ad.make_dual(x, x.cos()))).tangent


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "grad": lambda loss, x: torch.func.grad(loss)(x),
    "vmap": lambda loss, x: torch.vmap(loss)(torch.stack([x, 2 * x])),
    "per-sample grad": lambda loss, x: torch.vmap(torch.func.grad(loss))(torch.stack([x, 2 * x])),
    "jvp": lambda loss, x: torch.func.jvp(loss, (x,), (x.cos(),))[1],
    "hessian": lambda loss, x: torch.func.hessian(loss)(x),
    "forward mode": dual,
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_inside_a_graph(
    transform: str, compiler: str, inplace: bool, backend: str
) -> None:
    """Right, as F.cross_entropy's are; a graph's nodes are differentiated one by one."""
    x, take = torch.randn(N, C), TRANSFORMS[transform]
    ours = of_logits(label_smoothing_loss, backend=backend, inplace=inplace)
    compiled = torch.compile(lambda x: take(ours, x), backend=compiler)
    torch.testing.assert_close(compiled(x), take(of_logits(F.cross_entropy), x))


@pytest.mark.parametrize("inplace", [False, True])
def test_no_graph_break(inplace: bool, backend: str) -> None:
    def step(hidden: Tensor, layer: Tensor) -> Tensor:
        return label_smoothing_loss(hidden @ layer, TARGET, inplace=inplace, backend=backend)

    layer = torch.randn(D, C, requires_grad=True)
    told = torch._dynamo.explain(step)(torch.randn(N, D), layer)
    assert (told.graph_count, told.graph_break_count) == (1, 0)
