r"""Recorded randomised trials, to test an adaptive design on.

A trial gave arm 1 to a share p of its n units, whoever they were. Its own estimate is the difference in means, with
Neyman's (1923) standard error,

    τ̂ = Ȳ_1 − Ȳ_0,    stderr² = s_1² / n_1 + s_0² / n_0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...utils.csv_rows import number_in, read_rows

__all__ = ["RecordedTrial", "read_trial"]


@dataclass(frozen=True)
class RecordedTrial:
    """A randomised trial with two arms, in the order of the file.

    Attributes:
        covariates: Shape (n, d), float64, in their own units.
        arm: 0 or 1, (n,).
        outcome: Shape (n,), in its own unit.
        covariate_names: Names of the d covariates.
        propensity: Probability of arm 1, the same for all units.

    Example:
        >>> columns = torch.tensor([[1.0, 0, 1, 0], [5.0, 2, 3, 4]])
        >>> trial = RecordedTrial(torch.zeros(4, 0), *columns)
        >>> trial.effect, round(trial.effect_stderr, 3), trial.propensity
        (1.0, 1.414, 0.5)
    """

    covariates: Tensor
    arm: Tensor
    outcome: Tensor
    covariate_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arm)

    @property
    def propensity(self) -> float:
        """Share of units in arm 1."""
        return float(self.arm.mean())

    @property
    def effect(self) -> float:
        """Difference in means, arm 1 minus arm 0, in the outcome's unit."""
        return float(self.outcome[self.arm == 1].mean() - self.outcome[self.arm == 0].mean())

    @property
    def effect_stderr(self) -> float:
        """Its standard error."""
        parts = [self.outcome[self.arm == a] for a in range(2)]
        return math.sqrt(sum(float(part.var()) / len(part) for part in parts))


def read_trial(path: str | Path, arm: str, outcome: str, covariates: Sequence[str] = ()) -> RecordedTrial:
    r"""Read a trial from a CSV file with a row for each unit.

    Args:
        path: The file.
        arm: Name of the column that says the arm, 0 or 1.
        outcome: Name of the column of outcomes.
        covariates: Names of the columns known before treatment.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a value is not a finite number, an arm not 0 or 1, or an arm has fewer than
            two units.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "trial.csv"
        >>> _ = path.write_text("treated,age,earned\n1,30,5\n0,41,2\n1,22,3\n0,35,4\n")
        >>> read_trial(path, "treated", "earned", ["age"]).effect
        1.0
    """
    names = (arm, outcome, *([covariates] if isinstance(covariates, str) else covariates))
    if len(set(names)) < len(names):
        raise ValueError(f"arm, outcome and covariates must be different columns, got {', '.join(names)}.")
    rows = []
    for row, where in read_rows(path, names):
        rows.append([number_in(row, name, where) for name in names])
        if rows[-1][0] not in (0.0, 1.0):
            raise ValueError(f"{where}: {arm} must be 0 or 1, got {row[arm]!r}.")
    num_in_arm = [sum(row[0] == a for row in rows) for a in range(2)]
    if min(num_in_arm) < 2:
        raise ValueError(
            f"{path} must have at least two units in each arm, it has {num_in_arm[0]} and {num_in_arm[1]}."
        )
    values = torch.tensor(rows, dtype=torch.float64)
    return RecordedTrial(values[:, 2:].contiguous(), values[:, 0], values[:, 1], tuple(names[2:]))
