"""logit_scale as a tensor, a learned temperature as CLIP has it: with its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import DTYPES, REDUCTIONS
from torch import Tensor, nn

from labelsmooth import label_smoothing_loss

N, C = 6, 8


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(N, C).to(dtype).requires_grad_(), torch.randint(C, (N,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_gradients(
    shape: tuple[int, ...], reduction: str, dtype: torch.dtype, backend: str
) -> None:
    """Those of torch's loss of the product, in the product's dtype as there."""
    logits, target = problem(dtype)
    log_scale = nn.Parameter(torch.full(shape, 0.3))
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    scaled = logits * log_scale.exp().reshape(())
    assert scaled.dtype == dtype
    expected = F.cross_entropy(
        scaled.to(torch.promote_types(dtype, torch.float32)), target, **options
    )
    scale = log_scale.exp()
    loss = label_smoothing_loss(logits, target, logit_scale=scale, **options, backend=backend)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss.sum(), (logits, log_scale))
    theirs = torch.autograd.grad(expected.sum(), (logits, log_scale))
    torch.testing.assert_close(ours, theirs)
    assert ours[1].shape == shape


def test_in_place_overwrites_the_product(backend: str) -> None:
    leaf, target = problem()
    logits, scale = leaf * 1, nn.Parameter(torch.tensor(1.5))
    kept = logits.detach().clone()
    options: dict[str, Any] = {"logit_scale": scale, "backend": backend}
    expected = torch.autograd.grad(label_smoothing_loss(leaf, target, **options), (leaf, scale))
    for given in (logits, leaf):  # a leaf, too, since nobody writes to it
        loss = label_smoothing_loss(given, target, **options, inplace=True)
        torch.testing.assert_close(torch.autograd.grad(loss, (leaf, scale)), expected)
        assert torch.equal(given, kept)


@pytest.mark.parametrize("target_dtype", [None, torch.float32])
def test_with_other_options(target_dtype: torch.dtype | None, backend: str) -> None:
    """As the number would: softcap comes after it, probabilities of another dtype beside it."""
    logits, target = problem(torch.bfloat16 if target_dtype else torch.float32)
    if target_dtype is not None:
        target = torch.rand(N, C).to(target_dtype)
    options: dict[str, Any] = {"softcap": 2.0, "lse_square_scale": 0.1, "backend": backend}
    expected = label_smoothing_loss(logits, target, logit_scale=0.5, **options)
    loss = label_smoothing_loss(logits, target, logit_scale=torch.tensor(0.5), **options)
    torch.testing.assert_close(loss, expected)


def test_without_values(backend: str) -> None:
    logits, target = (tensor.to("meta") for tensor in problem())
    for device in ("meta", "cpu"):
        scale = torch.ones((), device=device)
        assert label_smoothing_loss(logits, target, logit_scale=scale, backend=backend).is_meta


@pytest.mark.filterwarnings("ignore:.torch.jit.\\w+. is deprecated")
def test_under_transforms(backend: str) -> None:
    logits, target = problem()
    logits = logits.detach()

    def loss(scale: Tensor) -> Tensor:
        return label_smoothing_loss(logits, target, logit_scale=scale, backend=backend)

    def theirs(scale: Tensor) -> Tensor:
        return F.cross_entropy(logits * scale, target)

    for take in (torch.func.grad, torch.func.hessian, torch.vmap):
        at = torch.tensor([0.5, 2.0]) if take is torch.vmap else torch.tensor(0.5)
        torch.testing.assert_close(take(loss)(at), take(theirs)(at))


def test_wrong_ones(backend: str) -> None:
    logits, target = problem()
    for wrong, said in (
        (torch.ones(N), rf"\({N},\)"),
        (torch.ones((), dtype=torch.complex64), "complex64"),
        (torch.ones((), dtype=torch.bool), "bool"),
        (torch.ones((), device="meta"), "meta"),
    ):
        with pytest.raises(ValueError, match=f"logit_scale: .*{said}"):
            label_smoothing_loss(logits, target, logit_scale=wrong, backend=backend)
