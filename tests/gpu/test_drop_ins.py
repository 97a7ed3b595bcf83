"""The drop-ins on a GPU: what they give on the CPU, and nothing waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_steps import nothing_waits
from torch import Tensor, nn

from labelsmooth import compat
from labelsmooth.compat.timm import MixedTarget

B, T, C = 4, 6, 500
PADDING = 3

# Of logits or log-probabilities x (B, T, C), the target y (B, T), which has padding, and a mask.
CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "annotated_transformer": lambda x, y, m: compat.annotated_transformer.LabelSmoothing(
        C, PADDING, 0.1
    )(x.flatten(0, 1), y.flatten()),
    "espnet": lambda x, y, m: compat.espnet.LabelSmoothingLoss(C, PADDING, 0.1, True)(x, y),
    "fairseq": lambda x, y, m: sum(compat.fairseq.label_smoothed_nll_loss(x, y, 0.1, PADDING)),
    "fairseq2": lambda x, y, m: compat.fairseq2.cross_entropy(
        x, y, PADDING, label_smoothing=0.1, target_mask=m, reduction="mean"
    ),
    "fastai": lambda x, y, m: compat.fastai.LabelSmoothingCrossEntropy(
        weight=torch.ones(C, device=x.device)
    )(x.flatten(0, 1), y.flatten()),
    "icefall": lambda x, y, m: compat.icefall.LabelSmoothingLoss(PADDING, reduction="mean")(x, y),
    "joeynmt": lambda x, y, m: compat.joeynmt.XentLoss(PADDING, 0.1)(x, trg=y),
    "nemo": lambda x, y, m: compat.nemo.SmoothedCrossEntropyLoss(PADDING, 0.1)(x, y, m),
    "nemo, lengths": lambda x, y, m: compat.nemo.SmoothedNLLLoss(label_smoothing=0.1)(
        x, y, lengths=m.sum(1)
    ),
    "opennmt": lambda x, y, m: compat.opennmt.LabelSmoothingLoss(0.1, C, PADDING).to(x.device)(
        x.flatten(0, 1), y.flatten()
    ),
    "segmentation_models_pytorch": lambda x, y, m: (
        compat.segmentation_models_pytorch.SoftCrossEntropyLoss("mean", 0.1, PADDING)(
            x.movedim(-1, 1), y
        )
    ),
    "speechbrain": lambda x, y, m: compat.speechbrain.nll_loss(x, y, m.float().mean(1), 0.1),
    "speechbrain, kldiv": lambda x, y, m: compat.speechbrain.kldiv_loss(
        x, y, label_smoothing=0.1, pad_idx=PADDING
    ),
    "timm": lambda x, y, m: compat.timm.LabelSmoothingCrossEntropy()(x.flatten(0, 1), y.flatten()),
    "timm, mixed": lambda x, y, m: compat.timm.SoftTargetCrossEntropy()(
        x[:, 0], MixedTarget.mix(y[:, 0], y[:, 1], 0.3)
    ),
    "torch": lambda x, y, m: compat.torch.cross_entropy(
        x.movedim(-1, 1), y, None, None, PADDING, None, "mean", 0.1
    ),
    "torch, linear": lambda x, y, m: compat.torch.linear_cross_entropy(
        x.flatten(0, 1)[:, :32], x.detach().flatten(0, 1)[:, 32:64], y.flatten() % 24
    ),
    "transformers": lambda x, y, m: compat.transformers.LabelSmoother(0.1, PADDING)(
        (x,), y, shift_labels=True, num_items_in_batch=m.sum()
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", CALLS)
def test_what_the_cpu_gives_and_nothing_waits(name: str) -> None:
    x = torch.randn(B, T, C, device="cpu").log_softmax(-1)
    y = torch.randint(C, (B, T), device="cpu")
    y[:, -2:] = PADDING
    mask = y != PADDING

    def step(*given: Tensor) -> list[Tensor]:
        leaf = given[0].detach().requires_grad_()
        with torch.device(leaf.device):
            loss = CALLS[name](leaf, *given[1:])
            loss.sum().backward()
        assert leaf.grad is not None
        return [loss.detach(), leaf.grad]

    expected = step(x, y, mask)
    given = [tensor.cuda() for tensor in (x, y, mask)]
    step(*given)  # Triton's compiler may wait, and cuBLAS
    with nothing_waits():
        made = step(*given)
    torch.testing.assert_close([tensor.cpu() for tensor in made], expected)


@pytest.mark.gpu
def test_a_model_that_makes_no_logits() -> None:
    """Its head put off until its loss, as compat.transformers has it."""
    from labelsmooth.compat._deferred_logits import DeferredLogits

    head = nn.Linear(32, C, bias=False, device="cuda")
    hidden = torch.randn(B, T, 32, device="cuda", requires_grad=True)
    y = torch.randint(C, (B, T), device="cuda")

    def step() -> Tensor:
        capped = torch.tanh(DeferredLogits(hidden, head=head) / 30.0) * 30.0
        loss: Tensor = capped.loss(y, label_smoothing=0.1)
        loss.backward()
        return loss.detach()

    step()
    with nothing_waits():
        made = step()
    logits = torch.tanh(head(hidden) / 30.0) * 30.0
    expected = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), y, label_smoothing=0.1)
    torch.testing.assert_close(made, expected.detach(), rtol=1e-3, atol=1e-3)
