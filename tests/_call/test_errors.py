"""Every line of the error table: what raises, with which words, and that nothing was written."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from checks import DTYPES
from torch import Tensor

from labelsmooth import FusedLabelSmoothingLoss, SparseTarget, label_smoothing_loss
from labelsmooth._call.problem import Inputs

N, C = 5, 7


def problem(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(N, C).to(dtype), torch.randint(C, (N,))


@pytest.mark.parametrize(
    ("logits_dtype", "target_dtype", "said"),
    [
        (torch.int64, torch.int64, "int64"),
        (torch.bool, torch.int64, "bool"),
        (torch.complex64, torch.int64, "complex64"),
        (torch.float32, torch.bool, "bool"),
        (torch.float32, torch.complex64, "complex64"),
    ],
)
def test_dtypes(
    logits_dtype: torch.dtype, target_dtype: torch.dtype, said: str, backend: str
) -> None:
    logits, target = torch.zeros(N, C, dtype=logits_dtype), torch.zeros(N, dtype=target_dtype)
    with pytest.raises(TypeError, match=said):
        label_smoothing_loss(logits, target, backend=backend)


@pytest.mark.parametrize("logits_shape", [(C,), (N, C), (2, C, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_class_indices_are_integers(
    dtype: torch.dtype, logits_shape: tuple[int, ...], backend: str
) -> None:
    """As numpy or pandas may read labels."""
    logits = torch.randn(logits_shape)
    target = torch.zeros(logits_shape).amax(min(logits.dim() - 1, 1)).to(dtype)
    with pytest.raises(TypeError, match=f"target: expected an integer dtype .*got {dtype}"):
        label_smoothing_loss(logits, target, backend=backend)


@pytest.mark.parametrize(
    ("logits_shape", "target_shape"),
    [
        ((), ()),
        ((C,), (1,)),
        ((C,), (C,)),
        ((N, C), ()),
        ((N, C), (C,)),
        ((N, C), (N + 1,)),
        ((N, C), (N, 1)),
        ((N, C), (N, C)),
        ((N, C, 3), (N,)),
        ((N, C, 3), (N, 4)),
        ((N, C, 3), (3, N)),
        ((N, C, 3), (N, C, 3)),
        ((N, 0), (N,)),
    ],
)
def test_shapes_of_class_indices(
    logits_shape: tuple[int, ...], target_shape: tuple[int, ...], backend: str
) -> None:
    target = torch.zeros(target_shape, dtype=torch.int64)
    with pytest.raises(ValueError, match=re.escape(str(logits_shape))):
        label_smoothing_loss(torch.randn(logits_shape), target, backend=backend)


@pytest.mark.parametrize("target_shape", [(), (N + 1,), (N, C + 1), (C, N), (N, C, 1)])
def test_shapes_of_class_probabilities(target_shape: tuple[int, ...], backend: str) -> None:
    with pytest.raises(ValueError, match=f"{N}, {C}"):
        label_smoothing_loss(torch.randn(N, C), torch.rand(target_shape), backend=backend)


@pytest.mark.parametrize("name", ["weight", "prior"])
@pytest.mark.parametrize("shape", [(), (1,), (C + 1,), (N,), (1, C)])
def test_shapes_of_class_tensors(shape: tuple[int, ...], name: str, backend: str) -> None:
    logits, target = problem()
    tensor = torch.full(shape, 1 / max(1, torch.Size(shape).numel()))
    with pytest.raises(ValueError, match=rf"{name}.*\b{C}\b"):
        label_smoothing_loss(logits, target, **{name: tensor}, backend=backend)


@pytest.mark.parametrize("name", ["target", "weight", "prior"])
def test_devices(name: str, backend: str) -> None:
    logits, target = problem()
    arguments: dict[str, Any] = {"target": target, name: torch.zeros(C, device="meta")}
    if name == "target":
        arguments["target"] = target.to("meta")
    with pytest.raises(ValueError, match="meta"):
        label_smoothing_loss(logits, **arguments, backend=backend)


# Each with what the message must say: the value that came, and for a choice also what there is
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"label_smoothing": -0.1}, r"label_smoothing.*-0\.1"),
    ({"label_smoothing": 1.5}, r"label_smoothing.*1\.5"),
    ({"label_smoothing": math.nan}, "label_smoothing.*nan"),
    ({"reduction": "avg"}, "reduction.*mean.*avg"),
    ({"smooth_over": "none"}, "smooth_over.*others.*none"),
    ({"weight_over": "others"}, "weight_over.*target.*others"),
    ({"objective": "mse"}, "objective.*kl_div.*mse"),
    ({"backend": "mps"}, "backend.*eager.*mps"),
    ({"softcap": 0.0}, r"softcap.*0\.0"),
    ({"softcap": -30.0}, r"softcap.*-30\.0"),
    ({"softcap": math.nan}, "softcap.*nan"),
]
PRIORS: list[tuple[dict[str, Any], str]] = [
    ({"prior": torch.tensor([0.5, 0.75, -0.25])}, r"prior.*-0\.25"),
    ({"prior": torch.tensor([0.5, 0.25, 0.125])}, r"prior.*0\.875"),
    ({"prior": torch.tensor([0.5, math.nan, 0.5])}, "prior.*nan"),
    ({"prior": torch.tensor([0.0, 1.0, 0.0]), "smooth_over": "others"}, "prior.*others"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS + PRIORS, ids=lambda value: str(value))
def test_options(options: dict[str, Any], message: str) -> None:
    """At the module's construction, and at the function's call."""
    if "prior" in options:
        options = {"label_smoothing": 0.1, **options}
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        FusedLabelSmoothingLoss(**options)
    leaf = torch.randn(2, 3, requires_grad=True)
    logits = leaf.clone()
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        label_smoothing_loss(logits, torch.tensor([0, 2]), **options, inplace=True)
    assert torch.equal(logits, leaf)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_only_the_mean_has_a_normalizer(reduction: str, backend: str) -> None:
    logits, target = problem()
    with pytest.raises(ValueError, match=f"normalizer.*mean.*{reduction}"):
        label_smoothing_loss(logits, target, reduction=reduction, normalizer=3, backend=backend)


def test_normalizer_is_real_and_at_hand(backend: str) -> None:
    logits, target = torch.randn(N, C), torch.zeros(N, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"normalizer.*cpu.*meta"):
        label_smoothing_loss(
            logits, target, normalizer=torch.ones((), device="meta"), backend=backend
        )
    with pytest.raises(TypeError, match=r"normalizer.*complex64"):
        label_smoothing_loss(
            logits, target, normalizer=torch.ones((), dtype=torch.complex64), backend=backend
        )


def test_operators_check_what_kernels_rely_on() -> None:
    """An error and not a wild read."""
    logits, target = torch.randn(N, C), torch.zeros(N, dtype=torch.int64)
    options = (-100, 1, 0.1, 0, False, False, False, 0.0, 1.0, 0.0, 0, C, True, False)
    right, two = Inputs(logits, target), torch.zeros(N, 2)
    for wrong, message in [
        ({"logits": logits[0]}, "logits"),
        ({"target": target[1:]}, "one class a row"),
        ({"target": logits[:, 1:]}, "shape of the logits"),
        ({"target": two.long(), "target_probs": two[1:]}, "target_probs"),
        ({"target": two[1:].long(), "target_probs": two[1:]}, "target_probs"),
        ({"target": target, "target_probs": two}, "target_probs"),
        ({"weight": torch.ones(C + 1)}, r"expected shape \(C,\)"),
        ({"prior": torch.ones(C - 1)}, r"expected shape \(C,\)"),
        ({"row_weight": torch.ones(N + 1)}, "row_weight"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            torch.ops.labelsmooth.forward(*right._replace(**wrong), *options)


ROWS_OF_2 = torch.zeros(N, 2)
SPARSE: list[tuple[Any, type[Exception], str]] = [
    ((ROWS_OF_2, ROWS_OF_2), TypeError, "target.classes: expected an integer dtype, got .*float32"),
    ((ROWS_OF_2.bool(), ROWS_OF_2), TypeError, "target.classes: expected an integer dtype"),
    ((ROWS_OF_2.long(), ROWS_OF_2.long()), TypeError, "target.probs: expected a floating-point"),
    ((ROWS_OF_2.long(), [0.5, 0.5]), TypeError, "target.probs: expected a tensor, got list"),
    ((ROWS_OF_2[:, 0].long(), ROWS_OF_2[:, 0]), ValueError, rf"expected shape \({N}, K\)"),
    ((ROWS_OF_2[1:].long(), ROWS_OF_2[1:]), ValueError, rf"expected shape \({N}, 2\)"),
    ((ROWS_OF_2[:, :0].long(), ROWS_OF_2[:, :0]), ValueError, rf"expected shape \({N}, K\)"),
    ((ROWS_OF_2.long(), ROWS_OF_2[:, :1]), ValueError, rf"target.probs: .*\({N}, 2\)"),
    ((ROWS_OF_2.long(), ROWS_OF_2.to("meta")), ValueError, "target.probs: expected device cpu"),
    ((ROWS_OF_2.long(),), TypeError, r"SparseTarget of classes and probabilities, got a tuple \(a"),
    ((ROWS_OF_2.long(), None), TypeError, r"got a tuple \(a tensor .*, None\)"),
    ((ROWS_OF_2.long(), ROWS_OF_2.to(torch.float8_e5m2)), TypeError, "target.probs: .*float8_e5m2"),
    ((ROWS_OF_2.long() + C, ROWS_OF_2), IndexError, f"target of row 0 is {C}"),
]


@pytest.mark.parametrize(("target", "error", "message"), SPARSE, ids=[m for _, _, m in SPARSE])
def test_sparse_targets(target: Any, error: type[Exception], message: str, backend: str) -> None:
    leaf = torch.randn(N, C, requires_grad=True)
    logits = leaf * 1
    with pytest.raises(error, match=message):
        label_smoothing_loss(logits, target, inplace=True, backend=backend)
    assert torch.equal(logits, leaf)


def test_a_wrong_class_is_named_with_its_row(backend: str) -> None:
    classes = torch.zeros(2, 3, 4, dtype=torch.int64)
    classes[1, 2, 3] = -3
    with pytest.raises(IndexError, match="target of row 7 is -3"):
        label_smoothing_loss(
            torch.randn(2, C, 4), SparseTarget(classes, torch.rand(2, 3, 4)), backend=backend
        )


def test_several_classes_have_no_others(backend: str) -> None:
    sparse = SparseTarget(ROWS_OF_2.long(), ROWS_OF_2)
    options: dict[str, Any] = {"smooth_over": "others", "backend": backend}
    for target, said in ((torch.rand(N, C), "class probabilities"), (sparse, "a SparseTarget")):
        for smoothing in (0.0, 0.1):
            with pytest.raises(ValueError, match=f"expected class indices, got {said}"):
                label_smoothing_loss(
                    torch.randn(N, C), target, label_smoothing=smoothing, **options
                )


@pytest.mark.parametrize(
    ("row_weight", "error", "message"),
    [
        (torch.ones(N + 1), ValueError, rf"row_weight: expected shape \({N},\)"),
        (torch.ones(()), ValueError, rf"row_weight: expected shape \({N},\)"),
        (torch.ones(N, device="meta"), ValueError, "row_weight: expected device cpu"),
        (torch.ones(N, dtype=torch.complex64), TypeError, "row_weight: expected a real dtype"),
        ([1.0] * N, TypeError, "row_weight: expected a tensor, got list"),
    ],
    ids=["longer", "0-d", "meta", "complex", "list"],
)
def test_row_weight(row_weight: Any, error: type[Exception], message: str, backend: str) -> None:
    logits, target = problem()
    with pytest.raises(error, match=message):
        label_smoothing_loss(logits, target, row_weight=row_weight, backend=backend)


def test_normalizer_is_one_number(backend: str) -> None:
    logits, target = problem()
    with pytest.raises(ValueError, match=rf"normalizer.*\({N},\)"):
        label_smoothing_loss(logits, target, normalizer=torch.ones(N), backend=backend)


def test_in_place_needs_memory_of_its_own(backend: str) -> None:
    """Two elements of the gradient would lie in one place."""
    leaf = torch.randn(1, C + N - 1, requires_grad=True)
    line = leaf * 1
    for logits in (line[:, :C].expand(N, C), line[0].unfold(0, C, 1)):
        with pytest.raises(ValueError, match="inplace"):
            label_smoothing_loss(logits, torch.zeros(N).long(), inplace=True, backend=backend)
    assert torch.equal(line, leaf)


def test_the_single_class_has_no_others(backend: str) -> None:
    logits, target = torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)
    options: dict[str, Any] = {"smooth_over": "others", "backend": backend}
    with pytest.raises(ValueError, match="others"):
        label_smoothing_loss(logits, target, label_smoothing=0.1, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("bad", [-1, C, 1234567, -(2**40), -100])
def test_target_outside_the_classes(
    bad: int, inplace: bool, reduction: str, dtype: torch.dtype, backend: str
) -> None:
    """The first bad row and its value, and logits as they were: every target is looked at first.

    -100 is a bad target like any other where ignore_index is something else.
    """
    leaf = torch.randn(400, C).to(dtype).requires_grad_()
    logits = leaf.clone()
    target = torch.randint(C, (400,))
    target[10], target[321], target[350] = -5, bad, C + 3
    with pytest.raises(IndexError) as caught:
        label_smoothing_loss(
            logits,
            target,
            ignore_index=-5,
            reduction=reduction,
            inplace=inplace,
            backend=backend,
        )
    assert {321, bad} <= set(map(int, re.findall(r"-?\d+", str(caught.value))))
    assert torch.equal(logits, leaf)


def test_target_outside_the_classes_of_an_image(backend: str) -> None:
    target = torch.randint(C, (2, 3, 4))
    target[1, 0, 2] = 99
    with pytest.raises(IndexError, match="99"):
        label_smoothing_loss(torch.randn(2, C, 3, 4), target, backend=backend)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_narrow_target_outside_the_classes(dtype: torch.dtype, backend: str) -> None:
    logits, target = problem()
    target[3] = 120
    with pytest.raises(IndexError, match=r"\b3\b.*120|120.*\b3\b"):
        label_smoothing_loss(logits, target.to(dtype), backend=backend)


@pytest.mark.parametrize("unfit", ["cuda", "triton"])
def test_backend_that_does_not_fit_the_device(unfit: str) -> None:
    """The error says what would help."""
    logits, target = problem()
    with pytest.raises(RuntimeError, match=unfit):
        label_smoothing_loss(logits, target, backend=unfit)
