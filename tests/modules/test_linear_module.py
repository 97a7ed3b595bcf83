"""FusedLinearLabelSmoothingLoss as a module: its options, state, casts, copies, and training."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from linear_checks import targets
from modules.test_module import OPTIONS as COMMON
from modules.test_module import PRIOR, WEIGHT, C
from torch import Tensor, nn

from labelsmooth import (
    FusedLabelSmoothingLoss,
    FusedLinearLabelSmoothingLoss,
    linear_label_smoothing_loss,
)

N, D = 12, 3
OPTIONS = COMMON | {"chunk_rows": 5, "recompute": True}


def problem() -> tuple[Tensor, Tensor]:
    target = targets(N, C)
    return torch.randn(N, D), target.where(target >= 0, OPTIONS["ignore_index"])


def function_of(module: FusedLinearLabelSmoothingLoss, hidden: Tensor, target: Tensor) -> Any:
    linear = module.linear
    return linear_label_smoothing_loss(
        hidden, linear.weight, target, linear_bias=linear.bias, **OPTIONS
    )


def test_holds_the_options_of_the_function() -> None:
    module = FusedLinearLabelSmoothingLoss(D, C, bias=True, **OPTIONS)
    hidden, target = problem()
    assert torch.equal(module(hidden, target), function_of(module, hidden, target))


def test_options_may_be_set_between_calls() -> None:
    module = FusedLinearLabelSmoothingLoss(D, C, bias=True)
    for name, value in OPTIONS.items():
        setattr(module, name, value)
        assert getattr(module, name) is value
    hidden, target = problem()
    assert torch.equal(module(hidden, target), function_of(module, hidden, target))


def test_every_option_is_declared_once() -> None:
    """What the loss takes, but inplace and from_log_probs, the fused projection takes too."""
    loss = inspect.signature(FusedLabelSmoothingLoss).parameters
    module = inspect.signature(FusedLinearLabelSmoothingLoss).parameters
    function = inspect.signature(linear_label_smoothing_loss).parameters
    for name in set(loss) - {"inplace", "from_log_probs", "num_classes"}:
        assert module[name].default == function[name].default == loss[name].default
        assert module[name].kind == function[name].kind == inspect.Parameter.KEYWORD_ONLY
    own = {"in_features", "num_classes", "bias", "device", "dtype"}
    ranks = {"process_group", "class_offset", "partial_hidden_grad"}
    assert set(module) - own == set(OPTIONS) | {"return_stats"} | ranks
    call = {"hidden", "linear_weight", "target", "linear_bias", "normalizer", "row_weight"}
    assert set(function) - call == set(module) - own | {"num_classes"}


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_apart(duplicate: Any) -> None:
    module = FusedLinearLabelSmoothingLoss(D, C, bias=True, **OPTIONS)
    hidden, target = problem()
    before = module(hidden, target)
    copied = duplicate(module)
    assert repr(copied) == repr(module)
    assert torch.equal(copied(hidden, target), before)
    for tensor in copied.state_dict().values():
        tensor.zero_()
    assert torch.equal(module(hidden, target), before)


def test_repr() -> None:
    shown = repr(FusedLinearLabelSmoothingLoss(D, C, label_smoothing=0.1, chunk_rows=64))
    assert shown.startswith(
        "FusedLinearLabelSmoothingLoss(\n  label_smoothing=0.1, num_classes=5, chunk_rows=64\n"
    )
    assert "Linear(in_features=3, out_features=5, bias=False)" in shown


def test_device_and_dtype_are_of_the_projection() -> None:
    module = FusedLinearLabelSmoothingLoss(
        D, C, device="meta", dtype=torch.bfloat16, weight=WEIGHT, prior=PRIOR
    )
    assert (module.linear.weight.device.type, module.linear.weight.dtype) == (
        "meta",
        torch.bfloat16,
    )
    assert module.prior is not None
    assert module.prior.dtype == torch.float32
    loss = FusedLinearLabelSmoothingLoss(D, C, device="meta")(
        torch.empty(N, D, device="meta"), torch.empty(N, dtype=torch.int64, device="meta")
    )
    assert loss.device.type == "meta"


def test_cast_to_16_bits() -> None:
    """Class weights and prior keep their values."""
    module = FusedLinearLabelSmoothingLoss(D, C, weight=WEIGHT / 3, prior=PRIOR).bfloat16()
    assert module.linear.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, WEIGHT / 3)
    hidden, target = problem()
    assert module(hidden.bfloat16(), target).dtype == torch.float32


def test_tied_to_an_embedding() -> None:
    embedding = nn.Embedding(C, D)
    module = FusedLinearLabelSmoothingLoss(D, C, label_smoothing=0.1, chunk_rows=4)
    module.linear.weight = embedding.weight
    tokens, target = torch.randint(C, (N,)), targets(N, C)
    grads = []
    for fused in (True, False):
        embedding.zero_grad()
        hidden = embedding(tokens).tanh()
        if fused:
            loss = module(hidden, target)
        else:
            logits = F.linear(hidden, embedding.weight)
            loss = F.cross_entropy(logits, target, label_smoothing=0.1)
        loss.backward()
        assert embedding.weight.grad is not None
        grads.append(embedding.weight.grad.clone())
    torch.testing.assert_close(*grads)
    assert len(list(nn.ModuleList([embedding, module]).parameters())) == 1


def test_an_adapter_is_refused_and_a_parametrization_followed() -> None:
    """TRL #4612: what LoRA adds to a head was silently left out of the loss."""

    class Adapter(nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden) + 1

    hidden, target = problem()
    module = FusedLinearLabelSmoothingLoss(D, C)
    module.linear = Adapter(D, C)
    with pytest.raises(TypeError, match=r"linear: expected a torch.nn.Linear, .*Adapter"):
        module(hidden, target)
    module.linear = nn.utils.spectral_norm(nn.Linear(D, C))  # by a hook before its forward
    with pytest.raises(TypeError, match="whose forward or hooks would not be called"):
        module(hidden, target)
    module.linear = nn.utils.parametrizations.weight_norm(nn.Linear(D, C))
    expected = F.cross_entropy(module.linear(hidden), target)
    torch.testing.assert_close(module(hidden, target), expected)
    module(hidden, target).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulation_with_a_normalizer(dtype: torch.dtype) -> None:
    module = FusedLinearLabelSmoothingLoss(D, C, label_smoothing=0.1, chunk_rows=4, dtype=dtype)
    hidden, target = torch.randn(N, D).to(dtype), targets(N, C)
    module(hidden, target).backward()
    assert module.linear.weight.grad is not None
    whole = module.linear.weight.grad.clone()
    module.zero_grad()
    total = (target != -100).sum()
    for part in (slice(0, 7), slice(7, N)):
        module(hidden[part], target[part], normalizer=total).backward()
    torch.testing.assert_close(module.linear.weight.grad, whole)


def test_trains_as_the_unfused_one() -> None:
    curves = []
    for fused in (True, False):
        torch.manual_seed(0)
        module = FusedLinearLabelSmoothingLoss(D, C, bias=True, label_smoothing=0.1, chunk_rows=5)
        layer = nn.Linear(D, D)
        optimizer = torch.optim.AdamW([*layer.parameters(), *module.parameters()], lr=0.05)
        hidden, target = problem()
        curve = []
        for _ in range(20):
            features = layer(hidden).relu()
            if fused:
                loss = module(features, target)
            else:
                logits = module.linear(features)
                loss = F.cross_entropy(logits, target, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(torch.tensor(curve))
    torch.testing.assert_close(*curves)
    assert curves[0][-1] < curves[0][0]
