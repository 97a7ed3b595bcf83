"""Triton's row_math.py is csrc/row_math.h: the same functions, arguments and structs.

That their results are the same too, in float64, is what test_options.py shows for both.
"""

from __future__ import annotations

import inspect
import re

import pytest
from checks import ROOT

from labelsmooth._backends.triton import row_math

HEADER = (ROOT / "csrc" / "row_math.h").read_text()
# What Triton's language has itself, and what torch operations make before the kernel runs.
NOT_MIRRORED = {"select", "max", "exp", "log", "tanh", "infinity", "empty_stats"}
NOT_MIRRORED |= {"coef_of_class"}


def in_cpp() -> dict[str, list[str]]:
    """The functions of row_math.h with the names of their arguments."""
    functions = {}
    for name, arguments in re.findall(
        r"^LABELSMOOTH_HD [\w<>]+ (\w+)\(([^)]*)\)", HEADER, re.MULTILINE
    ):
        functions[name] = [
            argument.split()[-1].strip("&") for argument in arguments.split(",") if argument
        ]
    return functions


def in_triton() -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(value.fn).parameters)
        for name, value in vars(row_math).items()
        if hasattr(value, "fn") and value.fn.__module__ == row_math.__name__
    }


def fields_in_cpp() -> dict[str, list[str]]:
    """The structs of row_math.h with the names of their members."""
    structs = {}
    for name, body in re.findall(r"struct (\w+) \{\n(.*?)\n\};", HEADER, re.DOTALL):
        members = re.findall(r"^  (?:T|bool|SmoothOver) ([^;(]*);", body, re.MULTILINE)
        names = [member.split("=")[0].strip() for line in members for member in line.split(",")]
        structs[name] = names
    return structs


def test_functions() -> None:
    cpp, ours = in_cpp(), in_triton()
    assert len(cpp) > 15
    assert cpp.keys() - ours.keys() <= NOT_MIRRORED
    assert ours.keys() - cpp.keys() == set()
    for name in ours.keys() - NOT_MIRRORED:
        assert ours[name] == cpp[name], name


def test_smooth_over() -> None:
    names = re.search(r"enum class SmoothOver \{ ([^}]*) \};", HEADER)[1].split(", ")
    assert [getattr(row_math, name.upper()).value for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    "name",
    ["LossOptions", "ClassSums", "RowStats", "RowTerms", "TargetTerms", "GradTerms"],
)
def test_structs(name: str) -> None:
    assert list(getattr(row_math, name)._fields) == fields_in_cpp()[name]
