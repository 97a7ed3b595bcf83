"""Drop-ins beside the libraries that they stand in for, which `make integrations` installs."""

from importlib.util import find_spec

# `make test` does without: there the drop-ins are held against formulas, in tests/compat.
collect_ignore_glob = [] if find_spec("transformers") else ["test_*.py"]
