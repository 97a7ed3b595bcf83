"""More than 2^32 elements: offsets are 64 bits wide. 8 GiB of bfloat16 logits, in place."""

from __future__ import annotations

import pytest
import torch

from labelsmooth import label_smoothing_loss


# The last row lies wholly beyond 2^32 elements; where the class axis lies across, so do the last
# classes of each row, of which 2^31 show the same.
@pytest.mark.parametrize(
    ("elements", "classes", "across"), [(2**32, 40_961, False), (2**31, 20_011, True)]
)
def test_many_elements(elements: int, classes: int, across: bool) -> None:
    """All rows alike but for the target, so that a few classes of a small batch give the truth."""
    torch.use_deterministic_algorithms(False)  # without poison: that is 8 GiB more to write
    rows = elements // classes + 2
    assert (rows - 1) * classes > elements
    row = torch.randn(classes, dtype=torch.bfloat16, requires_grad=True)
    pattern = torch.tensor([0, 1, 20_000, classes - 1])
    target = pattern.repeat(rows // 4 + 1)[:rows]
    options = {"reduction": "sum", "label_smoothing": 0.1, "backend": "cpu"}

    few = row.expand(4, classes)
    each = label_smoothing_loss(few, pattern, **(options | {"reduction": "none"})).detach()
    (expected,) = torch.autograd.grad(label_smoothing_loss(few, pattern, **options), few)

    matrix = row.expand(rows, classes)
    logits = (
        matrix.t().clone(memory_format=torch.contiguous_format).t() if across else matrix.clone()
    )
    loss = label_smoothing_loss(logits, target, **options, inplace=True)
    (grad,) = torch.autograd.grad(loss, matrix)
    torch.testing.assert_close(loss.double(), each.double()[torch.arange(rows) % 4].sum())
    for index in (0, 1, rows // 2, rows - 3, rows - 2, rows - 1):
        torch.testing.assert_close(grad[index], expected[index % 4], rtol=2**-7, atol=0)
