"""Warnings that point at the user's line, however deep in the package they arise, and none that mean nothing to the user."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["is_first_in_call", "warn_user", "without_sbi_notes"]

_BETWEEN = ("joblib", "nflows", "pyro", "sbi", "torch", "zuko")  # libraries that call the package back
_NOTES = (
    "Data has constant values in dimension",  # masks of complete data; our nets do not z-score them
    "Note that for batched sampling, the direct posterior",  # how many draws go through the net at once
)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, naming the innermost line that belongs neither to this package nor to a library between it and the user.

    Args:
        message: What to say.
        category: Kind of warning.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_user("look here")
        >>> str(caught[0].message)
        'look here'
    """
    _, depth = _call_of_user()
    warnings.warn(message, category, stacklevel=depth)


def is_first_in_call() -> bool:
    """Whether this is asked for the first time in one call of the user, which may lead here thousands of times.

    The call is the outermost frame below the user's. It carries the mark, so that the next call is another one: as
    `f_trace_lines`, which only debuggers read.

    Example:
        >>> is_first_in_call()
        True
    """
    call, _ = _call_of_user()
    first, call.f_trace_lines = call.f_trace_lines, False
    return first


def _call_of_user() -> tuple[FrameType, int]:
    """The outermost frame below the innermost line of the user, and the `stacklevel` of that line for the caller."""
    folders, call, depth = _folders(), sys._getframe(1), 2
    while call.f_back is not None and call.f_back.f_code.co_filename.startswith(folders):
        call, depth = call.f_back, depth + 1
    return call, depth


@functools.cache
def _folders() -> tuple[str, ...]:
    specs = (importlib.util.find_spec(name) for name in _BETWEEN)
    others = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]
    return tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], *others))


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
