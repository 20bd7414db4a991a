"""Checks of arguments: each error names the argument, and the first bad index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .as_numbers import as_numbers, check_finite

__all__ = ["as_finite_tensor", "check_choice", "check_count", "check_fraction", "check_positive"]


def as_finite_tensor(value: Any, name: str, last_dim: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return `value` as a floating-point tensor, all finite.

    Args:
        value: Number, sequence, tensor, array, or column or frame of pandas or polars; its precision as in `as_numbers`.
        name: What to call it in an error.
        last_dim: Required size of the last dimension, if any. A scalar becomes shape (1,).
        dtype: Precision of the result, as in `as_numbers`.

    Raises:
        TypeError: If it holds anything but real numbers.
        ValueError: If it holds NaN or infinity, a number is too large for its precision, or its last dimension is not
            `last_dim`.
    """
    tensor = as_numbers(value, name, dtype=dtype)
    if tensor.ndim == 0:
        tensor = tensor.reshape(1)
    if last_dim is not None and tensor.shape[-1] != last_dim:
        raise ValueError(f"{name} must have {last_dim} values in its last dimension, got shape {tuple(tensor.shape)}.")
    return check_finite(tensor, name)


def check_count(value: Any, name: str, minimum: int = 1) -> int:
    """Return `value` as an int of at least `minimum`; a `ValueError` or `TypeError` otherwise."""
    try:
        whole = not isinstance(value, bool) and int(value) == value
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise TypeError(f"{name} must be a whole number, got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")
    return int(value)


def check_positive(value: Any, name: str) -> float:
    """Return `value` as a float, positive and finite; a `ValueError` or `TypeError` otherwise."""
    try:
        number = float(value)
    except (TypeError, ValueError) as err:
        raise TypeError(f"{name} must be a number, got {value!r}.") from err
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be {'finite' if number == math.inf else 'positive'}, got {value}.")
    return number


def check_fraction(value: Any, name: str) -> float:
    """Return `value` as a float strictly between 0 and 1; a `ValueError` otherwise."""
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < 1:
        raise ValueError(f"{name} must be strictly between 0 and 1, got {value!r}.")
    return number


def check_choice(value: Any, name: str, allowed: Sequence[str | None]) -> Any:
    """Return `value` if it is one of the `allowed` names; a `ValueError` otherwise."""
    if value not in allowed:
        *most, last = map(repr, allowed)
        raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {value!r}.")
    return value
