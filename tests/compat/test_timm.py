"""timm's losses against their formulas, and the target of its Mixup; with timm itself:
tests/integrations/test_timm.py."""

from __future__ import annotations

import math
import pickle
from importlib.util import find_spec

import pytest
import torch
from drop_ins import DTYPES, assert_is
from torch import Tensor

from labelsmooth import FusedLabelSmoothingLoss, SparseTarget
from labelsmooth.compat import timm
from labelsmooth.compat.timm import (
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
    mixed_target_of,
)


def hard(x: Tensor, y: Tensor, a: float) -> Tensor:
    log_p = x.log_softmax(-1)
    nll = -log_p.flatten(0, -2)[torch.arange(y.numel()), y.flatten()]
    return ((1 - a) * nll - a * log_p.flatten(0, -2).mean(1)).mean()


def soft(x: Tensor, t: Tensor) -> Tensor:
    return -(t * x.log_softmax(-1)).sum(-1).mean()


def test_by_hand() -> None:
    """Probabilities 1/2, 1/4, 1/4 and the targets 0 and 1: log 2, and 2 log 2 for the others."""
    x = torch.tensor([[2.0, 1.0, 1.0], [2.0, 1.0, 1.0]]).log()
    rows = [0.9 * 1 + 0.1 * 5 / 3, 0.9 * 2 + 0.1 * 5 / 3]  # of log 2
    loss = LabelSmoothingCrossEntropy()(x, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(sum(rows) / 2 * math.log(2), rel=1e-6)
    soft = torch.tensor([[0.5, 0.5, 0.5], [0.0, 2.0, 0.0]])  # sums to 1.5 and 2
    loss = SoftTargetCrossEntropy()(x, soft)
    assert loss.item() == pytest.approx((0.5 * 5 + 2 * 2) / 2 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 11), (2, 5, 11), (2, 3, 4, 11)])
@pytest.mark.parametrize("a", [0.0, 0.1])
def test_label_smoothing(a: float, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]
    y = torch.randint(11, shape[:-1])
    loss = LabelSmoothingCrossEntropy(smoothing=a)
    assert_is(lambda x: loss(x, target=y), lambda x: hard(x, y, a), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft_dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 11), (2, 5, 11)])
def test_soft_targets(shape: tuple[int, ...], soft_dtype: torch.dtype, dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    t = torch.rand(shape).to(soft_dtype)  # its rows sum to whatever they do
    assert_is(
        lambda x: SoftTargetCrossEntropy()(x, t),
        lambda x: soft(x, t.double()),
        x,
        torch.promote_types(dtype, soft_dtype),
    )


def test_dense_targets_broadcast_and_may_be_integers() -> None:
    x, t = torch.randn(6, 5), torch.tensor([[1, 0, 0, 2, 0]])
    torch.testing.assert_close(SoftTargetCrossEntropy()(x, t), soft(x, t))
    torch.testing.assert_close(SoftTargetCrossEntropy()(x, t.float()), soft(x, t))
    with pytest.raises(RuntimeError, match="expand"):
        SoftTargetCrossEntropy()(x, torch.rand(6, 4))


def test_a_masked_class_costs_nothing_without_mass() -> None:
    """By the formula it is 0 times infinity."""
    x = torch.tensor([[2.0, 2.0, 0.0]]).log()
    log_2 = pytest.approx(math.log(2), rel=1e-6)
    assert SoftTargetCrossEntropy()(x, torch.tensor([[0.5, 0.5, 0.0]])).item() == log_2
    assert LabelSmoothingCrossEntropy(0.0)(x, torch.tensor([1])).item() == log_2
    assert LabelSmoothingCrossEntropy(0.1)(x, torch.tensor([1])).item() == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mixed_target_brings_its_smoothing(dtype: torch.dtype) -> None:
    x = torch.randn(6, 11, dtype=dtype)
    y, lam = torch.randint(11, (6,)), torch.tensor([0.25, 0.5, 1.0, 0.0, 0.75, 0.125])
    mixed = mixed_target_of(0.2)(*SparseTarget.mix(y, y.flip(0), lam))
    onehot = torch.nn.functional.one_hot(y, 11).double() * 0.8 + 0.2 / 11
    t = lam[:, None] * onehot + (1 - lam[:, None]) * onehot.flip(0)
    loss = SoftTargetCrossEntropy()
    assert_is(
        lambda x: loss(x, mixed),
        lambda x: soft(x, t),
        x,
        torch.promote_types(dtype, torch.float32),  # as of a dense target in float32
    )
    ours = FusedLabelSmoothingLoss(label_smoothing=mixed.label_smoothing)
    assert torch.equal(ours(x, mixed), loss(x, mixed))
    plain = SparseTarget(*mixed)  # which has no smoothing with it
    assert torch.equal(loss(x, plain), FusedLabelSmoothingLoss()(x, plain))


def test_the_smoothing_of_a_mixed_target_stays_with_it() -> None:
    """Through what moves batches: pickle, a tuple made anew by its type, to()."""
    mixed = mixed_target_of(0.2)(torch.tensor([[1, 2]]), torch.tensor([[0.25, 0.75]]))
    made = [
        pickle.loads(pickle.dumps(mixed)),
        type(mixed)(*mixed),
        mixed.to(device="cpu", non_blocking=True),
    ]
    for each in made:
        assert isinstance(each, SparseTarget)
        assert each.label_smoothing == 0.2
        assert torch.equal(each.classes, mixed.classes)
        assert torch.equal(each.probs, mixed.probs)


def test_errors() -> None:
    for smoothing in (1.0, -0.1):
        with pytest.raises(ValueError, match="smoothing"):
            LabelSmoothingCrossEntropy(smoothing)
    with pytest.raises(IndexError, match="row 1 is -100"):
        LabelSmoothingCrossEntropy()(torch.zeros(2, 3), torch.tensor([0, -100]))
    with pytest.raises(AttributeError, match="Mixdown"):
        _ = timm.Mixdown
    if find_spec("timm") is None:
        with pytest.raises(ModuleNotFoundError, match="timm"):
            _ = timm.Mixup
