"""ArviZ, which is optional: found where it is used, with one clear error where it is not."""

from __future__ import annotations

from typing import Any

__all__ = ["import_arviz"]


def import_arviz(what: str) -> Any:
    """The module `arviz`.

    Args:
        what: What needs it, for the error.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import arviz
    except ImportError as err:
        raise ImportError(f'{what} needs ArviZ: install it with pip install "sbi_bed[arviz]".') from err
    return arviz
