"""What test_interpreted.py runs in a process of its own, under TRITON_INTERPRET=1."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from _backends.triton.interpreted import strict_interpreter
from checks import Outcome, assert_equals_reference
from functional.test_properties import *  # noqa: F403, every property, of the backend below
from gpu_cases import CASES, Case, check_case
from linear_checks import error, projection, run, targets, truth
from reference import reference
from shards import InShards

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss
from labelsmooth._backends import native
from labelsmooth._backends.linear import sizes
from labelsmooth._backends.triton import call, kernels, ops
from labelsmooth._backends.triton.plan import Gpu, Tile
from labelsmooth._backends.triton.reading import accumulated
from labelsmooth._call.problem import Inputs, Options

# numpy warns of the infinities that a kernel means to make.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def device() -> None:
    """The CPU, also where there is a GPU."""


@pytest.fixture
def backend() -> str:
    return "triton"


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    with strict_interpreter():
        yield


# ---- the check itself ----------------------------------------------------------------------------


@triton.jit
def copy_kernel(x, out, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    tl.store(out + c, tl.load(x + c).to(tl.bfloat16))


def test_accesses_out_of_bounds_are_seen() -> None:
    x, out = torch.zeros(16), torch.zeros(16, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="8 accesses outside"):
        copy_kernel[(1,)](x[:8], out, BLOCK=16)
    with pytest.raises(Exception, match="8 accesses outside"):
        copy_kernel[(1,)](x, out[8:], BLOCK=16)
    with pytest.raises(Exception, match="8 accesses outside"):  # between the elements
        copy_kernel[(1,)](torch.zeros(32)[::2], out, BLOCK=16)


def test_bfloat16_is_rounded() -> None:
    x, out = torch.randn(256), torch.zeros(256, dtype=torch.bfloat16)
    copy_kernel[(1,)](x, out, BLOCK=256)
    assert torch.equal(out, x.bfloat16())


@triton.jit
def logits_one_too_far(rows, span, ALIGNED: tl.constexpr = False):
    pointers = rows.logits + span.c.to(tl.int64) * rows.logits_stride
    return accumulated(tl.load(pointers, mask=rows.read & (span.c < rows.classes + 1), other=0.0))


@pytest.mark.parametrize(("layout", "count"), [("rows", 1), ("padded", 2)])
def test_a_fault_in_the_kernel_is_seen(
    layout: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the last row, or of each where there is memory between them."""
    case = Case("one too far", layout=layout)
    check_case(case, ops)
    monkeypatch.setattr(kernels, "given_at", logits_one_too_far)
    with pytest.raises(Exception, match=f"{count} accesses outside"):
        check_case(case, ops)


# ---- the table of cases, in each plan ------------------------------------------------------------


def quarters(rows: int, classes: int, *_: Any, **__: Any) -> Tile:
    """However short: to the interpreter longer rows only take longer."""
    return Tile(rows, max(1, triton.next_power_of_2(classes) // 4), 128)


def in_tiles(processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or by several programs."""
    monkeypatch.setattr("labelsmooth._backends.triton.plan.tile_of", quarters)
    monkeypatch.setattr(ops, "tile_of", quarters)
    monkeypatch.setattr(call, "gpu_of", lambda device: Gpu(processors, 32))


def is_variant(case: Case) -> bool:
    """Of options, layouts and values; in 16 bits no access lies elsewhere than in 32."""
    return case.dtype != torch.bfloat16 or case.layout == "rows"


SHORT = [case for case in CASES if case.classes < 4000 and is_variant(case)]
IN_TILES = [case for case in SHORT if case.one_step and case.classes == 37]
# Of those, all that the parts of a row hand on.
HANDED_ON = ("everything", "weighted", "unmasked", "ignored", "statistics", "rows", "columns")
IN_PARTS = [
    *(case for case in IN_TILES if case.name.startswith(HANDED_ON)),
    # One part may be overwritten before another is read.
    *(
        Case(
            f"{targets} in place, smooth over {over}",
            targets=targets,
            values="masked",
            options={"smooth_over": over, "inplace": True},
        )
        for targets in ("classes", "few")
        for over in ("all", "unmasked")
    ),
]


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_rows_read_once(case: Case) -> None:
    check_case(case, ops)


@pytest.mark.parametrize(
    ("case", "processors"),
    [*((case, 1) for case in IN_TILES), *((case, 16) for case in IN_PARTS)],
    ids=str,
)
def test_rows_in_tiles(case: Case, processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_tiles(processors, monkeypatch)
    check_case(case, ops)


# ---- rows of which each rank has a part ----------------------------------------------------------

# Two phases are no other launches; of bad targets a part says nothing else.
OVER_RANKS = [
    case
    for case in SHORT
    if case.one_step
    and case.dtype != torch.bfloat16
    and not case.name.startswith(("weight nan", "statistics of bad targets"))
]
HANDED_ON_TO_RANKS = [
    case
    for case in OVER_RANKS
    if case.name.startswith(HANDED_ON) and case.classes == 37 and case.dtype == torch.float32
]


@pytest.mark.parametrize("case", OVER_RANKS, ids=str)
def test_rows_over_ranks(case: Case) -> None:
    check_case(case, InShards(ops))


@pytest.mark.parametrize(
    ("case", "processors"),
    [(case, processors) for case in HANDED_ON_TO_RANKS for processors in (1, 16)],
    ids=str,
)
def test_rows_over_ranks_in_tiles(
    case: Case, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_tiles(processors, monkeypatch)
    check_case(case, InShards(ops))


@pytest.mark.parametrize("case", HANDED_ON_TO_RANKS, ids=str)
@pytest.mark.parametrize("partial", [native, ops], ids=["partial native", "partial triton"])
def test_parts_are_those_of_the_compiled_kernels(partial: Any, case: Case) -> None:
    """Either backend combines the other's; by one rank, too."""
    combine = native if partial is ops else ops
    mixed = SimpleNamespace(
        partial=partial.partial, combine=combine.combine, backward=combine.backward
    )
    check_case(case, InShards(mixed))
    check_case(case, InShards(mixed, cuts=()))


@pytest.mark.parametrize("with_stats", [False, True])
@pytest.mark.parametrize("few", [False, True])
def test_rows_that_say_nothing(few: bool, with_stats: bool) -> None:
    """An ordinary one, ignored, of weight 0, no class; a NaN and a row that is masked."""
    logits, target = torch.randn(6, 16), torch.tensor([1, -100, 2, 20, 3, 4])
    logits[4, 7], logits[5] = torch.nan, -torch.inf
    inputs = Inputs(logits, target, row_weight=torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 1.0]))
    if few:
        inputs = inputs._replace(target=target[:, None], target_probs=torch.ones(6, 1))
    options = Options(return_stats=with_stats, class_offset=2, num_classes=20)
    part = ops.partial(inputs, options)
    expected = native.partial(inputs, options)
    same = [3] if with_stats else [1, 2, 3]  # what has been read is summed
    assert torch.equal(part[:, same], expected[:, same])
    assert (part[1, 3], part[0, 5], part[1, 5]) == (-1, -torch.inf, 0)
    if with_stats:
        torch.testing.assert_close(part[-4:-2], expected[-4:-2], equal_nan=True)
        assert part[-4:-2, 4].isnan().tolist() == [True, False]
        assert part[-3, 4] == 2 + 7


@pytest.mark.parametrize("probs", [False, True])
@pytest.mark.parametrize("offset", [0, 30])
def test_padding(offset: int, probs: bool) -> None:
    """Columns behind the last class: NaN, and their gradient is 0."""
    logits, target = torch.randn(3, 7), torch.tensor([offset, 2, offset + 4])
    logits[:, 5:] = torch.nan
    inputs = Inputs(logits, torch.rand(3, 7) if probs else target)
    options = Options(label_smoothing=0.1, class_offset=offset, num_classes=offset + 5)
    parts = ops.partial(inputs, options)
    grad_loss, row_stats, _ = ops.combine(parts[None], inputs, options)
    made, expected = (
        backend.backward(grad_loss, row_stats, inputs, options, inplace=False)
        for backend in (ops, native)
    )
    torch.testing.assert_close(made, expected)
    assert not made[:, 5:].any()
    assert parts.isfinite().all()
    ops.backward(grad_loss, row_stats, inputs, options, inplace=True)
    assert torch.equal(logits, made)


# ---- as a user has it ----------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_public_call_on_cpu_tensors(reduction: str, dtype: torch.dtype, inplace: bool) -> None:
    leaf = torch.randn(3, 7, 5).to(dtype).requires_grad_()
    logits, target = leaf.clone(), torch.randint(7, (3, 5))
    target[1, 2] = -100
    rows = target.shape if reduction == "none" else ()
    grad_loss = torch.rand(rows, dtype=torch.float64) + 0.5
    truth = reference(logits, target, reduction=reduction, label_smoothing=0.1, grad_loss=grad_loss)
    loss_fn = FusedLabelSmoothingLoss(
        reduction=reduction,
        label_smoothing=0.1,
        inplace=inplace,
        return_stats=True,
        backend="triton",
    )
    loss, stats = loss_fn(logits, target)
    (grad,) = torch.autograd.grad(loss, leaf, grad_loss.to(loss))
    assert_equals_reference(Outcome(loss.detach(), grad), truth, leaf)
    torch.testing.assert_close(stats.nll.double(), truth.nll, rtol=1e-5, atol=1e-5)


def test_a_bad_target_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="target of row 1 is 3"):
        label_smoothing_loss(torch.zeros(2, 3), torch.tensor([0, 3]), backend="triton")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_fused_projection(
    reduction: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loop, with a GPU's dtypes."""
    monkeypatch.setattr(sizes, "product_dtype", lambda dtype, device: dtype)
    given, target = projection(10, 4, 37, bias=True, dtype=dtype), targets(10, 37)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
    expected = truth(given, target, **options)
    for recompute in (False, True):
        ours = run(given, target, backend="triton", chunk_rows=4, recompute=recompute, **options)
        for grad, true in zip(ours.grads, expected.grads, strict=True):
            assert error(grad, true) < 4 * max(torch.finfo(dtype).eps, 1e-12)
