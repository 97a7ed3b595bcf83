"""What a caller of the fused projection may get wrong, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from labelsmooth import FusedLinearLabelSmoothingLoss, linear_label_smoothing_loss

N, D, C = 4, 3, 5
HIDDEN, WEIGHT = torch.randn(N, D), torch.randn(C, D)
TARGET = torch.randint(C, (N,))


def call(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"hidden": HIDDEN, "linear_weight": WEIGHT, "target": TARGET}
    return linear_label_smoothing_loss(**arguments | changes)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hidden": torch.randn(())}, ValueError, r"hidden: expected shape .*\(\.\.\., D\), got"),
    ({"hidden": [1.0]}, TypeError, "hidden: expected a tensor, got list"),
    ({"hidden": torch.zeros(N, D, dtype=torch.int64)}, TypeError, "hidden: .*got torch.int64"),
    ({"hidden": torch.randn(N, D + 1)}, ValueError, r"linear_weight: expected shape \(C, 4\)"),
    ({"linear_weight": torch.randn(C)}, ValueError, r"\(C, 3\) .*got \(5,\)"),
    ({"linear_weight": torch.randn(C, 2, D)}, ValueError, r"got \(5, 2, 3\)"),
    ({"linear_weight": torch.randn(0, D)}, ValueError, "at least one class"),
    ({"linear_weight": torch.randn(0)}, ValueError, "ZeRO-3 .*GatheredParameters"),
    ({"linear_weight": None}, TypeError, "linear_weight: expected a tensor, got None"),
    ({"linear_weight": WEIGHT.double()}, TypeError, "expected torch.float32, the dtype of hi"),
    ({"linear_weight": WEIGHT.to("meta")}, ValueError, "linear_weight: expected device cpu"),
    ({"linear_bias": torch.randn(C + 1)}, ValueError, r"linear_bias: expected shape \(5,\)"),
    ({"linear_bias": torch.randn(C).half()}, TypeError, "linear_bias: expected torch.float32"),
    ({"target": torch.zeros(N + 1).long()}, ValueError, r"target: expected .*\(4,\).*\(5,\)"),
    ({"target": torch.rand(N, C + 1)}, ValueError, r"probabilities of shape \(4, 5\)"),
    ({"target": torch.zeros(N)}, TypeError, "expected an integer dtype for class indices"),
    ({"target": torch.zeros(N, dtype=torch.bool)}, TypeError, "target: .*got torch.bool"),
    ({"weight": torch.ones(C + 1)}, ValueError, r"weight: expected shape \(5,\), got \(6,\)"),
    ({"prior": torch.ones(C)}, ValueError, "prior: expected non-negative numbers that sum"),
    ({"reduction": "max"}, ValueError, "reduction: expected one of"),
    ({"label_smoothing": 1.5}, ValueError, r"label_smoothing: expected a number in \[0, 1\]"),
    ({"normalizer": 2.0, "reduction": "sum"}, ValueError, "normalizer: expected reduction"),
    ({"chunk_rows": 0}, ValueError, "chunk_rows: expected a positive number or None, got 0"),
    ({"chunk_rows": 2.5}, TypeError, r"chunk_rows: expected an integer, got 2\.5"),
    ({"recompute": 1}, TypeError, "recompute: expected True or False, got 1"),
    ({"inplace": True}, TypeError, r"linear_label_smoothing_loss\(\) .*'inplace'"),
    ({"from_log_probs": True}, TypeError, r"linear_label_smoothing_loss\(\) .*'from_log_p"),
    ({"softcap": torch.tensor(1.0, requires_grad=True)}, TypeError, "requires grad"),
    ({"logit_scale": torch.ones(2)}, ValueError, "logit_scale: expected a number or a tensor"),
    ({"backend": "cuda"}, RuntimeError, "backend='cuda'"),
]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    WRONG,
    ids=[f"{number} {next(iter(changes))}" for number, (changes, *_) in enumerate(WRONG)],
)
def test_said(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call(**changes)


@pytest.mark.parametrize("chunk_rows", [1, None])
def test_a_target_that_is_no_class(chunk_rows: int | None, backend: str) -> None:
    """Its row in the batch, not in its chunk."""
    target = TARGET.clone()
    target[2] = C
    with pytest.raises(IndexError, match="target of row 2 is 5: expected a class in"):
        call(target=target, chunk_rows=chunk_rows, backend=backend)


def test_a_target_that_is_no_class_under_a_transform(backend: str) -> None:
    """An error where it can be seen, else NaN in its row: never a gradient of 0."""
    target = TARGET.clone()
    target[2] = C

    def loss(hidden: Tensor, target: Tensor) -> Any:
        return call(hidden=hidden, target=target, backend=backend)

    with pytest.raises(IndexError, match="target of row 2 is 5"):
        torch.func.grad(loss)(HIDDEN, target)
    with pytest.raises(IndexError, match="target of row 2 is 5"):
        call(target=target, weight=torch.ones(C, requires_grad=True), backend=backend)
    batched = torch.vmap(torch.func.grad(loss))(HIDDEN[None], target[None])[0]
    assert batched[2].isnan().all()
    assert batched[[0, 1, 3]].isfinite().all()


def test_a_backend_that_is_not_there_under_a_transform() -> None:
    with pytest.raises(RuntimeError, match="backend='cuda'"):
        torch.func.grad(lambda hidden: call(hidden=hidden, backend="cuda"))(HIDDEN)


def test_one_row_without_a_batch_axis() -> None:
    with pytest.raises(ValueError, match=r"indices of shape \(\), .*of shape \(5,\)"):
        call(hidden=HIDDEN[0], target=TARGET)


def test_positional_options_are_refused_as_torch_refuses_them() -> None:
    with pytest.raises(TypeError, match="positional"):
        linear_label_smoothing_loss(HIDDEN, WEIGHT, TARGET, None)  # type: ignore[misc]


class TestModule:
    def test_wrong_names(self) -> None:
        with pytest.raises(TypeError, match=r"FusedLinearLabelSmoothingLoss\(\) .*'smoothing'"):
            FusedLinearLabelSmoothingLoss(D, C, smoothing=0.1)  # type: ignore[call-arg]

    def test_class_vectors_of_another_length(self) -> None:
        with pytest.raises(ValueError, match=r"weight: expected shape \(5,\), got \(6,\)"):
            FusedLinearLabelSmoothingLoss(D, C, weight=torch.ones(C + 1))
        module = FusedLinearLabelSmoothingLoss(D, C)
        with pytest.raises(ValueError, match=r"prior: expected shape \(5,\), got \(6,\)"):
            module.prior = torch.full((C + 1,), 1 / (C + 1))

    @pytest.mark.parametrize("name", ["chunk_rows", "label_smoothing"])
    def test_what_is_set_is_checked(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            setattr(FusedLinearLabelSmoothingLoss(D, C), name, -1)


def test_a_scale_that_is_learned_gets_its_gradient(backend: str) -> None:
    scale = torch.tensor(1.5, requires_grad=True)
    bias = torch.randn(C)
    loss = call(logit_scale=scale, linear_bias=bias, label_smoothing=0.1, backend=backend)
    (grad,) = torch.autograd.grad(loss, scale)
    logits: Tensor = (HIDDEN @ WEIGHT.T + bias) * scale
    expected = torch.nn.functional.cross_entropy(logits, TARGET, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, scale)[0])
