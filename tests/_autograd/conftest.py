"""For tests that compile, and for those of the fused projection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from linear_checks import C, D, N, Projection, projection, targets
from torch import Tensor


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before is at hand, and no test's failure is the next one's."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def given() -> Projection:
    return projection(N, D, C, bias=True).leaves()


@pytest.fixture
def target() -> Tensor:
    return targets(N, C)
