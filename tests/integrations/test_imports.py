"""Where all libraries are installed, none is imported before it must be."""

from __future__ import annotations

import subprocess
import sys

from labelsmooth import compat

IMPORT_ALL = """
import importlib, sys
import labelsmooth
from labelsmooth import compat

for library in compat.LIBRARIES:
    importlib.import_module(f"labelsmooth.compat.{library}")
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_no_drop_in_imports_its_library() -> None:
    run = [sys.executable, "-c", IMPORT_ALL]
    loaded = subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
    assert "labelsmooth" in loaded
    assert not set(loaded) & ({*compat.LIBRARIES, "onmt", "torchvision", "accelerate"} - {"torch"})
