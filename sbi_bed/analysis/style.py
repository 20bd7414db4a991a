"""What the pictures share: colours of Okabe & Ito, ticks, and names of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, NullLocator

__all__ = ["BLUE", "GREY", "ORANGE", "PALETTE", "names_of", "plain_ticks"]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
PALETTE = (BLUE, "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")  # without the orange that marks alarms


def plain_ticks(axis: Any) -> None:
    """Label the major ticks of an axis by plain numbers, and have no minor ones."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def names_of(names: Sequence[str] | None, default: Sequence[str], of: str, argument: str = "names") -> list[str]:
    """The names given, one for each; the default ones if None."""
    names = list(default if names is None else names)
    if len(names) != len(default):
        raise ValueError(f"{argument} must be {len(default)} names, one for each {of}, got {names}.")
    return names
