"""Which backend computes a call: the one lookup, and what it says when it cannot."""

import functools
import importlib.util
import re
from typing import Any

import torch

from .. import _C
from .._call.problem import Backend
from . import eager, native

CUDA_ARCHITECTURES: str = getattr(_C, "cuda_architectures", "")  # "": not built
HAS_TRITON = importlib.util.find_spec("triton") is not None


@functools.cache
def choose_backend(name: Backend, device: torch.device) -> Any:
    """The module that computes a call on this device.

    "auto" is the kernels of the device; on a GPU those of CUDA where they were built for it and its
    driver, else Triton's where triton is installed; else, and on other devices, "eager".

    Raises RuntimeError where the backend is not built, or not for this device.
    """
    if name == "auto":
        name = _best_for(device)
    if name == "eager":
        return eager
    if name == "cpu":
        if device.type not in ("cpu", "meta"):
            raise RuntimeError(f"backend='cpu': expected logits on the CPU, got {device}")
        return native
    if name == "cuda":
        if reason := _why_not_cuda(device):
            raise RuntimeError(f"backend='cuda' {reason}")
        return native
    if not HAS_TRITON:
        raise RuntimeError(
            "backend='triton' needs triton: `pip install triton`, or take 'eager', which runs on "
            "every device"
        )
    if not _triton_runs_on(device):
        raise RuntimeError(
            f"backend='triton': expected logits on a GPU, or TRITON_INTERPRET=1, got {device}"
        )
    from .triton import ops

    return ops


def _best_for(device: torch.device) -> Backend:
    if device.type in ("cpu", "meta"):
        return "cpu"
    if device.type != "cuda":
        return "eager"
    if not _why_not_cuda(device):
        return "cuda"
    return "triton" if HAS_TRITON else "eager"


def _why_not_cuda(device: torch.device) -> str | None:
    """What keeps the CUDA kernels from running there, in words that follow their name."""
    if not CUDA_ARCHITECTURES:
        return (
            "is not built: install labelsmooth where nvcc is found, or take 'triton', or 'eager', "
            "which runs on every device"
        )
    if device.type != "cuda":
        return f"runs on CUDA devices, got logits on {device}"
    if torch.version.hip is not None:
        return f"is built for {CUDA_ARCHITECTURES}, got a GPU of HIP: take 'triton'"
    if not torch.cuda.is_available():
        return None
    built_with, served = _C.cuda_runtime_version, _C.cuda_driver_version()
    # A driver serves every release of its major version, but for PTX of later ones.
    if served // 1000 < built_with // 1000:
        return (
            f"is built with CUDA {_version(built_with)}, got a driver for CUDA {_version(served)}: "
            "take 'triton', or update the driver"
        )
    capability = torch.cuda.get_device_capability(device)
    if not covers(CUDA_ARCHITECTURES, capability, compiles_ptx=served >= built_with):
        return (
            f"is built for {CUDA_ARCHITECTURES} with CUDA {_version(built_with)}, got a GPU of "
            f"{capability} and a driver for CUDA {_version(served)}: take 'triton', or build from "
            "source"
        )
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def covers(architectures: str, capability: tuple[int, int], *, compiles_ptx: bool = True) -> bool:
    """Whether code for "8.0 9.0a 10.0+PTX" runs on a GPU: machine code on those of its major
    version that are no older, PTX on all that are no older, where the driver compiles it; either
    with a letter on that GPU alone."""
    for major, minor, letter, ptx in re.findall(r"(\d+)\.(\d+)([a-z]?)(\+PTX)?", architectures):
        built = (int(major), int(minor))
        if built == capability or (
            not letter
            and built < capability
            and ((ptx and compiles_ptx) or built[0] == capability[0])
        ):
            return True
    return False


def _triton_runs_on(device: torch.device) -> bool:
    if device.type == "cuda":
        return True
    import triton

    if triton.knobs.runtime.interpret:
        return device.type == "cpu"
    try:
        driver = triton.runtime.driver.active
        return bool(driver.get_active_torch_device().type == device.type)
    except RuntimeError:  # no driver
        return False


def describe_backends() -> dict[str, str]:
    """What `python -m labelsmooth` says of each."""
    gpu = torch.cuda.is_available()
    threads = f"{_C.cpu_instruction_set}, {torch.get_num_threads()} threads"
    cuda = f"built for {CUDA_ARCHITECTURES} with CUDA {_version(_C.cuda_runtime_version)}"
    if reason := _why_not_cuda(torch.device("cuda")):
        cuda = reason
    triton = "not installed"
    if HAS_TRITON:
        import triton as installed

        triton = installed.__version__
    no_gpu = "" if gpu else "; no GPU here"
    return {
        "cpu": threads,
        "cuda": cuda + no_gpu,
        "triton": triton + no_gpu,
        "eager": "on every device",
        "auto on cpu": _best_for(torch.device("cpu")),
        "auto on cuda": _best_for(torch.device("cuda")),
    }
