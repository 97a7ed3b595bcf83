"""Rows in parts, on backends of the CPU, held against the table of GPU cases."""

from __future__ import annotations

from typing import Any

import pytest
from gpu_cases import CASES, Case, check_case
from shards import InShards

from labelsmooth._backends import eager, native

# A bad target is an IndexError on the CPU.
ON_CPU = [case for case in CASES if "below" not in case.targets and "beyond" not in case.targets]


@pytest.mark.parametrize("backend", [native, eager], ids=["cpu", "eager"])
@pytest.mark.parametrize("case", ON_CPU, ids=str)
def test_case(case: Case, backend: Any) -> None:
    check_case(case, InShards(backend))
