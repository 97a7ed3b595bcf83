"""More than 2^31 elements: offsets are 64 bits wide. 4 GiB of bfloat16 logits, in place."""

from __future__ import annotations

import torch

from labelsmooth import label_smoothing_loss

CLASSES = 40_961
ROWS = 2**31 // CLASSES + 2  # the last row lies wholly beyond 2^31 elements


def test_beyond_two_to_the_31_elements() -> None:
    """All rows alike but for the target, so that a few classes of a small batch give the truth."""
    torch.use_deterministic_algorithms(False)  # without poison: that is 4 GiB more to write
    assert (ROWS - 1) * CLASSES > 2**31
    row = torch.randn(CLASSES, dtype=torch.bfloat16, requires_grad=True)
    pattern = torch.tensor([0, 1, 20_000, CLASSES - 1])
    target = pattern.repeat(ROWS // 4 + 1)[:ROWS]
    options = {"reduction": "sum", "label_smoothing": 0.1, "backend": "cpu"}

    few = row.expand(4, CLASSES)
    each = label_smoothing_loss(few, pattern, **(options | {"reduction": "none"})).detach()
    (expected,) = torch.autograd.grad(label_smoothing_loss(few, pattern, **options), few)

    matrix = row.expand(ROWS, CLASSES)
    loss = label_smoothing_loss(matrix.clone(), target, **options, inplace=True)
    (grad,) = torch.autograd.grad(loss, matrix)
    torch.testing.assert_close(loss.double(), each.double()[torch.arange(ROWS) % 4].sum())
    for index in (0, 1, ROWS // 2, ROWS - 3, ROWS - 2, ROWS - 1):
        assert torch.equal(grad[index], expected[index % 4])
