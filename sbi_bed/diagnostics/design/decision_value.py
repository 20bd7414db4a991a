"""What an experiment is worth for a decision: the expected utility after it, beside those without data and with all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...objectives.bounds import blocks_of, stderr_over_blocks
from ...objectives.decision import Decision, estimate_utility
from ...simulators.base import DesignSimulator
from ...simulators.experiments import Experiments, sampler_of
from ...simulators.rollout import warn_beyond_training
from ...utils.checks import check_count
from ...utils.history import trials_before
from ...utils.seeding import seeded

__all__ = ["ExpectedUtility", "expected_utility"]


@dataclass(frozen=True)
class ExpectedUtility:
    """Expected utility of a decision, in the utility's own unit.

    Attributes:
        utility: Of the decision after the experiment, a lower bound on that of the best decision.
        stderr: Its standard error.
        without: Of the best decision before the experiment.
        with_certainty: Of the best decision if theta were known, an upper limit for every experiment; nan for continuous
            actions.
        samples: The utility after each simulated experiment, (num_rollouts,).

    Example:
        >>> print(ExpectedUtility(2.5, 0.1, 2.0, 3.0, torch.zeros(500)))
        utility 2.5 ± 0.1 (500 rollouts); 2 without the experiment, 3 if theta were known
    """

    utility: float
    stderr: float
    without: float
    with_certainty: float
    samples: Tensor

    @property
    def value(self) -> float:
        """Expected value of sample information: what the experiment adds to the utility."""
        return self.utility - self.without

    def __str__(self) -> str:
        limit = "" if math.isnan(self.with_certainty) else f", {self.with_certainty:.4g} if theta were known"
        return (
            f"utility {self.utility:.4g} ± {self.stderr:.2g} ({len(self.samples)} rollouts); {self.without:.4g} without "
            f"the experiment{limit}"
        )


@torch.no_grad()
def expected_utility(
    simulator: DesignSimulator,
    policy: Any,
    horizon: int,
    decision: Decision,
    num_rollouts: int = 1000,
    num_contrastive: int = 20_000,
    *,
    seed: int | None = None,
    prior: Any = None,
    history: Tensor | None = None,
) -> ExpectedUtility:
    """Expected utility of the decision after an experiment, for any policy.

    Args:
        simulator: The experiment, with a likelihood, or one that `process_design_simulator` made.
        policy: Policy, or any callable history -> design.
        horizon: Number T of trials.
        decision: Utility and actions.
        num_rollouts: Simulated experiments.
        num_contrastive: Draws of θ that each decision is made from, weighted by the likelihood. Too few make decisions
            worse than they could be: the utility is then too low, never too high.
        seed: Seed; the global generator if None.
        prior: Where θ is drawn from, if not the simulator's prior: a distribution, or draws (N, P).
        history: Trials already done, (n, D + O + 1); `prior` should then be the posterior.

    Raises:
        ValueError: If there is no likelihood, or an argument is out of range, or a utility is not finite.

    Source: Raiffa and Schlaifer 1961.

    Example:
        >>> from sbi_bed.policies import RandomPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> dig = Decision(lambda theta, place: -(theta - place).square().sum(-1), simulator.design_space)
        >>> found = expected_utility(simulator, RandomPolicy(simulator), 3, dig, 64, 1000, seed=0)
        >>> found.utility > found.without
        True
    """
    if not simulator.has_likelihood:
        raise ValueError(
            "expected_utility needs a simulator with a log_likelihood, or one made by process_design_simulator."
        )
    decision.check(simulator)
    num_rollouts = check_count(num_rollouts, "num_rollouts", 2)
    num_contrastive = check_count(num_contrastive, "num_contrastive", 2)
    warn_beyond_training(policy, check_count(horizon, "horizon"))
    history, num_trials = trials_before(history, horizon, simulator.design_dim, simulator.outcome_dim)
    experiments = Experiments(simulator, num_trials, history, prior)
    with seeded(seed):
        samples = estimate_utility(experiments, policy, decision, num_rollouts, num_contrastive)
        sample = sampler_of(experiments.prior)
        theta, others = sample(num_contrastive), sample(num_contrastive)
        equal = torch.full((1, num_contrastive), 1 / num_contrastive, dtype=theta.dtype)
        without = decision.utility(others, decision.best_actions(theta, equal)).mean()
        certain = decision.values(others).amax(-1).mean() if decision.is_finite else math.nan
    error = stderr_over_blocks(samples, blocks_of(num_rollouts))
    return ExpectedUtility(float(samples.mean()), error, float(without), float(certain), samples)
