"""The table of GPU cases, run by the GPU itself: the same one that the simulator is held against.

Compute-sanitizer watches `test_each_kernel`, which is short.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_cases import CASES, EACH_KERNEL, Case, check_case
from shards import InShards
from torch import Tensor

from labelsmooth._backends.choose import choose_backend
from labelsmooth._call.problem import Inputs, Options, Outputs


class OnGpu:
    """A GPU's backend for tensors of the CPU, where they are made and compared. The memory around
    them goes to the GPU and back too: what is written beside an output shows."""

    def __init__(self, name: Any) -> None:
        self.backend = choose_backend(name, torch.device("cuda"))

    def forward(self, inputs: Inputs, options: Options, *, with_grad: bool) -> Outputs:
        there = _moved(inputs)
        made = self.backend.forward(there, options, with_grad=with_grad)
        grad = _fetched(made.grad_logits, inputs, there, with_grad and options.inplace)
        return Outputs(*(output.cpu() for output in made[:3]), grad)

    def backward(
        self,
        grad_loss: Tensor,
        row_stats: Tensor,
        inputs: Inputs,
        options: Options,
        *,
        inplace: bool,
    ) -> Tensor:
        there, given = _moved(inputs), (grad_loss.cuda(), row_stats.cuda())
        made = self.backend.backward(*given, there, options, inplace=inplace)
        return _fetched(made, inputs, there, inplace)

    def partial(self, inputs: Inputs, options: Options) -> Tensor:
        part: Tensor = self.backend.partial(_moved(inputs), options).cpu()
        return part

    def combine(
        self, parts: Tensor, inputs: Inputs, options: Options
    ) -> tuple[Tensor, Tensor, Tensor]:
        made = self.backend.combine(parts.cuda(), _moved(inputs), options)
        loss, row_stats, predicted = (output.cpu() for output in made)
        return loss, row_stats, predicted


def _moved(inputs: Inputs) -> Inputs:
    def moved(tensor: Tensor) -> Tensor:
        there = _memory(tensor).cuda()
        return there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return Inputs._make(None if tensor is None else moved(tensor) for tensor in inputs)


def _memory(tensor: Tensor) -> Tensor:
    """All of it, of which the tensor is a view."""
    return tensor.as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def _fetched(grad: Tensor, inputs: Inputs, there: Inputs, inplace: bool) -> Tensor:
    _memory(inputs.logits).copy_(_memory(there.logits))
    return inputs.logits if inplace else grad.cpu()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, backend: str) -> None:
    with torch.device("cpu"):
        check_case(case, OnGpu(backend))


@pytest.mark.parametrize("case", EACH_KERNEL, ids=str)
def test_each_kernel(case: Case, backend: str) -> None:
    with torch.device("cpu"):
        gpu = OnGpu(backend)
        check_case(case, gpu)
        check_case(case, InShards(gpu))
    grad = torch.ones(3000, dtype=case.dtype, device="cuda")
    factor = torch.tensor(3.0, dtype=torch.float64 if case.dtype == torch.float64 else None)
    scaled = gpu.backend.scaled_(grad, factor.cuda())
    assert (scaled == 3).all()
