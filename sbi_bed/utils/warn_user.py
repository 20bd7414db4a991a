"""Warnings that point at the user's line, however deep in the package they arise."""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import warnings
from pathlib import Path

__all__ = ["warn_user"]

_BETWEEN = ("joblib", "sbi", "torch")  # libraries that call the package back


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
    folders, frame, level = _folders(), sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(folders):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@functools.cache
def _folders() -> tuple[str, ...]:
    specs = (importlib.util.find_spec(name) for name in _BETWEEN)
    others = [Path(spec.origin).parent for spec in specs if spec is not None and spec.origin is not None]
    return tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], *others))
