r"""A family of treatment problems of known smoothness, and streams of units under a policy.

Covariates are uniform on [0, 1]^d. In each problem and arm the mean f_a and the log variance log σ_a² are random cosine
series whose coefficients have a standard deviation ∝ |k|^{−(α + d/2)}, α the smoothness. All classes of smoothness have
functions of the same variance, a third of it in the constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...utils.checks import check_count, check_positive
from ...utils.quasi_random import quasi_random_draws
from ...utils.seeding import seeded
from .arms import draw_arms
from .function_basis import CosineSeries
from .problem import TreatmentProblem, binary_outcomes

__all__ = ["StreamRollout", "TreatmentStream", "assign_stream", "assign_units"]


class TreatmentStream:
    """Treatment problems with random means and variances.

    Args:
        smoothness: α, or several: each problem is then of a class drawn with equal probability.
        covariate_dim: Number d of covariates.
        num_functions: Number of functions in a series, the constant included.
        mean_scale: Prior sd of f_a(x), in units of the outcome.
        log_variance_scale: Prior sd of log σ_a²(x).
        outcome: "normal"; "binary": outcomes 0 and 1 of probability 1 / (1 + exp(−f_a(x))), whose variances follow from
            it; or your own simulator, means and variances (*batch, n, K) -> outcomes with these in each arm.
        num_arms: Number K of arms, arm 0 the control.

    Attributes:
        basis: Functions that f_a and log σ_a² are series of.
        num_arms: Number of arms.

    Raises:
        ValueError: If a smoothness or scale is not positive, or the outcome is none of these.

    Example:
        >>> stream = TreatmentStream(smoothness=(0.5, 1.5, 4.0))
        >>> problems = stream.sample(8, seed=0)
        >>> problems.bound.shape, problems.draw_covariates(20).shape
        (torch.Size([8]), torch.Size([8, 20, 1]))
    """

    def __init__(
        self,
        smoothness: float | Sequence[float] = (0.5, 1.5, 4.0),
        covariate_dim: int = 1,
        num_functions: int = 10,
        mean_scale: float = 1.0,
        log_variance_scale: float = 1.5,
        outcome: Literal["normal", "binary"] | Callable[[Tensor, Tensor], Tensor] = "normal",
        num_arms: int = 2,
    ):
        classes = [smoothness] if isinstance(smoothness, (int, float)) else list(smoothness)
        if not classes:
            raise ValueError("smoothness must be a number or several, got none.")
        self.smoothness = tuple(check_positive(alpha, "smoothness") for alpha in classes)
        self.basis = CosineSeries(covariate_dim, num_functions)
        self.mean_scale = check_positive(mean_scale, "mean_scale")
        self.log_variance_scale = check_positive(log_variance_scale, "log_variance_scale")
        if not (outcome in ("normal", "binary") or callable(outcome)):
            raise ValueError(f"outcome must be 'normal', 'binary' or a simulator of outcomes, got {outcome!r}.")
        self.outcome, self.num_arms = outcome, check_count(num_arms, "num_arms", 2)
        uniform = torch.distributions.Uniform(torch.zeros(covariate_dim).double(), torch.ones(covariate_dim).double())
        if covariate_dim == 1:
            self._nodes = (torch.arange(512).double().unsqueeze(-1) + 0.5) / 512  # exact for cosines to k = 511
        elif covariate_dim == 0:
            self._nodes = torch.zeros(1, 0).double()
        else:
            self._nodes = quasi_random_draws(torch.distributions.Independent(uniform, 1), 2048)

    @property
    def covariate_dim(self) -> int:
        """Number d of covariates."""
        return self.basis.covariate_dim

    def sample(self, num_episodes: int, *, seed: int | None = None) -> TreatmentProblem:
        """A batch (num_episodes,) of problems, with `smoothness_class` the class of each."""
        num = check_count(num_episodes, "num_episodes")
        with seeded(seed):
            which = torch.randint(len(self.smoothness), (num,))
            weights = torch.randn(2, num, self.num_arms, len(self.basis), dtype=torch.float64)
        for part, scale in zip(weights, (self.mean_scale, self.log_variance_scale), strict=True):
            part *= torch.stack([self.basis.sd(alpha, scale) for alpha in self.smoothness])[which].unsqueeze(1)

        def draw_covariates(num_units: int) -> Tensor:
            return torch.rand(num, num_units, self.covariate_dim, dtype=torch.float64)

        def moments(covariates: Tensor) -> tuple[Tensor, Tensor]:
            means, log_variances = self.basis.features(covariates.double()) @ weights.mT
            if self.outcome == "binary":
                p = means.sigmoid()
                return p, p * (1 - p)
            return means, log_variances.exp()

        simulate = binary_outcomes if self.outcome == "binary" else self.outcome if callable(self.outcome) else None
        return TreatmentProblem(draw_covariates, moments, self._nodes, simulate, (num,), which)


class StreamRollout(NamedTuple):
    """Units that a policy assigned.

    Attributes:
        history: Units (*batch, T, d + 3), all observed.
        propensity: Probability of arm 1 that each was assigned with, (*batch, T); of each arm, (*batch, T, K), if K > 2.
        regret: Of each unit, (*batch, T); see `TreatmentProblem.regret`.
        mean: Outcome that the policy predicted in each arm, (*batch, T, K), if asked for.
        log_variance: Log of the predictive variance, (*batch, T, K), if asked for.
    """

    history: Tensor
    propensity: Tensor
    regret: Tensor
    mean: Tensor | None = None
    log_variance: Tensor | None = None


@torch.no_grad()
def assign_stream(
    problem: TreatmentProblem, policy: Any, num_units: int, *, seed: int | None = None, with_predictions: bool = False
) -> StreamRollout:
    """Let a policy assign `num_units` units in each problem. Each outcome is known before the next unit comes.

    Units and their outcomes in either arm depend on the seed alone, so policies can be compared pairwise.

    Args:
        problem: One problem, or a batch.
        policy: A `TreatmentPolicy`.
        num_units: Number T of units.
        seed: Seed of units and assignments.
        with_predictions: Whether to keep the policy's predictions for each unit.

    Example:
        >>> from sbi_bed.policies import CoinFlip
        >>> problems = TreatmentStream(smoothness=1.5).sample(4, seed=0)
        >>> assign_stream(problems, CoinFlip(1), num_units=10, seed=0).history.shape
        torch.Size([4, 10, 4])
    """
    num_units = check_count(num_units, "num_units")
    with seeded(seed):
        covariates = problem.draw_covariates(num_units)
        outcomes = problem.outcomes(covariates)
        uniform = torch.rand(covariates.shape[:-1], dtype=torch.float64)
    history, propensity, predicted = assign_units(
        policy, covariates, outcomes, uniform, policy if with_predictions else None
    )
    return StreamRollout(history, propensity, problem.regret(covariates, propensity), *predicted)


def assign_units(
    policy: Any, covariates: Tensor, outcomes: Tensor, uniform: Tensor, predictor: Any = None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Let a policy assign given units one after another.

    Args:
        policy: A `TreatmentPolicy`.
        covariates: Of each unit, (*batch, T, d).
        outcomes: Of each unit in each arm, (*batch, T, K).
        uniform: Draws that decide, (*batch, T), see `draw_arms`; for two arms arm 1 where they are below the propensity.
        predictor: The `TreatmentPolicy` whose predictions of each unit, made before it is assigned, are kept; it may be the
            policy. None: nothing is kept.

    Returns:
        History (*batch, T, d + 3), propensities (*batch, T) or (*batch, T, K), and mean and log variance, each
        (*batch, T, K), if predicted.
    """
    state = policy.initial_state(covariates.shape[:-2])
    beliefs = None if predictor is None or predictor is policy else predictor.initial_state(covariates.shape[:-2])
    units, propensities, predictions = [], [], []
    for x, both, u in zip(covariates.unbind(-2), outcomes.unbind(-2), uniform.unbind(-1), strict=True):
        propensity = policy.propensity(state, x).double()
        if predictor is not None:
            predictions.append(predictor.predict(state if predictor is policy else beliefs, x))
        drawn = draw_arms(u, propensity, both.shape[-1])
        arm, outcome = drawn.to(both), both.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        state = policy.update(state, x, arm, outcome)
        if predictor is not None and predictor is not policy:
            beliefs = predictor.update(beliefs, x, arm, outcome)
        units.append(torch.cat([x, torch.stack([arm, outcome, torch.ones_like(arm)], -1)], -1))
        propensities.append(propensity)
    predicted = [torch.stack(part, -2) for part in zip(*predictions, strict=True)]
    return torch.stack(units, -2), torch.stack(propensities, covariates.ndim - 2), predicted
