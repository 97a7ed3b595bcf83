"""`python -m labelsmooth`: versions, backends, processor."""

import platform

import torch

from . import __version__
from ._C import cpu_instruction_set


def main() -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "labelsmooth": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend cpu": f"{cpu_instruction_set}, {torch.get_num_threads()} threads",
        "backend eager": "usable, on every device",
        "backend cuda": "not part of this version",
        "backend triton": "not part of this version",
        "GPU": gpu,
    }
    for name, value in rows.items():
        print(f"{name:14} {value}")


if __name__ == "__main__":
    main()
