"""Rows of a CSV file, with errors that say which line is wrong."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["number_in", "read_rows"]


def read_rows(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows by column name, each with where it stands ("file, line 7"); other columns may be there.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or it is not a CSV file.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path} lacks the column '{missing[0]}'; it has {', '.join(reader.fieldnames or ())}."
                )
            for row in reader:
                yield row, f"{path}, line {reader.line_num}"
    except FileNotFoundError as err:
        raise FileNotFoundError(f"there is no file {path}.") from err
    except (UnicodeDecodeError, csv.Error) as err:
        raise ValueError(f"{path} is not a CSV file: {err}.") from err


def number_in(row: dict[str, Any], name: str, where: str) -> float:
    """The number in column `name` of a row; a `ValueError` that says `where` if it is not a finite one."""
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {name} must be a finite number, got {row[name]!r}.")
    return value
