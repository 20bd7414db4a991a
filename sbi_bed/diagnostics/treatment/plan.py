r"""Planning of a trial: how wide intervals will be, and how often they exclude 0, after n units under each design.

Trials are simulated for a problem that is assumed, from a pilot or from what is known of means and variances. Each runs to
the largest n, and what would be known after fewer units is read off the same runs. The half-width is about z √(V(e) / n)
(`simulators/treatment/problem.py`): a design with a V(e) that is 1.25 times as large needs 1.25 times the units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...policies.treatment.base import TreatmentPolicy
from ...simulators.treatment.problem import TreatmentProblem
from ...utils.checks import check_count, check_fraction
from ...utils.text_table import format_table
from .study import run_treatment_study

__all__ = ["TreatmentPlan", "plan_treatment"]


@dataclass(frozen=True)
class TreatmentPlan:
    """What to expect after n units; the rows of tensors are designs, their columns numbers of units.

    With K > 2 arms all figures are means over the K − 1 effects, each by itself.

    Attributes:
        designs: Names of the designs.
        num_units: Numbers n of units, in increasing order.
        half_width: Mean half-width of the interval, in the outcome's unit, (designs, n); infinite where one is.
        half_width_stderr: Its standard error.
        power: How often the interval excludes 0.
        power_stderr: Its standard error.
        stopped: How often the confidence sequence has excluded 0 by then: a trial that stops as soon as it does has ended.
        stopped_stderr: Its standard error.
        level: Level of the intervals.
    """

    designs: list[str]
    num_units: list[int]
    half_width: Tensor
    half_width_stderr: Tensor
    power: Tensor
    power_stderr: Tensor
    stopped: Tensor
    stopped_stderr: Tensor
    level: float

    def units_needed(self, power: float = 0.8) -> dict[str, float | None]:
        """Number of units at which each design reaches a power, interpolated; None if it does not with those planned."""
        power = check_fraction(power, "power")
        found: dict[str, float | None] = {}
        for name, curve in zip(self.designs, self.power, strict=True):
            place = int((curve < power).sum())
            reached = bool(curve[-1] >= power) and bool((curve[place:] >= power).all())
            if not reached:
                found[name] = None
            elif place == 0:
                found[name] = float(self.num_units[0])
            else:
                (first, last), (low, high) = (
                    self.num_units[place - 1 : place + 1],
                    curve[place - 1 : place + 1].tolist(),
                )
                found[name] = first + (last - first) * (power - low) / (high - low)
        return found

    def columns(self) -> dict[str, list[Any]]:
        """One row for each design and number of units."""
        names = ("half_width", "half_width_stderr", "power", "power_stderr", "stopped", "stopped_stderr")
        pairs = [(design, num) for design in self.designs for num in self.num_units]
        keys = {"design": [design for design, _ in pairs], "num_units": [num for _, num in pairs]}
        return {**keys, **{name: getattr(self, name).flatten().tolist() for name in names}}

    def to_dataframe(self) -> Any:
        """`columns` as a pandas DataFrame; an `ImportError` if pandas is not installed."""
        import pandas  # pyright: ignore[reportMissingImports]

        return pandas.DataFrame(self.columns())

    def __str__(self) -> str:
        columns = self.columns()
        rows = [
            (
                design,
                f"{num}",
                f"{width:.3g} ± {error:.1g}",
                f"{power:.3f} ± {of_power:.3f}",
                f"{stopped:.3f} ± {of_stopped:.3f}",
            )
            for design, num, width, error, power, of_power, stopped, of_stopped in zip(*columns.values(), strict=True)
        ]
        return format_table(("", "units", "half-width", "power", "stopped by then"), rows)


def plan_treatment(
    problem: TreatmentProblem,
    policies: Mapping[str, TreatmentPolicy],
    num_units: Sequence[int],
    num_experiments: int = 200,
    *,
    nuisance: TreatmentPolicy | None = None,
    level: float = 0.95,
    tightest_at: int = 200,
    outcome_space: Any = "real",
    seed: int | None = None,
) -> TreatmentPlan:
    """Simulate trials of a problem under several designs.

    Args:
        problem: What is assumed of the outcomes: one problem, not a batch.
        policies: Label -> design, e.g. a coin, a teacher, a trained student.
        num_units: Numbers n of units to look at.
        num_experiments: Number of simulated trials for each design.
        nuisance: Policy to predict outcomes with in all designs; each uses its own predictions if None.
        level: Level of the intervals.
        tightest_at: As for `TreatmentExperiment`.
        outcome_space: As for `TreatmentExperiment`.
        seed: Seed of units, outcomes and assignments; the same for all designs.

    Raises:
        ValueError: If no design or number of units is given, a number is below 2, or a design does not fit the problem.

    Example:
        >>> from sbi_bed.policies import CoinFlip, NonContextualNeyman
        >>> from sbi_bed.simulators import multi_arm_benchmark
        >>> problem = multi_arm_benchmark(sds=(1.0, 3.0), means=(0.0, 1.0))
        >>> designs = {"coin": CoinFlip(0), "adaptive": NonContextualNeyman(0)}
        >>> plan = plan_treatment(problem, designs, num_units=[50, 100, 200], num_experiments=100, seed=0)
        >>> bool(
        ...     (plan.half_width[1, -1] < plan.half_width[0, -1])
        ...     & (plan.half_width[:, -1] < plan.half_width[:, 0]).all()
        ... )
        True
    """
    places = sorted({check_count(num, "num_units", 2) for num in num_units})
    if not policies or not places:
        raise ValueError("policies and num_units must not be empty: name at least one design and one number of units.")
    rows: list[list[tuple[Tensor, Tensor]]] = []
    for policy in policies.values():
        log = run_treatment_study(problem, policy, places[-1], num_experiments, nuisance=nuisance, seed=seed).log
        running = log.running(level, tightest_at, outcome_space)
        shape = (num_experiments, running.ate.shape[1], -1)
        at = torch.tensor([max(num - 1 - (places[-1] - shape[1]), 0) for num in places])
        low, high, first, last = (end.reshape(shape) for end in (*running.interval, *running.confidence_sequence))
        figures = (
            (high - low) / 2,
            ((low > 0) | (high < 0)).double(),
            ((first > 0) | (last < 0)).cummax(1).values.double(),
        )
        rows.append([_mean_and_stderr(figure[:, at].mean(-1)) for figure in figures])
    parts = [torch.stack([row[k][j] for row in rows]) for k in range(3) for j in range(2)]
    return TreatmentPlan(list(policies), places, *parts, level=check_fraction(level, "level"))


def _mean_and_stderr(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over experiments of values (E, n)."""
    return values.mean(0), values.std(0) / len(values) ** 0.5
