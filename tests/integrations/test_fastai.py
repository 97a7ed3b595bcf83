"""LabelSmoothingCrossEntropy beside fastai's, whose file of losses is loaded by itself: fastai
wants pandas, matplotlib and more. What the file takes from the rest of fastai stands in here."""

from __future__ import annotations

import functools
import typing
from collections.abc import MutableSequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from drop_ins import DTYPES, assert_same
from fastcore.basics import noops, store_attr
from fastcore.meta import delegates, use_kwargs_dict
from integrations.original import load
from torch import Tensor, nn

from labelsmooth.compat import fastai as ours


class Module(nn.Module):
    """Needs no call of super().__init__."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        made = super().__new__(cls)
        nn.Module.__init__(made)
        return made


class TensorBase(Tensor):
    """As a Learner has its batches: a subclass."""

    def __new__(cls, x: Tensor) -> Any:
        return x.as_subclass(cls)


FASTCORE = {f.__name__: f for f in (noops, store_attr, delegates, use_kwargs_dict)}
theirs = load(
    "fastai.losses",
    {
        "fastai.imports": SimpleNamespace(
            functools=functools, typing=typing, MutableSequence=MutableSequence, **FASTCORE
        ),
        "fastai.torch_imports": SimpleNamespace(torch=torch, nn=nn, F=F, Tensor=Tensor),
        "fastai.torch_core": SimpleNamespace(Module=Module, TensorBase=TensorBase),
        "fastai.layers": SimpleNamespace(),
    },
)
REDUCTIONS = ["mean", "sum", "none"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(9,), (3, 11)])
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_the_swap(
    eps: float, shape: tuple[int, ...], weighted: bool, reduction: str, dtype: torch.dtype
) -> None:
    x, y = torch.randn(*shape, 7, dtype=dtype).movedim(-1, 1), torch.randint(7, shape)
    y[1] = -100

    def loss(lib: Any) -> Any:
        """nll_loss wants the weight in the dtype of the logits, also in float64, for the truth."""
        return lambda x: lib.LabelSmoothingCrossEntropy(
            eps, weight.to(x.dtype) if weighted else None, reduction
        )(x, y)

    weight = torch.rand(7, dtype=dtype)
    assert_same(loss(ours), loss(theirs), x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_but_ignored_rows(reduction: str) -> None:
    """Of "mean" NaN, with the gradient of the smoothing."""
    y = torch.full((5,), -100)
    new, old = (lib.LabelSmoothingCrossEntropy(reduction=reduction) for lib in (ours, theirs))
    assert_same(lambda x: new(x, y), lambda x: old(x, y), torch.randn(5, 7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [-1, 0, 1, 2])
def test_flat(axis: int, reduction: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(3, 1, 11, 5, dtype=dtype).movedim(-1, axis), torch.randint(5, (3, 1, 11))
    new, old = (
        lib.LabelSmoothingCrossEntropyFlat(0.2, axis=axis, reduction=reduction)
        for lib in (ours, theirs)
    )
    assert_same(lambda x: new(x, y), lambda x: old(x, y).as_subclass(Tensor), x)
    if axis in (-1, 1):  # a mask with its channel
        again = y.unsqueeze(axis)
        assert_same(lambda x: new(x, again), lambda x: old(x, again).as_subclass(Tensor), x)


def test_flat_pairs_each_row_with_its_target() -> None:
    """As fastai does not where three axes follow that of the classes, or at axis -3."""
    x, y = torch.randn(2, 5, 2, 3, 4), torch.randint(5, (2, 2, 3, 4))
    new, old = (lib.LabelSmoothingCrossEntropyFlat(axis=1) for lib in (ours, theirs))
    right = F.cross_entropy(x, y, label_smoothing=0.1)
    torch.testing.assert_close(new(x, y), right)
    assert not torch.isclose(old(x, y).as_subclass(Tensor), right)
    x, y = x[..., 0], y[..., 0]
    new, old = (lib.LabelSmoothingCrossEntropyFlat(axis=-3) for lib in (ours, theirs))
    right = F.cross_entropy(x, y, label_smoothing=0.1)
    torch.testing.assert_close(new(x, y), right)
    assert not torch.isclose(old(x, y).as_subclass(Tensor), right)


def test_flat_takes_an_axis_that_the_target_lacks() -> None:
    x, y = torch.randn(6, 5), torch.randint(5, (6,))
    new, old = (lib.LabelSmoothingCrossEntropyFlat(axis=1) for lib in (ours, theirs))
    with pytest.raises(IndexError):
        old(x, y)
    torch.testing.assert_close(new(x, y), F.cross_entropy(x, y, label_smoothing=0.1))


def test_what_a_learner_sees() -> None:
    x, y = TensorBase(torch.randn(6, 5)).requires_grad_(), TensorBase(torch.randint(5, (6,)))
    new, old = (lib.LabelSmoothingCrossEntropyFlat() for lib in (ours, theirs))
    grads = []
    for loss in (new, old):
        value = loss(x, y)
        grads.append((value.as_subclass(Tensor), *torch.autograd.grad(value, x)))
        loss.reduction = "none"
        assert loss.func.reduction == "none"
        loss.to(torch.device("cpu"))
    torch.testing.assert_close(*grads)
    for loss, its in ((new, old), (new.func, old.func)):
        assert torch.equal(loss.activation(x), its.activation(x))
        assert torch.equal(loss.decodes(x), its.decodes(x))
        assert loss.y_int == its.y_int
