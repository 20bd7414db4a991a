"""Frames of units, of pandas or polars: covariates by name, ids in a column, and the same frame back with more columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ....utils.as_numbers import as_numbers

__all__ = ["is_frame", "read_frame", "with_columns"]


def is_frame(value: Any) -> bool:
    """Whether something has named columns."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy")


def read_frame(frame: Any, unit: Any, names: Sequence[str] | None) -> tuple[Tensor, Any, list[str]]:
    """Covariates (n, d), float64, with NaN where they are missing; ids; and the names of the covariates.

    Args:
        frame: One row a unit.
        unit: Name of the column with ids, or ids, or None.
        names: Names of the covariates; all columns but that of the ids if None.

    Raises:
        ValueError: If a column is not there.
    """
    columns = list(frame.columns)
    names = [name for name in columns if not (isinstance(unit, str) and name == unit)] if names is None else list(names)
    wanted = [*names, *([unit] if isinstance(unit, str) else [])]
    if lacking := [name for name in wanted if name not in columns]:
        raise ValueError(f"the frame has no column {lacking[0]!r}, only {', '.join(map(str, columns))}.")
    each = [as_numbers(frame[name], f"column {name!r}", missing=True, dtype=torch.float64) for name in names]
    rows = torch.stack(each, -1) if each else torch.zeros(len(frame), 0, dtype=torch.float64)
    return rows, frame[unit].to_numpy().tolist() if isinstance(unit, str) else unit, names


def with_columns(frame: Any, columns: Mapping[str, list[Any]]) -> Any:
    """A copy of the frame with columns added or replaced."""
    if hasattr(frame, "with_columns"):  # polars
        series = type(frame.to_series(0))
        return frame.with_columns(*(series(name, values) for name, values in columns.items()))
    return frame.assign(**columns)
