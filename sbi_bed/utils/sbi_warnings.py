"""Warnings of sbi that mean nothing to the user of a call of this package."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["without_sbi_notes"]

_NOTES = (
    "Data has constant values in dimension",  # masks of complete data; our nets do not z-score them
    "Note that for batched sampling, the direct posterior",  # how many draws go through the net at once
)


@contextmanager
def without_sbi_notes() -> Iterator[None]:
    """Within this block these warnings of sbi are not shown; all others are.

    Example:
        >>> with without_sbi_notes():
        ...     warnings.warn("Data has constant values in dimension(s) [3].")
    """
    with warnings.catch_warnings():
        for note in _NOTES:
            warnings.filterwarnings("ignore", message=note)
        yield
