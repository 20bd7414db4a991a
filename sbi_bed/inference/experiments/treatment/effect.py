"""The effect with its intervals, from the logged units: asymptotic for real outcomes, non-asymptotic for bounded ones."""

from __future__ import annotations

from typing import Any

import torch
from scipy import stats
from torch import Tensor

from ....simulators.treatment.arms import arm_chances, arm_indicators
from ....utils.checks import check_fraction
from .a2ipw import FIRST_LOOK, AteEstimate, contrast_scores, estimate_ate, squared_width
from .betting import betting_intervals, outcome_range
from .few_events import effective_number, missing_events, sequence_factor

__all__ = ["arm_events", "arm_scores", "effect_scores", "estimate_effect"]


def effect_scores(
    arm: Tensor, outcome: Tensor, propensity: Tensor, predicted: Tensor, observed: Tensor, rates: Tensor | None
) -> Tensor:
    """Γ of each unit, (..., T), where outcomes are observed with probabilities `rates` (..., T, 2) in arms 0 and 1."""
    return contrast_scores(*_seen(arm, outcome, propensity, predicted, observed, rates)).squeeze(-1)


def arm_scores(
    arm: Tensor, outcome: Tensor, propensity: Tensor, predicted: Tensor, observed: Tensor, rates: Tensor | None
) -> Tensor:
    """Scores of the mean outcome in arm 0 and in arm 1, (..., T, 2), whose difference is `effect_scores`."""
    arm, outcome, chances, predicted = _seen(arm, outcome, propensity, predicted, observed, rates)
    return predicted + arm_indicators(arm, 2) * (outcome.unsqueeze(-1) - predicted) / chances


def _seen(
    arm: Tensor, outcome: Tensor, propensity: Tensor, predicted: Tensor, observed: Tensor, rates: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Arm, −1 where the outcome is missing; outcome; probability that each arm is given and seen; predictions."""
    chances = _chances(arm, propensity).double()
    if rates is not None:
        chances = (chances * rates).clamp_min(1e-12)
        arm = torch.where(observed, arm, -1)
    return arm.double(), outcome.double(), chances, predicted.double()


def estimate_effect(
    arm: Tensor,
    outcome: Tensor,
    propensity: Tensor,
    predicted: Tensor,
    observed: Tensor,
    rates: Tensor | None = None,
    *,
    level: float = 0.95,
    tightest_at: int = 200,
    outcome_space: Any = "real",
    num_effects: int = 1,
) -> AteEstimate:
    """Estimate, standard error and intervals after each unit: tensors (..., T).

    Args:
        arm: 0 or 1, (..., T); 2 for units of any other arm.
        outcome: Shape (..., T).
        propensity: Probability of arm 1, (..., T); if there are other arms those of arms 0 and 1, (..., T, 2).
        predicted: Outcomes of arms 0 and 1 as predicted before the unit was assigned, (..., T, 2).
        observed: Whether the outcome is there, (..., T).
        rates: Probability that it is, in arm 0 and in arm 1, (..., T, 2); 1 if None.
        level: Level of the intervals.
        tightest_at: Number of units at which the confidence sequence is tightest, for real outcomes.
        outcome_space: "real", "binary" or (low, high).
        num_effects: Number of effects that joint intervals and confidence sequences hold for together.

    Raises:
        ValueError: If an outcome lies outside the space, or the level is not within (0, 1).
    """
    level, ends = check_fraction(level, "level"), outcome_range(outcome_space)
    joint_level = level if num_effects == 1 else 1 - (1 - level) / num_effects
    if ends is not None:
        predicted = predicted.clamp(*ends)
    scores = effect_scores(arm, outcome, propensity, predicted, observed, rates)
    base = estimate_ate(scores, level, tightest_at)
    chances = _chances(arm, propensity)
    arm, outcome, chances, predicted = (part.double() for part in (arm, outcome, chances, predicted))
    lacking, events = missing_events(
        _deviations(outcome, observed, arm), arm, chances, None if ends is None else ends[1] - ends[0]
    )
    count = torch.arange(1, scores.shape[-1] + 1, dtype=torch.float64)
    stderr = (base.stderr.square() + lacking / count.square()).sqrt()
    if ends is not None:
        joint, sequence = _around(base.ate, _betting(scores, chances, predicted, rates, ends, joint_level))
        single = joint
        if num_effects > 1:
            single, _ = _around(base.ate, _betting(scores, chances, predicted, rates, ends, level))
        return AteEstimate(base.ate, stderr, single, sequence, base.num_units, level, joint)
    num = effective_number(scores, events)
    squared = squared_width(count, joint_level, tightest_at)
    factor = sequence_factor(squared, scores, num) * squared.sqrt()
    sequence = torch.where((count < FIRST_LOOK) | factor.isinf(), torch.inf, stderr * factor)
    single, joint = (
        torch.where(stderr.isinf(), torch.inf, _quantile(count, num, each) * stderr) for each in (level, joint_level)
    )

    def around(half: Tensor) -> tuple[Tensor, Tensor]:
        return base.ate - half, base.ate + half

    return AteEstimate(base.ate, stderr, around(single), around(sequence), base.num_units, level, around(joint))


def _chances(arm: Tensor, propensity: Tensor) -> Tensor:
    """Probabilities of arms 0 and 1, (..., T, 2), of a propensity (..., T) or (..., T, 2)."""
    return propensity if propensity.ndim > arm.ndim else arm_chances(propensity, 2)


def _quantile(count: Tensor, num: Tensor, level: float) -> Tensor:
    """Normal quantile, raised where scores are worth fewer normal ones than half their number, (..., T)."""
    plain, heavy = (stats.t.ppf(0.5 + level / 2, (n - 1).clamp_min(1).numpy()) for n in (count, count.minimum(2 * num)))
    return torch.from_numpy(stats.norm.ppf(0.5 + level / 2) * heavy / plain)


def arm_events(arm: Tensor, outcome: Tensor, propensity: Tensor, observed: Tensor) -> list[float]:
    """Effective number of events in both arms of one experiment."""
    return missing_events(_deviations(outcome, observed, arm), arm, _chances(arm, propensity))[1][-1].tolist()


def _deviations(outcome: Tensor, observed: Tensor, arm: Tensor) -> Tensor:
    """Outcomes less the median of their arm, (..., T), 0 where they are missing: rare outcomes are then the events."""
    deviation = torch.zeros_like(outcome, dtype=torch.float64)
    for a in range(2):
        mine = observed & (arm == a)
        known = torch.where(mine, outcome.double(), torch.nan)
        # Of an even number of values nanmedian is the lower middle one: both are used, so that −y has the median of y.
        middle = (known.nanmedian(-1, keepdim=True).values - (-known).nanmedian(-1, keepdim=True).values) / 2
        deviation = torch.where(mine, known - middle, deviation)
    return deviation


def _betting(
    scores: Tensor,
    chances: Tensor,
    predicted: Tensor,
    rates: Tensor | None,
    ends: tuple[float, float],
    level: float,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Betting intervals, from the range that each score has given the past."""
    f0, f1 = predicted.unbind(-1)
    chance0, chance1 = (chances if rates is None else chances * rates.clamp_min(1e-12)).unbind(-1)
    low, high = ends
    lowest = f1 - f0 - torch.maximum((f1 - low) / chance1, (high - f0) / chance0)
    highest = f1 - f0 + torch.maximum((high - f1) / chance1, (f0 - low) / chance0)
    return betting_intervals(scores, lowest, highest, high - low, level)


def _around(
    ate: Tensor, intervals: tuple[tuple[Tensor, Tensor], ...]
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Intervals that hold the estimate: to add it keeps them valid."""
    fixed, sequence = ((torch.minimum(low, ate), torch.maximum(high, ate)) for low, high in intervals)
    return fixed, sequence
