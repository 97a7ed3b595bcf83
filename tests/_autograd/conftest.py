"""For tests that compile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before is at hand, and no test's failure is the next one's."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
