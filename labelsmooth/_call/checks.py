"""What a caller may get wrong, told before anything is written: expected and received."""

from typing import Any

import torch
from torch import Tensor, nn

from .problem import CommonOptions
from .values import described

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# ---- values: looked at only where that is possible -----------------------------------------------


def is_real(tensor: Any) -> bool:
    """A plain tensor outside of any graph or transform: numbers in memory."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and not (tensor.is_nested or tensor.is_meta)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._is_functional_tensor(tensor)
    )


def has_values(tensor: Any) -> bool:
    """It is real, and no mode sees what is done with it."""
    return is_real(tensor) and torch._C._len_torch_dispatch_stack() == 0


def can_be_read(tensor: Any) -> bool:
    """A look at the values neither waits for a device nor breaks a graph or transform."""
    return has_values(tensor) and tensor.is_cpu


def is_dtensor(value: Any) -> bool:
    """Without an import of torch.distributed.tensor, which takes longer than this package."""
    return hasattr(type(value), "to_local")  # Dynamo does not know it of the value


def check_prior(prior: Any, options: CommonOptions) -> None:
    """Raises ValueError unless the prior is a distribution that the options can smooth over; of
    shape and dtype `check_class_vector` does."""
    if not can_be_read(prior) or prior.dim() != 1 or not prior.is_floating_point():
        return
    values = prior.detach().double()
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


# ---- kinds, dtypes, shapes, devices --------------------------------------------------------------


def check_tensor(name: str, value: Any) -> None:
    """Raises TypeError unless it is a tensor that is whole and dense."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {described(value)}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {described(value)}")
    if is_dtensor(value):
        raise TypeError(
            f"{name}: expected a plain tensor, got {described(value)}; where each rank holds all "
            "classes, give its to_local()"
        )


def check_class_vector(name: str, vector: Any, classes: int | None = None) -> None:
    """Raises unless it is one floating-point number for each class."""
    check_tensor(name, vector)
    if vector.dim() != 1 or vector.shape[0] == 0 or classes not in (None, vector.shape[0]):
        expected = "C" if classes is None else classes
        raise ValueError(f"{name}: expected shape ({expected},), got {tuple(vector.shape)}")
    if not vector.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {vector.dtype}")


def check_logit_scale(scale: Tensor, logits: Tensor) -> None:
    check_tensor("logit_scale", scale)
    if scale.is_meta and not logits.is_meta:
        raise ValueError(f"logit_scale: expected device {logits.device}, got {scale.device}")
    if scale.numel() != 1 or scale.is_complex() or scale.dtype == torch.bool:
        raise ValueError(
            f"logit_scale: expected a number or a tensor of one, got {described(scale)}"
        )


def check_linear(
    hidden: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, options: CommonOptions
) -> None:
    """Raises unless hidden states can be projected to at least one class; or none, where other
    ranks have them."""
    check_tensor("hidden", hidden)
    if hidden.dim() == 0:
        raise ValueError("hidden: expected shape (D,) or (..., D), got ()")
    _check_parameter("linear_weight", linear_weight)
    if linear_weight.dim() != 2 or linear_weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"linear_weight: expected shape (C, {hidden.shape[-1]}) for hidden of shape "
            f"{tuple(hidden.shape)}, got {tuple(linear_weight.shape)}"
        )
    if linear_weight.shape[0] == 0 and options.process_group is None:
        raise ValueError(
            f"linear_weight: expected at least one class, got {tuple(linear_weight.shape)}"
        )
    if linear_bias is not None:
        _check_parameter("linear_bias", linear_bias)
        if linear_bias.shape != linear_weight.shape[:1]:
            raise ValueError(
                f"linear_bias: expected shape ({linear_weight.shape[0]},), "
                f"got {tuple(linear_bias.shape)}"
            )
    for name, tensor in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name}: expected device {hidden.device}, got {tensor.device}")


GATHER_PARAMETERS = (
    "apply fully_shard() to the FusedLinearLabelSmoothingLoss, or to a module whose forward calls "
    "the loss, not to the nn.Linear inside, so that its hooks gather the parameter"
)


def check_gathered(linear: nn.Module) -> None:
    """Raises where fully_shard() was applied to the linear layer, whose hooks never run."""
    if hasattr(linear, "unshard"):
        _check_parameter("linear_weight", linear.weight)


def _check_parameter(name: str, parameter: Any) -> None:
    """Raises where a trainer holds it in parts."""
    if is_dtensor(parameter):
        raise TypeError(f"{name}: expected a plain tensor, got a DTensor: {GATHER_PARAMETERS}")
    check_tensor(name, parameter)
    if parameter.dim() == 1 and name == "linear_weight" and parameter.numel() == 0:
        raise ValueError(
            f"{name}: expected shape (C, D), got (0,), which is what ZeRO-3 leaves of a parameter "
            "that is not gathered: call the loss through FusedLinearLabelSmoothingLoss as a "
            "submodule of the model, or under deepspeed.zero.GatheredParameters"
        )


def check_dtypes(named: dict[str, Tensor], of: Tensor | None = None) -> None:
    """Raises unless they can be computed in, and have the dtype of `of`, the first of them."""
    for name, tensor in named.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name}: expected a floating-point dtype of {DTYPES}, got {tensor.dtype}"
            )
        if of is not None and tensor.dtype != of.dtype:
            raise TypeError(
                f"{name}: expected {of.dtype}, the dtype of {next(iter(named))}, got {tensor.dtype}"
            )


def check_writable(logits: Tensor) -> None:
    """Raises where a gradient in the logits' place would be wrong, or unknown to autograd."""
    if _may_overlap(logits):
        raise ValueError(
            "inplace=True: expected logits whose elements do not share memory, got shape "
            f"{tuple(logits.shape)} with strides {logits.stride()}"
        )
    if torch.is_grad_enabled() and any(
        t.is_leaf and t.requires_grad for t in (logits, base_of(logits))
    ):
        raise RuntimeError(
            "inplace=True: a leaf Variable that requires grad is being used in an in-place "
            "operation"
        )


def base_of(tensor: Tensor) -> Tensor:
    """The tensor that it is a view of, or itself."""
    return tensor if tensor._base is None else tensor._base


def _may_overlap(tensor: Tensor) -> bool:
    """An axis steps no further than those inside it reach."""
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
