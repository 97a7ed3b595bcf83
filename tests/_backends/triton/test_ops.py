"""The Triton operators as torch sees them: schemas, fakes, graphs without breaks.

On CPU tensors, with a simulated GPU under Triton: Inductor's code calls the operators as it would
on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from _backends.test_native import MEAN, NONE, options, problem
from checks import Outcome, assert_equals_reference
from ptxsim.triton_driver import simulated_triton
from reference import reference
from torch._subclasses import FakeTensorMode
from torch.library import opcheck

import labelsmooth._backends.triton.ops  # noqa: F401, registers the operators
from labelsmooth import label_smoothing_loss

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OPS = torch.ops.labelsmooth_triton
NAMES = ["forward", "forward_", "backward", "backward_", "partial", "combine", "scale_"]


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("reduction", [NONE, MEAN])
def test_opcheck(reduction: int, vectors: bool) -> None:
    logits, target = problem((5, 19), torch.float32)
    shared = options(reduction, vectors=vectors)
    with simulated_triton(90, counts=False):
        opcheck(OPS.forward.default, (logits, target, None, *shared, True, True))
        opcheck(OPS.forward_.default, (logits, target, None, *shared, False))
        loss, row_stats, _, _ = OPS.forward(logits, target, None, *shared, False, False)
        arguments = (torch.randn_like(loss), logits, target, None, row_stats, *shared)
        opcheck(OPS.backward.default, arguments)
        opcheck(OPS.backward_.default, arguments)
        opcheck(OPS.scale_.default, (torch.randn(5, 19), torch.tensor(0.5)))


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize("reduction", [NONE, MEAN])
@pytest.mark.parametrize("with_stats", [False, True])
def test_opcheck_of_parts(with_stats: bool, reduction: int, vectors: bool) -> None:
    """Of classes 4 to 14 of 19, and padding."""
    logits, target = problem((5, 19), torch.float32)
    *shared, _, num_classes = options(reduction, vectors=vectors)
    shared = [*shared, 4, num_classes]
    with simulated_triton(90, counts=False):
        part = OPS.partial(logits, target, None, *shared, with_stats)
        opcheck(OPS.partial.default, (logits, target, None, *shared, with_stats))
        for parts in (torch.stack([part, part]), part.expand(3, -1, -1)):
            opcheck(OPS.combine.default, (parts, logits, target, None, *shared, with_stats))
        _, row_stats, _ = OPS.combine(parts, logits, target, None, *shared, with_stats)
        arguments = (torch.ones(()), logits, target, None, row_stats, *shared)
        opcheck(OPS.backward_.default, arguments)


@pytest.mark.parametrize("layout", ["few", "all"])
def test_opcheck_of_probabilities(layout: str) -> None:
    logits, _ = problem((5, 19), torch.bfloat16)
    target: tuple[torch.Tensor, torch.Tensor | None] = torch.rand(5, 19), None
    if layout == "few":
        target = torch.randint(19, (5, 3)), torch.rand(5, 3)
    shared = options(MEAN)
    with simulated_triton(90, counts=False):
        opcheck(OPS.forward.default, (logits, *target, *shared, True, True))
        loss, row_stats, _, _ = OPS.forward(logits, *target, *shared, False, False)
        opcheck(OPS.backward_.default, (loss, logits, *target, row_stats, *shared))


@pytest.mark.parametrize(
    ("shape", "columns", "dtype"),
    [
        ((5, 19), True, torch.float32),
        ((5, 19), False, torch.float16),
        ((2, 19, 3), False, torch.bfloat16),
        ((2, 19, 3), True, torch.float64),
        ((0, 19), False, torch.float32),
    ],
)
def test_fakes_of_each_layout(shape: tuple[int, ...], columns: bool, dtype: torch.dtype) -> None:
    """Shapes, strides and dtypes are those of the real outputs."""
    logits, target = problem(shape, dtype)
    if columns:
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    with simulated_triton(90, counts=False):
        for reduction in (NONE, MEAN):
            arguments = (logits, target, None, *options(reduction), True, True)
            opcheck(OPS.forward.default, arguments, test_utils="test_faketensor")
        loss, row_stats, _, _ = OPS.forward(logits, target, None, *options(NONE), False, False)
        arguments = (loss, logits, target, None, row_stats, *options(NONE))
        opcheck(OPS.backward.default, arguments, test_utils="test_faketensor")


def test_fake_cuda_tensors() -> None:
    with FakeTensorMode():
        logits, target = torch.empty(4, 7, device="cuda"), torch.zeros(4, device="cuda").long()
        loss = label_smoothing_loss(logits, target, backend="triton", reduction="none")
    assert (loss.device.type, loss.shape, loss.dtype) == ("cuda", (4,), torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_the_schemas_are_those_of_the_compiled_operators(name: str) -> None:
    """Up to the names of what they return, which custom_op does not give."""

    def schema(namespace: Any) -> Any:
        of = getattr(namespace, name).default._schema
        written = [a.name for a in of.arguments if a.alias_info and a.alias_info.is_write]
        types = [str(a.type) for a in (*of.arguments, *of.returns)]
        return [a.name for a in of.arguments], types, written

    assert schema(OPS) == schema(torch.ops.labelsmooth)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiled_as_one_graph(reduction: str, inplace: bool, compiler: str) -> None:
    call: dict[str, Any] = {"reduction": reduction, "inplace": inplace, "backend": "triton"}

    def step(logits: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
        return label_smoothing_loss(logits * 2, target, label_smoothing=smoothing, **call)

    torch._dynamo.reset()  # else it counts how often this code was compiled
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    target = torch.tensor([3, -100, 36])
    for smoothing in (0.1, 0.3):
        leaf = torch.randn(3, 37, requires_grad=True)
        with simulated_triton(90, counts=False) as gpu:
            loss = compiled(leaf, target, smoothing)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            assert gpu.reports
        truth = reference(
            leaf, target, logit_scale=2.0, label_smoothing=smoothing, reduction=reduction
        )
        assert_equals_reference(Outcome(loss.detach(), grad), truth, leaf)


def test_the_public_call_and_its_gradient() -> None:
    logits, target = torch.randn(4, 37, requires_grad=True), torch.randint(37, (4,))
    with simulated_triton(90, counts=False) as gpu:
        loss, stats = label_smoothing_loss(
            logits, target, label_smoothing=0.1, backend="triton", return_stats=True
        )
        (grad,) = torch.autograd.grad(loss, logits)
    loss_report, scale_report = gpu.reports
    assert (loss_report.kernel, scale_report.kernel) == ("loss_kernel", "scale_kernel")
    assert scale_report.written_bytes == 0  # the incoming gradient is 1
    truth = reference(logits, target, label_smoothing=0.1)
    assert_equals_reference(Outcome(loss.detach(), grad), truth, logits)
    torch.testing.assert_close(stats.nll.double(), truth.nll, rtol=1e-6, atol=1e-6)


def test_cpu_tensors_need_an_interpreter() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1, got cpu"):
        label_smoothing_loss(torch.randn(2, 3), torch.tensor([0, 1]), backend="triton")
