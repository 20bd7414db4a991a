"""A table of observations, one a row, as its lowest groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .ragged import LowestSet, check_flags

__all__ = ["sets_of_table"]


def _column(table: Any, name: str) -> Any:
    if name not in list(table.columns):
        raise ValueError(f"there is no column {name!r}, only {', '.join(map(repr, table.columns))}.")
    return table[name]


def sets_of_table(table: Any, group: Any, features: Any, mask: Any) -> list[LowestSet]:
    """Lowest sets of a table with named columns; arguments as for `pack_groups`.

    Raises:
        TypeError: If columns are not numbers.
        ValueError: If columns are missing, a row has no group, a value is not finite, or the mask does not fit.
    """
    mask_name = mask if isinstance(mask, str) else None
    flags = mask if mask_name is None else np.asarray(_column(table, mask_name))
    group = [group] if isinstance(group, str) else list(group or ())
    if not group:
        raise ValueError("group= must name the columns that say which group a row belongs to.")
    other = [name for name in table.columns if name not in group and name != mask_name]
    features = other if features is None else [features] if isinstance(features, str) else list(features)
    keys = [np.asarray(_column(table, name)) for name in group]
    for name, key in zip(group, keys, strict=True):
        missing = [row for row, value in enumerate(key) if value is None or value != value]
        if missing:
            raise ValueError(
                f"column {name!r} must say a group in each row, got {key[missing[0]]} in row {missing[0]}."
            )
    try:
        columns = [np.asarray(_column(table, name)).astype(float) for name in features]
    except (TypeError, ValueError) as err:
        if "there is no column" in str(err):
            raise
        raise TypeError(f"the columns {features} must be numbers: {err}") from err
    if not columns or len(columns[0]) == 0:
        raise ValueError("data must have rows, and columns that are not groups.")
    num_rows = len(columns[0])
    seen = torch.ones(num_rows) if flags is None else check_flags(np.asarray(flags, dtype=float), num_rows, ())
    for name, column in zip(features, columns, strict=True):
        bad = np.flatnonzero(~np.isfinite(column) & (seen.numpy() > 0))
        if len(bad):
            raise ValueError(
                f"column {name!r} must be finite, got {column[bad[0]]} in row {bad[0]}; say with mask= what is missing."
            )
    together = torch.from_numpy(np.stack(columns, axis=-1)).to(torch.get_default_dtype())
    return [(place, together[rows], seen[rows]) for place, rows in _rows_of_groups(keys).items()]


def _rows_of_groups(keys: list[np.ndarray]) -> dict[tuple[int, ...], list[int]]:
    """Place of each lowest group → its rows; on each level groups are numbered as they first appear."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    number_of: dict[tuple[tuple[int, ...], Any], int] = {}
    size_of: dict[tuple[int, ...], int] = {}
    for row, values in enumerate(zip(*keys, strict=True)):
        place: tuple[int, ...] = ()
        for value in values:
            if (place, value) not in number_of:
                number_of[place, value] = size_of.get(place, 0)
                size_of[place] = size_of.get(place, 0) + 1
            place = (*place, number_of[place, value])
        rows_of.setdefault(place, []).append(row)
    return rows_of
