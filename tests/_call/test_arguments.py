"""Every argument given as every kind of value: it works, or the error names it and what came."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _call.calls import NUMBERS, C, N, call
from torch import Tensor, distributed, nn
from torch.distributed.tensor import Replicate, distribute_tensor

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss
from labelsmooth.compat import LabelSmoothing, LabelSmoothingLoss

TENSORS = ["logits", "target", "weight", "prior", "row_weight"]
CHOICES = ["reduction", "smooth_over", "weight_over", "objective", "backend"]
FLAGS = ["from_log_probs", "inplace", "return_stats"]
RANKS = ["process_group", "class_offset", "num_classes"]
ARGUMENTS = [*TENSORS, "ignore_index", *NUMBERS, *CHOICES, *FLAGS, *RANKS]


def jagged() -> Tensor:
    parts = [torch.rand(3, C), torch.rand(5, C)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


# Each kind with what an error says of it; a function is called in the test.
KINDS: dict[str, tuple[Any, str]] = {
    "None": (None, "None"),
    "string": ("0.5", r"'0\.5'"),
    "list": ([0.5], "list"),
    "dict": ({"value": 0.5}, "dict"),
    "object": (object(), "object"),
    "complex": (0.5j, r"0\.5j"),
    "float": (0.5, r"0\.5"),
    "integer": (1, "1"),
    "bool": (True, "True"),
    "numpy float": (np.float32(0.5), r"0\.5"),
    "numpy integer": (np.int64(1), r"1"),
    "numpy bool": (np.True_, "numpy.bool"),
    "numpy array": (np.full(C, 1 / C), "numpy.ndarray"),
    "0-d tensor": (lambda: torch.tensor(0.5), r"\(\)"),
    "0-d integer tensor": (lambda: torch.tensor(1), r"\(\)|int64|1"),
    "0-d tensor with grad": (lambda: torch.tensor(0.5, requires_grad=True), r"\(\)|requires grad"),
    "(N,) tensor": (lambda: torch.full((N,), 1 / N), rf"\({N},\)"),
    "(N,) tensor with grad": (
        lambda: torch.full((N,), 1 / N, requires_grad=True),
        rf"\({N},\)",
    ),
    "jagged": (jagged, "nested.*jagged"),
    "sparse": (lambda: torch.eye(C).to_sparse(), "layout torch.sparse_coo"),
    "CSR": (lambda: torch.eye(C).to_sparse_csr(), "layout torch.sparse_csr"),
    "DTensor": (lambda: dtensor(torch.full((C,), 1 / C)), r"DTensor|shape \(7,\)"),
    "0-d DTensor": (lambda: dtensor(torch.tensor(0.5)), r"DTensor|got \(\)"),
    "meta": (lambda: torch.ones((), device="meta"), r"\(\)|meta"),
}
A_NUMBER = ["float", "integer", "bool", "numpy float", "numpy integer"]
A_NUMBER += ["0-d tensor", "0-d integer tensor"]
WORKS = {
    **dict.fromkeys(NUMBERS, A_NUMBER),
    **{name: ["bool"] for name in FLAGS},
    "ignore_index": ["integer", "numpy integer", "0-d integer tensor"],
    "process_group": ["None"],
    "class_offset": ["None"],  # num_classes is wanted beside a number
    "num_classes": ["None"],
    "weight": ["None"],
    "prior": ["None"],
    "row_weight": ["None", "(N,) tensor", "(N,) tensor with grad"],
    "softcap": [*A_NUMBER, "None"],
    "normalizer": [*A_NUMBER, "None", "0-d tensor with grad"],
}
WORKS_IN_THE_FUNCTION = {"logit_scale": ["0-d tensor with grad"]}


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    """Of this process alone: what a DTensor wants."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def dtensor(tensor: Tensor) -> Tensor:
    mesh = distributed.init_device_mesh("cpu", (1,))
    return distribute_tensor(tensor, mesh, [Replicate()])


def test_the_table_is_complete() -> None:
    assert sorted(ARGUMENTS) == sorted(inspect.signature(label_smoothing_loss).parameters)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("form", ["function", "module"])
def test_each_argument_as_each_kind(form: str, name: str, kind: str) -> None:
    value, said = KINDS[kind]
    if callable(value) and kind != "object":
        value = value()
    works = WORKS.get(name, [])
    if form == "function":
        works = works + WORKS_IN_THE_FUNCTION.get(name, [])
    if kind in works:
        call(form, **{name: value})
        return
    with pytest.raises((TypeError, ValueError, IndexError)) as caught:
        call(form, **{name: value})
    message = str(caught.value)
    if name == "num_classes" and kind in WORKS["ignore_index"]:
        assert re.search(r"target .* a class in \[0, 1\)", message)
        return
    # Logits (N,) or (C,) are one row: it is the target that does not fit.
    is_row = name == "logits" and kind in ("(N,) tensor", "(N,) tensor with grad", "DTensor")
    assert message.startswith(("target" if is_row else name) + ":")
    assert re.search(rf"(?s){name}.*({said})", message), message


SEEDS: dict[type[nn.Module], dict[str, list[str]]] = {  # their arguments, and what works there
    LabelSmoothing: {
        "size": ["numpy integer of classes"],
        "smoothing": A_NUMBER,
        "x": [],
        "target": [],
    },
    LabelSmoothingLoss: {
        "classes": ["numpy integer of classes"],
        "smoothing": A_NUMBER,
        "dim": WORKS["ignore_index"],
        "weight": ["None"],
        "pred": [],
        "target": [],
    },
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("kind", [*KINDS, "numpy integer of classes"])
@pytest.mark.parametrize(
    ("seed", "name"), [(seed, name) for seed, arguments in SEEDS.items() for name in arguments]
)
def test_each_argument_of_the_seeds(seed: type[nn.Module], name: str, kind: str) -> None:
    value, said = {**KINDS, "numpy integer of classes": (np.int64(C), rf"\b{C}\b")}[kind]
    if callable(value) and kind != "object":
        value = value()
    sizes, rows = list(SEEDS[seed])[:1], list(SEEDS[seed])[-2:]
    given = {sizes[0]: C, rows[0]: torch.randn(N, C), "target": torch.arange(N), name: value}
    tensors = [given.pop(row) for row in rows]

    def outcome() -> Tensor:
        return seed(**given)(*tensors)

    if kind in SEEDS[seed][name]:
        outcome()
        return
    with pytest.raises((TypeError, ValueError)) as caught:
        outcome()
    message = str(caught.value)
    if name in sizes and kind in WORKS["ignore_index"]:  # 1: it is the rows that do not fit
        assert f"{rows[0]}: expected shape (N, 1)" in message
    else:
        assert re.search(rf"(?s)^{name}: .*({said})", message), message


def test_dtensors_are_told_about_to_local() -> None:
    """Beside logits that are none."""
    tensors = {
        "target": torch.arange(N),
        "weight": torch.rand(C),
        "prior": torch.rand(C).softmax(0),
        "logit_scale": torch.ones(()),
        "normalizer": torch.ones(()),
    }
    for name, tensor in tensors.items():
        with pytest.raises(TypeError, match=rf"{name}: .* got a DTensor.*to_local\(\)"):
            call("function", **{name: dtensor(tensor)})


def test_nested_logits_and_labels() -> None:
    labels = torch.nested.nested_tensor([torch.arange(3), torch.arange(5)], layout=torch.jagged)
    with pytest.raises(TypeError, match=r"logits: .* nested tensor of layout torch\.jagged"):
        label_smoothing_loss(jagged(), labels)
    with pytest.raises(TypeError, match=r"target: .* nested tensor of layout torch\.jagged"):
        label_smoothing_loss(torch.randn(2, C), labels)


@pytest.mark.parametrize("form", ["function", "module"])
def test_wrong_names(form: str) -> None:
    """In the words of the function or class that was called."""
    called = {"function": "label_smoothing_loss", "module": "FusedLabelSmoothingLoss"}[form]
    with pytest.raises(TypeError, match=rf"{called}\(\) .* keyword argument 'smoothing'"):
        call(form, smoothing=0.1)
    positional: list[Any] = [None, -100, "mean", 0.1, "others"]
    function: Any = FusedLabelSmoothingLoss
    if form == "function":
        function, positional = (
            label_smoothing_loss,
            [torch.randn(N, C), torch.arange(N), *positional],
        )
    with pytest.raises(TypeError, match=rf"{called}\(\) too many positional arguments"):
        function(*positional)


def test_options_without_a_meaning() -> None:
    """Errors, as in torch, rather than silence: for the target that came, or another option."""
    logits, probabilities = torch.randn(N, C), torch.rand(N, C)
    with pytest.raises(RuntimeError, match="ignore_index"):
        F.cross_entropy(logits, probabilities, ignore_index=0)
    with pytest.raises(ValueError, match=r"ignore_index=0: .* class probabilities"):
        label_smoothing_loss(logits, probabilities, ignore_index=0)
    for ignore_index in (-100, -1):
        label_smoothing_loss(logits, probabilities, ignore_index=ignore_index)
    with pytest.raises(ValueError, match=r"lse_square_scale: .* from_log_probs=True.*got 0\.1"):
        FusedLabelSmoothingLoss(from_log_probs=True, lse_square_scale=0.1)


def test_what_has_no_effect_without_smoothing_is_no_error() -> None:
    """A schedule may pass through 0."""
    target, prior = torch.arange(N), torch.eye(C)[0]
    loss = FusedLabelSmoothingLoss(prior=prior, smooth_over="others", label_smoothing=0.0)
    loss(torch.randn(N, C), target)
