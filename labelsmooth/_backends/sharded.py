"""A backend over the ranks of a process group, each with some of the classes.

parts        what this rank's classes are to the rows: one read of its logits
gather       all ranks' parts: a few numbers a row, the only communication
combine      loss and statistics, on every rank from the same bytes in the same order
gradient     of this rank's logits: one read and one write
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._call.problem import CommonOptions, Inputs, Options, Outputs, class_range
from . import eager
from .choose import choose_backend
from .classes import beta_of_unmasked, unmasked_prior
from .exchange import Gather
from .parts import empty_part


def backend_of(inputs: Inputs, options: CommonOptions, **more: int) -> Any:
    """That of the device; with a group over its ranks, which must agree on more."""
    backend = choose_backend(options.backend, inputs.logits.device)
    if options.process_group is None:
        return backend
    return Sharded(backend, Gather(inputs, options, **more))


class Sharded:
    def __init__(self, backend: Any, gather: Gather) -> None:
        self._backend, self.gather = backend, gather

    def forward(self, inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
        loss, row_stats, predicted = self._combined(inputs, options)
        grad_logits = inputs.logits.new_empty(0)
        if with_grad:
            one, inplace = torch.ones_like(loss), options.inplace
            grad_logits = self.backward(one, row_stats, inputs, options, inplace=inplace)
        return Outputs(loss, row_stats, predicted, grad_logits)

    def _combined(self, inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
        if not beta_is_needed_first(options):
            gathered = self.gather(part_of(self._backend, inputs, options))
            return combined(self._backend, gathered, inputs, options)
        prior_sum = self.gather(unmasked_prior(inputs, options), with_targets=False).sum(0)
        beta = beta_of_unmasked(prior_sum, options)
        gathered = self.gather(part_of(self._backend, inputs, options, beta))
        return combined(self._backend, gathered, inputs, options, beta)

    def backward(
        self,
        grad_loss: Tensor,
        row_stats: Tensor,
        inputs: Inputs,
        options: Options,
        *,
        inplace: bool,
    ) -> Tensor:
        if not has_classes(inputs, options):
            return inputs.logits.zero_() if inplace else torch.zeros_like(inputs.logits)
        grad: Tensor = self._backend.backward(
            grad_loss, row_stats, inputs, options, inplace=inplace
        )
        return grad

    def scaled_(self, grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
        scaled: Tensor = self._backend.scaled_(grad_logits, grad_loss)
        return scaled


# ---- one rank ------------------------------------------------------------------------------------


def has_classes(inputs: Inputs, options: Options) -> bool:
    """A rank may have none, or padding alone."""
    return class_range(inputs.logits.shape[1], options).count > 0


def beta_is_needed_first(options: Options) -> bool:
    """The entropy of what is spread over a row's unmasked classes needs beta: one more gather."""
    return options.objective == "kl_div" and options.smooth_over == "unmasked"


def part_of(backend: Any, inputs: Inputs, options: Options, beta: Tensor | None = None) -> Tensor:
    """(fields, N)."""
    if not has_classes(inputs, options):
        return empty_part(inputs, options, beta_is_known=beta is not None)
    if beta is not None:
        return eager.partial(inputs, options, beta=_like_rows(beta, inputs))
    part: Tensor = backend.partial(inputs, options)
    return part


def combined(
    backend: Any, parts: Tensor, inputs: Inputs, options: Options, beta: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, row_stats and predicted, from (ranks, fields, N)."""
    if not has_classes(inputs, options):  # combine asks of the logits how many rows they have
        one = inputs.logits.new_empty(1).expand(inputs.logits.shape[0], 1, *inputs.logits.shape[2:])
        dense = inputs.target.is_floating_point()
        inputs = inputs._replace(logits=one, target=one if dense else inputs.target)
        options = replace(options, class_offset=0)
    if beta is not None:
        return eager.combine(parts, inputs, options, beta=_like_rows(beta, inputs))
    made: tuple[Tensor, Tensor, Tensor] = backend.combine(parts, inputs, options)
    return made


def _like_rows(of_rows: Tensor, inputs: Inputs) -> Tensor:
    return of_rows.view(inputs.logits.shape[0], 1, *inputs.logits.shape[2:])
