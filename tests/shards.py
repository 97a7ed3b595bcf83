"""A backend made of another one's parts of rows: the ranks of a process group in one process.

    check_case(case, InShards(backend))

holds `partial`, `combine` and `backward` of a part against the same tables as whole rows.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from labelsmooth._backends import eager
from labelsmooth._backends.classes import beta_of_unmasked, unmasked_prior
from labelsmooth._backends.sharded import (
    beta_is_needed_first,
    combined,
    has_classes,
    part_of,
)
from labelsmooth._call.problem import Inputs, Options, Outputs


class InShards:
    """`cuts`, as shares of the classes, may coincide: a shard may have none."""

    def __init__(self, backend: Any, cuts: tuple[float, ...] = (0.25, 0.25, 0.6)) -> None:
        self.backend, self.cuts = backend, cuts

    def scaled_(self, grad_logits: Tensor, grad_loss: Tensor) -> Tensor:
        return eager.scaled_(grad_logits, grad_loss)

    def _shards(self, inputs: Inputs, options: Options) -> list[tuple[Inputs, Options]]:
        classes = inputs.logits.shape[1]
        ends = [0, *(int(cut * classes) for cut in self.cuts), classes]
        shards = []
        for begin, end in pairwise(ends):
            logits, target = inputs.logits[:, begin:end], inputs.target
            if target.is_floating_point():
                target = target[:, begin:end]
            shard = inputs._replace(logits=logits, target=target)
            shards.append((shard, replace(options, class_offset=begin, num_classes=classes)))
        return shards

    def forward(self, inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
        shards, beta = self._shards(inputs, options), None
        if beta_is_needed_first(options):
            prior_sum = torch.stack([unmasked_prior(*s) for s in shards if has_classes(*s)]).sum(0)
            beta = beta_of_unmasked(prior_sum, options)
        parts = torch.stack([part_of(self.backend, *shard, beta) for shard in shards])
        made = [combined(self.backend, parts, *shard, beta) for shard in shards]
        for other in made[1:]:  # every rank has the same bits
            for one, another in zip(made[0], other, strict=True):
                assert one.shape == another.shape
                assert (one == another).logical_or(one.isnan() & another.isnan()).all()
        loss, row_stats, predicted = made[0]
        grad = inputs.logits.new_empty(0)
        if with_grad:
            one, inplace = torch.ones_like(loss), options.inplace
            grad = self.backward(one, row_stats, inputs, options, inplace=inplace)
        return Outputs(loss, row_stats, predicted, grad)

    def backward(
        self,
        grad_loss: Tensor,
        row_stats: Tensor,
        inputs: Inputs,
        options: Options,
        *,
        inplace: bool,
    ) -> Tensor:
        grads = [
            self.backend.backward(grad_loss, row_stats, *shard, inplace=inplace)
            for shard in self._shards(inputs, options)
            if has_classes(*shard)
        ]
        return inputs.logits if inplace else torch.cat(grads, 1)
