"""The operators of the fused projection: what torch asks of operators, and what they do on a GPU,
seen without one by tensors that have no memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from linear_checks import error, projection, run, targets, truth
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from labelsmooth._backends import sharded
from labelsmooth._backends.linear import loop, operators, sizes
from labelsmooth._backends.linear.sizes import product_dtype
from labelsmooth._backends.linear.sums import Gradients, finish
from labelsmooth._call.problem import LinearInputs, LinearOptions, Outputs

N, D, C = 6, 5, 11
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = ("test_schema", "test_faketensor")
ALL = (
    *SHAPES,
    "test_autograd_registration",
    "test_aot_dispatch_static",
    "test_aot_dispatch_dynamic",
)


def arguments(
    dtype: torch.dtype, options: LinearOptions, needed: list[bool], *, bias: bool = True
) -> tuple[Any, ...]:
    given, target = projection(N, D, C, bias=bias, dtype=dtype), targets(N, C)
    values = [getattr(options, name) for name in operators.KEYWORDS]
    return (*LinearInputs(*given, target), *values, dtype, *needed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_rows", [4, N])
@pytest.mark.parametrize("needed", [[True] * 3, [False, True, False], [True, False, False]])
@pytest.mark.parametrize("stats", [False, True])
def test_opcheck(
    stats: bool, needed: list[bool], chunk_rows: int, dtype: torch.dtype, backend: str
) -> None:
    options = LinearOptions(chunk_rows=chunk_rows, backend=backend, return_stats=stats)  # type: ignore[arg-type]
    given = arguments(dtype, options, needed)
    opcheck(torch.ops.labelsmooth.linear_forward.default, given, test_utils=SHAPES)
    loss, row_stats, *_ = torch.ops.labelsmooth.linear_forward.default(*given)
    backward = torch.ops.labelsmooth.linear_backward.default
    opcheck(backward, (torch.ones_like(loss), row_stats, *given), test_utils=SHAPES)


@pytest.mark.parametrize("stats", [False, True])
def test_opcheck_of_several_classes_and_row_weights(stats: bool, backend: str) -> None:
    options = LinearOptions(chunk_rows=4, backend=backend, return_stats=stats)  # type: ignore[arg-type]
    given = list(arguments(torch.float32, options, [True] * 3))
    several = {
        "target": torch.randint(C, (N, 3)),
        "target_probs": torch.rand(N, 3),
        "row_weight": torch.rand(N),
    }
    for name, tensor in several.items():
        given[LinearInputs._fields.index(name)] = tensor
    opcheck(torch.ops.labelsmooth.linear_forward.default, tuple(given), test_utils=SHAPES)
    loss, row_stats, *_ = torch.ops.labelsmooth.linear_forward.default(*given)
    backward = torch.ops.labelsmooth.linear_backward.default
    opcheck(backward, (torch.ones_like(loss), row_stats, *given), test_utils=SHAPES)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("traced", [False, True])
def test_opcheck_of_the_gradient(traced: bool, reduction: str) -> None:
    options = LinearOptions(chunk_rows=4, reduction=reduction)  # type: ignore[arg-type]
    given = list(arguments(torch.float32, options, [False] * 3, bias=False))
    for place in (0, 1):
        given[place].requires_grad_()
    operator = torch.ops.labelsmooth.linear_forward.default
    if traced:
        operator = torch.ops.labelsmooth.linear_forward.traced
        place = len(LinearInputs._fields) + operators.KEYWORDS.index("label_smoothing")
        given[place] = torch.tensor(0.1, dtype=torch.float64)
    opcheck(operator, tuple(given), test_utils=ALL)


KNOWS_OUT_DTYPE = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11),
    reason="torch 2.10 has addmm with out_dtype, but not for tensors without memory",
)


# ---- on a GPU ------------------------------------------------------------------------------------


class Device(TorchDispatchMode):
    """Notes operators, and shape and dtype of the tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.made: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        name = str(func).removeprefix("aten.")
        self.names.append(name)
        given = [t for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)]
        if isinstance(out, Tensor) and place_of(out) not in map(place_of, given):
            self.made.append((tuple(out.shape), out.dtype))
        return out


def place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class FakeKernel:
    """A backend that only says what it would write."""

    def forward(self, inputs: Any, options: Any, *, with_grad: bool) -> Any:
        assert options.inplace
        logits = inputs.logits
        rows = logits.shape[0] if options.reduction == "none" else ()
        stats = logits.new_empty((4, logits.shape[0]), dtype=torch.float32)
        loss = logits.new_empty(rows, dtype=torch.float32)
        return Outputs(loss, stats, logits.new_empty(0, dtype=torch.int64), logits)

    def backward(
        self, grad_loss: Tensor, stats: Tensor, inputs: Any, options: Any, **_: Any
    ) -> Tensor:
        return inputs.logits

    def scaled_(self, grad: Tensor, scale: Tensor) -> Tensor:
        return grad.mul_(scale)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Tensors that claim to be on a GPU. Whatever would wait for it (item, nonzero, a copy to the
    CPU) raises, as does a shape that depends on values."""
    monkeypatch.setattr(sharded, "choose_backend", lambda name, device: FakeKernel())
    torch.use_deterministic_algorithms(False)  # which fills memory: another operator
    with FakeTensorMode(), Device() as device:
        yield device


ROWS, FEATURES, CLASSES = 8192, 4096, 128_256


def on_gpu(dtype: torch.dtype, rows: int = ROWS) -> LinearInputs:
    place = {"device": "cuda"}
    return LinearInputs(
        torch.empty(rows, FEATURES, dtype=dtype, **place),
        torch.empty(CLASSES, FEATURES, dtype=dtype, **place),
        None,
        torch.empty(rows, dtype=torch.int64, **place),
        weight=torch.empty(CLASSES, dtype=torch.float32, **place),
    )


@KNOWS_OUT_DTYPE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_step_on_a_gpu(dtype: torch.dtype, gpu: Device) -> None:
    """Three products a chunk, sums in float32 by the products themselves, one slab, no waiting."""
    inputs, options = on_gpu(dtype), LinearOptions(label_smoothing=0.1)
    gpu.names.clear()
    gpu.made.clear()
    outputs = loop.forward(inputs, options, dtype, [True, True, False])
    products = [name for name in gpu.names if name.startswith(("mm", "addmm"))]
    half = dtype.itemsize == 2
    adding = "addmm.dtype_out" if half else "addmm_.default"
    assert products == ["mm.out", "addmm_.default", adding] * 2  # two chunks of 4096 rows
    large = [(shape, of) for shape, of in gpu.made if len(shape) == 2 and min(shape) > 4]
    slab, sums = ((4096, CLASSES), dtype), ((CLASSES, FEATURES), torch.float32)
    assert large == [((ROWS, FEATURES), dtype), sums, slab]  # both chunks in one slab
    gpu.made.clear()
    made = Gradients(*outputs[3:6])
    scale = torch.ones((), device="cuda")
    grads = finish(made, scale, inputs, keep=False, backend=FakeKernel())
    assert grads.linear_weight.dtype == dtype
    # Rounded as it is multiplied, and nothing made where nothing is rounded.
    assert [made for made in gpu.made if made[0]] == ([(sums[0], dtype)] if half else [])


@KNOWS_OUT_DTYPE
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_backward_on_a_gpu_waits_for_nothing(
    dtype: torch.dtype, reduction: str, gpu: Device
) -> None:
    inputs, options = on_gpu(dtype), LinearOptions(reduction=reduction)  # type: ignore[arg-type]
    outputs = loop.forward(inputs, options, dtype, [False] * 3)
    made = loop.backward(
        torch.empty_like(outputs.loss),
        outputs.row_stats,
        inputs,
        options,
        dtype,
        [True, True, False],
    )
    assert [grad.dtype for grad in made[:2]] == [dtype, dtype]
    assert not any("_local_scalar" in name or "nonzero" in name for name in gpu.names)


def test_the_dtype_of_products() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for dtype in DTYPES:
        assert product_dtype(dtype, gpu) == dtype
        assert product_dtype(dtype, cpu) in (dtype, torch.float32)
    assert product_dtype(torch.float64, cpu) == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fast", [False, True])
def test_either_kind_of_cpu(
    fast: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fast products of 16 bits and without."""
    monkeypatch.setattr(sizes, "FAST_BFLOAT16", fast)
    given, target = projection(N, D, C, bias=True, dtype=dtype), targets(N, C)
    for options in ({}, {"recompute": True}, {"reduction": "none"}):
        ours = run(given, target, chunk_rows=4, **options)
        expected = truth(given, target, **{k: v for k, v in options.items() if k == "reduction"})
        for grad, true in zip(ours.grads, expected.grads, strict=True):
            assert grad.dtype == dtype
            assert error(grad, true) < 4 * torch.finfo(dtype).eps
