r"""The Neyman rule within strata: groups that are known before treatment, such as sites, sexes or stages of a disease.

Each stratum g has its own variances σ̂_{a,g}² and means, so its own shares π_{a,g} ∝ w_a σ̂_{a,g}
(`simulators/treatment/arms.py`), and the predictions make the estimate a post-stratified one. A stratum starts from the
variances and means of all units, until it has two units for each arm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...utils.checks import check_count
from .arm_moments import ArmMoments
from .base import TreatmentPolicy

__all__ = ["StratifiedNeyman"]


class StratifiedNeyman(TreatmentPolicy):
    """The Neyman rule from running variances in each stratum. It predicts the means of the arms there.

    Args:
        covariate_dim: Number d of covariates, 1 or more.
        num_strata: Number S of strata.
        stratum: Which covariate is the stratum, a whole number 0 … S − 1. The others are not used.
        clip: Smallest probability of any arm.
        num_arms: Number K of arms, arm 0 the control.

    Raises:
        ValueError: If there is no such covariate, or clip is not between 0 and 1 / K. If a stratum is not one of 0 … S − 1,
            when it is read.

    Example:
        >>> policy = StratifiedNeyman(covariate_dim=1, num_strata=2)
        >>> state = policy.initial_state()
        >>> for number in range(40):  # arm 1 varies in stratum 1 only
        ...     group, arm = torch.tensor([float(number % 2)]), torch.tensor(float(number // 2 % 2))
        ...     state = policy.update(state, group, arm, (1 + 4 * group[0] * arm) * (-1) ** (number // 4))
        >>> [round(float(policy.propensity(state, torch.tensor([group]))), 2) for group in (0.0, 1.0)]
        [0.5, 0.68]
    """

    needs_outcomes = True

    def __init__(self, covariate_dim: int, num_strata: int, stratum: int = 0, clip: float = 0.05, num_arms: int = 2):
        super().__init__(covariate_dim, clip, num_strata=num_strata, stratum=stratum, num_arms=num_arms)
        self.num_strata, self.stratum = check_count(num_strata, "num_strata"), check_count(stratum, "stratum", 0)
        if self.stratum >= self.covariate_dim:
            raise ValueError(f"stratum must be one of {covariate_dim} covariates, counted from 0, got {stratum}.")

    def initial_state(self, batch_shape: Sequence[int] = ()) -> ArmMoments:
        """Moments of no units, each (*batch, S K): those of the arms in stratum 0, then in stratum 1, and so on."""
        return ArmMoments.none(batch_shape, self.num_strata * self.num_arms)

    def update(self, state: ArmMoments, covariates: Tensor, arm: Tensor, outcome: Tensor) -> ArmMoments:
        """Moments with one more unit: covariates (*batch, d), arm (*batch), outcome (*batch)."""
        return state.with_unit(self._strata(covariates) * self.num_arms + arm.long(), outcome)

    def predict(self, state: ArmMoments, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each arm in the unit's stratum so far, both (*sample, *batch, K)."""
        strata = self._strata(covariates)
        by_stratum = ArmMoments(*(part.unflatten(-1, (self.num_strata, self.num_arms)) for part in state))
        own = ArmMoments(*(_pick(part, strata) for part in by_stratum))
        known = own.count.sum(-1, keepdim=True) >= 2 * self.num_arms
        pairs = zip(own.predict(), _pooled(by_stratum).predict(), strict=True)
        mean, log_variance = (torch.where(known, mine, pooled) for mine, pooled in pairs)
        return mean, log_variance

    def _strata(self, covariates: Tensor) -> Tensor:
        """Stratum of each unit, (...), int64."""
        given = covariates[..., self.stratum]
        wrong = (given != given.round()) | (given < 0) | (given >= self.num_strata)
        if wrong.any():
            raise ValueError(
                f"a stratum must be one of 0 to {self.num_strata - 1}, got {float(given[wrong].flatten()[0]):g}."
            )
        return given.long()


def _pick(part: Tensor, strata: Tensor) -> Tensor:
    """Entries (*sample, *batch, K) of (*batch, S, K) for strata (*sample, *batch)."""
    index = strata.unsqueeze(-1).unsqueeze(-1).expand(*strata.shape, 1, part.shape[-1])
    return part.expand(*strata.shape, *part.shape[-2:]).gather(-2, index).squeeze(-2)


def _pooled(moments: ArmMoments) -> ArmMoments:
    """Moments (*batch, K) of all strata together, of moments (*batch, S, K)."""
    count = moments.count.sum(-2)
    mean = (moments.count * moments.mean).sum(-2) / count.clamp_min(1)
    between = (moments.count * (moments.mean - mean.unsqueeze(-2)).square()).sum(-2)
    return ArmMoments(count, mean, moments.squares.sum(-2) + between)
