"""The entropy of class probabilities, over many classes: the sum of its terms keeps its digits."""

from __future__ import annotations

import math

import pytest
import torch
from checks import check


@pytest.mark.parametrize("classes", [1000, 100_000])
def test_many_classes(classes: int, backend: str) -> None:
    logits = torch.randn(2, classes)
    target = torch.randn(2, classes).softmax(1)
    # A cross-entropy and an entropy of about log C, which nearly cancel.
    options = {"objective": "kl_div", "label_smoothing": 1.0, "terms": math.log(classes)}
    check(logits, target, backend=backend, **options)
