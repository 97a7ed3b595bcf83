"""The loss as one operator: what torch.compile and torch.export see of it.

A graph then holds a single node, which neither traces an autograd.Function nor loses its gradient:
where autograd is at work, the operator is `loss.apply`, in a tracer as in eager mode.
"""

from dataclasses import fields
from typing import Any, get_type_hints

import torch
from torch import Tensor

from .._backends import eager
from .._backends.choose import choose_backend
from .._call.problem import Inputs, Options, Outputs
from . import loss

LIBRARY: Any = torch.library.Library("labelsmooth", "FRAGMENT")  # type: ignore[no-untyped-call]
# "loss_" overwrites the logits. "traced" takes label_smoothing as a tensor on the CPU, since a
# float would be a constant of the graph, which is compiled anew whenever it changes.
NAMES = [f"loss{inplace}{traced}" for inplace in ("", "_") for traced in ("", ".traced")]
OPTIONS = [field.name for field in fields(Options) if field.name != "inplace"]


def apply(inputs: Inputs, options: Options) -> Outputs:
    """The loss as a node of autograd's graph where there is one, or of a graph that is traced."""
    if not torch.compiler.is_compiling():
        return loss.apply(inputs, options, choose_backend(options.backend, inputs.logits.device))
    if in_transform():  # which differentiates a graph node by node: it gets the formulas
        return eager.forward(inputs, options, with_grad=False)
    packet = torch.ops.labelsmooth.loss_ if options.inplace else torch.ops.labelsmooth.loss
    values: dict[str, Any] = {name: getattr(options, name) for name in OPTIONS}
    if torch.fx.experimental.symbolic_shapes.has_static_value(options.label_smoothing):
        operator = packet.default
    else:
        operator = packet.traced
        values["label_smoothing"] = torch.ones((), dtype=torch.float64) * options.label_smoothing
    return Outputs._make((*operator(*inputs, **values), inputs.logits.new_empty(0)))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def in_transform() -> bool:
    """As loss.in_transform, for code that a graph is traced from."""
    return loss.in_transform()


def _schema(name: str) -> str:
    """Of the tensors, and of the options as `Options` declares them."""
    types: dict[object, str] = {int: "int", float: "float", bool: "bool", float | None: "float?"}
    hints = get_type_hints(Options)
    declared = {o: types.get(hints[o]) or "str" for o in OPTIONS}
    if name.endswith("traced"):
        declared["label_smoothing"] = "Tensor"
    arguments = ", ".join(f"{kind} {option}" for option, kind in declared.items())
    logits = "Tensor(a!)" if name.startswith("loss_") else "Tensor"
    return (
        f"{name}({logits} logits, Tensor target, Tensor? weight, Tensor? prior, Tensor? normalizer,"
        f" *, {arguments}) -> (Tensor loss, Tensor row_stats, Tensor predicted)"
    )


def _define(name: str) -> None:
    inplace = name.startswith("loss_")

    def run(*tensors: Any, label_smoothing: float | Tensor, **values: Any) -> tuple[Tensor, ...]:
        options = Options(label_smoothing=label_smoothing, inplace=inplace, **values)  # type: ignore[arg-type]
        backend = choose_backend(options.backend, tensors[0].device)
        return tuple(loss.apply(Inputs(*tensors), options, backend)[:3])

    LIBRARY.define(_schema(name))
    for key in ("Autograd", "CompositeExplicitAutograd"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"labelsmooth::{name}", run, lib=LIBRARY)


for _name in NAMES:
    _define(_name)
