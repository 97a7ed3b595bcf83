"""The drop-ins for transformers without it: formulas by hand, and a toy model with a head."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from labelsmooth.compat.transformers import LabelSmoother, ModelLoss, compute_loss_func

LOGITS = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.2, 0.4, 0.4]]]))
LABELS = torch.tensor([[0, 2, -100]])


def by_hand(logits: Tensor, labels: Tensor, smoothing: float, count: Any = None) -> Tensor:
    """In float64: the smoothed negative log-probabilities of the labels that count."""
    counts = labels != -100
    log_probs = logits.double().log_softmax(-1)[counts]
    of_label = log_probs[torch.arange(len(log_probs)), labels[counts].clamp(min=0)]
    rows = -(1 - smoothing) * of_label - smoothing * log_probs.mean(-1)
    return rows.sum() / (counts.sum() if count is None else count)


def test_two_labels() -> None:
    """ln 2 and ln 4/3, each with a tenth of the mean over the three classes."""
    ln2, ln3 = torch.log(torch.tensor([2.0, 3.0])).tolist()
    first = 0.9 * ln2 + 0.1 * (ln2 + 2 * 2 * ln2) / 3
    second = 0.9 * (2 * ln2 - ln3) + 0.1 * (2 * 3 * ln2 + 2 * ln2 - ln3) / 3
    loss = LabelSmoother(epsilon=0.1)({"logits": LOGITS}, LABELS)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert LabelSmoother(0.1)((LOGITS,), LABELS.unsqueeze(-1)).item() == loss.item()


def test_shifted_by_labels() -> None:
    """Position i is for label i + 1."""
    logits, labels = torch.randn(2, 5, 7, requires_grad=True), torch.randint(7, (2, 5))
    labels[0, 2] = -100
    loss = LabelSmoother(0.2)((logits,), labels, shift_labels=True)
    expected = by_hand(logits[:, :-1], labels[:, 1:], 0.2)
    torch.testing.assert_close(loss.double(), expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    )


def test_a_negative_label_is_class_0_unless_it_is_ignored() -> None:
    labels = torch.tensor([[-1, 2, -100]])
    expected = by_hand(LOGITS, labels, 0.1)
    torch.testing.assert_close(LabelSmoother(0.1)((LOGITS,), labels).double(), expected)


@pytest.mark.parametrize("count", [5, torch.tensor(5), torch.tensor(5.0), torch.full((3, 1), 5)])
def test_num_items_in_batch(count: Any) -> None:
    for loss in (
        LabelSmoother(0.1)((LOGITS,), LABELS, num_items_in_batch=count),
        compute_loss_func(label_smoothing=0.1, shift=False)((LOGITS,), LABELS, count),
    ):
        torch.testing.assert_close(loss.double(), by_hand(LOGITS, LABELS, 0.1, count))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """The loss of 16 bits is float32."""
    loss = LabelSmoother(0.1)((LOGITS.to(dtype),), LABELS)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        loss.double(), by_hand(LOGITS.to(dtype), LABELS, 0.1), rtol=1e-6, atol=0
    )


def test_no_label_counts() -> None:
    nothing = torch.full((1, 3), -100)
    assert LabelSmoother(0.1)((LOGITS,), nothing).isnan()
    assert LabelSmoother(0.1)((LOGITS,), nothing, num_items_in_batch=4).item() == 0


def test_options_are_refused_when_they_are_given() -> None:
    with pytest.raises(TypeError, match="reduction"):
        compute_loss_func(shift=True, reduction="sum")
    with pytest.raises(ValueError, match="label_smoothing"):
        compute_loss_func(label_smoothing=2.0, shift=True)
    with pytest.raises(TypeError, match="smooth"):
        compute_loss_func(smooth=0.1, shift=True)


# ---- the head put off until the loss -------------------------------------------------------------


class Toy(nn.Module):
    """With the logits it does what models do."""

    def __init__(self, of_logits: Any = lambda logits: logits, bias: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=bias)
        self.of_logits = of_logits
        self.loss_function: Any = None

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, ids: Tensor, labels: Tensor | None = None, **options: Any) -> dict[str, Any]:
        logits = self.of_logits(self.head(self.embed(ids)))
        if labels is None:
            return {"logits": logits}
        return {"loss": self.loss_function(logits, labels, 11, **options), "logits": logits}


def fused(toy: Toy, smoothing: float = 0.1, evaluation: float = 0.0) -> Toy:
    from labelsmooth.compat._deferred_logits import with_deferred_logits

    toy.__class__ = with_deferred_logits(Toy)
    toy.loss_function = ModelLoss(
        toy, True, {"label_smoothing": smoothing}, {"label_smoothing": evaluation}
    )
    return toy


CAPPED = [
    pytest.param(lambda x: x, id="plain"),
    pytest.param(lambda x: x.float().contiguous() * 0.5, id="scaled"),
    pytest.param(lambda x: torch.tanh(x.to(torch.float32) / 3.0) * 3.0, id="capped"),
    pytest.param(lambda x: 2 * (torch.tanh(x / 4) * 3.0) / 1.5, id="capped, and scaled"),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("of_logits", CAPPED)
def test_a_head_put_off(of_logits: Any, bias: bool) -> None:
    toy, ids = Toy(of_logits, bias), torch.randint(11, (3, 6))
    whole = by_hand(toy(ids)["logits"][:, :-1], ids[:, 1:], 0.1)
    expected = torch.autograd.grad(whole, list(toy.parameters()))

    outputs = fused(toy)(ids, labels=ids)
    assert outputs.keys() == {"loss"}
    torch.testing.assert_close(outputs["loss"].double(), whole)
    made = torch.autograd.grad(outputs["loss"], list(toy.parameters()))
    torch.testing.assert_close(made, expected)
    assert "forward" not in toy.head.__dict__


def test_logits_where_they_are_wanted() -> None:
    toy, ids = fused(Toy()), torch.randint(11, (3, 6))
    assert toy(ids)["logits"].shape == (3, 6, 11)
    outputs = toy.eval()(ids, ids)
    torch.testing.assert_close(
        outputs["loss"].double(), by_hand(outputs["logits"][:, :-1], ids[:, 1:], 0.0)
    )


def test_the_model_stays_what_it_was() -> None:
    toy = fused(Toy())
    assert type(toy).__name__ == "Toy"
    assert isinstance(toy, Toy)
    assert inspect.signature(type(toy).forward) == inspect.signature(Toy.forward)
    twin = copy.deepcopy(toy)
    assert twin.loss_function.model is twin


@pytest.mark.parametrize(
    "of_logits", [lambda x: x.logsumexp(-1), lambda x: torch.softmax(x, -1), lambda x: x + x]
)
def test_a_model_that_needs_logits_says_so(of_logits: Any) -> None:
    toy = fused(Toy(of_logits))
    with pytest.raises((AttributeError, TypeError), match=r"fused_head|unsupported operand"):
        toy(torch.zeros(1, 3).long(), torch.zeros(1, 3).long())
    assert F.softmax(toy.head(torch.zeros(4)), -1).shape == (11,)  # the head is itself again


def test_a_head_that_is_more_than_its_weight() -> None:
    toy = fused(Toy())
    toy.head = nn.Sequential(toy.head)  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"fused_head: expected a torch\.nn\.Linear"):
        toy(torch.zeros(1, 3).long(), torch.zeros(1, 3).long())
