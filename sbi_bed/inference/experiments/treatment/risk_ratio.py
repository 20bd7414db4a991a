r"""The ratio of mean outcomes, for outcomes that are not negative: risks, rates, counts, times.

With scores ψ_{a,t} of the mean μ_a of each arm (their difference is Γ_t, `a2ipw.py`) the log ratio has the error

    log(μ̂_1 / μ̂_0) − log(μ_1 / μ_0) ≈ t⁻¹ Σ_s (ψ_{1,s} / μ_1 − ψ_{0,s} / μ_0),

a mean of martingale differences (the delta method). The interval is symmetric in logs, exp(log ratio ± z standard errors).
It is asymptotic: while an arm has fewer than three effective events (`few_events.py`) it is (0, ∞).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ....utils.checks import check_fraction
from .few_events import FEWEST_EVENTS

__all__ = ["RiskRatio", "estimate_ratio"]


@dataclass(frozen=True)
class RiskRatio:
    """Mean outcome of a treatment over that of the control; numbers, or with K > 2 arms tensors (K − 1,).

    Attributes:
        ratio: Estimate; NaN while nothing is known.
        log_stderr: Standard error of its logarithm.
        interval: Lower and upper end, for one look at a time fixed beforehand; of each ratio alone.
        level: Level of the interval.

    Example:
        >>> from sbi_bed.inference import TreatmentExperiment
        >>> from sbi_bed.policies import CoinFlip
        >>> trial = TreatmentExperiment(CoinFlip(0), outcome_space="binary", seed=0)
        >>> arm, _ = trial.assign(torch.zeros(400, 0))
        >>> trial.update([float(number % (3 - a) == 0) for number, a in enumerate(arm.tolist())])  # 1 / 3 and 1 / 2
        >>> found = trial.log.risk_ratio()
        >>> found.interval[0] < 1.5 < found.interval[1]
        True
    """

    ratio: Any
    log_stderr: Any
    interval: tuple[Any, Any]
    level: float

    @classmethod
    def of(cls, each: list[tuple[float, float] | None], level: float) -> RiskRatio:
        """From ratio and standard error of its logarithm of each treatment; None where nothing is known."""
        pairs = torch.tensor([(math.nan, math.inf) if pair is None else pair for pair in each], dtype=torch.float64)
        ratio, stderr = pairs.unbind(-1)
        half = NormalDist().inv_cdf(0.5 + check_fraction(level, "level") / 2) * stderr
        centre = ratio.nan_to_num(1.0)
        low, high = (
            torch.where(stderr.isinf(), end, centre * (sign * half).exp()) for sign, end in ((-1, 0.0), (1, torch.inf))
        )
        parts = [part if len(each) > 1 else part.item() for part in (ratio, stderr, low, high)]
        return cls(parts[0], parts[1], (parts[2], parts[3]), level)

    def __str__(self) -> str:
        columns = [torch.as_tensor(part).reshape(-1).tolist() for part in (self.ratio, *self.interval)]
        return "\n".join(
            f"arm {a} / arm 0: {ratio:.4g}, {self.level:.0%} interval [{low:.4g}, {high:.4g}]"
            for a, (ratio, low, high) in enumerate(zip(*columns, strict=True), 1)
        )


def estimate_ratio(scores: Tensor, events: list[float]) -> tuple[float, float] | None:
    """Ratio and standard error of its logarithm, from scores (T, 2) and events of both arms; None while it is unknown."""
    means = scores.mean(0)
    if min(events) < FEWEST_EVENTS or not bool((means > 0).all()):
        return None
    errors = scores[:, 1] / means[1] - scores[:, 0] / means[0]
    return float(means[1] / means[0]), float(errors.std() / len(errors) ** 0.5)
