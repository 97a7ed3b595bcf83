"""What inplace=True does to the logits, as autograd sees it: never silently wrong.

Whoever saved the logits before finds another version of them in backward, and raises. Whoever
computes with them afterwards gets a node that lets no gradient through.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import CreationMeta, _get_creation_meta, _top_saved_tensors_default_hooks
from torch.autograd import Function

from .._call.checks import base_of, can_be_read, has_values


def can_be_overwritten(logits: Tensor) -> bool:
    """Not where they are a part of a tensor, whose gradient autograd spreads over a new tensor
    anyway and whose other parts must keep their version; nor a view that nobody may write to, as
    chunk() makes them, or that negates. Not where nobody would learn of it: who wants their
    gradient kept, who saved them through hooks (a checkpoint, say), which know no versions, and who
    uses what a traced graph begins with after that graph.
    """
    base = base_of(logits)
    if base is not logits and (
        base.numel() != logits.numel() or _get_creation_meta(logits) != CreationMeta.DEFAULT
    ):
        return False
    if logits.is_neg() or logits.retains_grad or base.retains_grad:
        return False
    if _top_saved_tensors_default_hooks(False) is not None:
        return False
    return has_values(base) or not _begins_a_graph(base)


def _begins_a_graph(tensor: Tensor) -> bool:
    """By the node that Dynamo gives an input which is no leaf: one that fails in backward."""
    return type(tensor.grad_fn).__name__ == "Error"


def mark_overwritten(tensor: Tensor) -> None:
    """From now on no gradient goes through the tensor and its views."""
    base = base_of(tensor)
    # Who wrote to it has given it a new version already.
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(base):
        _Overwritten.apply(base)
    look_at_node(tensor)


def look_at_node(view: Tensor) -> None:
    """A view's node is made anew when it is looked at after its base was written to. Before torch
    2.15 a hook that comes first crashes the process."""
    _ = view.grad_fn


class _Overwritten(Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        ctx.set_materialize_grads(False)
        return tensor

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Tensor | None:
        """Raises; where a look at the gradient would wait for a device, it is NaN instead."""
        if grad is None:
            return None
        if can_be_read(grad) and bool(grad.any()):
            raise RuntimeError(
                "logits needed for gradient computation have been modified by an inplace operation:"
                " they were used after label_smoothing_loss(..., inplace=True), which put their"
                " gradient in their place. Use them before it, or take inplace=False"
            )
        return grad.where(grad == 0, torch.nan)
