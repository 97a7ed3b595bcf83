"""Bitwise the same each run and for each number of threads: loss, gradient and statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import DTYPES, REDUCTIONS, check, run
from torch import Tensor

from labelsmooth import SparseTarget, label_smoothing_loss

# Shapes that are split differently among threads: many short rows (more than 32,768, from where
# torch's own sum over them depends on the threads), few long ones, one and two that are shared out
# by their blocks, and a strided class axis
SHAPES = [(70_001, 5), (65, 8193), (1, 262_144), (2, 1_000_003), (3, 21, 50, 51)]
THREADS = (1, 2, 3, 4)


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def outputs(logits: Tensor, target: Any, grad_loss: Tensor, **options: Any) -> tuple[Tensor, ...]:
    leaf = logits.detach().requires_grad_()
    given = leaf.clone() if options.get("inplace") else leaf
    loss, stats = label_smoothing_loss(given, target, return_stats=True, backend="cpu", **options)
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss)
    return (loss.detach(), grad, *stats)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_threads_and_runs(
    weighted: bool, shape: tuple[int, ...], reduction: str, dtype: torch.dtype
) -> None:
    rows = shape[:1] + shape[2:]
    logits, target = torch.randn(shape).to(dtype), torch.randint(shape[1], rows)
    target.view(-1)[::7] = -100
    if len(target) == 1:
        target.fill_(3)
    weight = torch.rand(shape[1]).to(dtype) if weighted else None
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    grad_loss = torch.randn(rows if reduction == "none" else ())
    if dtype == torch.float64:
        grad_loss = grad_loss.double()

    torch.set_num_threads(1)
    expected = outputs(logits, target, grad_loss, **options)
    for threads in (*THREADS, THREADS[-1]):
        torch.set_num_threads(threads)
        again = outputs(logits, target, grad_loss, **options)
        assert all(map(torch.equal, again, expected))


class TestBlocksOfARow:
    """Of three long rows four threads share each, two the last one, and three or one none."""

    ROWS, CLASSES = 3, 200_001

    def problem(self, kind: str, apart: bool, dtype: torch.dtype) -> tuple[Tensor, Any]:
        shape = (self.ROWS, self.CLASSES)
        logits = torch.randn(*shape, 2).to(dtype)[..., 0] if apart else torch.randn(shape).to(dtype)
        logits[:, ::5] = -math.inf
        target = torch.randint(self.CLASSES // 5, (self.ROWS, 4)) * 5 + 1
        if kind == "classes":
            return logits, target[:, 0]
        if kind == "sparse":
            return logits, SparseTarget(target, torch.rand(target.shape).to(logits.dtype))
        probs = torch.rand(shape).index_fill(1, torch.arange(0, self.CLASSES, 5), 0.0)
        return logits, (probs / probs.double().sum(1, keepdim=True)).to(dtype)

    @pytest.fixture(params=["classes", "sparse", "probs"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(params=["unmasked", "weight", "softcap"])
    def options(self, request: pytest.FixtureRequest) -> dict[str, Any]:
        """With no share in the loss for the classes whose logit is -inf."""
        weight = torch.rand(self.CLASSES)
        weight[::5] = 0.0
        return {
            "label_smoothing": 0.1,
            **{
                "unmasked": {"smooth_over": "unmasked"},
                "weight": {"weight": weight},
                "softcap": {"softcap": 2.0},
            }[request.param],
        }

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("apart", [False, True])
    def test_equal_the_reference(
        self, apart: bool, kind: str, options: dict[str, Any], dtype: torch.dtype
    ) -> None:
        logits, target = self.problem(kind, apart, dtype)
        torch.set_num_threads(4)
        check(logits, target, backend="cpu", **options)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("apart", [False, True])
    def test_the_same_bits(
        self, apart: bool, kind: str, options: dict[str, Any], dtype: torch.dtype
    ) -> None:
        """A gradient that is made with the loss and one that is made later; each in place too; of
        rows that are read twice, as their target is masked, and of NaN."""
        logits, target = self.problem(kind, apart, dtype)
        if kind == "classes":
            logits[0, target[0]] = -math.inf
        logits[1, 170_000] = math.nan
        for reduction in ("sum", "none"):
            grad_loss = torch.ones(self.ROWS if reduction == "none" else ()).double()
            grad_loss = grad_loss.to(torch.float64 if dtype == torch.float64 else torch.float32)
            for inplace in (False, True):
                call = {"reduction": reduction, "inplace": inplace, **options}
                expected: tuple[Tensor, ...] = ()
                for threads in THREADS:
                    torch.set_num_threads(threads)
                    made = outputs(logits, target, grad_loss, **call)
                    expected = expected or made
                    torch.testing.assert_close(made, expected, rtol=0, atol=0, equal_nan=True)


class TestBlocksOfRows:
    """Targets are looked at, and losses and weights summed, in blocks of 16,384 rows: three here,
    and a row."""

    BLOCK, ROWS, IMAGES, CLASSES = 16_384, 49_153, 19, 3

    def problem(self, kind: str, ignored: int) -> tuple[Tensor, Any]:
        """Of the first block no row counts, of the second every other one, of the rest all."""
        classes = torch.randint(self.CLASSES, (self.ROWS, 2))
        classes[classes == ignored] = 2
        classes[: self.BLOCK] = classes[self.BLOCK : 2 * self.BLOCK : 2] = ignored
        if kind == "classes":
            return torch.randn(self.ROWS, self.CLASSES), classes[:, 0].contiguous()
        classes[-1, 1] = ignored
        classes = classes.view(self.IMAGES, -1, 2).movedim(-1, 1)
        sparse = SparseTarget(classes, torch.rand(classes.shape))
        return torch.randn(self.IMAGES, self.CLASSES, classes.shape[2]), sparse

    @pytest.fixture(params=["classes", "sparse"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture(params=[(), ("weight",), ("row_weight",), ("weight", "row_weight")], ids=str)
    def weights(self, request: pytest.FixtureRequest, kind: str) -> dict[str, Tensor]:
        rows = (self.ROWS,) if kind == "classes" else (self.IMAGES, self.ROWS // self.IMAGES)
        weights = {"weight": torch.rand(self.CLASSES), "row_weight": torch.rand(rows)}
        return {name: weights[name] for name in request.param}

    @pytest.mark.parametrize("ignored", [-100, 1])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_the_reference_and_the_same_bits(
        self, reduction: str, ignored: int, kind: str, weights: dict[str, Tensor]
    ) -> None:
        logits, target = self.problem(kind, ignored)
        options = {"label_smoothing": 0.1, "reduction": reduction, "ignore_index": ignored}
        expected = check(logits, target, backend="cpu", **options, **weights)
        for threads in THREADS:
            torch.set_num_threads(threads)
            again = run(logits, target, backend="cpu", **options, **weights)
            assert all(map(torch.equal, again, expected))

    @pytest.mark.parametrize("ignored", [-100, 1])
    @pytest.mark.parametrize("first", [0, 16_383, 16_384, 40_000, 49_152])
    def test_the_first_bad_target_of_all_is_named(
        self, first: int, ignored: int, kind: str, weights: dict[str, Tensor]
    ) -> None:
        logits, target = self.problem(kind, ignored)
        places = target.classes[:, 1] if kind == "sparse" else target.view(self.IMAGES, -1)
        for row, bad in ((49_152, self.CLASSES), (max(first, 40_001), 2**40), (first, -7)):
            places[divmod(row, places.shape[1])] = bad
        for threads in THREADS:
            torch.set_num_threads(threads)
            with pytest.raises(IndexError, match=rf"target of row {first} is -7: .* \[0, 3\)"):
                label_smoothing_loss(logits, target, ignore_index=ignored, backend="cpu", **weights)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    """Alone and wherever in a batch."""
    logits, target = torch.randn(40, 1001), torch.randint(1001, (40,))
    batch = outputs(logits, target, torch.ones(40), reduction="none", label_smoothing=0.1)
    for row in (0, 1, 17, 39):
        alone = outputs(
            logits[row : row + 1],
            target[row : row + 1],
            torch.ones(1),
            reduction="none",
            label_smoothing=0.1,
        )
        assert all(
            torch.equal(one, many[row : row + 1]) for one, many in zip(alone, batch, strict=True)
        )
