"""Nested data as their lowest sets: where each stands, its features and what of it was observed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import as_finite_tensor

__all__ = ["LowestSet", "check_flags", "depth_of", "sets_of_nested"]

LowestSet = tuple[tuple[int, ...], Tensor, Tensor]  # its place on the levels above, features (n, F), mask (n,)


def depth_of(data: Any) -> int:
    """How deep numbers are nested; an empty sequence counts for one."""
    if isinstance(data, (Tensor, np.ndarray)) and data.dtype != object:
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
    if not hasattr(data, "__len__"):
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
    try:
        if isinstance(data, (Tensor, np.ndarray)) and data.dtype != object:
            values = torch.as_tensor(data)
        elif len(data) > 0 and isinstance(data[0], Tensor):
            values = torch.stack([torch.as_tensor(d) for d in data])
        else:
            values = torch.as_tensor(np.asarray(data))
            values = values if any(isinstance(d, np.ndarray) for d in data) else values.to(torch.get_default_dtype())
    except (TypeError, ValueError, RuntimeError) as err:
        if depth_of(data) > 1 and len({len(d) for d in data if hasattr(d, "__len__")}) > 1:
            lengths = sorted({len(d) for d in data if hasattr(d, "__len__")})
            raise ValueError(
                f"observations must have one number of features, got {lengths} at index {place}; where these are sets of "
                f"numbers give num_levels={len(place) + 2}."
            ) from err
        raise TypeError(f"data must be numbers, got {data!r} at index {place}.") from err
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    if values.numel() == 0:
        values = values.reshape(len(data), -1) if len(data) else values.new_zeros(0, 0)
    elif values.ndim != 1 + has_features:
        raise ValueError(f"data must be equally deep everywhere, got shape {tuple(values.shape)} at index {place}.")
    elif not has_features:
        values = values.unsqueeze(-1)
    flags = (
        torch.ones(len(values), dtype=values.dtype)
        if mask is None
        else check_flags(mask, len(values), place).to(values)
    )
    bad = (~torch.isfinite(values) & (flags > 0).unsqueeze(-1)).nonzero()
    if len(bad):
        row, feature = bad[0].tolist()
        index = (*place, row, feature) if has_features else (*place, row)
        raise ValueError(
            f"data must be finite, got {values[row, feature].item()} at index {index}; say with mask= what is missing."
        )
    return values, flags


def check_flags(mask: Any, length: int, place: tuple[int, ...]) -> Tensor:
    """A mask (length,) of one set as a tensor.

    Raises:
        ValueError: If it is not 0 or 1 for each of `length` observations.
    """
    flags = as_finite_tensor(mask, "mask") if length else torch.zeros(0)
    if flags.shape != (length,) or not bool(((flags == 0) | (flags == 1)).all()):
        where = f" at index {place}" if place else ""
        raise ValueError(f"mask must be 0 or 1 for each of {length} observations{where}, got {mask!r}.")
    return flags
