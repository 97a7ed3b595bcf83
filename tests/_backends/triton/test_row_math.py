"""Triton's row_math.py is csrc/row_math.h, and row_part.py csrc/row_part.h: the same functions,
arguments and structs.

That their results are the same too, in float64, is what test_options.py shows for both; and of
parts of rows, that one backend combines what the other has made, in interpreted_cases.py.
"""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest
from checks import ROOT

from labelsmooth._backends.triton import row_math, row_part

ROW_MATH, ROW_PART = ((ROOT / "csrc" / name).read_text() for name in ("row_math.h", "row_part.h"))
# What torch operations make before the kernel runs, and an empty sum, which kernels write out.
NOT_MIRRORED = {"coef_of_class", "empty_stats"}
# Steps of transform_logit and transform_slope, which loops over a row take apart.
NOT_MIRRORED |= {"scaled_logit", "capped_logit", "capped_slope", "slope_factor"}
# Triton has no overloads; nor functions of functions, nor tuples whose fields change.
RENAMED = {"row_terms": "terms_of_part", "row_loss": "loss_of_part"}
OTHER_ARGUMENTS = {"store_part", "load_part", "empty_part", "invalid_part", "combine_ranks"}
PARTS_OF_FUNCTIONS = {"store_fields", "load_field", "select_part"}


def in_cpp(header: str) -> dict[str, list[str]]:
    """The functions of a header with the names of their arguments."""
    functions = {}
    for name, arguments in re.findall(
        r"^LABELSMOOTH_HD [\w<>]+ (\w+)\(([^)]*)\)", header, re.MULTILINE
    ):
        functions[name] = [
            argument.split()[-1].strip("&*") for argument in arguments.split(",") if argument
        ]
    return functions


def in_triton(module: ModuleType) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(value.fn).parameters)
        for name, value in vars(module).items()
        if hasattr(value, "fn") and value.fn.__module__ == module.__name__
    }


def fields_in_cpp(header: str) -> dict[str, list[str]]:
    """The structs of a header with the names of their members."""
    structs = {}
    for name, body in re.findall(r"struct (\w+) \{\n(.*?)\n\};", header, re.DOTALL):
        members = re.findall(r"^  (?:T|bool|SmoothOver) ([^;(]*);", body, re.MULTILINE)
        names = [member.split("=")[0].strip() for line in members for member in line.split(",")]
        structs[name] = names
    return structs


def test_functions() -> None:
    cpp, ours = in_cpp(ROW_MATH), in_triton(row_math)
    assert len(cpp) > 15
    assert cpp.keys() - ours.keys() <= NOT_MIRRORED
    assert ours.keys() - cpp.keys() == {"exp", "tanh"}  # of scalar_math.h
    for name in ours.keys() & cpp.keys() - NOT_MIRRORED:
        assert ours[name] == cpp[name], name


def test_functions_of_parts() -> None:
    cpp = {RENAMED.get(name, name): names for name, names in in_cpp(ROW_PART).items()}
    ours = in_triton(row_part)
    assert cpp.keys() - ours.keys() == {"for_fields"}
    assert ours.keys() - cpp.keys() == PARTS_OF_FUNCTIONS
    for name in cpp.keys() & ours.keys() - OTHER_ARGUMENTS:
        assert ours[name] == cpp[name], name


def test_smooth_over() -> None:
    names = re.search(r"enum class SmoothOver \{ ([^}]*) \};", ROW_MATH)[1].split(", ")
    assert [getattr(row_math, name.upper()).value for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    "name",
    ["LossOptions", "ClassSums", "RowStats", "RowTerms", "TargetTerms", "GradTerms"],
)
def test_structs(name: str) -> None:
    assert list(getattr(row_math, name)._fields) == fields_in_cpp(ROW_MATH)[name]


def test_fields_of_parts() -> None:
    """In the order in which they are sent."""
    (fields,) = fields_in_cpp(ROW_PART).values()
    assert list(row_part.RowPart._fields) == fields
    assert re.findall(r"use\(field\+\+, part\.(\w+)\)", ROW_PART) == fields
