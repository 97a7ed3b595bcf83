"""Which backend "auto" takes, by what was built and what the device is."""

from __future__ import annotations

import pytest
import torch

from labelsmooth import _C
from labelsmooth._backends import choose, eager, native
from labelsmooth._backends.choose import choose_backend, covers
from labelsmooth._backends.triton import ops


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0 9.0", (8, 0), True),
        ("8.0 9.0", (8, 6), True),  # machine code runs on later devices of its major version
        ("8.0 9.0", (7, 5), False),
        ("8.0 9.0", (10, 0), False),
        ("8.0 9.0+PTX", (10, 0), True),  # PTX on all later ones
        ("8.6", (8, 0), False),
        ("9.0a+PTX", (9, 0), True),
        ("9.0a+PTX", (10, 0), False),  # neither, where a letter ties it to one GPU
        ("", (9, 0), False),
    ],
)
def test_built_for(architectures: str, capability: tuple[int, int], expected: bool) -> None:
    assert covers(architectures, capability) is expected


def test_ptx_that_the_driver_does_not_compile() -> None:
    assert not covers("8.0 9.0+PTX", (10, 0), compiles_ptx=False)
    assert covers("8.0 9.0+PTX", (9, 0), compiles_ptx=False)
    assert covers("8.0 9.0+PTX", (8, 9), compiles_ptx=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 whose driver serves the built-in CUDA."""
    monkeypatch.setattr(choose, "CUDA_ARCHITECTURES", "8.0+PTX")
    monkeypatch.setattr(choose, "HAS_TRITON", True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(_C, "cuda_runtime_version", 13010)
    monkeypatch.setattr(_C, "cuda_driver_version", lambda: 13010)


@pytest.mark.parametrize(
    ("built_for", "hip", "has_triton", "expected"),
    [
        ("8.0+PTX", None, True, native),
        ("8.0+PTX", None, False, native),
        ("8.0", None, True, ops),  # not for this GPU
        ("", None, True, ops),  # installed where there was no nvcc
        ("", None, False, eager),
        ("8.0+PTX", "7.0", True, ops),  # AMD
        ("8.0+PTX", "7.0", False, eager),
    ],
)
def test_auto_on_a_gpu(
    built_for: str,
    hip: str | None,
    has_triton: bool,
    expected: object,
    gpu: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "CUDA_ARCHITECTURES", built_for)
    monkeypatch.setattr(choose, "HAS_TRITON", has_triton)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert choose_backend("auto", torch.device("cuda")) is expected


@pytest.mark.parametrize(
    ("built_for", "driver", "runs"),
    [
        ("8.0+PTX", 13010, True),
        ("8.0+PTX", 14000, True),
        ("8.0+PTX", 13000, False),  # PTX of a later CUDA
        ("9.0+PTX", 13000, True),  # machine code
        ("9.0+PTX", 12090, False),
        ("9.0", 0, False),  # no driver that the runtime finds
    ],
)
def test_drivers(
    built_for: str, driver: int, runs: bool, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a driver is too old "auto" is Triton, and who asks for CUDA is told of both
    versions."""
    monkeypatch.setattr(choose, "CUDA_ARCHITECTURES", built_for)
    monkeypatch.setattr(_C, "cuda_driver_version", lambda: driver)
    device = torch.device("cuda")
    assert choose_backend("auto", device) is (native if runs else ops)
    said = choose.describe_backends()
    assert said["auto on cuda"] == ("cuda" if runs else "triton")
    if runs:
        assert choose_backend("cuda", device) is native
        return
    served = f"{driver // 1000}.{driver % 1000 // 10}"
    with pytest.raises(RuntimeError, match=f"CUDA 13.1.* driver for CUDA {served}") as raised:
        choose_backend("cuda", device)
    assert said["cuda"] in str(raised.value)


def test_the_machine_is_asked_once(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def driver_version() -> int:
        asked.append("driver")
        return 13010

    monkeypatch.setattr(_C, "cuda_driver_version", driver_version)
    assert choose_backend("auto", torch.device("cuda:0")) is native
    assert asked
    asked.clear()
    assert choose_backend("auto", torch.device("cuda:0")) is native
    assert not asked
    choose_backend("auto", torch.device("cuda:1"))
    assert asked


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", native), ("meta", native), ("xpu", eager)]
)
def test_auto_elsewhere(device: str, expected: object) -> None:
    assert choose_backend("auto", torch.device(device)) is expected


def test_torch_is_asked_for_its_stream() -> None:
    """By a function of torch's CUDA library, which is there without a GPU too."""
    built = bool(_C.cuda_architectures) and torch.version.cuda is not None
    assert _C.has_torch_cuda() is built
