"""Signatures are declared once; type checkers, `inspect` and `help` see them."""

from __future__ import annotations

import inspect
import pydoc
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from checks import ROOT

from labelsmooth import FusedLabelSmoothingLoss, label_smoothing_loss
from labelsmooth._call.problem import Options


def test_types() -> None:
    api = pytest.importorskip("mypy.api")
    consumer = Path(__file__).with_name("typed_consumer.py")
    configuration = f"--config-file={ROOT / 'pyproject.toml'}"
    said, errors, status = api.run([configuration, "--strict", str(consumer)])
    assert status == 0, said + errors


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
