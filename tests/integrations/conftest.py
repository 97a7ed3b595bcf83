"""Drop-ins beside the libraries that they stand in for, which `make integrations` installs. In
`make test`, which leaves this folder out, tests/compat holds them against formulas."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """What libraries warn of is theirs."""
    config.addinivalue_line("filterwarnings", "ignore")
