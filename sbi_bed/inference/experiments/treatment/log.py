r"""The log of a treatment experiment: what was known of each unit, what it was given, and what came of it.

One row a unit, in the order of assignment: covariates, arm, propensity of arm 1 and predicted outcomes as they were at
assignment, and the outcome. As a table its columns are t, unit, the covariates, arm, outcome, propensity, f0 and f1; what
EconML calls X, T, Y and a user-supplied propensity is then at hand.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....utils.files import write_atomically
from .a2ipw import AteEstimate
from .blind_start import start_blind
from .effect import effect_scores, estimate_effect
from .observation import ObservationRates, observation_rates

__all__ = ["TreatmentLog"]


@dataclass(frozen=True)
class TreatmentLog:
    """Units of one experiment, or of many side by side.

    Attributes:
        covariates: Shape (..., T, d), in their own units.
        arm: 0 or 1, (..., T).
        outcome: Shape (..., T); 0 where it is not yet observed.
        propensity: Probability of arm 1 at assignment, (..., T).
        predicted: Outcomes of arm 0 and arm 1 as predicted at assignment, (..., T, 2).
        observed: Whether the outcome has arrived, (..., T).
        units: Ids of the units of a single experiment, T of them; their numbers if None.
        delay: Number of assignments between a unit's and its outcome, (T,), of a single experiment; 0 if None.
        age: Number of assignments since a unit's, (T,). If None, no unit without outcome is waiting: all are lost.
        withdrawn: Whether a unit was withdrawn, (T,); none if None.
        num_blind: Number of first units whose predictions rest on no outcome and no known location of outcomes.

    Example:
        >>> log = TreatmentLog(
        ...     torch.zeros(3, 1),
        ...     *torch.tensor([[1.0, 0, 1], [2.0, 1, 3], [0.5, 0.5, 0.5]]),
        ...     predicted=torch.zeros(3, 2),
        ...     observed=torch.tensor([True, True, True]),
        ... )
        >>> log.estimate().ate
        2.6666666666666665
        >>> log.columns()["outcome"]
        [2.0, 1.0, 3.0]
    """

    covariates: Tensor
    arm: Tensor
    outcome: Tensor
    propensity: Tensor
    predicted: Tensor
    observed: Tensor
    units: Sequence[int | str] | None = None
    delay: Tensor | None = None
    age: Tensor | None = None
    withdrawn: Tensor | None = None
    num_blind: int = 0

    def __len__(self) -> int:
        return self.arm.shape[-1]

    def __getitem__(self, index: Any) -> TreatmentLog:
        """One experiment of a batch, or several."""
        if self.arm.ndim < 2:
            raise IndexError("this is the log of a single experiment; read its units as columns().")
        names = ("covariates", "arm", "outcome", "propensity", "predicted", "observed")
        return TreatmentLog(**{name: getattr(self, name)[index] for name in names}, num_blind=self.num_blind)

    @property
    def history(self) -> Tensor:
        """What a policy reads, (..., T, d + 3): covariates, arm, outcome, mask (0 where the outcome is not observed)."""
        rest = (self.arm, self.outcome, self.observed)
        return torch.cat([self.covariates, torch.stack([x.to(self.covariates) for x in rest], -1)], -1)

    @property
    def scores(self) -> Tensor:
        """A2IPW scores of the units that enter the estimate, (..., number of them).

        Where outcomes are missing, these are the units that are old enough, weighted by the rate at which their arm's
        outcomes come (`observation.py`); while an arm has no outcome, the units whose outcomes are there. Of the first
        `num_blind` units only those enter that have an outcome before them (`blind_start.py`).

        Raises:
            ValueError: If there are many experiments and outcomes are missing.
        """
        return effect_scores(*self._entering())

    def running(self, level: float = 0.95, tightest_at: int = 200, outcome_space: Any = "real") -> AteEstimate:
        """Estimates after each unit that enters, in the order of assignment: tensors (..., T).

        Args:
            level: Level of the intervals.
            tightest_at: Number of units at which the confidence sequence is tightest, for real outcomes.
            outcome_space: "real", "binary" or (low, high); see `TreatmentExperiment`.

        Raises:
            ValueError: If there are many experiments and outcomes are missing, or an outcome lies outside the space.
        """
        parts = self._entering()
        found = estimate_effect(*parts, level=level, tightest_at=tightest_at, outcome_space=outcome_space)
        if self.observed.all():
            return found
        found = replace(found, num_units=parts[4].cumsum(-1))
        if self.observation is not None:
            return found
        unknown, ate = torch.full_like(found.ate, torch.inf), found.ate  # nothing is known of one arm
        return replace(
            found, stderr=unknown, interval=(-unknown, unknown), confidence_sequence=(-unknown, unknown), ate=ate
        )

    def estimate(self, level: float = 0.95, tightest_at: int = 200, outcome_space: Any = "real") -> AteEstimate:
        """Estimate from all units that enter: numbers, or tensors (...) for many experiments; see `running`.

        Raises:
            ValueError: If fewer than two outcomes have been observed, or the level is not within (0, 1).
        """
        if (num_observed := int(self.observed.sum(-1).min())) < 2:
            raise ValueError(f"an estimate needs at least 2 observed outcomes, there are {num_observed}.")
        return self.running(level, tightest_at, outcome_space).at((..., -1))

    @property
    def observation(self) -> ObservationRates | None:
        """How outcomes come in, of a single experiment; None while an arm has no outcome."""
        return observation_rates(self.arm, self.observed, self.delay, self.age, self.withdrawn)

    def _entering(self) -> tuple[Tensor, ...]:
        """Arm, outcome, propensity, predictions, observed and rates of the units that enter the estimate."""
        predicted, enters = start_blind(self.arm, self.outcome, self.observed, self.predicted, self.num_blind)
        rates = None
        if not self.observed.all():
            if self.arm.ndim != 1:
                raise ValueError(
                    "scores of many experiments side by side need every outcome; take one experiment at a time."
                )
            found = self.observation
            enters = enters & (self.observed if found is None else found.included)
            rates = None if found is None else found.rates[enters]
        if not enters.any():
            raise ValueError("an estimate needs a unit with an outcome before it: there is none yet.")
        columns = (self.arm, self.outcome, self.propensity, predicted, self.observed)
        return (*(column[..., enters, :] if column is predicted else column[..., enters] for column in columns), rates)  # pyright: ignore[reportReturnType]

    def columns(self, covariate_names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """The log of a single experiment as columns; the outcome is None where it is not yet observed.

        Args:
            covariate_names: Names of the covariates; x1, x2, … if None.

        Raises:
            ValueError: If there are many experiments, or the names do not fit.
        """
        if self.arm.ndim != 1:
            raise ValueError(f"only a single experiment is a table, got a batch of shape {tuple(self.arm.shape[:-1])}.")
        names = [f"x{i + 1}" for i in range(self.covariates.shape[-1])] if covariate_names is None else covariate_names
        taken = ("t", "unit", "arm", "outcome", "propensity", "f0", "f1")
        if len(names) != self.covariates.shape[-1] or len({*names, *taken}) < len(names) + len(taken):
            raise ValueError(
                f"covariate_names must be {self.covariates.shape[-1]} different names, none of {', '.join(taken)}, "
                f"got {list(names)}."
            )
        outcome = [y if seen else None for y, seen in zip(self.outcome.tolist(), self.observed.tolist(), strict=True)]
        count = list(range(1, len(self) + 1))
        return {
            "t": count,
            "unit": [t - 1 for t in count] if self.units is None else list(self.units),
            **dict(zip(names, self.covariates.T.tolist(), strict=True)),
            "arm": [int(a) for a in self.arm.tolist()],
            "outcome": outcome,
            "propensity": self.propensity.tolist(),
            "f0": self.predicted[:, 0].tolist(),
            "f1": self.predicted[:, 1].tolist(),
        }

    def to_csv(self, path: str | Path, covariate_names: Sequence[str] | None = None) -> None:
        """Write `columns` as a CSV file; an outcome that is not yet observed is an empty cell."""
        columns = self.columns(covariate_names)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        write_atomically(path, text.getvalue().encode())

    def to_pandas(self, covariate_names: Sequence[str] | None = None) -> Any:
        """`columns` as a pandas DataFrame; an `ImportError` if pandas is not installed."""
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as err:
            raise ImportError("to_pandas needs pandas (pip install pandas); columns() needs nothing.") from err
        return pandas.DataFrame(self.columns(covariate_names))
