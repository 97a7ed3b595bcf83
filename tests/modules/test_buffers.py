"""Weight and prior keep float32, whatever dtype their model is cast to and wherever it goes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from labelsmooth import FusedLabelSmoothingLoss
from labelsmooth.compat import LabelSmoothingLoss

C = 10
HALF = [torch.float16, torch.bfloat16]
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to": lambda module: module.to("cpu", torch.bfloat16),
    "type": lambda module: module.type(torch.float16),
    "twice": lambda module: module.half().bfloat16(),
    "of a model": lambda module: nn.Sequential(nn.Linear(2, C), module).bfloat16()[1],
}
DUPLICATES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]


def peaked() -> Tensor:
    """In 16 bits it would be 1 on class 3: nothing left for the others."""
    prior = torch.full((C,), 0.001 / (C - 1))
    prior[3] = 0.999
    return prior


def loss_module() -> FusedLabelSmoothingLoss:
    return FusedLabelSmoothingLoss(
        torch.rand(C) + 0.5, prior=peaked(), label_smoothing=0.1, smooth_over="others"
    )


def swap_data(module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """What FullyShardedDataParallel does to buffers; itself in test_parallel.py."""
    for buffer in module.buffers():
        buffer.data = buffer.to(dtype)


BATCH = torch.randn(4, C), torch.tensor([3, 3, 1, 2])


@pytest.mark.parametrize("cast", CASTS)
def test_casts(cast: str) -> None:
    module = loss_module()
    weight, prior, expected = module.weight, module.prior, module(*BATCH)
    CASTS[cast](module)
    assert torch.equal(module.weight, weight)
    assert torch.equal(module.prior, prior)
    assert torch.equal(module(*BATCH), expected)
    module.label_smoothing = 0.05  # checked with the prior


def test_wider_is_kept_too() -> None:
    module = loss_module().double()
    assert module.prior.dtype == torch.float64
    assert module.half().prior.dtype == torch.float64
    assert module.float().prior.dtype == torch.float32


@pytest.mark.parametrize("dtype", HALF)
def test_what_is_given_in_16_bits_is_widened(dtype: torch.dtype) -> None:
    uniform = torch.full((C + 6,), 1 / 16, dtype=dtype)
    given = FusedLabelSmoothingLoss(uniform, prior=uniform)
    assigned = FusedLabelSmoothingLoss()
    assigned.weight, assigned.prior = uniform, uniform
    for module in (given, assigned):
        assert torch.equal(module.weight, uniform.float())
        assert torch.equal(module.prior, uniform.float())


@pytest.mark.parametrize("dtype", HALF)
def test_swapped_data(dtype: torch.dtype) -> None:
    """Values are those of before, and those written since."""
    module = loss_module()
    expected, state = module(*BATCH), copy.deepcopy(module.state_dict())
    swap_data(module, dtype)
    assert module.prior.dtype == dtype
    assert torch.equal(module(*BATCH), expected)
    module.prior.copy_(torch.full((C,), 1 / 16))
    assert torch.equal(module.in_float32("prior"), torch.full((C,), 1 / 16))
    module.load_state_dict(state)
    assert torch.equal(module.prior, state["prior"])
    swap_data(module, dtype)
    for name, saved in module.state_dict().items():
        assert torch.equal(saved, state[name])
    swap_data(module, dtype)
    assert torch.equal(module.float()(*BATCH), expected)


@pytest.mark.parametrize("duplicate", DUPLICATES)
@pytest.mark.parametrize("swapped", [False, True])
def test_copies(swapped: bool, duplicate: Callable[[Any], Any]) -> None:
    module = loss_module()
    expected, state = module(*BATCH), copy.deepcopy(module.state_dict())
    if swapped:
        swap_data(module)
    copied = duplicate(module)
    for buffer in copied.buffers():
        assert buffer.dtype == torch.float32
    other = {name: value.flip(0) for name, value in state.items()}
    copied.load_state_dict(other)
    swap_data(copied)
    for name, value in other.items():
        assert torch.equal(copied.in_float32(name), value)
    assert torch.equal(module(*BATCH), expected)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("saved_in", [torch.float32, torch.bfloat16])
def test_load_state_dict(saved_in: torch.dtype, assign: bool) -> None:
    state = {name: value.to(saved_in) for name, value in loss_module().state_dict().items()}
    module = FusedLabelSmoothingLoss(torch.ones(C), prior=torch.full((C,), 1 / C))
    module.load_state_dict(copy.deepcopy(state), assign=assign)
    swap_data(module)
    for name, value in state.items():
        assert torch.equal(module.in_float32(name), value.float())


def test_a_prior_that_is_none_is_not_loaded() -> None:
    state = {"prior": torch.full((C,), 0.5)}
    module = FusedLabelSmoothingLoss(prior=torch.full((C,), 1 / C))
    with pytest.raises(RuntimeError, match="sum to 1"):
        module.load_state_dict(state, assign=True)


@pytest.mark.parametrize("mode", [torch.device("meta"), FakeTensorMode()], ids=["meta", "fake"])
def test_made_without_values(mode: Any) -> None:
    with mode:
        module = FusedLabelSmoothingLoss(prior=torch.full((C,), 1 / C), label_smoothing=0.1)
        module.label_smoothing = 0.2
        module.prior = torch.full((C,), 1 / C).half()
        assert module.prior.dtype == torch.float32
        loss = module(torch.randn(4, C), torch.zeros(4, dtype=torch.int64))
        assert loss.shape == ()


def test_from_meta_to_values() -> None:
    with torch.device("meta"):
        module = FusedLabelSmoothingLoss(torch.ones(C), prior=torch.full((C,), 1 / C))
    module.bfloat16().to_empty(device="cpu")
    state = {"weight": torch.rand(C), "prior": peaked()}
    module.load_state_dict(state)
    swap_data(module)
    assert torch.equal(module.in_float32("prior"), state["prior"])
    assert module.to("meta").weight.is_meta
    assert module.weight.dtype == torch.float32


def test_functional_call_has_the_values_given() -> None:
    module = loss_module()
    swap_data(module)
    weight = torch.rand(C).bfloat16()
    ours = torch.func.functional_call(module, {"weight": weight}, BATCH)
    expected = loss_module()
    expected.weight = weight
    assert torch.equal(ours, expected(*BATCH))


def test_a_weight_that_is_learned() -> None:
    module = FusedLabelSmoothingLoss(torch.ones(C))
    module.weight = nn.Parameter(torch.rand(C))
    module(*BATCH).backward()
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert module.weight.grad is not None
    assert module.bfloat16().weight.dtype == torch.bfloat16  # as its optimizer expects


WRONG: list[tuple[Any, type[Exception], str]] = [
    ([1.0] * C, TypeError, "expected a tensor, got list"),
    (torch.ones(C, dtype=torch.int64), TypeError, "expected a floating-point dtype, got .*int64"),
    (torch.ones(1, C), ValueError, rf"expected shape \(C,\), got \(1, {C}\)"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG, ids=["list", "integers", "axes"])
@pytest.mark.parametrize("name", ["weight", "prior"])
def test_wrong_ones(name: str, wrong: Any, error: type[Exception], message: str) -> None:
    """At construction and assignment; what was there stays."""
    with pytest.raises(error, match=f"{name}: {message}"):
        FusedLabelSmoothingLoss(**{name: wrong})
    module = loss_module()
    before = getattr(module, name)
    with pytest.raises(error, match=f"{name}: {message}"):
        setattr(module, name, wrong)
    assert getattr(module, name) is before


def test_wrong_priors() -> None:
    module = loss_module()
    before = module.prior
    with pytest.raises(ValueError, match=r"prior: .* sum to 1, got .* sum 10"):
        module.prior = torch.ones(C)
    with pytest.raises(ValueError, match=r"prior: .* leaves something"):
        module.prior = torch.eye(C)[0]
    assert module.prior is before
    module.prior = None
    assert module.state_dict().keys() == {"weight"}


@pytest.mark.parametrize("dtype", HALF)
def test_weight_of_the_older_class(dtype: torch.dtype) -> None:
    weight = torch.rand(C)
    module = LabelSmoothingLoss(C, 0.1, weight=weight)
    expected = module(*BATCH)
    assert torch.equal(module.to(dtype)(*BATCH), expected)
    swap_data(module, dtype)
    assert torch.equal(module(*BATCH), expected)
