"""Loss and gradient as the package's users get them, of every dtype, kernel and kind of target."""

from __future__ import annotations

import pytest
import torch
from checks import DTYPES, check
from gpu_steps import SMOOTHING, problem, step

from labelsmooth import SparseTarget, label_smoothing_loss


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [10, 1000, 50257, 262144])
def test_every_kernel(classes: int, dtype: torch.dtype, backend: str) -> None:
    logits, target = problem(5, classes, dtype)
    target[1] = -100
    options = {"label_smoothing": SMOOTHING, "backend": backend}
    check(logits, target, **options, grad_loss=torch.tensor(3.0, device="cuda"), roundings=2)
    check(logits, logits.detach().softmax(1), **options)
    check(logits, logits.detach().float().softmax(1), **options)
    pair = SparseTarget.mix(target, target.flip(0), torch.rand(5, device="cuda"))
    check(logits, pair, **options, row_weight=torch.rand(5, device="cuda"))
    few = SparseTarget(*(t.expand(5, 70) for t in (target[:, None], pair.probs[:, :1] / 70)))
    check(logits, few, **options)
    masks = torch.rand(5, classes, device="cuda") < 0.3
    masks.scatter_(1, target.clamp(min=0)[:, None], False)
    masked = logits.detach().masked_fill(masks, torch.finfo(dtype).min)
    check(masked, target, **options, smooth_over="unmasked")
    columns = logits.detach().t().contiguous().t()
    check(columns, target, **options)


@pytest.mark.parametrize("shape", [(8, 21, 64, 64), (1, 50257, 64), (300, 5, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_that_are_not_adjacent(
    dtype: torch.dtype, shape: tuple[int, ...], backend: str
) -> None:
    logits = torch.randn(shape, device="cuda").to(dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), device="cuda")
    target.view(-1)[::7] = -100
    weight = torch.rand(shape[1], device="cuda")
    options = {"label_smoothing": SMOOTHING, "backend": backend}
    check(logits, target, **options, weight=weight)
    check(logits, target, **options, reduction="none", softcap=5.0)


def test_more_rows_than_the_gpu_holds(backend: str) -> None:
    logits, target = problem(2051, 8193, torch.bfloat16)
    check(logits, target, label_smoothing=SMOOTHING, backend=backend)


@pytest.mark.parametrize("shape", [(70_001, 5), (65, 8193), (3, 300_001)])
def test_the_same_bits_each_run(shape: tuple[int, int], backend: str) -> None:
    logits, target = problem(*shape)
    first = step(logits, target, backend=backend)
    for _ in range(5):
        assert all(map(torch.equal, step(logits, target, backend=backend), first))


def test_a_target_that_is_no_class(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = problem(4, 1000)
    good = step(logits, target, reduction="none", backend=backend)
    target[2] = 1000
    loss, grad = step(logits, target, reduction="none", backend=backend)
    others = torch.tensor([0, 1, 3], device="cuda")
    assert loss[2].isnan()
    assert grad[2].isnan().all()
    assert torch.equal(loss[others], good[0][others])
    assert torch.equal(grad[others], good[1][others])
    monkeypatch.setenv("LABELSMOOTH_CHECK", "1")
    with pytest.raises(IndexError, match="target of row 2 is 1000"):
        step(logits, target, backend=backend)


def test_compiled_whole(backend: str) -> None:
    logits, target = problem(32, 1000)

    def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return label_smoothing_loss(logits, target, label_smoothing=SMOOTHING, backend=backend)

    compiled = torch.compile(loss_of, fullgraph=True)
    loss = compiled(logits, target)
    (grad,) = torch.autograd.grad(loss, logits)
    expected_loss, expected = step(logits, target, backend=backend)
    torch.testing.assert_close(loss.detach(), expected_loss)
    torch.testing.assert_close(grad, expected)
