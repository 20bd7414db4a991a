"""The units of a live treatment experiment: who was assigned what, and whose outcome has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.as_numbers import as_numbers
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
    corrected: bool = False
    gaps: Tensor | None = None  # which covariates were missing and are filled, (d,)


class UnitRegister:
    """Units by id, in the order of assignment; every check comes before anything is changed.

    Args:
        covariate_dim: Number d of covariates.
        num_arms: Number K of arms.
        fill: What missing covariates are: "mean" or numbers (d,); None refuses them.

    Attributes:
        arrivals: Units whose outcome is known, in the order in which it came.
        num_blind: Number of units that were assigned before any outcome was known.
    """

    def __init__(self, covariate_dim: int, num_arms: int = 2, fill: str | Tensor | None = None):
        self.covariate_dim, self.num_arms, self.fill = covariate_dim, num_arms, fill
        self._known = torch.zeros(2, covariate_dim, dtype=torch.float64)  # sum and number of covariates that were given
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

    def new_units(self, covariates: Any, unit: Any) -> tuple[list[int | str], Tensor, Tensor]:
        """Ids; covariates, (d,) or (n, d), float64, of units to be assigned; and which were missing.

        Raises:
            TypeError: If covariates are not numbers, or an id is no whole number or string.
            ValueError: If they have the wrong shape, are infinite, or NaN without a rule, or a unit is known already.
        """
        rows = as_numbers(covariates, "covariates", missing=self.fill is not None, dtype=torch.float64)
        gaps = rows.isnan() & (self.fill is not None)
        rows = as_finite_tensor(torch.where(gaps, 0.0, rows), "covariates", self.covariate_dim, dtype=torch.float64)
        gaps = gaps.reshape(rows.shape)
        if rows.ndim > 2 or (rows.ndim == 2 and len(rows) == 0):
            raise ValueError(f"covariates must have shape (d,) or (n, d), n > 0, got {tuple(rows.shape)}.")
        rows = self._filled(rows.detach().cpu().clone(), gaps)
        num = 1 if rows.ndim == 1 else len(rows)
        units = _as_ids(range(len(self), len(self) + num) if unit is None else unit)
        if len(units) != num or len(set(units)) != num:
            raise ValueError(f"unit must name {num} different units, as there are covariates, got {units}.")
        known = [name for name in units if name in self._units]
        if known:
            raise ValueError(f"unit {known[0]!r} has been assigned already; each unit is assigned once.")
        return units, rows, gaps

    def _filled(self, rows: Tensor, gaps: Tensor) -> Tensor:
        """Covariates without gaps. Means are those of the units so far and of these: all are known before treatment."""
        if not gaps.any():
            return rows
        if isinstance(self.fill, Tensor):
            return torch.where(gaps, self.fill, rows)
        each = rows.reshape(-1, self.covariate_dim), (~gaps).reshape(-1, self.covariate_dim).double()
        total, count = self._known + torch.stack([part.sum(0) for part in each])
        if bool((gaps & (count == 0)).any()):
            raise ValueError("a covariate is missing that no unit has yet: give missing_covariates= numbers to take.")
        return torch.where(gaps, total / count.clamp_min(1), rows)

    def add(
        self,
        units: Sequence[int | str],
        covariates: Tensor,
        arm: Tensor,
        propensity: Tensor,
        predicted: Tensor,
        gaps: Any = None,
    ) -> None:
        """Take up units that have been assigned."""
        covariates = covariates.reshape(len(units), self.covariate_dim)
        there = torch.ones_like(covariates)
        if gaps is not None:
            there = 1 - torch.as_tensor(gaps).reshape(covariates.shape).double()
        self._known += torch.stack([(covariates * there).sum(0), there.sum(0)])
        self._num_assignments += 1
        self.num_blind += 0 if self.arrivals else len(units)
        for row in zip(units, covariates, arm.tolist(), propensity.tolist(), predicted, there < 1, strict=True):
            self._units[row[0]] = Unit(row[1], int(row[2]), row[3], row[4], self._num_assignments, gaps=row[5])
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
        units = self._known_units(unit)
        for name in units:
            if self._units[name].withdrawn:
                raise ValueError(f"unit {name!r} was withdrawn; it takes no outcome any more.")
            if name not in self._waiting:
                raise ValueError(f"unit {name!r} has its outcome already, {self._units[name].outcome:g}.")
        return units

    def observed_units(self, unit: Any) -> list[int | str]:
        """Ids of the units whose outcome is to be corrected.

        Raises:
            TypeError: If an id is no whole number or string.
            ValueError: If a unit is unknown or has no outcome.
        """
        units = self._known_units(unit)
        for name in units:
            if not self._units[name].observed:
                raise ValueError(f"unit {name!r} has no outcome to correct; record one by update().")
        return units

    def _known_units(self, unit: Any) -> list[int | str]:
        units = _as_ids(unit)
        for name in units:
            if name not in self._units:
                raise ValueError(f"unit {name!r} is unknown: {len(self)} units have been assigned.")
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

    def correct(self, units: Sequence[int | str], outcomes: Sequence[float]) -> None:
        """Replace outcomes; the order in which they came stays."""
        for name, outcome in zip(units, outcomes, strict=True):
            self._units[name].outcome, self._units[name].corrected = outcome, True

    def withdraw(self, units: Sequence[int | str]) -> None:
        """Take note that the outcomes of waiting units will never come."""
        for name in units:
            self._units[name].withdrawn = True
            del self._waiting[name]

    def log(self, num_blind: int, covariate_names: Sequence[str] | None = None) -> TreatmentLog:
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
            corrected=torch.tensor([u.corrected for u in units], dtype=torch.bool),
            incomplete=torch.tensor([u.gaps is not None and bool(u.gaps.any()) for u in units], dtype=torch.bool),
            covariate_names=covariate_names,
        )


def _as_ids(unit: Any) -> list[int | str]:
    """One id, or several, as a list of ints and strings."""
    several = not isinstance(unit, str) and hasattr(unit, "__len__") and getattr(unit, "ndim", 1) == 1
    ids: list[int | str] = []
    for name in unit if several else [unit]:
        number: Any = name
        plain = number.item() if hasattr(number, "item") else number  # numbers of numpy or torch
        if isinstance(plain, bool) or not isinstance(plain, (int, str)):
            raise TypeError(f"the id of a unit must be a whole number or a string, got {name!r}.")
        ids.append(plain)
    return ids
