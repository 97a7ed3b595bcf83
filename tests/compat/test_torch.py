"""torch's own losses to the letter: every sample input, module input and error input that torch
ships for them, with torch's own answer."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from checks import DTYPES, loss_dtype
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from labelsmooth.compat import torch as ours

NAMES = ["cross_entropy", "linear_cross_entropy"]
MODULES = ["CrossEntropyLoss", "LinearCrossEntropyLoss"]
NAMES = [name for name in NAMES if hasattr(F, name)]  # the second from torch 2.13 on
MODULES = [name for name in MODULES if hasattr(nn, name)]

Call = Callable[..., Tensor]


def in_loss_dtype(value: Any) -> Any:
    """Torch then computes as we do, and the answer is rounded once."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(loss_dtype(value))
    return value


def loss_and_gradients(call: Call, leaves: list[Tensor]) -> list[Tensor]:
    loss = call()
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, needed, torch.ones_like(loss))]


def assert_same(made: Call, expected: Call, leaves: list[Tensor], dtype: torch.dtype) -> None:
    loss, *gradients = loss_and_gradients(made, leaves)
    true_loss, *true_gradients = loss_and_gradients(expected, leaves)
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, true_loss.to(dtype), equal_nan=True)
    torch.testing.assert_close(gradients, true_gradients, equal_nan=True)


def samples_of(name: str, dtype: torch.dtype) -> Iterator[Any]:
    for op in op_db:
        if op.name == f"nn.functional.{name}":
            yield from op.sample_inputs("cpu", dtype, requires_grad=True)


def module_inputs(kind: str, name: str, dtype: torch.dtype, requires_grad: bool) -> list[Any]:
    (info,) = (info for info in module_db if info.module_cls is getattr(nn, name))
    inputs: list[Any] = getattr(info, kind)(
        info, device="cpu", dtype=dtype, requires_grad=requires_grad, training=True
    )
    return inputs


@pytest.mark.filterwarnings("ignore:.*linear_cross_entropy:UserWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_sample_inputs(name: str, dtype: torch.dtype) -> None:
    samples = list(samples_of(name, dtype))
    assert len(samples) > 20
    narrow = dtype.itemsize == 2
    for sample in samples:
        arguments = (sample.input, *sample.args)
        leaves = [a for a in (*arguments, *sample.kwargs.values()) if isinstance(a, Tensor)]
        leaves = [leaf for leaf in leaves if leaf.is_floating_point()]
        # What torch rounds after a projection is its own affair: its answer is of float32.
        options = {k: in_loss_dtype(v) for k, v in sample.kwargs.items() if k != "options"}

        def theirs(arguments: Any = arguments, options: Any = options) -> Tensor:
            return getattr(F, name)(*map(in_loss_dtype, arguments), **options)

        def made(arguments: Any = arguments, sample: Any = sample) -> Tensor:
            return getattr(ours, name)(*arguments, **sample.kwargs)

        if narrow and name != "cross_entropy":
            loss, true_loss = made(), theirs()
            torch.testing.assert_close(loss, true_loss.to(dtype), rtol=0.02, atol=0.02)
        else:
            assert_same(made, theirs, leaves, dtype)


@pytest.mark.filterwarnings("ignore:.*linear_cross_entropy:UserWarning")
@pytest.mark.parametrize("name", MODULES)
def test_module_inputs(name: str) -> None:
    theirs, mine = getattr(nn, name), getattr(ours, name)
    inputs = module_inputs("module_inputs_func", name, torch.float64, requires_grad=True)
    assert len(inputs) > 20
    for given in inputs:
        made = given.constructor_input
        expected, module = theirs(*made.args, **made.kwargs), mine(*made.args, **made.kwargs)
        module.load_state_dict(expected.state_dict())
        assert repr(module) == repr(expected)
        module = pickle.loads(pickle.dumps(copy.deepcopy(module)))
        call = given.forward_input
        leaves = [a for a in call.args if isinstance(a, Tensor)]
        assert_same(
            lambda module=module, call=call: module(*call.args, **call.kwargs),
            lambda module=expected, call=call: module(*call.args, **call.kwargs),
            leaves,
            torch.float64,
        )


@pytest.mark.parametrize("name", MODULES)
def test_error_inputs(name: str) -> None:
    """An error here too; its words and at times its type are ours."""
    mine = getattr(ours, name)
    errors = module_inputs("module_error_inputs_func", name, torch.float32, requires_grad=False)
    assert len(errors) > 4
    for error in errors:
        given = error.module_error_input
        made, call = given.constructor_input, given.forward_input
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            mine(*made.args, **made.kwargs)(*call.args, **call.kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_torch_s(name: str) -> None:
    def parameters(function: Any) -> list[tuple[str, Any, Any]]:
        of = inspect.signature(function).parameters.values()
        return [(p.name, p.kind, p.default) for p in of]

    assert parameters(getattr(ours, name)) == parameters(getattr(F, name))


def test_positional_and_legacy_arguments() -> None:
    x, y, w = torch.randn(5, 4), torch.tensor([0, 3, -100, 1, 3]), torch.rand(4)
    calls: list[tuple[Any, ...]] = [
        (x, y, w, None, -100),
        (x, y.clamp(min=0), w, None, 3, None, "sum", 0.1),
    ]
    for call in calls:
        torch.testing.assert_close(ours.cross_entropy(*call), F.cross_entropy(*call))
    for flags in ((True, None), (False, None), (None, False), (False, False), (True, True)):
        legacy = {"size_average": flags[0], "reduce": flags[1]}
        with pytest.warns(UserWarning, match="size_average and reduce"):
            expected = F.cross_entropy(x, y, w, **legacy)  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match="size_average and reduce"):
            made = ours.cross_entropy(x, y, w, **legacy)  # type: ignore[arg-type]
        torch.testing.assert_close(made, expected)


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
def test_modules_are_torch_s() -> None:
    w, x, y = torch.rand(4), torch.randn(5, 4), torch.tensor([0, 3, 2, 1, 3])
    module = ours.CrossEntropyLoss(w, True, 3)
    assert isinstance(module, nn.CrossEntropyLoss)
    assert (module.reduction, module.ignore_index) == ("mean", 3)
    torch.testing.assert_close(module(x, y), nn.CrossEntropyLoss(w, True, 3)(x, y))
    torch.testing.assert_close(module(input=x, target=y), module(x, y))


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("logits", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_probabilities_of_another_dtype(
    name: str, logits: torch.dtype, target: torch.dtype
) -> None:
    x, t = torch.randn(5, 4).to(logits), torch.rand(5, 4).to(target)
    given = (x, t) if name == "cross_entropy" else (x, torch.eye(4).to(logits), t)
    made, theirs = getattr(ours, name)(*given), getattr(F, name)
    assert made.dtype == theirs(*given).dtype
    expected = theirs(*map(in_loss_dtype, given))
    if made.dtype != torch.bfloat16:  # promoted from a sum in float32
        made, expected = made.float(), expected.float()
    torch.testing.assert_close(made, expected.to(made.dtype))


def test_compiled_with_legacy_arguments() -> None:
    x, y = torch.randn(5, 4), torch.tensor([0, 3, 2, 1, 3])
    compiled = torch.compile(ours.cross_entropy, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y, None, False), F.cross_entropy(x, y, reduction="sum"))


def test_torch_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own module then calls ours, for one."""
    x, y = torch.randn(5, 4, dtype=torch.bfloat16), torch.tensor([0, 3, 2, 1, 3])
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(1)
        return ours.cross_entropy(*args, **options)

    monkeypatch.setattr(F, "cross_entropy", counted)
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)(x, y)
    assert calls == [1]
    assert loss.dtype == torch.bfloat16


def test_autocast() -> None:
    x, y = torch.randn(5, 4), torch.tensor([0, 3, 2, 1, 3])
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours.cross_entropy(x.bfloat16(), y)
        assert loss.dtype == F.cross_entropy(x.bfloat16(), y).dtype == torch.float32
