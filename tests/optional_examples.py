"""A plugin of pytest that skips doctests whose optional package is not installed.

Use it with `PYTHONPATH=tests pytest -p optional_examples --doctest-modules --pyargs sbi_bed`.
"""

import importlib.util

import pytest

NEEDED = {"to_arviz": "arviz"}  # public name → package that its example needs


def pytest_runtest_setup(item):
    package = NEEDED.get(item.name.rpartition(".")[2])
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"the example needs {package}")
