"""What may stand for a number, and how an error names what came."""

import numbers
import operator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def described(value: object) -> str:
    """A tensor by layout, shape and dtype, a short value as it is written, else the type."""
    if isinstance(value, Tensor):
        if hasattr(value, "to_local"):
            return "a DTensor"
        if value.is_nested:
            return f"a nested tensor of layout {value.layout}"
        if value.layout != torch.strided:
            return f"a tensor of layout {value.layout}"
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype} on {value.device}"
    if value is None or isinstance(value, str | numbers.Number):
        return repr(value)
    of = type(value)
    return of.__name__ if of.__module__ == "builtins" else f"{of.__module__}.{of.__name__}"


def _more_than_a_number(tensor: Tensor) -> str | None:
    """What would be lost if the value were taken for a number."""
    if tensor.requires_grad:
        return "a tensor that requires grad"
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "a tensor that torch.func transforms"
    if forward_ad._current_level >= 0:
        dual = forward_ad.unpack_dual(tensor)
        if dual.tangent is not None:
            return "a tensor with a tangent"
    return None


def as_number(name: str, value: Any) -> Any:
    """The value as a float; what stands for one in a traced graph as it is."""
    if type(value) is float:
        return value
    if isinstance(value, torch.SymFloat | torch.SymInt):
        return value
    if isinstance(value, Tensor) and value.dim() == 0 and not hasattr(value, "to_local"):
        if came := _more_than_a_number(value):
            raise TypeError(
                f"{name}: expected a number, got {came}; of the numbers only logit_scale and "
                "normalizer, given at the call, have a gradient"
            )
        is_real = not value.is_complex() and value.dtype != torch.bool
        if is_real and value.layout == torch.strided and not value.is_meta:
            return float(value) if type(value) in (Tensor, torch.nn.Parameter) else value
    elif isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name}: expected a number that a float64 holds") from None
    raise TypeError(f"{name}: expected a number, got {described(value)}")


def as_index(name: str, value: Any) -> Any:
    """The value as an int, where torch takes it for one: a bool it does not."""
    if isinstance(value, torch.SymInt):
        return value
    dtype = value.dtype if isinstance(value, Tensor) else type(value)
    try:
        index = None if dtype in (bool, torch.bool) else operator.index(value)
    except TypeError:
        index = None
    if index is None:
        raise TypeError(f"{name}: expected an integer, got {described(value)}")
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"{name}: expected an integer of 64 bits, got {index}")
    return index
