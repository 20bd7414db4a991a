"""For pytest alone: examples that need an optional package are skipped where it is not installed."""

import importlib.util
from typing import Any

import pytest

NEEDED = {"power_scaling_by_importance": "arviz", "to_arviz": "arviz"}


def pytest_runtest_setup(item: Any) -> None:
    """Skip the example of a name whose package is missing."""
    package = NEEDED.get(item.name.rpartition(".")[2])
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"the example needs {package}")
