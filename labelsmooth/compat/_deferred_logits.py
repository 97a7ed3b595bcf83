"""The head of a language model put off until its loss: the logits are never made.

While a model is called, its head returns a stand-in that remembers the hidden states and how the
logits are scaled or capped; the loss makes of it a call from hidden states.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._call.check_module import check_is_its_weight
from ..linear import linear_label_smoothing_loss


class DeferredLogits:
    """The logits softcap * tanh(scale / softcap * head(hidden)), or scale * head(hidden)."""

    def __init__(
        self, hidden: Tensor, *, head: nn.Linear, scale: float = 1.0, inner: float | None = None
    ) -> None:
        self.hidden, self.head = hidden, head
        self.scale = scale  # of what there is so far
        self.inner = inner  # the scale inside of tanh, where there is one
        self.device = hidden.device

    def loss(self, labels: Tensor, **options: Any) -> Any:
        return linear_label_smoothing_loss(
            self.hidden,
            self.head.weight,
            labels,
            linear_bias=self.head.bias,
            logit_scale=self.scale * (1.0 if self.inner is None else self.inner),
            softcap=None if self.inner is None else self.scale,
            **options,
        )

    def __mul__(self, factor: float) -> DeferredLogits:
        if not isinstance(factor, int | float):
            return NotImplemented
        return self._with(self.scale * factor, self.inner)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> DeferredLogits:
        if not isinstance(divisor, int | float):
            return NotImplemented
        return self._with(self.scale / divisor, self.inner)

    def tanh(self) -> DeferredLogits:
        if self.inner is not None:
            raise TypeError("fused_head: expected logits that are capped once")
        return self._with(1.0, self.scale)

    def to(self, *_: Any, **__: Any) -> DeferredLogits:
        return self  # the loss computes in float32, where the hidden states are

    float = contiguous = to

    def _with(self, scale: Any, inner: Any) -> DeferredLogits:
        return DeferredLogits(self.hidden, head=self.head, scale=scale, inner=inner)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"fused_head: there are no logits, whose {name!r} this model uses")

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> DeferredLogits:
        if function is torch.tanh:
            return args[0].tanh()  # type: ignore[no-any-return]
        raise TypeError(f"fused_head: there are no logits, of which this model takes {function}")


@contextmanager
def deferred(head: nn.Linear) -> Iterator[None]:
    check_is_its_weight("fused_head", head)
    head.__dict__["forward"] = functools.partial(DeferredLogits, head=head)
    try:
        yield
    finally:
        del head.__dict__["forward"]


def with_logits(model_class: Any) -> Any:
    """The class that a class of `with_deferred_logits` was made of; another as it is."""
    return getattr(model_class, "_with_logits", model_class)


@functools.cache
def with_deferred_logits(model_class: Any) -> Any:
    """The class of a model, which in training makes no logits where it is given labels."""
    labels_at = list(inspect.signature(model_class.forward).parameters).index("labels") - 1

    class Deferring(model_class):  # type: ignore[misc]
        _with_logits = model_class

        @functools.wraps(model_class.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            labels = args[labels_at] if len(args) > labels_at else kwargs.get("labels")
            if labels is None or not self.training:
                return super().forward(*args, **kwargs)
            with deferred(self.get_output_embeddings()):
                return _without_logits(super().forward(*args, **kwargs))

        def __reduce_ex__(self, protocol: Any) -> Any:
            _, _, *state = super().__reduce_ex__(protocol)
            return _new, (model_class,), *state

    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(Deferring, name, getattr(model_class, name))
    return Deferring


def _new(model_class: Any) -> Any:
    deferring = with_deferred_logits(model_class)
    return deferring.__new__(deferring)


def _without_logits(outputs: Any) -> Any:
    if isinstance(outputs, tuple):
        return tuple(value for value in outputs if not isinstance(value, DeferredLogits))
    kept = {k: v for k, v in outputs.items() if not isinstance(v, DeferredLogits)}
    return type(outputs)(**kept)
