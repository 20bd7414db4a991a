"""Nested data as their lowest sets: the place of each, its features, and which observations were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..as_numbers import as_numbers, check_finite

__all__ = ["LowestSet", "as_nested", "check_flags", "depth_of", "sets_of_nested"]

LowestSet = tuple[tuple[int, ...], Tensor, Tensor]  # its place on the levels above, features (n, F), mask (n,)


def as_nested(data: Any, name: str = "data") -> Any:
    """Columns and arrays of any library, at any depth, as arrays; lists and tensors stay.

    Raises:
        TypeError: If there is a dict or set: its order says nothing.
    """
    if isinstance(data, (Tensor, int, float, complex, str, bytes, np.generic)):
        return data
    if isinstance(data, (Mapping, set, frozenset)):
        raise TypeError(f"{name} must be nested sequences, got a {type(data).__name__}: give its values as a list.")
    if hasattr(data, "__array__"):
        values = np.asarray(data)
        if values.dtype.kind == "O" and any(isinstance(value, (list, tuple, np.ndarray)) for value in values.flat):
            return [as_nested(value, name) for value in values]  # an array or column of lists
        return as_numbers(data, name, missing=True).numpy()
    return [as_nested(part, name) for part in data] if isinstance(data, (list, tuple)) else data


def depth_of(data: Any) -> int:
    """How deep numbers are nested; an empty sequence counts for one."""
    if isinstance(data, (Tensor, np.ndarray)):
        return data.ndim
    if isinstance(data, str) or not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        return 0
    return 1 + max((depth_of(part) for part in data), default=0)


def sets_of_nested(data: Any, mask: Any, levels: int, has_features: bool) -> list[LowestSet]:
    """Lowest sets of nested sequences, `levels` deep above an observation; the mask is nested alike, or None.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If depths or numbers of features differ, a value is not finite, or the mask does not fit.
    """
    found: list[LowestSet] = []
    _collect(data, mask, (), levels, has_features, found)
    return found


def _collect(data: Any, mask: Any, place: tuple[int, ...], levels: int, has_features: bool, found: list) -> None:
    if not hasattr(data, "__len__") or (isinstance(data, (Tensor, np.ndarray)) and data.ndim == 0):
        raise ValueError(f"data must be equally deep everywhere, got {data!r} at index {place}.")
    if len(place) == levels - 1:
        found.append((place, *_lowest_set(data, mask, place, has_features)))
        return
    if mask is not None and (not hasattr(mask, "__len__") or len(mask) != len(data)):
        raise ValueError(f"mask must be nested as data: it does not have {len(data)} entries at index {place}.")
    for number, part in enumerate(data):
        _collect(part, None if mask is None else mask[number], (*place, number), levels, has_features, found)
    if len(data) == 0:
        found.append((place, torch.zeros(0, 0), torch.zeros(0)))  # a set that is empty on a higher level


def _lowest_set(data: Any, mask: Any, place: tuple[int, ...], has_features: bool) -> tuple[Tensor, Tensor]:
    """Features (n, F) and mask (n,) of one set."""
    where = f" at index {place}" if place else ""
    lengths = (
        {len(part) if hasattr(part, "__len__") and np.ndim(part) else -1 for part in data} if has_features else {0}
    )
    if len(lengths) > 1 and -1 in lengths:
        raise ValueError(f"data must be equally deep everywhere, got {data!r}{where}.")
    if len(lengths) > 1:
        raise ValueError(
            f"observations must have one number of features, got {sorted(lengths)}{where}; where these are sets of "
            f"numbers give num_levels={len(place) + 2}."
        )
    values = as_numbers(data, f"data{where}")
    if values.numel() == 0:
        values = values.reshape(len(data), -1) if len(data) else values.new_zeros(0, 0)
    elif values.ndim != 1 + has_features:
        raise ValueError(f"data must be equally deep everywhere, got shape {tuple(values.shape)}{where}.")
    elif not has_features:
        values = values.unsqueeze(-1)
    flags = torch.ones(len(values)) if mask is None else check_flags(mask, len(values), place)
    bad = (~torch.isfinite(values) & (flags > 0).to(values.device).unsqueeze(-1)).nonzero()
    if len(bad):
        row, feature = bad[0].tolist()
        index = (*place, row, feature) if has_features else (*place, row)
        raise ValueError(
            f"data must be finite, got {values[row, feature].item()} at index {index}; say with mask= what is missing."
        )
    return values, flags.to(values)


def check_flags(mask: Any, length: int, place: tuple[int, ...]) -> Tensor:
    """A mask (length,) of one set as a tensor.

    Raises:
        ValueError: If it is not 0 or 1 for each of `length` observations.
    """
    flags = check_finite(as_numbers(mask, "mask"), "mask") if length else torch.zeros(0)
    if flags.shape != (length,) or not bool(((flags == 0) | (flags == 1)).all()):
        where = f" at index {place}" if place else ""
        raise ValueError(f"mask must be 0 or 1 for each of {length} observations{where}, got {mask!r}.")
    return flags
