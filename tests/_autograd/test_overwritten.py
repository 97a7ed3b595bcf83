"""inplace=True and who else needs the logits: right, or an error; in eager and compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import COMPILES
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from labelsmooth import label_smoothing_loss

N, D, C = 6, 5, 13
HIDDEN, WEIGHT, TARGET = torch.randn(N, D), torch.randn(C, D), torch.randint(C, (N,))

# How a step is compiled: by which backend of torch.compile, and whether as one graph
MODES = [("eager", True), ("eager", False), ("aot_eager", True), ("inductor", True)]

pytestmark = COMPILES


Loss = Callable[..., Tensor]  # of logits and a target; one more argument asks for inplace


def alone(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return loss(logits, TARGET, inplace)


def alone_as_a_view(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return loss(logits.view(2, N // 2, C).view(-1, C), TARGET, inplace)


def saved_before(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    z = logits.logsumexp(1).square().mean()
    return loss(logits, TARGET, inplace) + z


def loss_before(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return loss(logits, TARGET - 1 + (TARGET == 0)) + loss(logits, TARGET, inplace)


def result_before(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    """The node that made the logits needs them."""
    return loss(logits.exp(), TARGET, inplace)


def used_after(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    value = loss(logits, TARGET, inplace)
    return value + 0.1 * logits.logsumexp(1).square().mean()


def used_linearly_after(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    """By a node that saves nothing."""
    return loss(logits, TARGET, inplace) + logits.sum()


def view_used_after(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    flat = logits.view(-1)
    return loss(logits, TARGET, inplace) + flat.sum()


def base_used_after(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return loss(logits.view(2, N // 2, C).flatten(0, 1), TARGET, inplace) + logits.sum()


def loss_after(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return loss(logits, TARGET, inplace) + loss(logits, TARGET - 1 + (TARGET == 0))


def overwritten_twice(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return loss(logits, TARGET, inplace) + loss(logits, TARGET, inplace)


def written_to_after(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    value = loss(logits, TARGET, inplace)
    if inplace:
        logits.detach().mul_(2)
    return value


def slices(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    """A chunked loop: no part is in another's way."""
    parts = [logits[i : i + 2] for i in range(0, N, 2)]
    return sum(loss(p, t, inplace) for p, t in zip(parts, TARGET.split(2), strict=True))


def slices_made_one_by_one(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return sum(loss(logits[i : i + 2], TARGET[i : i + 2], inplace) for i in range(0, N, 2))


def chunks(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    pairs = zip(logits.chunk(3), TARGET.chunk(3), strict=True)
    return sum(loss(p, t, inplace) for p, t in pairs)


def one_chunk(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return loss(logits.chunk(1)[0], TARGET, inplace)


def rows_unbound(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    return sum(loss(p, t, inplace) for p, t in zip(logits.unbind(), TARGET.unbind(), strict=True))


def in_a_checkpoint(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    """Whose hooks on saved tensors know no versions."""

    def forward(logits: Tensor) -> Tensor:
        made = logits * 1
        return made.logsumexp(1).sum() + loss(made, TARGET, inplace)

    return checkpoint(forward, logits, use_reentrant=False)


def saved_through_hooks(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    with saved_tensors_hooks(lambda x: x, lambda x: x):
        return logits.logsumexp(1).sum() + loss(logits, TARGET, inplace)


def negated(logits: Tensor, loss: Loss, inplace: bool) -> Tensor:
    """A view whose memory holds the negative numbers."""
    return loss(logits.to(torch.complex64).conj().imag, TARGET, inplace)


RIGHT = [alone, alone_as_a_view, slices, slices_made_one_by_one, chunks, one_chunk, rows_unbound]


OTHERS = [
    *(saved_before, loss_before, result_before),
    *(used_after, used_linearly_after, view_used_after, base_used_after),
    *(loss_after, overwritten_twice, written_to_after),
]


def gradient(
    use: Callable[..., Tensor], inplace: bool, mode: tuple[str, bool] | None, **options: Any
) -> Tensor:
    dtype = options.pop("dtype", torch.float32)
    leaf = WEIGHT.clone().requires_grad_()

    def loss(logits: Tensor, target: Tensor, inplace: bool = False) -> Tensor:
        return label_smoothing_loss(
            logits, target, label_smoothing=0.1, inplace=inplace, **options
        ).sum()

    def step(leaf: Tensor) -> Tensor:
        return use((HIDDEN @ leaf.t()).to(dtype), loss, inplace)

    if mode is not None:
        compiler, fullgraph = mode
        step = torch.compile(step, backend=compiler, fullgraph=fullgraph)
    return torch.autograd.grad(step(leaf), leaf)[0]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}


def is_right_or_an_error(use: Callable[..., Tensor], mode: Any, **options: Any) -> bool:
    """Else autograd raised, or all that it let through is NaN."""
    expected = gradient(use, False, None, **options)
    try:
        ours = gradient(use, True, mode, **options)
    except RuntimeError as error:  # a compiler may raise it as one of its own
        if "modified by an inplace operation" not in str(error):
            raise
        return False
    if ours.isnan().all():
        assert mode is not None  # where numbers are at hand autograd raises
        return False
    torch.testing.assert_close(ours, expected, **tolerance(options.get("dtype", torch.float32)))
    return True


# One step and two: float16 and "none" keep the logits until backward.
WAYS = [("mean", torch.float32), ("none", torch.float32), ("sum", torch.float16)]


@pytest.mark.parametrize(("reduction", "dtype"), WAYS)
@pytest.mark.parametrize("use", [*RIGHT, in_a_checkpoint, saved_through_hooks, negated])
def test_right(
    use: Callable[..., Tensor], reduction: str, dtype: torch.dtype, backend: str
) -> None:
    options = {"reduction": reduction, "dtype": dtype, "backend": backend}
    assert is_right_or_an_error(use, None, **options)


@pytest.mark.parametrize(("reduction", "dtype"), WAYS)
@pytest.mark.parametrize("use", OTHERS)
def test_right_or_an_error(
    use: Callable[..., Tensor], reduction: str, dtype: torch.dtype, backend: str
) -> None:
    options = {"reduction": reduction, "dtype": dtype, "backend": backend}
    right = is_right_or_an_error(use, None, **options)
    if (reduction, dtype) == ("mean", torch.float32):  # their values were gone: always an error
        assert not right


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_right_compiled(mode: tuple[str, bool], reduction: str, backend: str) -> None:
    uses = RIGHT if mode == ("aot_eager", True) else [alone_as_a_view, slices]
    for use in uses:
        assert is_right_or_an_error(use, mode, reduction=reduction, backend=backend), use.__name__


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_right_or_an_error_compiled(mode: tuple[str, bool], reduction: str, backend: str) -> None:
    uses = OTHERS if mode == ("aot_eager", True) else [saved_before, used_after]
    for use in uses:
        is_right_or_an_error(use, mode, reduction=reduction, backend=backend)


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_logits_that_a_graph_returns(
    reduction: str, compiler: str, breaks: bool, backend: str
) -> None:
    """To the caller, or to what comes after a break."""

    def step(leaf: Tensor, inplace: bool) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"reduction": reduction, "inplace": inplace, "backend": backend}
        logits = HIDDEN @ leaf.t()
        loss = label_smoothing_loss(logits, TARGET, **options).sum()
        if breaks:
            torch._dynamo.graph_break()
        return loss, logits.logsumexp(1).sum() if breaks else logits

    leaf = WEIGHT.clone().requires_grad_()
    loss, other = step(leaf, False)
    (expected,) = torch.autograd.grad(loss + other.sum(), leaf)
    try:
        loss, other = torch.compile(step, backend=compiler)(leaf, True)
        (ours,) = torch.autograd.grad(loss + other.sum(), leaf)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        # It has no place in its two graphs for logits that backward alone writes to.
        assert (reduction, compiler) == ("none", "aot_eager")
        assert "was invalid, but is output" in str(error)  # noqa: PT017
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        if not ours.isnan().all():
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_used_after_the_graph(reduction: str, compiler: str, backend: str) -> None:
    """The compilers' graphs leave it alone."""

    def loss(logits: Tensor) -> Tensor:
        options: dict[str, Any] = {"reduction": reduction, "inplace": True, "backend": backend}
        return label_smoothing_loss(logits, TARGET, **options).sum()

    leaf = torch.randn(N, C, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(leaf.clone()) + leaf.sum(), leaf)
    logits = leaf.clone()
    value = torch.compile(loss, fullgraph=True, backend=compiler)(logits)
    try:
        (ours,) = torch.autograd.grad(value + logits.sum(), leaf)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(ours, expected)
