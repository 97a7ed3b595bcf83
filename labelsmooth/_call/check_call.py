"""A whole call: whether its tensors fit each other and its options."""

import os
from typing import Any

import torch
from torch import Tensor

from .checks import check_class_vector, check_dtypes, check_tensor, has_values
from .problem import CommonOptions, Inputs, class_range


def check_call(given: Inputs, normalizer: Tensor | float | None, options: CommonOptions) -> None:
    logits = given.logits
    check_tensor("logits", logits)
    check_tensor("target", given.target)
    check_dtypes({"logits": logits})
    if logits.dim() == 0:
        raise ValueError("logits: expected shape (C,), (N, C) or (N, C, d1, ...), got ()")
    class_axis = 0 if logits.dim() == 1 else 1
    classes = class_range(logits.shape[class_axis], options).all
    if classes == 0:
        raise ValueError(f"logits: expected at least one class, got shape {tuple(logits.shape)}")
    rows = logits.shape[:class_axis] + logits.shape[class_axis + 1 :]
    if given.target_probs is None:
        check_target(given.target, logits, rows, options)
    else:
        check_sparse_target(given.target, given.target_probs, logits, class_axis, options)
    for name, vector in (("weight", given.weight), ("prior", given.prior)):
        if vector is None:
            continue
        check_class_vector(name, vector, classes)
        if vector.device != logits.device:
            raise ValueError(f"{name}: expected device {logits.device}, got {vector.device}")
    if (
        options.smooth_over == "others"
        and given.prior is None
        and classes == 1
        and options.label_smoothing > 0
    ):
        raise ValueError("smooth_over='others': expected at least two classes, got 1")
    if normalizer is not None:
        _check_normalizer(normalizer, logits, options)
    if given.row_weight is not None:
        check_row_weight(given.row_weight, rows, logits.device)


def _check_normalizer(normalizer: Tensor | float, logits: Tensor, options: CommonOptions) -> None:
    if options.reduction != "mean":
        raise ValueError(f"normalizer: expected reduction='mean', got {options.reduction!r}")
    if not isinstance(normalizer, Tensor):
        return  # as_number says what it is, if not that
    check_tensor("normalizer", normalizer)
    if normalizer.dim() != 0:
        raise ValueError(f"normalizer: expected a 0-d tensor, got shape {tuple(normalizer.shape)}")
    if normalizer.is_complex() or normalizer.dtype == torch.bool:
        raise TypeError(f"normalizer: expected a real number, got {normalizer.dtype}")
    if normalizer.device not in (logits.device, torch.device("cpu")):
        raise ValueError(f"normalizer: expected device {logits.device}, got {normalizer.device}")


# ---- what has an entry for each row --------------------------------------------------------------


def check_target(
    target: Tensor, logits: Tensor, rows: tuple[int, ...], options: CommonOptions
) -> None:
    if target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected an integer or floating-point dtype, got {target.dtype}")
    soft = target.is_floating_point()
    expected = logits.shape if soft else rows
    if soft and target.shape == rows:
        raise TypeError(
            f"target: expected an integer dtype for class indices of shape {tuple(rows)}, or class "
            f"probabilities of shape {tuple(expected)}, got {target.dtype} of shape {tuple(rows)}"
        )
    if target.shape != expected:
        raise ValueError(
            f"target: expected shape {tuple(expected)} for logits of shape "
            f"{tuple(logits.shape)}, got {tuple(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(f"target: expected device {logits.device}, got {target.device}")
    if soft:
        check_dtypes({"target": target})
        _check_one_class("class probabilities", options)
    if soft and options.ignore_index >= 0:
        raise ValueError(
            f"ignore_index={options.ignore_index}: expected class indices, got class "
            "probabilities, of which none can be that class"
        )


def check_sparse_target(
    classes: Tensor, probs: Any, logits: Tensor, class_axis: int, options: CommonOptions
) -> None:
    check_tensor("target.probs", probs)
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"target.classes: expected an integer dtype, got {classes.dtype}")
    check_dtypes({"target.probs": probs})
    expected: list[Any] = list(logits.shape)
    expected[class_axis] = "K"
    fits = classes.dim() == logits.dim() and classes.shape[class_axis] > 0
    if fits:
        expected[class_axis] = classes.shape[class_axis]
    if not fits or list(classes.shape) != expected:
        shape = f"({', '.join(map(str, expected))}{',' if len(expected) == 1 else ''})"
        raise ValueError(
            f"target.classes: expected shape {shape} for logits of shape {tuple(logits.shape)}, "
            f"got {tuple(classes.shape)}"
        )
    if probs.shape != classes.shape:
        raise ValueError(
            f"target.probs: expected shape {tuple(classes.shape)}, that of the classes, "
            f"got {tuple(probs.shape)}"
        )
    for name, tensor in (("target.classes", classes), ("target.probs", probs)):
        if tensor.device != logits.device:
            raise ValueError(f"{name}: expected device {logits.device}, got {tensor.device}")
    _check_one_class("a SparseTarget", options)


def _check_one_class(came: str, options: CommonOptions) -> None:
    if options.smooth_over == "others":
        raise ValueError(f"smooth_over='others': expected class indices, got {came}")


def check_row_weight(row_weight: Any, rows: tuple[int, ...], device: torch.device) -> None:
    check_tensor("row_weight", row_weight)
    if row_weight.shape != rows:
        raise ValueError(
            f"row_weight: expected shape {tuple(rows)}, one number a row, "
            f"got {tuple(row_weight.shape)}"
        )
    if row_weight.is_complex():
        raise TypeError(f"row_weight: expected a real dtype, got {row_weight.dtype}")
    if row_weight.device != device:
        raise ValueError(f"row_weight: expected device {device}, got {row_weight.device}")


def check_targets(inputs: Inputs, options: CommonOptions) -> None:
    """Raises IndexError where a class index is no class and not ignored.

    On the CPU, and with LABELSMOOTH_CHECK=1 everywhere, which waits for the device. Where nobody
    looks, as in a compiled graph, such a row is NaN.
    """
    logits, target, probs, *_ = inputs
    if target.is_floating_point() or not has_values(target):
        return
    if not target.is_cpu and os.environ.get("LABELSMOOTH_CHECK") != "1":
        return
    classes = class_range(logits.shape[1], options).all
    invalid = ((target < 0) | (target >= classes)) & (target != options.ignore_index)
    if bool(invalid.any()):
        if probs is not None:  # the entries of a row one after the other
            target, invalid = target.movedim(1, -1), invalid.movedim(1, -1)
        place = int(invalid.flatten().nonzero()[0])
        row = place if probs is None else place // target.shape[-1]
        raise IndexError(
            f"target of row {row} is {int(target.flatten()[place])}: expected a class in "
            f"[0, {classes}) or ignore_index = {options.ignore_index}"
        )
