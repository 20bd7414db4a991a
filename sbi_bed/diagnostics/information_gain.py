"""How much an experiment is expected to tell: bounds on the information gain of a policy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..objectives.bounds import InformationGain, estimate_bounds, sampler_of
from ..simulators.base import DesignSimulator
from ..utils.checks import check_count
from ..utils.history import check_history
from ..utils.seeding import seeded

__all__ = ["InformationGain", "expected_information_gain"]


def expected_information_gain(
    simulator: DesignSimulator,
    policy: Any,
    horizon: int,
    num_rollouts: int = 1000,
    num_contrastive: int = 100_000,
    seed: int | None = None,
    *,
    prior: Any = None,
    history: Tensor | None = None,
    max_gap: float | None = None,
    max_contrastive: int = 10_000_000,
    show_progress_bars: bool = False,
) -> InformationGain:
    """Lower (sPCE) and upper (sNMC) bound on the total expected information gain, from the same draws.

    Memory does not grow with `num_contrastive`: contrastive samples are streamed.

    Args:
        simulator: Experiment with a likelihood.
        policy: Policy, or any callable history -> design.
        horizon: Number T of trials.
        num_rollouts: Simulated experiments.
        num_contrastive: Contrastive samples L for each. The lower bound cannot exceed log(L + 1).
        seed: Seed; the global generator if None.
        prior: Where θ is drawn from, if not the simulator's prior: a distribution, or draws (N, P).
        history: Trials already done, (n, D + O + 1); the gain is that of the T − n that remain, and `prior` should then
            be the posterior.
        max_gap: Double L, keeping what was done, until upper − lower is at most this many nats.
        max_contrastive: Largest L that `max_gap` may lead to.
        show_progress_bars: Whether to show progress.

    Returns:
        Bounds with standard errors, in nats.

    Raises:
        ValueError: If there is no likelihood, or an argument is out of range.

    Source: Foster et al. 2021 (arXiv 2103.02438), sPCE and sNMC.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> from sbi_bed.policies import RandomPolicy
        >>> simulator = LocationFinding()
        >>> gain = expected_information_gain(simulator, RandomPolicy(simulator), 3, 64, 1000, seed=0)
        >>> gain.lower <= gain.upper
        True
    """
    if not simulator.has_likelihood:
        raise ValueError("expected_information_gain needs a simulator with a log_likelihood.")
    if max_gap is not None and not max_gap >= 0:
        raise ValueError(f"max_gap must not be negative, got {max_gap}.")
    num_trials = check_count(horizon, "horizon")
    if history is not None:
        history = check_history(history, simulator.design_dim, simulator.outcome_dim)
        if history.ndim != 2:
            raise ValueError(f"history must be that of one experiment, (n, D + O + 1), got {tuple(history.shape)}.")
        history = history[: int(history[:, -1].sum())]
        num_trials -= len(history)
        if num_trials < 1:
            raise ValueError(f"no trial remains of a horizon of {horizon}.")
    with seeded(seed):
        return estimate_bounds(
            simulator,
            policy,
            num_trials,
            check_count(num_rollouts, "num_rollouts"),
            check_count(num_contrastive, "num_contrastive"),
            sample_theta=sampler_of(simulator.prior if prior is None else prior),
            history=history,
            max_gap=max_gap,
            max_contrastive=max_contrastive,
            show_progress_bars=show_progress_bars,
        )
