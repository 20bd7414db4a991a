"""Running moments of the outcomes in each arm: predictions that need no scale, for baselines and for the first units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...simulators.treatment.arms import arm_indicators

__all__ = ["ArmMoments"]

_PRIOR_UNITS = 4.0  # ν


class ArmMoments(NamedTuple):
    """Moments of the outcomes in each arm, each (*batch, K), float64.

    Attributes:
        count: Number of outcomes.
        mean: Their mean.
        squares: Sum of squared deviations from it.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    @classmethod
    def none(cls, batch_shape: Sequence[int] = (), num_arms: int = 2) -> ArmMoments:
        """Moments of no units."""
        return cls(*(torch.zeros(*batch_shape, num_arms, dtype=torch.float64) for _ in range(3)))

    @classmethod
    def of(cls, arm: Tensor, outcome: Tensor, mask: Tensor, *, num_arms: int = 2) -> ArmMoments:
        """Moments of units: arm, outcome and mask, each (*batch, n)."""
        weight = (arm_indicators(arm, num_arms) * mask.unsqueeze(-1)).double()
        count, outcome = weight.sum(-2), outcome.double().unsqueeze(-1)
        mean = (weight * outcome).sum(-2) / count.clamp_min(1)
        return cls(count, mean, (weight * (outcome - mean.unsqueeze(-2)).square()).sum(-2))

    def with_unit(self, arm: Tensor, outcome: Tensor) -> ArmMoments:
        """Moments with one more unit: arm (*batch), outcome (*batch). Welford's update."""
        chosen = arm_indicators(arm, self.count.shape[-1]).double()
        count = self.count + chosen
        gap = outcome.double().unsqueeze(-1) - self.mean
        mean = self.mean + chosen * gap / count.clamp_min(1)
        squares = self.squares + chosen * gap * (outcome.double().unsqueeze(-1) - mean)
        return ArmMoments(count, mean, squares)

    def predict(self) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each arm, both (*batch, K).

        An arm without units has the mean of all others. While outcomes do not vary their variance is taken as 1: there is
        nothing to learn a scale from.
        """
        total, num_arms = self.count.sum(-1, keepdim=True), self.count.shape[-1]
        overall = (self.count * self.mean).sum(-1, keepdim=True) / total.clamp_min(1)
        pooled = self.squares.sum(-1, keepdim=True) / (total - num_arms).clamp_min(1)
        between = (self.count * (self.mean - overall).square()).sum(-1, keepdim=True) / (total - 1).clamp_min(1)
        pooled = torch.where(pooled > 0, pooled, torch.where(between > 0, between, 1.0))
        variance = (self.squares + _PRIOR_UNITS * pooled) / ((self.count - 1).clamp_min(0) + _PRIOR_UNITS)
        return torch.where(self.count > 0, self.mean, overall), variance.log()
