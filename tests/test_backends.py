"""Which backend "auto" takes, by what was built and what the device is."""

from __future__ import annotations

import pytest
import torch

from labelsmooth import _C
from labelsmooth._backends import covers


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        ("8.0 9.0", (8, 0), True),
        ("8.0 9.0", (8, 6), True),  # machine code runs on later devices of its major version
        ("8.0 9.0", (7, 5), False),
        ("8.0 9.0", (10, 0), False),
        ("8.0 9.0+PTX", (10, 0), True),  # PTX on all later ones
        ("8.6", (8, 0), False),
        ("", (9, 0), False),
    ],
)
def test_built_for(architectures: str, capability: tuple[int, int], expected: bool) -> None:
    assert covers(architectures, capability) is expected


def test_torch_is_asked_for_its_stream() -> None:
    """By a function of torch's CUDA library, which is there without a GPU too."""
    built = bool(_C.cuda_architectures) and torch.version.cuda is not None
    assert _C.has_torch_cuda() is built
