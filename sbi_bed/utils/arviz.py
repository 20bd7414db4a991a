"""Import of ArviZ, which is optional, with one clear error if it is not installed."""

from __future__ import annotations

from typing import Any

__all__ = ["import_arviz"]


def import_arviz(what: str) -> Any:
    """The module `arviz`.

    Args:
        what: Name of the function that needs it, for the error.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import arviz
    except ImportError as err:
        raise ImportError(f'{what} needs ArviZ: install it with pip install "sbi_bed[arviz]".') from err
    return arviz
