r"""Baselines: a coin, a Neyman rule without covariates, and a rule that knows the truth.

The effect is estimated with predictions of the outcome (A2IPW). Most of the gain over a plain trial comes from these
predictions. So compare with a coin that has the same predictions: experiments, studies and replays take a second policy
that predicts (`nuisance=`).

The non-contextual rule is σ̂_1 / (σ̂_1 + σ̂_0). Its running variances are shrunk towards the pooled variance with the weight
of ν units, so it starts at one half and does not depend on the unit of the outcome,

    σ̂_a² = (Σ_{s: A_s = a} (Y_s − Ȳ_a)² + ν σ̂²) / (n_a − 1 + ν).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...simulators.treatment.problem import TreatmentProblem
from .arm_moments import ArmMoments
from .base import TreatmentPolicy

__all__ = ["CoinFlip", "NonContextualNeyman", "OracleNeyman", "predictor_for"]


class NonContextualNeyman(TreatmentPolicy):
    """The Neyman rule from each arm's running variance, the same for all covariates. It predicts the arms' means.

    Args:
        covariate_dim: Number d of covariates, 0 or more.
        clip: Propensities lie in [clip, 1 − clip].

    Raises:
        ValueError: If clip is not between 0 and ½.

    Example:
        >>> policy = NonContextualNeyman(1)
        >>> outcomes = torch.tensor([-3.0, 1.0, 3.0, -1.0, -3.0, 1.0, 3.0, -1.0])
        >>> arms, covariates = torch.tensor([1.0, 0.0] * 4), torch.zeros(8, 1)
        >>> history = torch.cat([covariates, torch.stack([arms, outcomes, torch.ones(8)], -1)], -1)
        >>> round(float(policy(history, torch.zeros(1))), 3)
        0.588
    """

    needs_outcomes = True

    def __init__(self, covariate_dim: int, clip: float = 0.05):
        super().__init__(covariate_dim, clip)

    def initial_state(self, batch_shape: Sequence[int] = ()) -> ArmMoments:
        """Moments of no units."""
        return ArmMoments.none(batch_shape)

    def update(self, state: ArmMoments, covariates: Tensor, arm: Tensor, outcome: Tensor) -> ArmMoments:
        """Moments with one more unit: covariates (*batch, d), arm (*batch), outcome (*batch)."""
        return state.with_unit(arm, outcome)

    def predict(self, state: ArmMoments, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each arm so far, both (*sample, *batch, 2)."""
        shape = (*covariates.shape[:-1], 2)
        mean, log_variance = state.predict()
        return mean.expand(shape), log_variance.expand(shape)


class CoinFlip(NonContextualNeyman):
    """The same probability for everyone: a plain randomised trial. It predicts the arms' means.

    Args:
        covariate_dim: Number d of covariates, 0 or more.
        probability: Probability of arm 1.
        clip: Smallest probability of either arm.

    Raises:
        ValueError: If the probability is not within [clip, 1 − clip], or clip not between 0 and ½.

    Example:
        >>> coin = CoinFlip(2)
        >>> coin.propensity(coin.initial_state(), torch.zeros(2))
        tensor(0.5000)
    """

    def __init__(self, covariate_dim: int, probability: float = 0.5, clip: float = 0.05):
        super().__init__(covariate_dim, clip)
        self.config["probability"] = self.probability = float(probability)
        if not clip <= probability <= 1 - clip:
            raise ValueError(f"probability must be within [{clip:g}, {1 - clip:g}], got {probability}.")

    def propensity(self, state: Any, covariates: Tensor) -> Tensor:
        """The coin's probability, (*sample, *batch)."""
        return torch.full(covariates.shape[:-1], self.probability, dtype=covariates.dtype)


class OracleNeyman(TreatmentPolicy):
    """Assigns by the true variances and predicts the true means: no design can do better.

    Args:
        problem: One simulated problem, or a batch (*batch) of them.
        clip: Propensities lie in [clip, 1 − clip].

    Example:
        >>> from sbi_bed.simulators.treatment.problem import two_arm_benchmark
        >>> OracleNeyman(two_arm_benchmark()).propensity(None, torch.zeros(0))
        tensor(0.7500)
    """

    def __init__(self, problem: TreatmentProblem, clip: float = 0.05):
        super().__init__(problem.covariate_dim, clip, problem=problem)
        self.problem = problem

    def initial_state(self, batch_shape: Sequence[int] = ()) -> None:
        """It has nothing to learn."""

    def update(self, state: None, covariates: Tensor, arm: Tensor, outcome: Tensor) -> None:
        """It has nothing to learn."""

    def predict(self, state: None, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """The true means and log variances, both (*sample, *batch, 2)."""
        mean, variance = self.problem.moments(covariates.unsqueeze(-2))
        return mean.squeeze(-2), variance.log().squeeze(-2)

    def save(self, path: str | Path) -> None:
        """A problem is made of functions, which are no plain data: a `ValueError`."""
        raise ValueError("an OracleNeyman holds functions and cannot be saved; build it again instead.")


def predictor_for(policy: Any, nuisance: TreatmentPolicy | None = None) -> TreatmentPolicy:
    """The policy whose predictions serve as nuisances: the one given, else the policy itself, else the arms' means.

    Raises:
        ValueError: If the one given predicts no outcomes, or is for another number of covariates.
    """
    if nuisance is None:
        return policy if getattr(policy, "has_predictions", False) else CoinFlip(policy.covariate_dim)
    if not nuisance.has_predictions or nuisance.covariate_dim != policy.covariate_dim:
        raise ValueError(
            f"nuisance must predict outcomes from {policy.covariate_dim} covariates, got a {type(nuisance).__name__} for "
            f"{nuisance.covariate_dim} with has_predictions {nuisance.has_predictions}."
        )
    return nuisance
