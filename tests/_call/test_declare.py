"""Signatures are declared once; `inspect` and `help` see them, and type checkers, for which see
tests/package/consumer.py."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import fields
from typing import get_type_hints

import pytest

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss
from labelsmooth._call.problem import Options


@pytest.mark.parametrize("declared", [label_smoothing_loss, FusedLabelSmoothingLoss])
def test_every_option_with_its_type_and_default(declared: object) -> None:
    shown = inspect.signature(declared).parameters
    types = get_type_hints(Options)
    for option in fields(Options):
        parameter = shown[option.name]
        assert parameter.default == option.default
        if option.name != "logit_scale":
            assert parameter.annotation == types[option.name]
        assert f"{option.name}: " in pydoc.plain(pydoc.render_doc(declared))
