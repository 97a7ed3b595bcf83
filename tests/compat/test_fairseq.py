"""fairseq's function: by hand, then its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from translation import assert_truth, batch, outcome

from labelsmooth.compat.fairseq import label_smoothed_nll_loss

TARGET = torch.tensor([[0, 2, 3, 1], [6, 5, 1, 1]])  # 1 is padding
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def formula(x: Tensor, target: Tensor, epsilon: float, padding: int | None) -> list[Tensor]:
    """Rows of loss and nll."""
    of_target = -x.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    of_others = (-x.sum(-1) - of_target) / (x.shape[-1] - 1)
    rows = (1 - epsilon) * of_target + epsilon * of_others, of_target
    return [row.masked_fill(target == padding, 0.0) if padding is not None else row for row in rows]


def test_by_hand() -> None:
    """Of probabilities 4/7, 1/7, 1/7, 1/7; the last row is padding."""
    x = (torch.tensor([[4.0, 1, 1, 1]] * 3) / 7).log()
    loss, nll = label_smoothed_nll_loss(x, torch.tensor([0, 1, 2]), 0.3, ignore_index=2)
    first = 0.7 * math.log(7 / 4) + 0.3 * math.log(7)
    second = 0.7 * math.log(7) + 0.1 * math.log(7 / 4) + 0.2 * math.log(7)
    torch.testing.assert_close(loss, torch.tensor(first + second))
    torch.testing.assert_close(nll, torch.tensor(math.log(7 / 4) + math.log(7)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [0, 1], ids=["loss", "nll"])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("ignore_index", [1, None])
def test_its_formula(ignore_index: int | None, reduce: bool, which: int, dtype: Any) -> None:
    def truth(x: Tensor) -> Tensor:
        rows = formula(x, TARGET, 0.1, ignore_index)[which]
        return rows.sum() if reduce else rows if ignore_index is None else rows.unsqueeze(-1)

    for strided in (False, True):
        x = batch(dtype, 2, 4, 7, strided=strided)
        for target in (TARGET, TARGET.unsqueeze(-1)):
            arguments = target, 0.1, ignore_index, reduce
            ours = outcome(
                lambda x, *given: label_smoothed_nll_loss(x, *given)[which], x, *arguments
            )
            assert [t.dtype for t in ours] == [dtype, dtype]
            assert_truth(ours, outcome(truth, x.double()))


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 2, 3, 7)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x, target = batch(torch.float64, *shape), torch.full(shape[:-1], 3)
    for ignore_index, end in ((None, ()), (1, (1,))):
        ours = label_smoothed_nll_loss(x, target, 0.1, ignore_index, reduce=False)
        for got, expected in zip(ours, formula(x, target, 0.1, ignore_index), strict=True):
            torch.testing.assert_close(got, expected.reshape(shape[:-1] + end))


def test_ignored_rows_are_no_class_of_necessity() -> None:
    """-100 is gathered by the original."""
    x = batch(torch.float32, 2, 5)
    x[1] = math.nan
    for result in label_smoothed_nll_loss(x, torch.tensor([3, -100]), 0.0, -100):
        assert result.item() == pytest.approx(-x[0, 3].item())
    padding = torch.full((2,), -100)
    assert [float(r) for r in label_smoothed_nll_loss(x, padding, 0.1, -100)] == [0.0, 0.0]


def test_masked_classes_without_mass_cost_nothing() -> None:
    x = batch(torch.float32, 1, 5).masked_fill(torch.arange(5) == 4, -math.inf)
    assert label_smoothed_nll_loss(x, torch.tensor([1]), 0.0)[0].isfinite()
    assert label_smoothed_nll_loss(x, torch.tensor([1]), 0.1)[0] == math.inf


def test_errors() -> None:
    x = torch.zeros(2, 5)
    with pytest.raises(IndexError, match="row 1 is 5"):
        label_smoothed_nll_loss(x, torch.tensor([1, 5]), 0.1)
    with pytest.raises(ValueError, match="label_smoothing"):
        label_smoothed_nll_loss(x, torch.tensor([1, 2]), 1.5)
    with pytest.raises(ValueError, match="target"):
        label_smoothed_nll_loss(x, torch.tensor([[1, 2], [1, 2]]), 0.1)
