"""The units of a live treatment experiment: who was assigned what, and whose outcome has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.checks import as_finite_tensor
from .log import TreatmentLog

__all__ = ["Unit", "UnitRegister"]


@dataclass
class Unit:
    """A unit: covariates (d,), float64; arm; propensity of arm 1, or of each; predictions (K,); outcome, 0 until observed.

    `born` is the number of assignments until and with its own, `delay` that of further ones until its outcome.
    """

    covariates: Tensor
    arm: int
    propensity: float | list[float]
    predicted: Tensor
    born: int
    outcome: float = 0.0
    observed: bool = False
    delay: int = 0
    withdrawn: bool = False


class UnitRegister:
    """Units by id, in the order of assignment; every check comes before anything is changed.

    Args:
        covariate_dim: Number d of covariates.
        num_arms: Number K of arms.

    Attributes:
        arrivals: Units whose outcome is known, in the order in which it came.
        num_blind: Number of units that were assigned before any outcome was known.
    """

    def __init__(self, covariate_dim: int, num_arms: int = 2):
        self.covariate_dim, self.num_arms = covariate_dim, num_arms
        self.arrivals: list[Unit] = []
        self.num_blind = 0
        self._units: dict[int | str, Unit] = {}
        self._last: list[int | str] = []
        self._waiting: dict[int | str, None] = {}
        self._num_assignments = 0

    def __len__(self) -> int:
        return len(self._units)

    @property
    def pending(self) -> list[int | str]:
        """Ids of the units without outcome."""
        return list(self._waiting)

    def new_units(self, covariates: Any, unit: Any) -> tuple[list[int | str], Tensor]:
        """Ids and covariates, (d,) or (n, d), float64, of units to be assigned.

        Raises:
            TypeError: If covariates are not numbers, or an id is no whole number or string.
            ValueError: If they have the wrong shape, are not finite, or a unit is known already.
        """
        rows = as_finite_tensor(covariates, "covariates", self.covariate_dim, dtype=torch.float64)
        if rows.ndim > 2 or (rows.ndim == 2 and len(rows) == 0):
            raise ValueError(f"covariates must have shape (d,) or (n, d), n > 0, got {tuple(rows.shape)}.")
        rows = rows.detach().cpu().clone()
        num = 1 if rows.ndim == 1 else len(rows)
        units = _as_ids(range(len(self), len(self) + num) if unit is None else unit)
        if len(units) != num or len(set(units)) != num:
            raise ValueError(f"unit must name {num} different units, as there are covariates, got {units}.")
        known = [name for name in units if name in self._units]
        if known:
            raise ValueError(f"unit {known[0]!r} has been assigned already; each unit is assigned once.")
        return units, rows

    def add(
        self, units: Sequence[int | str], covariates: Tensor, arm: Tensor, propensity: Tensor, predicted: Tensor
    ) -> None:
        """Take up units that have been assigned."""
        covariates = covariates.reshape(len(units), self.covariate_dim)
        self._num_assignments += 1
        self.num_blind += 0 if self.arrivals else len(units)
        for row in zip(units, covariates, arm.tolist(), propensity.tolist(), predicted, strict=True):
            self._units[row[0]] = Unit(row[1], int(row[2]), row[3], row[4], self._num_assignments)
            self._waiting[row[0]] = None
        self._last = list(units)

    def waiting_units(self, unit: Any) -> list[int | str]:
        """Ids of the units whose outcome is to be recorded.

        Raises:
            TypeError: If an id is no whole number or string.
            ValueError: If a unit is unknown or has its outcome, or none is named and it is not clear which is meant.
        """
        if unit is None:
            if not self._waiting:
                raise ValueError("no unit waits for an outcome: call assign() first.")
            if list(self._waiting) != self._last:
                raise ValueError(f"{len(self._waiting)} units wait for outcomes: say unit=, whose outcome it is.")
            return self._last
        units = _as_ids(unit)
        for name in units:
            if name not in self._units:
                raise ValueError(f"unit {name!r} is unknown: {len(self)} units have been assigned.")
            if self._units[name].withdrawn:
                raise ValueError(f"unit {name!r} was withdrawn; it takes no outcome any more.")
            if name not in self._waiting:
                raise ValueError(f"unit {name!r} has its outcome already, {self._units[name].outcome:g}.")
        if not units or len(set(units)) < len(units):
            raise ValueError(f"unit must name different units, got {units}.")
        return units

    def check_arms(self, units: Sequence[int | str], arm: Any) -> None:
        """Raise a `ValueError` if `arm` is given and is not what the units were assigned to."""
        if arm is None:
            return
        given = as_finite_tensor(arm, "arm").flatten().tolist()
        assigned = [self._units[name].arm for name in units]
        if given != assigned:
            raise ValueError(
                f"arm {given} was given, but {list(units)} were assigned to {assigned}. Where a unit did not follow its "
                "assignment, record its outcome without arm=: the effect is then that of the assignment."
            )

    def observe(self, units: Sequence[int | str], outcomes: Sequence[float]) -> None:
        """Take up outcomes of waiting units."""
        for name, outcome in zip(units, outcomes, strict=True):
            unit = self._units[name]
            unit.outcome, unit.observed, unit.delay = outcome, True, self._num_assignments - unit.born
            del self._waiting[name]
            self.arrivals.append(unit)

    def withdraw(self, units: Sequence[int | str]) -> None:
        """Take note that the outcomes of waiting units will never come."""
        for name in units:
            self._units[name].withdrawn = True
            del self._waiting[name]

    def log(self, num_blind: int) -> TreatmentLog:
        """All units, in the order of assignment; the predictions of the first `num_blind` rest on nothing."""
        units = list(self._units.values())

        def column(values: list[Any]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        return TreatmentLog(
            covariates=column([u.covariates.tolist() for u in units]).reshape(len(units), self.covariate_dim),
            arm=column([u.arm for u in units]),
            outcome=column([u.outcome for u in units]),
            propensity=column([u.propensity for u in units]).reshape(len(units), *[self.num_arms][: self.num_arms - 2]),
            predicted=column([u.predicted.tolist() for u in units]).reshape(len(units), self.num_arms),
            observed=torch.tensor([u.observed for u in units], dtype=torch.bool),
            units=list(self._units),
            delay=column([u.delay for u in units]),
            age=column([self._num_assignments - u.born for u in units]),
            withdrawn=torch.tensor([u.withdrawn for u in units], dtype=torch.bool),
            num_blind=num_blind,
        )


def _as_ids(unit: Any) -> list[int | str]:
    """One id, or several, as a list of ints and strings."""
    several = isinstance(unit, (list, tuple, range)) or getattr(unit, "ndim", 0) == 1
    ids: list[int | str] = []
    for name in unit if several else [unit]:
        number: Any = name
        plain = number.item() if hasattr(number, "item") else number  # numbers of numpy or torch
        if isinstance(plain, bool) or not isinstance(plain, (int, str)):
            raise TypeError(f"the id of a unit must be a whole number or a string, got {name!r}.")
        ids.append(plain)
    return ids
