"""In a training step: checkpoints, hooks, anomaly mode, autocast, loss scaling, accumulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import REDUCTIONS, assert_gradient, run
from reference import reference
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss

N, C = 6, 37


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    target = torch.randint(C, (N,))
    target[1] = -100
    return torch.randn(N, C).to(dtype).requires_grad_(), target


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoint(
    use_reentrant: bool, inplace: bool, reduction: str, backend: str
) -> None:
    """Its forward runs again in backward."""
    leaf, target = problem()

    def block(hidden: Tensor) -> Tensor:
        return label_smoothing_loss(
            hidden.sin(), target, reduction=reduction, inplace=inplace, backend=backend
        ).sum()

    loss = checkpoint(block, leaf, use_reentrant=use_reentrant)
    (loss * 3).backward()
    ours, leaf.grad = leaf.grad, None
    (block(leaf) * 3).backward()
    assert torch.equal(ours, leaf.grad)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_hooks(inplace: bool, reduction: str, backend: str) -> None:
    """On logits, loss and leaf; what they return is passed on."""
    leaf, target = problem()
    seen: dict[str, Tensor] = {}
    logits = leaf * 1
    leaf.register_post_accumulate_grad_hook(lambda x: seen.update(leaf=x.grad.clone()))
    logits.register_hook(lambda grad: seen.update(logits=grad.clone()))
    logits.register_hook(lambda grad: grad * 2)
    loss = label_smoothing_loss(
        logits, target, reduction=reduction, inplace=inplace, backend=backend
    )
    loss.register_hook(lambda grad: grad * 3)
    loss.sum().backward()
    expected = reference(leaf, target, reduction=reduction).grad_logits.float()
    torch.testing.assert_close(seen["logits"], 3 * expected)
    torch.testing.assert_close(seen["leaf"], 6 * expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_saved_tensor_hooks(inplace: bool, reduction: str, backend: str) -> None:
    """The tensors may be moved away meanwhile."""
    leaf, target = problem()
    expected = reference(leaf, target, reduction=reduction).grad_logits.float()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        loss = label_smoothing_loss(
            leaf * 1, target, reduction=reduction, inplace=inplace, backend=backend
        )
    loss.sum().backward()
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_anomaly_mode(reduction: str, backend: str) -> None:
    """A NaN in backward is reported as the loss's."""
    leaf, target = problem()
    options: dict[str, Any] = {"reduction": reduction, "backend": backend}
    with torch.autograd.detect_anomaly():
        label_smoothing_loss(leaf, target, **options).sum().backward()
        broken = leaf.detach().clone()
        broken[0, 0] = torch.nan
        loss = label_smoothing_loss(broken.requires_grad_(), target, **options)
        with (
            pytest.warns(UserWarning, match="Error detected in _LossBackward"),
            pytest.raises(RuntimeError, match="returned nan values"),
        ):
            loss.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_takes_the_logits_as_they_are(
    reduction: str, dtype: torch.dtype, backend: str
) -> None:
    """The loss is float32, the gradient 16 bits again."""
    hidden, projection = torch.randn(N, 8), torch.randn(C, 8, requires_grad=True)
    _, target = problem()
    seen: list[torch.dtype] = []
    with torch.autocast("cpu", dtype):
        logits = F.linear(hidden, projection)
        logits.register_hook(lambda grad: seen.append(grad.dtype))
        loss = label_smoothing_loss(
            logits, target, reduction=reduction, label_smoothing=0.1, backend=backend
        )
    loss.sum().backward()
    assert (logits.dtype, loss.dtype, seen) == (dtype, torch.float32, [dtype])
    truth = reference(logits, target, reduction=reduction, label_smoothing=0.1)
    torch.testing.assert_close(loss.double(), truth.loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_takes_class_probabilities_as_they_are(dtype: torch.dtype, backend: str) -> None:
    """Not rounded to the logits' 16 bits."""
    logits, target = torch.randn(N, C).to(dtype), torch.rand(N, C)
    with torch.autocast("cpu", dtype):
        loss = label_smoothing_loss(logits, target, backend=backend)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), target))


@pytest.mark.parametrize("rows", [64, 65536])
@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_scaled_float16_loss(scale: float, rows: int, backend: str) -> None:
    """Each gradient is 1/N of a row's: below float16's range, unless the scale comes first."""
    logits, target = torch.randn(rows, 16).half(), torch.randint(16, (rows,))
    options: dict[str, Any] = {"label_smoothing": 0.1}
    factor = torch.tensor(scale)
    ours = run(logits, target, grad_loss=factor, **options, backend=backend)
    truth = reference(logits, target, grad_loss=factor, **options)
    assert_gradient(ours.grad_logits, truth)


def test_grad_scaler(backend: str) -> None:
    hidden = torch.randn(N, 8)
    _, target = problem()
    loss_fn = FusedLabelSmoothingLoss(label_smoothing=0.1, inplace=True, backend=backend)
    projection = torch.nn.Linear(8, C)
    optimizer = torch.optim.SGD(projection.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = loss_fn(projection(hidden), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert scaler.get_scale() == 2.0**14  # no step was skipped


def test_accumulation_over_batches_of_unlike_length(backend: str) -> None:
    """Divided by the tokens of all batches."""
    hidden, projection = torch.randn(24, 8), torch.randn(C, 8, requires_grad=True)
    target = torch.randint(C, (24,))
    target[[0, 1, 2, 3, 9, 20]] = -100  # in unlike numbers
    options: dict[str, Any] = {"label_smoothing": 0.1, "backend": backend}
    whole = label_smoothing_loss(hidden @ projection.t(), target, **options)
    (expected,) = torch.autograd.grad(whole, projection)
    tokens = (target != -100).sum()
    total = torch.zeros(())
    for part, labels in zip(hidden.split(8), target.split(8), strict=True):
        loss = label_smoothing_loss(part @ projection.t(), labels, **options, normalizer=tokens)
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(projection.grad, expected)
    torch.testing.assert_close(total, whole.detach())
