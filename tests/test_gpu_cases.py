"""The table of GPU cases, held against the eager backend: the table itself is right."""

from __future__ import annotations

import pytest
from gpu_cases import CASES, Case, check_case

from labelsmooth._backends import eager

# A bad target is an IndexError on the CPU, see test_errors.py.
ON_CPU = [case for case in CASES if case.targets not in ("below", "beyond")]


def test_names_tell_cases_apart() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", ON_CPU, ids=str)
def test_eager(case: Case) -> None:
    check_case(case, eager)
