"""A loss out of a library that cannot be imported whole: its one file, as installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch


def load(name: str, stand_ins: dict[str, Any]) -> ModuleType:
    """The module of this name, without the packages around it. Beside it stand, for its imports,
    these; None for what the loss does not use."""
    library, *rest = name.split(".")
    package = find_spec(library)
    assert package is not None
    assert package.submodule_search_locations, f"{library} is not installed"
    file = Path(package.submodule_search_locations[0], *rest).with_suffix(".py")
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    modules = {name: MagicMock() if it is None else it for name, it in stand_ins.items()}
    with patch.dict(sys.modules, modules):
        spec.loader.exec_module(module)
    return module
