"""What the numbers were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch


def environment(threads: int) -> dict[str, Any]:
    import labelsmooth
    from labelsmooth import _C

    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "instruction_set": _C.cpu_instruction_set,
        "instruction_set_torch": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "transparent_huge_pages": transparent_huge_pages(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "labelsmooth": labelsmooth.__version__,
    }


def gpu() -> dict[str, Any]:
    """The first GPU's machine; of the package nothing, which need not be built yet.

    Raises RuntimeError where torch finds none.
    """
    found = torch.cuda.get_device_properties(0)
    return {
        "gpu": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "gpu_memory_gib": round(found.total_memory / 2**30, 1),
        "driver": driver(),
        "cuda": torch.version.cuda or torch.version.hip,
        "torch": torch.__version__,
        "triton": triton_version(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "date": date.today().isoformat(),
    }


def driver() -> str:
    ask = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return subprocess.check_output(ask, text=True).split()[0]
    except OSError:
        return "unknown"


def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cpu_maker() -> str:
    """Whose processor it is, by which results are named: "intel", "amd" or "arm"; else "cpu"."""
    name = f"{cpu_name()} {platform.machine()}".lower()
    for maker, words in {"intel": ["intel"], "amd": ["amd "], "arm": ["arm", "aarch64"]}.items():
        if any(word in name for word in words):
            return maker
    return "cpu"


def transparent_huge_pages() -> str:
    """The system's setting: always, madvise or never."""
    try:
        choices = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return choices.partition("[")[2].partition("]")[0]
