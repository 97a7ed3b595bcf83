"""What a caller may get wrong, told before anything is written: expected and received."""

import os

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .problem import Inputs, Options

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def is_traced(tensor: Tensor) -> bool:
    """Whether a graph is made of what is done with the tensor, or it has no numbers."""
    return type(tensor) not in (Tensor, torch.nn.Parameter) or (
        _get_current_dispatch_mode() is not None
    )


def can_be_read(tensor: Tensor) -> bool:
    """Whether a look at the values neither waits for a device nor breaks a graph or transform."""
    return (
        tensor.is_cpu
        and not torch.compiler.is_compiling()
        and not is_traced(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def check_prior(prior: Tensor, options: Options) -> None:
    """Raises ValueError unless the prior is a distribution that the options can smooth over."""
    values = prior.detach().cpu().double()
    total = float(values.sum())
    if not bool((values >= 0).all()) or abs(total - 1.0) > 1e-3:
        raise ValueError(
            "prior: expected non-negative numbers that sum to 1, "
            f"got minimum {float(values.min())}, sum {total}"
        )
    if (
        options.smooth_over == "others"
        and options.label_smoothing > 0
        and float(values.float().max()) >= 1.0
    ):
        raise ValueError(
            "prior: expected one that leaves something to smooth over the others, "
            f"got {float(values.max())} on class {int(values.argmax())}"
        )


def check_targets(inputs: Inputs, options: Options) -> None:
    """Raises IndexError where a class index is no class and not ignored.

    On the CPU, and with LABELSMOOTH_CHECK=1 everywhere: it waits for the device. In a compiled
    graph nobody looks; a row without a class is then NaN, as on a device.
    """
    logits, target, *_ = inputs
    if target.dtype == logits.dtype or not (
        can_be_read(target) or (target.is_cuda and os.environ.get("LABELSMOOTH_CHECK") == "1")
    ):
        return
    classes = logits.shape[1]
    invalid = ((target < 0) | (target >= classes)) & (target != options.ignore_index)
    if bool(invalid.any()):
        row = int(invalid.flatten().nonzero()[0])
        raise IndexError(
            f"target of row {row} is {int(target.flatten()[row])}: expected a class in "
            f"[0, {classes}) or ignore_index = {options.ignore_index}"
        )


def check_call(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    prior: Tensor | None,
    normalizer: Tensor | float | None,
    options: Options,
) -> None:
    if logits.dtype not in DTYPES:
        raise TypeError(f"logits: expected a floating-point dtype of {DTYPES}, got {logits.dtype}")
    if logits.dim() == 0:
        raise ValueError("logits: expected shape (C,), (N, C) or (N, C, d1, ...), got ()")
    class_axis = 0 if logits.dim() == 1 else 1
    classes = logits.shape[class_axis]
    if classes == 0:
        raise ValueError(f"logits: expected at least one class, got shape {tuple(logits.shape)}")
    if target.dtype == logits.dtype:
        expected = tuple(logits.shape)
        if options.smooth_over == "others":
            raise ValueError(
                "smooth_over='others': expected class indices, got class probabilities"
            )
    elif target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target: expected an integer dtype or {logits.dtype}, got {target.dtype}")
    else:
        expected = tuple(logits.shape[:class_axis] + logits.shape[class_axis + 1 :])
    if tuple(target.shape) != expected:
        raise ValueError(
            f"target: expected shape {expected} for logits of shape {tuple(logits.shape)}, "
            f"got {tuple(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(f"target: expected device {logits.device}, got {target.device}")
    for name, vector in (("weight", weight), ("prior", prior)):
        if vector is None:
            continue
        if vector.shape != (classes,):
            raise ValueError(f"{name}: expected shape ({classes},), got {tuple(vector.shape)}")
        if vector.device != logits.device:
            raise ValueError(f"{name}: expected device {logits.device}, got {vector.device}")
        if not vector.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {vector.dtype}")
    if (
        options.smooth_over == "others"
        and prior is None
        and classes == 1
        and options.label_smoothing > 0
    ):
        raise ValueError("smooth_over='others': expected at least two classes, got 1")
    if options.inplace:
        _check_writable(logits)
    if normalizer is not None:
        if options.reduction != "mean":
            raise ValueError(f"normalizer: expected reduction='mean', got {options.reduction!r}")
        if isinstance(normalizer, Tensor) and normalizer.dim() != 0:
            raise ValueError(
                f"normalizer: expected a 0-d tensor, got shape {tuple(normalizer.shape)}"
            )
        if isinstance(normalizer, Tensor):
            if normalizer.is_complex() or normalizer.dtype == torch.bool:
                raise TypeError(f"normalizer: expected a real number, got {normalizer.dtype}")
            if normalizer.device not in (logits.device, torch.device("cpu")):
                raise ValueError(
                    f"normalizer: expected device {logits.device}, got {normalizer.device}"
                )


def _check_writable(logits: Tensor) -> None:
    if _may_overlap(logits):
        raise ValueError(
            "inplace=True: expected logits whose elements do not share memory, got shape "
            f"{tuple(logits.shape)} with strides {logits.stride()}"
        )
    base = logits if logits._base is None else logits._base
    if torch.is_grad_enabled() and any(t.is_leaf and t.requires_grad for t in (logits, base)):
        raise RuntimeError(
            "inplace=True: a leaf Variable that requires grad is being used in an in-place "
            "operation"
        )


def _may_overlap(tensor: Tensor) -> bool:
    """Whether elements may share memory: an axis steps no further than those inside it reach."""
    axes = [  # sorted() is not traced by every torch
        (stride, (size - 1) * stride)
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        if size > 1
    ]
    for stride, own_reach in axes:
        reach = sum(reach for other, reach in axes if other <= stride)
        if stride <= reach - own_reach:
            return True
    return False
