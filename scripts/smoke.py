"""What a wheel that was just installed must do: loss and gradient of a row that can be checked by
hand, from its logits and with the projection in the loss, on the CPU and on a GPU if there is one.

    python scripts/smoke.py
"""

from __future__ import annotations

import math
from typing import Literal

import torch

import labelsmooth

P = (0.1, 0.2, 0.3, 0.4)  # the softmax of their logarithms
Q = (0.025, 0.025, 0.925, 0.025)  # the third class, smoothed by 0.1
LOSS = -sum(q * math.log(p) for p, q in zip(P, Q, strict=True))
GRADIENT = [[p - q for p, q in zip(P, Q, strict=True)]]


def check(device: str, backend: Literal["auto", "eager"]) -> None:
    logits = torch.tensor([P], device=device).log().requires_grad_()
    target, same = torch.tensor([2], device=device), torch.eye(4, device=device)
    for loss in (
        labelsmooth.label_smoothing_loss(logits, target, label_smoothing=0.1, backend=backend),
        labelsmooth.linear_label_smoothing_loss(
            logits, same, target, label_smoothing=0.1, backend=backend
        ),
    ):
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(loss.detach().cpu(), torch.tensor(LOSS))
        torch.testing.assert_close(gradient.cpu(), torch.tensor(GRADIENT))
    print(f"{device}, {backend}: right")


if __name__ == "__main__":
    print(labelsmooth.__version__, labelsmooth.__file__)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        check(device, "auto")
        check(device, "eager")
