r"""The log of a treatment experiment: what was known of each unit, what it was given, and what came of it.

One row a unit, in the order of assignment: covariates, arm, propensity of arm 1 and predicted outcomes as they were at
assignment, and the outcome. As a table its columns are t, unit, the covariates, arm, outcome, propensity, f0 and f1; what
EconML calls X, T, Y and a user-supplied propensity is then at hand.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....utils.files import write_atomically
from .a2ipw import AteEstimate, a2ipw_scores, estimate_ate

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

    def __len__(self) -> int:
        return self.arm.shape[-1]

    def __getitem__(self, index: Any) -> TreatmentLog:
        """One experiment of a batch, or several."""
        if self.arm.ndim < 2:
            raise IndexError("this is the log of a single experiment; read its units as columns().")
        names = ("covariates", "arm", "outcome", "propensity", "predicted", "observed")
        return TreatmentLog(**{name: getattr(self, name)[index] for name in names})

    @property
    def history(self) -> Tensor:
        """What a policy reads, (..., T, d + 3): covariates, arm, outcome, mask (0 where the outcome is not observed)."""
        rest = (self.arm, self.outcome, self.observed)
        return torch.cat([self.covariates, torch.stack([x.to(self.covariates) for x in rest], -1)], -1)

    @property
    def scores(self) -> Tensor:
        """A2IPW scores of the units whose outcomes have arrived, (..., T).

        Raises:
            ValueError: If there are many experiments with different units still waiting.
        """
        if self.observed.all():
            return a2ipw_scores(self.arm, self.outcome, self.propensity, self.predicted)
        if self.arm.ndim != 1:
            raise ValueError(
                "scores of many experiments side by side need every outcome; take one experiment at a time."
            )
        seen = self.observed
        return a2ipw_scores(self.arm[seen], self.outcome[seen], self.propensity[seen], self.predicted[seen])

    def running(self, level: float = 0.95, tightest_at: int = 200) -> AteEstimate:
        """Estimates after each observed unit, in the order of assignment; see `estimate_ate`."""
        return estimate_ate(self.scores, level, tightest_at)

    def estimate(self, level: float = 0.95, tightest_at: int = 200) -> AteEstimate:
        """Estimate from all observed units: numbers, or tensors (...) for many experiments.

        Raises:
            ValueError: If fewer than two outcomes have been observed, or the level is not within (0, 1).
        """
        if (num_observed := int(self.observed.sum(-1).min())) < 2:
            raise ValueError(f"an estimate needs at least 2 observed outcomes, there are {num_observed}.")
        return self.running(level, tightest_at).at((..., -1))

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
