"""The properties of every call, of rows in parts on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
from functional.test_properties import *  # noqa: F403, every property, of the backend below
from shards import InShards

from labelsmooth._backends import eager, native


@pytest.fixture(params=[native, eager], ids=["cpu", "eager"])
def backend(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    shards = InShards(request.param)
    monkeypatch.setattr("labelsmooth._backends.sharded.choose_backend", lambda *_: shards)
    return "auto"
