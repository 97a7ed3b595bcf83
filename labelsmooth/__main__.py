"""`python -m labelsmooth`: versions, backends, processor."""

import platform

import torch

from . import __version__
from ._backends.choose import describe_backends


def main() -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows = {
        "labelsmooth": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        **{f"backend {name}": what for name, what in describe_backends().items()},
        "GPU": gpu,
    }
    for name, value in rows.items():
        print(f"{name:20} {value}")


if __name__ == "__main__":
    main()
