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

from ...simulators.treatment.arms import as_propensity
from ...simulators.treatment.problem import TreatmentProblem
from ...utils.checks import as_finite_tensor
from .arm_moments import ArmMoments
from .base import TreatmentPolicy

__all__ = ["CoinFlip", "NonContextualNeyman", "OracleNeyman", "predictor_for"]


class NonContextualNeyman(TreatmentPolicy):
    """The Neyman rule from each arm's running variance, the same for all covariates. It predicts the arms' means.

    Args:
        covariate_dim: Number d of covariates, 0 or more.
        clip: Smallest probability of any arm.
        num_arms: Number K of arms, arm 0 the control.

    Raises:
        ValueError: If clip is not between 0 and 1 / K.

    Example:
        >>> policy = NonContextualNeyman(1)
        >>> outcomes = torch.tensor([-3.0, 1.0, 3.0, -1.0, -3.0, 1.0, 3.0, -1.0])
        >>> arms, covariates = torch.tensor([1.0, 0.0] * 4), torch.zeros(8, 1)
        >>> history = torch.cat([covariates, torch.stack([arms, outcomes, torch.ones(8)], -1)], -1)
        >>> round(float(policy(history, torch.zeros(1))), 3)
        0.588
    """

    needs_outcomes = True

    def __init__(self, covariate_dim: int, clip: float = 0.05, num_arms: int = 2):
        super().__init__(covariate_dim, clip, num_arms=num_arms)

    def initial_state(self, batch_shape: Sequence[int] = ()) -> ArmMoments:
        """Moments of no units."""
        return ArmMoments.none(batch_shape, self.num_arms)

    def update(self, state: ArmMoments, covariates: Tensor, arm: Tensor, outcome: Tensor) -> ArmMoments:
        """Moments with one more unit: covariates (*batch, d), arm (*batch), outcome (*batch)."""
        return state.with_unit(arm, outcome)

    def predict(self, state: ArmMoments, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each arm so far, both (*sample, *batch, K)."""
        shape = (*covariates.shape[:-1], self.num_arms)
        mean, log_variance = state.predict()
        return mean.expand(shape), log_variance.expand(shape)


class CoinFlip(NonContextualNeyman):
    """The same probabilities for everyone: a plain randomised trial. It predicts the arms' means.

    Args:
        covariate_dim: Number d of covariates, 0 or more.
        probability: Probability of arm 1; with K > 2 arms that of each, (K,). If None, all arms have the same.
        clip: Smallest probability of any arm.
        num_arms: Number K of arms, arm 0 the control.

    Raises:
        ValueError: If a probability is below clip, they do not sum to one, or clip is not between 0 and 1 / K.

    Example:
        >>> coin = CoinFlip(2)
        >>> coin.propensity(coin.initial_state(), torch.zeros(2))
        tensor(0.5000)
    """

    def __init__(
        self,
        covariate_dim: int,
        probability: float | Sequence[float] | None = None,
        clip: float = 0.05,
        num_arms: int = 2,
    ):
        super().__init__(covariate_dim, clip, num_arms)
        if num_arms == 2:
            given = 0.5 if probability is None else float(probability)  # pyright: ignore[reportArgumentType]
            if not clip <= given <= 1 - clip:
                raise ValueError(f"probability must be within [{clip:g}, {1 - clip:g}], got {given}.")
            shares = torch.tensor([1 - given, given], dtype=torch.float64)
        else:
            given = [1 / num_arms] * num_arms if probability is None else probability
            shares = as_finite_tensor(given, "probability", num_arms, dtype=torch.float64)
            given = shares.tolist()
            if shares.ndim > 1 or float(shares.min()) < clip or abs(float(shares.sum()) - 1) > 1e-6:
                raise ValueError(
                    f"probability must be {num_arms} numbers of at least {clip:g} that sum to 1, got {given}."
                )
        self.config["probability"] = self.probability = given
        self._propensity = as_propensity(shares)

    def propensity(self, state: Any, covariates: Tensor) -> Tensor:
        """The coin's probability of arm 1, (*sample, *batch), or of each arm, (*sample, *batch, K)."""
        return self._propensity.to(covariates).expand((*covariates.shape[:-1], *self._propensity.shape)).clone()


class OracleNeyman(TreatmentPolicy):
    """Assigns by the true variances and predicts the true means: no design can do better.

    Args:
        problem: One simulated problem, or a batch (*batch) of them.
        clip: Smallest probability of any arm.

    Example:
        >>> from sbi_bed.simulators.treatment.problem import two_arm_benchmark
        >>> OracleNeyman(two_arm_benchmark()).propensity(None, torch.zeros(0))
        tensor(0.7500)
    """

    def __init__(self, problem: TreatmentProblem, clip: float = 0.05):
        super().__init__(problem.covariate_dim, clip, problem=problem)
        self.num_arms = problem.num_arms
        self.problem = problem

    def initial_state(self, batch_shape: Sequence[int] = ()) -> None:
        """It has nothing to learn."""

    def update(self, state: None, covariates: Tensor, arm: Tensor, outcome: Tensor) -> None:
        """It has nothing to learn."""

    def predict(self, state: None, covariates: Tensor) -> tuple[Tensor, Tensor]:
        """The true means and log variances, both (*sample, *batch, K)."""
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
        if getattr(policy, "has_predictions", False):
            return policy
        return CoinFlip(policy.covariate_dim, clip=0.5 / policy.num_arms, num_arms=policy.num_arms)
    if nuisance.num_arms != policy.num_arms:
        raise ValueError(f"nuisance must predict {policy.num_arms} arms as the policy has, got {nuisance.num_arms}.")
    if not nuisance.has_predictions or nuisance.covariate_dim != policy.covariate_dim:
        raise ValueError(
            f"nuisance must predict outcomes from {policy.covariate_dim} covariates, got a {type(nuisance).__name__} for "
            f"{nuisance.covariate_dim} with has_predictions {nuisance.has_predictions}."
        )
    return nuisance
