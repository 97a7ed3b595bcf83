"""The options as keywords of an operator, as the dataclass declares them."""

from dataclasses import fields
from typing import Any, get_type_hints

import torch
from torch import Tensor

TYPES: dict[object, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    int | None: "int?",
    float | None: "float?",
}


def keywords_of(declaration: type, *, without: tuple[str, ...] = ()) -> list[str]:
    return [field.name for field in fields(declaration) if field.name not in without]


def schema_of(declaration: type, keywords: list[str], *, traced: bool) -> str:
    """The overload "traced" takes label_smoothing as a tensor on the CPU: a float would be a
    constant of the graph, compiled anew whenever it changes."""
    hints = get_type_hints(declaration)
    declared = {name: TYPES.get(hints[name]) or "str" for name in keywords}
    if "process_group" in declared:  # by its name
        declared["process_group"] = "str?"
    if traced:
        declared["label_smoothing"] = "Tensor"
    return ", ".join(f"{kind} {name}" for name, kind in declared.items())


def tensors_of(declaration: type, *without: str) -> str:
    """The tensors of a call, as Inputs and LinearInputs have them."""
    return ", ".join(
        f"{'Tensor' if kind is Tensor else 'Tensor?'} {name}"
        for name, kind in get_type_hints(declaration).items()
        if name not in without
    )


def overload_of(packet: Any, options: Any, keywords: list[str]) -> tuple[Any, dict[str, Any]]:
    """The overload that takes these options, and its keywords."""
    values = {name: getattr(options, name) for name in keywords}
    smoothing = options.label_smoothing
    if isinstance(smoothing, Tensor):
        return packet.traced, values
    if not torch.compiler.is_compiling():
        return packet.default, values
    if torch.fx.experimental.symbolic_shapes.has_static_value(smoothing):
        return packet.default, values
    values["label_smoothing"] = torch.ones((), dtype=torch.float64) * smoothing
    return packet.traced, values
