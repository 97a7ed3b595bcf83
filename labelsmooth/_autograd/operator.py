"""The loss as one operator: what torch.compile and torch.export see of it.

A graph then holds a single node: where autograd is at work, the operator is `loss.apply`, in a
tracer as in eager mode. "loss_" overwrites the logits.
"""

from typing import Any

import torch
from torch import Tensor

from .._backends import eager
from .._backends.sharded import backend_of
from .._call.problem import Inputs, Options, Outputs
from .._call.schema import keywords_of, overload_of, schema_of, tensors_of
from . import loss

LIBRARY: Any = torch.library.Library("labelsmooth", "FRAGMENT")
NAMES = [f"loss{inplace}{traced}" for inplace in ("", "_") for traced in ("", ".traced")]
KEYWORDS = keywords_of(Options, without=("inplace",))


def apply(inputs: Inputs, options: Options) -> Outputs:
    """The loss as a node of autograd's graph, or of one that is traced."""
    if not torch.compiler.is_compiling():
        return loss.apply(inputs, options, backend_of(inputs, options))
    if in_transform() and options.process_group is None:
        # A transform differentiates the graph node by node: it gets the formulas.
        return eager.forward(inputs, options, with_grad=False)
    packet = torch.ops.labelsmooth.loss_ if options.inplace else torch.ops.labelsmooth.loss
    operator, values = overload_of(packet, options, KEYWORDS)
    return Outputs._make((*operator(*inputs, **values), inputs.logits.new_empty(0)))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def in_transform() -> bool:
    """As loss.in_transform, for code that a graph is traced from."""
    return loss.in_transform()


def _schema(name: str) -> str:
    keywords = schema_of(Options, KEYWORDS, traced=name.endswith("traced"))
    logits = "Tensor(a!)" if name.startswith("loss_") else "Tensor"
    return (
        f"{name}({logits} logits, {tensors_of(Inputs, 'logits')}, *, {keywords})"
        " -> (Tensor loss, Tensor row_stats, Tensor predicted)"
    )


def _define(name: str) -> None:
    inplace = name.startswith("loss_")

    def run(*tensors: Any, label_smoothing: float | Tensor, **values: Any) -> tuple[Tensor, ...]:
        inputs = Inputs(*tensors)
        options = Options(label_smoothing=label_smoothing, inplace=inplace, **values)  # type: ignore[arg-type]
        return tuple(loss.apply(inputs, options, backend_of(inputs, options))[:3])

    LIBRARY.define(_schema(name))
    for key in ("Autograd", "CompositeExplicitAutograd"):
        LIBRARY.impl(name, run, key)
    torch.library.register_fake(f"labelsmooth::{name}", run, lib=LIBRARY)


for _name in NAMES:
    _define(_name)
