"""The Triton backend: Triton's own PTX, run without a GPU, over the table of cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import triton
from _backends.triton.steps import one_step
from checks import DTYPES, Outcome, assert_equals_reference, check_scaling
from gpu_cases import CASES, Case, check_case
from ptxsim.triton_driver import simulated_triton
from reference import reference
from shards import InShards

from labelsmooth._backends.triton import call, ops
from labelsmooth._backends.triton.kernels import loss_kernel
from labelsmooth._backends.triton.plan import Gpu
from labelsmooth._call.problem import Inputs, Options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BY_NAME = {case.name: case for case in CASES}
# Every kind of kernel, for the architectures that are not run in full.
SOME = [
    "float32 C=1025",
    "bfloat16 C=4097",
    "bfloat16 C=40003",
    "float16 C=129",
    "float64 C=32",
    "everything, one step",
    "everything, long rows",
    "weighted probabilities, two phases",
    "float16 probabilities, one step",
    "weighted few, two phases",
    "many, long rows",
    "weighted unmasked, long rows",
    "columns, (N, C, S), ignored",
    "columns, (N, C, S), few",
]
LONG = [case for case in CASES if case.shape[1] > 33000]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case) -> None:
    with simulated_triton(90, noise=2, counts=False):
        check_case(case, ops)


@pytest.mark.parametrize("arch", [80, 100])
@pytest.mark.parametrize("name", SOME)
def test_case_on_other_architectures(name: str, arch: int) -> None:
    with simulated_triton(arch, noise=2, counts=False):
        check_case(BY_NAME[name], ops)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("classes", "targets"),
    [(1, "classes"), (30, "classes"), (517, "classes"), (30, "few"), (517, "many")],
)
def test_in_place_whichever_warp_is_first(
    classes: int, targets: str, dtype: str, seed: int
) -> None:
    case = Case(
        f"{dtype} in place C={classes}",
        dtype=getattr(torch, dtype),
        shape=(3, classes),
        layout="odd",
        targets=targets,
        options={"inplace": True},
    )
    with simulated_triton(90, sched="random", seed=seed, counts=False) as gpu:
        check_case(case, ops)
        assert not gpu.reports[-1].warnings


# ---- few long rows: parts of them, combined ------------------------------------------------------


@pytest.mark.parametrize("case", LONG, ids=str)
def test_rows_in_parts(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "gpu_of", lambda device: Gpu(132, 32))
    with simulated_triton(90, noise=2, counts=False) as gpu:
        check_case(case, ops)
    assert [report.grid[1] > 1 for report in gpu.reports[:2]] == [True, False]


# ---- rows of which each rank has a part ----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "everything, long rows",
        "weighted probabilities, two phases",
        "weighted few, two phases",
        "weighted unmasked, long rows",
        "unmasked few, one step",
    ],
)
def test_rows_over_ranks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few classes here, and many there."""
    monkeypatch.setattr(call, "gpu_of", lambda device: Gpu(132, 32))
    with simulated_triton(90, noise=2, counts=False):
        check_case(BY_NAME[name], InShards(ops, cuts=(0.1,)))


# ---- one call ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(2**31 + 8, 1), (1, 2**30 + 5)], ids=["rows", "classes"])
def test_offsets_beyond_32_bits(strides: tuple[int, int]) -> None:
    """Logits and gradient in memory of which only a few pages are ever touched."""
    memory = torch.from_numpy(np.zeros(2**32, np.int16)).view(torch.bfloat16)
    logits = memory.as_strided((2, 4), strides)
    logits.copy_(torch.randn(2, 4))
    target = torch.tensor([3, 1])
    expected = reference(logits, target, label_smoothing=0.1)
    inputs = Inputs(logits, target, None, None, None, None, None)
    options = Options(inplace=True)
    with simulated_triton(90, counts=False):
        outputs = ops.forward(inputs, replace(options, label_smoothing=0.1), with_grad=True)
    assert_equals_reference(Outcome(outputs.loss, logits), expected, logits)


def test_the_same_bits_whatever_the_schedule() -> None:
    logits = torch.randn(3, 1000)
    with simulated_triton(90, counts=False):
        expected = one_step(logits)
    for seed in range(2):
        with simulated_triton(90, sched="random", seed=seed, counts=False):
            assert torch.equal(one_step(logits), expected)


# ---- the scaling of a gradient that was made in forward ------------------------------------------


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(dtype: torch.dtype, offset: int) -> None:
    """Of so much that each program goes round its loop."""
    with simulated_triton(90) as gpu:
        values = check_scaling(ops.scaled_, dtype, 40003, offset)
    (report,) = gpu.reports
    assert report.grid[0] * 2048 < len(values)
    traffic, size = report.tensor(values), values.numel() * values.element_size()
    assert (traffic.read_bytes, traffic.written_bytes) == (size, size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_by_one_touches_nothing(dtype: torch.dtype) -> None:
    values = torch.randn(40003).to(dtype)
    factor = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with simulated_triton(90) as gpu:
        ops.scaled_(values, factor)
    traffic = gpu.reports[0].tensor(values)
    assert (traffic.read_bytes, traffic.written_bytes) == (0, 0)


@pytest.mark.parametrize("values", [torch.empty(0), torch.ones(3, 8)[:, :5]], ids=["none", "view"])
def test_scale_without_the_kernel(values: torch.Tensor) -> None:
    with simulated_triton(90) as gpu:
        ops.scaled_(values, torch.tensor(0.5))
    assert not gpu.reports
    assert (values == 0.5).all()


# ---- compilation ---------------------------------------------------------------------------------


def test_numbers_do_not_recompile() -> None:
    """No value of smoothing, scale or ignore_index, nor another number of rows, is a new kernel."""
    logits = torch.randn(48, 40)
    with simulated_triton(90, counts=False):
        one_step(logits[:16], label_smoothing=0.1, logit_scale=0.5, softcap=3.0)
        cache = loss_kernel.device_caches[triton.runtime.driver.active.get_current_device()][0]
        kernels = len(cache)
        for smoothing, scale, cap, ignored, rows in (
            (0.0, 1.0, 1.0, 0, 32),
            (1.0, 0.0, 30.0, 1, 48),
            (0.5, -1.0, 2.0, 16, 16),
            (0.25, 2.0, 16.0, -(2**40), 32),
        ):
            one_step(
                logits[:rows],
                label_smoothing=smoothing,
                logit_scale=scale,
                softcap=cap,
                ignore_index=ignored,
                lse_square_scale=smoothing,
            )
        assert len(cache) == kernels


@pytest.mark.parametrize("shape", [(40,), (1001,), (21, 5)])
def test_batch_sizes_do_not_recompile(shape: tuple[int, ...]) -> None:
    with simulated_triton(90, counts=False):
        one_step(torch.randn(7, *shape))
        cache = loss_kernel.device_caches[triton.runtime.driver.active.get_current_device()][0]
        kernels = len(cache)
        for rows in (1, 2, 16, 31, 32):
            one_step(torch.randn(rows, *shape))
        assert len(cache) == kernels
