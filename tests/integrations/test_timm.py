"""The drop-ins for timm beside timm's own: losses, mixed images and targets, a loader."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import timm.data
import timm.data.mixup as theirs
import timm.loss
import torch
from drop_ins import DTYPES, assert_same
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss
from labelsmooth.compat import timm as ours


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing(smoothing: float, dtype: torch.dtype) -> None:
    x, y = torch.randn(8, 100, dtype=dtype), torch.randint(100, (8,))
    new, old = (lib.LabelSmoothingCrossEntropy(smoothing) for lib in (ours, timm.loss))
    assert_same(lambda x: new(x, y), lambda x: old(x, y), x)


def test_a_sequence_gathers_from_its_own_positions() -> None:
    """Of timm only those of length 1 do."""
    x, y = torch.randn(4, 1, 10), torch.randint(10, (4, 1))
    mine, original = ours.LabelSmoothingCrossEntropy(), timm.loss.LabelSmoothingCrossEntropy()
    torch.testing.assert_close(mine(x, y), original(x, y))
    x, y = torch.randn(4, 3, 10), torch.randint(10, (4, 3))
    torch.testing.assert_close(mine(x, y), original(x.flatten(0, 1), y.flatten()))
    assert not torch.isclose(original(x, y), mine(x, y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("soft_dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 100), (2, 4, 100), (100,)])
def test_soft_targets(shape: tuple[int, ...], soft_dtype: torch.dtype, dtype: torch.dtype) -> None:
    x, t = torch.randn(shape, dtype=dtype), torch.rand(shape).to(soft_dtype)
    new, old = ours.SoftTargetCrossEntropy(), timm.loss.SoftTargetCrossEntropy()
    assert_same(lambda x: new(x, t), lambda x: old(x, t), x)


MIXES = [
    {"mixup_alpha": 0.8},
    {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 0.7},
    {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.8), "label_smoothing": 0.0},
    {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "correct_lam": False, "switch_prob": 0.8},
]


def same_draws(make: Any, *options: Any) -> tuple[Any, Any, float]:
    """Of one seed, and the draw that follows."""
    made = []
    for lib in (ours, theirs):
        np.random.seed(3)
        made.append((make(lib), np.random.rand()))
    (mine, after), (original, afterwards) = made
    assert after == afterwards
    return mine, original


def assert_loss_is_that_of(mine: SparseTarget, dense: Tensor, dtype: torch.dtype) -> None:
    """timm's targets are float32, of which both have as many digits; and a loss of ours."""
    assert isinstance(mine, ours.MixedTarget)
    x = torch.randn(len(dense), dense.shape[1], dtype=dtype)
    loss, original = ours.SoftTargetCrossEntropy(), timm.loss.SoftTargetCrossEntropy()
    assert_same(lambda x: loss(x, mine), lambda x: original(x, dense), x, rtol=1e-6)
    again = label_smoothing_loss(x, mine, label_smoothing=mine.label_smoothing)
    assert torch.equal(again, loss(x, mine))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("options", MIXES)
@pytest.mark.parametrize("enabled", [True, False])
def test_mixup(enabled: bool, options: Any, mode: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(6, 3, 8, 8, dtype=dtype), torch.randint(10, (6,))

    def make(lib: Any) -> Any:
        mixup = lib.Mixup(mode=mode, num_classes=10, **options)
        mixup.mixup_enabled = enabled
        return mixup(x.clone(), y)

    (images, mine), (expected, dense) = same_draws(make)
    assert torch.equal(images, expected)
    assert_loss_is_that_of(mine, dense, dtype)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
@pytest.mark.parametrize("options", MIXES)
@pytest.mark.parametrize("as_array", [True, False])
def test_fast_collate(as_array: bool, options: Any, mode: str) -> None:
    x, y = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8), torch.randint(10, (6,)).tolist()

    def make(lib: Any) -> Any:
        images = [image.numpy() if as_array else image for image in x.clone()]
        collate = lib.FastCollateMixup(mode=mode, num_classes=10, **options)
        return collate(list(zip(images, y, strict=True)))

    (images, mine), (expected, dense) = same_draws(make)
    assert torch.equal(images, expected)
    assert_loss_is_that_of(mine, dense, torch.float32)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_prefetching_loader(workers: int) -> None:
    """With its collate in a worker, and turned off, as train.py does after some epochs."""
    data = [(np.full((3, 4, 4), 20 * i, dtype=np.uint8), i % 10) for i in range(12)]

    def make(lib: Any, enabled: bool) -> Any:
        collate = lib.FastCollateMixup(mode="elem", num_classes=10)
        seeded = partial(timm.data.loader._worker_init, worker_seeding="all")
        torch.manual_seed(5)
        loader = torch.utils.data.DataLoader(
            data, 4, collate_fn=collate, num_workers=workers, worker_init_fn=seeded
        )
        loader = timm.data.loader.PrefetchLoader(loader, device=torch.device("cpu"))
        loader.mixup_enabled = enabled
        assert collate.mixup_enabled == enabled
        return list(loader)

    for enabled in (True, False):
        mine, original = same_draws(partial(make, enabled=enabled))
        assert len(mine) == len(original) == 3
        for (images, sparse), (expected, dense) in zip(mine, original, strict=True):
            assert torch.equal(images, expected)
            assert_loss_is_that_of(sparse, dense, torch.float32)


def test_multi_label_is_timms() -> None:
    x, y = torch.randn(4, 3, 8, 8), torch.randint(2, (4, 10))
    batch = [(np.zeros((3, 4, 4), np.uint8), row.float()) for row in y]
    for make in (
        lambda lib: lib.Mixup(num_classes=10, multi_label=True)(x.clone(), y),
        lambda lib: lib.FastCollateMixup(num_classes=10, multi_label=True)(batch),
    ):
        mine, original = same_draws(make)
        assert all(torch.equal(a, b) for a, b in zip(mine, original, strict=True))


def test_a_subclass_of_timms_with_its_errors() -> None:
    for name in ("Mixup", "FastCollateMixup"):
        assert issubclass(getattr(ours, name), getattr(theirs, name))
    with pytest.raises(ValueError, match="even number of rows"):
        ours.Mixup()(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="even number of rows"):
        ours.FastCollateMixup()([(np.zeros((1, 2, 2), np.uint8), 0)])
