"""The modules as modules: buffers, state, copies, and what they print."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss
from labelsmooth.compat import LabelSmoothing, LabelSmoothingLoss

C = 5
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0])
PRIOR = torch.tensor([0.5, 0.125, 0.125, 0.25, 0.0])
OPTIONS: dict[str, Any] = {
    "weight": WEIGHT,
    "prior": PRIOR,
    "ignore_index": 3,
    "reduction": "sum",
    "label_smoothing": 0.2,
    "smooth_over": "others",
    "weight_over": "target",
    "objective": "kl_div",
    "lse_square_scale": 0.001,
    "logit_scale": 0.5,
    "softcap": 4.0,
    "backend": "eager",
}


def problem() -> tuple[Tensor, Tensor]:
    return torch.randn(6, C), torch.tensor([0, 1, 2, 3, 4, 0])


def test_holds_the_options_of_the_function() -> None:
    logits, target = problem()
    module = FusedLabelSmoothingLoss(**OPTIONS)
    assert torch.equal(module(logits, target), label_smoothing_loss(logits, target, **OPTIONS))


def test_options_may_be_set_between_calls() -> None:
    logits, target = problem()
    module = FusedLabelSmoothingLoss(WEIGHT, prior=PRIOR)
    for name, value in OPTIONS.items():
        setattr(module, name, value)
        assert getattr(module, name) is value
    assert torch.equal(module(logits, target), label_smoothing_loss(logits, target, **OPTIONS))


def test_an_option_that_does_not_fit_the_prior() -> None:
    module = FusedLabelSmoothingLoss(prior=torch.eye(C)[0], smooth_over="others")
    with pytest.raises(ValueError, match="leaves something"):
        module.label_smoothing = 0.1
    assert module.label_smoothing == 0


CALL = ("logits", "target", "normalizer", "row_weight")


def test_every_option_has_its_keyword_in_both() -> None:
    function = inspect.signature(label_smoothing_loss).parameters
    module = inspect.signature(FusedLabelSmoothingLoss).parameters
    assert list(module) == [n for n in function if n not in CALL]
    for name, parameter in module.items():
        assert (parameter.default, parameter.kind) == (function[name].default, function[name].kind)


def test_normalizer_is_the_calls_own() -> None:
    logits, target = problem()
    module = FusedLabelSmoothingLoss(label_smoothing=0.1)
    total = FusedLabelSmoothingLoss(label_smoothing=0.1, reduction="sum")(logits, target)
    torch.testing.assert_close(module(logits, target, normalizer=24), total / 24)
    torch.testing.assert_close(module(logits, target, normalizer=torch.tensor(24)), total / 24)


def test_options_of_cross_entropy_can_be_set() -> None:
    """The new value is checked as at construction."""
    logits, target = problem()
    for name, value in (("label_smoothing", 0.3), ("ignore_index", 2), ("reduction", "sum")):
        ours, theirs = FusedLabelSmoothingLoss(WEIGHT), nn.CrossEntropyLoss(WEIGHT)
        for module in (ours, theirs):
            setattr(module, name, value)
            assert getattr(module, name) == value
        torch.testing.assert_close(ours(logits, target), theirs(logits, target))
    with pytest.raises(ValueError, match="label_smoothing"):
        ours.label_smoothing = 1.5


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_meta_device(reduction: str, backend: str) -> None:
    module = FusedLabelSmoothingLoss(
        WEIGHT, reduction=reduction, return_stats=True, backend=backend
    ).to("meta")
    logits = torch.randn(6, C, 2, device="meta", dtype=torch.bfloat16, requires_grad=True)
    target = torch.zeros(6, 2, device="meta", dtype=torch.int64)
    loss, stats = module(logits, target)
    loss.sum().backward()
    assert (loss.shape, loss.dtype) == ((6, 2) if reduction == "none" else (), torch.float32)
    assert {stat.shape for stat in stats} == {(6, 2)}
    assert (logits.grad.shape, logits.grad.dtype) == (logits.shape, torch.bfloat16)


def test_weight_and_prior_are_buffers() -> None:
    module = FusedLabelSmoothingLoss(weight=WEIGHT, prior=PRIOR)
    assert dict(module.named_buffers()).keys() == {"weight", "prior"}
    assert list(module.parameters()) == []
    assert module.double().weight.dtype == torch.float64
    assert module.to("meta").prior.is_meta


def test_state_dict_moves_weight_and_prior() -> None:
    module = FusedLabelSmoothingLoss(weight=WEIGHT, prior=PRIOR)
    state = module.state_dict()
    assert state.keys() == {"weight", "prior"}
    other = FusedLabelSmoothingLoss(weight=torch.ones(C), prior=torch.full((C,), 0.2))
    other.load_state_dict(state)
    assert torch.equal(other.weight, WEIGHT)
    assert torch.equal(other.prior, PRIOR)


def test_state_dict_is_that_of_cross_entropy() -> None:
    """A checkpoint with nn.CrossEntropyLoss inside loads after the swap, and back."""
    for weight in (None, WEIGHT):
        theirs, ours = nn.CrossEntropyLoss(weight), FusedLabelSmoothingLoss(weight)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize(
    "module",
    [
        FusedLabelSmoothingLoss(),
        FusedLabelSmoothingLoss(**OPTIONS),
        LabelSmoothingLoss(C, 0.1, weight=WEIGHT),
        LabelSmoothing(C, 0.1),
    ],
    ids=["defaults", "options", "seed 2", "seed 1"],
)
def test_copies_are_equal_and_apart(module: nn.Module, duplicate: Any) -> None:
    logits, target = problem()
    before = module(logits, target)
    copied = duplicate(module)
    assert repr(copied) == repr(module)
    for buffer in copied.buffers():
        buffer.zero_()
    assert torch.equal(module(logits, target), before)
    assert torch.equal(duplicate(module)(logits, target), before)


def test_repr_names_the_options() -> None:
    shown = repr(FusedLabelSmoothingLoss(**OPTIONS))
    for name in ("label_smoothing=0.2", "reduction='sum'", "smooth_over='others'", "softcap=4.0"):
        assert name in shown
    assert "ignore_index=3" in shown
    assert repr(FusedLabelSmoothingLoss()).startswith("FusedLabelSmoothingLoss(")


def test_as_the_last_module_of_a_model() -> None:
    """Moved and cast with its model."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, C)
            self.loss = FusedLabelSmoothingLoss(WEIGHT, label_smoothing=0.1, inplace=True)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return self.loss(self.layer(x), target)

    model = Model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, target = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 4, 4, 0])
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(x, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert model.loss.weight.dtype == torch.float64
