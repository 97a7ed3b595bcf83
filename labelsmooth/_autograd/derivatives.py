"""Derivatives of the eager formulas, in reverse and in forward mode: those that no kernel gives.

A formula is taken as a function of its tensors alone, in the order of Inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .._backends import eager
from .._call.problem import Inputs, Options


def forward_of(options: Options) -> Callable[..., Any]:
    return lambda *tensors: tuple(eager.forward(Inputs(*tensors), options, with_grad=False))


def loss_of(options: Options) -> Callable[..., Tensor]:
    return lambda *tensors: eager.loss(Inputs(*tensors), options)


def gradient_of(options: Options) -> Callable[..., Tensor]:
    return lambda grad_loss, *tensors: eager.gradient(grad_loss, Inputs(*tensors), options)


def vjp(function: Any, tensors: Any, needed: Any, cotangent: Any) -> list[Tensor | None]:
    """The gradients of those tensors that are `needed`, None for the others."""
    function, chosen = _restricted(function, tensors, needed)
    pull_back = torch.func.vjp(function, *chosen)[1]
    grads = iter(pull_back(cotangent))
    return [next(grads) if need else None for need in needed]


def jvp(function: Any, tensors: Any, tangents: Any) -> Any:
    """The derivative along the tangents, None being 0: that of the pull-back, which is linear in
    the cotangent. (torch.func.jvp does not nest in autograd's forward mode.)"""
    moved = [tangent is not None for tangent in tangents]
    function, chosen = _restricted(function, tensors, moved)
    value, pull_back = torch.func.vjp(function, *chosen)[:2]
    zero = tree_map(torch.zeros_like, value)
    push_forward = torch.func.vjp(pull_back, zero)[1]
    return push_forward(tuple(t for t in tangents if t is not None))[0]


def _restricted(function: Any, tensors: Any, chosen: Any) -> tuple[Any, list[Tensor]]:
    """The function of the chosen tensors alone, and these."""

    def restricted(*values: Tensor) -> Any:
        given = iter(values)
        return function(*(next(given) if c else t for c, t in zip(chosen, tensors, strict=True)))

    return restricted, [tensor for c, tensor in zip(chosen, tensors, strict=True) if c]
