"""Tables with one row for each observation, as their lowest groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..as_numbers import as_numbers
from .ragged import LowestSet, check_flags

__all__ = ["sets_of_tables", "tables_in"]

Table = Any  # has columns with names, as the frames of pandas and polars have


def tables_in(data: Any) -> list[tuple[tuple[int, ...], Table]]:
    """Each table in `data` with its place: one table, or nested lists of tables. Empty if `data` holds anything else."""
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):
        return [((), data)]
    if not isinstance(data, (list, tuple)):
        return []
    found = [[((number, *place), table) for place, table in tables_in(part)] for number, part in enumerate(data)]
    return [each for part in found for each in part] if all(found) else []


def sets_of_tables(
    tables: list[tuple[tuple[int, ...], Table]], group: Any, features: Any, mask: Any
) -> list[LowestSet]:
    """Lowest sets of tables; arguments as for `pack_groups`.

    Raises:
        TypeError: If a column holds anything but real numbers.
        ValueError: If a column is missing, a row has no group, a value is not finite, or the mask does not fit.
    """
    group = [] if group is None else _names(group)
    mask_name = mask if isinstance(mask, str) else None
    (first_place, first), *_ = tables
    if not group and not first_place:
        raise ValueError("group= must name the columns that say which group a row belongs to.")
    if features is None:
        features = [name for name in first.columns if name not in group and name != mask_name]
        for place, table in tables:
            if set(table.columns) != set(first.columns):
                columns = f"{list(first.columns)} and {list(table.columns)} at index {place}"
                raise ValueError(
                    f"tables must have the same columns, got {columns}; or say with features= what to read."
                )
    sets: list[LowestSet] = []
    for place, table in tables:
        if len(place) != len(first_place):
            raise ValueError(f"data must be equally deep everywhere, got a table at index {place}.")
        flags = _column(table, mask_name) if mask_name is not None else _mask_at(mask, place)
        lowest = _sets_of_table(table, group, _names(features), flags)
        sets += [((*place, *lower), values, seen) for lower, values, seen in lowest]
    return sets


def _sets_of_table(table: Table, group: list[Any], features: list[Any], mask: Any) -> list[LowestSet]:
    keys = [_group_column(table, name) for name in group]
    num_rows = len(_column(table, features[0])) if features else 0
    if num_rows == 0 and (group or not features):
        raise ValueError("data must have rows, and columns that are not groups.")
    seen = torch.ones(num_rows) if mask is None else check_flags(mask, num_rows, ())
    together = torch.stack([_feature_column(table, name, seen) for name in features], -1)
    rows_of = _rows_of_groups(keys) if group else {(): list(range(num_rows))}
    return [(place, together[rows], seen[rows]) for place, rows in rows_of.items()]


def _names(names: Any) -> list[Any]:
    """One name or several, as a list."""
    return [names] if isinstance(names, (str, int)) else list(names)


def _mask_at(mask: Any, place: tuple[int, ...]) -> Any:
    """The mask of the table at a place."""
    if mask is None:
        return None
    for number in place:
        if not hasattr(mask, "__len__") or number >= len(mask):
            raise ValueError(f"mask must be nested as data: there is none for the table at index {place}.")
        mask = mask[number]
    return mask


def _column(table: Table, name: Any) -> Any:
    times = sum(each == name for each in table.columns)
    if times != 1:
        wrong = "there is no column" if times == 0 else f"there are {times} columns"
        raise ValueError(f"{wrong} {name!r}, only {', '.join(map(repr, table.columns))}.")
    return table[name]


def _group_column(table: Table, name: Any) -> np.ndarray:
    """Column `name`, which says a group in each row."""
    key = np.asarray(_column(table, name), dtype=object)
    for row, value in enumerate(key):
        if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
            raise ValueError(f"column {name!r} must say a group in each row, got {value} in row {row}.")
    return key


def _feature_column(table: Table, name: Any, seen: Tensor) -> Tensor:
    """Column `name`, (rows,), in torch's default precision, finite where `seen` is 1."""
    column = as_numbers(_column(table, name), f"column {name!r}", missing=True)
    bad = (~torch.isfinite(column) & (seen > 0)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"column {name!r} must be finite, got {column[row].item()} in row {row}; say with mask= what is missing."
        )
    single = column.to(torch.get_default_dtype())
    bad = (~torch.isfinite(single) & (seen > 0)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"column {name!r} must fit into {single.dtype}, got {column[row].item()} in row {row}.")
    return single


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
