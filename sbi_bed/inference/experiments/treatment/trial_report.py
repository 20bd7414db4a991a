"""What a trial reports of each arm: the flow of units and outcomes, means and effects (CONSORT 2010)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....utils.text_table import format_table
from .a2ipw import AteEstimate
from .log import TreatmentLog

__all__ = ["TrialReport", "trial_report"]


@dataclass(frozen=True)
class TrialReport:
    """Counts of each arm, (K,), and the effects.

    Attributes:
        assigned: Units assigned to the arm.
        incomplete: Those of them with a missing covariate, which was filled.
        observed: Units whose outcome is recorded.
        corrected: Those of them whose outcome was corrected later.
        waiting: Units whose outcome may still come.
        withdrawn: Units whose outcome will never come.
        mean: Plain mean of the recorded outcomes; NaN without any. Arms may hold different units if propensities vary, so
            effects are not differences of these.
        estimate: The effects against arm 0, with intervals.

    Example:
        >>> from sbi_bed.inference import TreatmentExperiment
        >>> from sbi_bed.policies import CoinFlip
        >>> trial = TreatmentExperiment(CoinFlip(0), seed=0)
        >>> arm, _ = trial.assign(torch.zeros(60, 0))
        >>> trial.update(arm[:58] + torch.arange(58) % 3, unit=range(58))
        >>> trial.withdraw(58)
        >>> report = trial.report()
        >>> (
        ...     int(report.assigned.sum()),
        ...     int(report.observed.sum()),
        ...     int(report.waiting.sum()),
        ...     int(report.withdrawn.sum()),
        ... )
        (60, 58, 1, 1)
        >>> print(report.columns()["withdrawn"] == [int(arm[58] == 0), int(arm[58] == 1)])
        True
    """

    assigned: Tensor
    incomplete: Tensor
    observed: Tensor
    corrected: Tensor
    waiting: Tensor
    withdrawn: Tensor
    mean: Tensor
    estimate: AteEstimate

    def columns(self) -> dict[str, list[Any]]:
        """One row an arm: counts, mean, and effect against arm 0 with its interval (None for arm 0)."""
        names = ("assigned", "incomplete", "observed", "corrected", "waiting", "withdrawn", "mean")
        found = self.estimate
        low, high = found.interval
        effects = {"effect": found.ate, "stderr": found.stderr, "interval_low": low, "interval_high": high}
        return {
            "arm": list(range(len(self.assigned))),
            **{name: getattr(self, name).tolist() for name in names},
            **{name: [None, *torch.as_tensor(part).reshape(-1).tolist()] for name, part in effects.items()},
        }

    def to_dataframe(self) -> Any:
        """`columns` as a pandas DataFrame; an `ImportError` if pandas is not installed."""
        import pandas  # pyright: ignore[reportMissingImports]

        return pandas.DataFrame(self.columns())

    def __str__(self) -> str:
        columns = self.columns()
        labels = {
            "assigned": "assigned",
            "incomplete": "  covariate filled",
            "observed": "outcome recorded",
            "corrected": "  corrected later",
            "waiting": "outcome awaited",
            "withdrawn": "outcome lost",
            "mean": "mean of outcomes",
            "effect": "effect against arm 0",
            "stderr": "  standard error",
            "interval_low": f"  {self.estimate.level:.0%} interval from",
            "interval_high": "  to",
        }
        rows = [
            (label, *("" if value is None else f"{value:.4g}" for value in columns[name]))
            for name, label in labels.items()
        ]
        return format_table(("", *(f"arm {a}" for a in columns["arm"])), rows)


def trial_report(log: TreatmentLog, estimate: AteEstimate) -> TrialReport:
    """Report of a single experiment from its log and its estimate."""
    none = torch.zeros(len(log), dtype=torch.bool)
    withdrawn, corrected, incomplete = (
        none if part is None else part for part in (log.withdrawn, log.corrected, log.incomplete)
    )
    arms = log.arm.unsqueeze(-1) == torch.arange(log.num_arms)

    def count(which: Tensor) -> Tensor:
        return (arms & which.unsqueeze(-1)).sum(0)

    seen = arms & log.observed.unsqueeze(-1)
    mean = (log.outcome.unsqueeze(-1) * seen).sum(0) / seen.sum(0)
    return TrialReport(
        assigned=arms.sum(0),
        incomplete=count(incomplete),
        observed=seen.sum(0),
        corrected=count(corrected),
        waiting=count(~log.observed & ~withdrawn),
        withdrawn=count(withdrawn),
        mean=mean,
        estimate=estimate,
    )
