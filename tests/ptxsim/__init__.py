"""Run compiled PTX on the CPU, one numpy lane per CUDA thread, with checks and counters.

    sim = Sim(ptx_text, sched="random", noise=2)
    report = sim.launch("row_max", grid=6, block=128, args=[x, out, 1003])

`cuda_runtime` drives launchers that nvcc compiled, `triton_driver` ordinary Triton launches.
"""

from .counters import Access, Report, TensorTraffic
from .cuda_build import build_library, extract_ptx
from .cuda_runtime import CudaLibrary, Gpu
from .device import Device
from .errors import LaunchError, SimError, UnsupportedError
from .launch import Sim
from .parser import Module

__all__ = [
    "Access",
    "CudaLibrary",
    "Device",
    "Gpu",
    "LaunchError",
    "Module",
    "Report",
    "Sim",
    "SimError",
    "TensorTraffic",
    "UnsupportedError",
    "build_library",
    "extract_ptx",
]
