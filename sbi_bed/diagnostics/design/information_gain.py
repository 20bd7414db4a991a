"""How much an experiment is expected to tell: bounds on the information gain of a policy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import torch
from torch import Tensor

from ...objectives.base import Bound, NeuralBound
from ...objectives.bounds import InformationGain, estimate_bounds, estimate_target_bounds
from ...objectives.pce import PCE
from ...simulators.base import DesignSimulator
from ...simulators.experiments import Experiments, sampler_of
from ...simulators.rollout import PolicySimulator, warn_beyond_training
from ...utils.checks import check_choice, check_count, check_positive
from ...utils.history import trials_before
from ...utils.seeding import seeded

__all__ = ["InformationGain", "expected_information_gain"]


def expected_information_gain(
    simulator: DesignSimulator,
    policy: Any,
    horizon: int,
    num_rollouts: int = 1000,
    num_contrastive: int | None = None,
    *,
    seed: int | None = None,
    prior: Any = None,
    history: Tensor | None = None,
    truth: DesignSimulator | None = None,
    bound: Bound | None = None,
    proposal: Literal["posterior"] | None = None,
    num_particles: int = 1024,
    max_gap: float | None = None,
    max_contrastive: int = 10_000_000,
    compile: bool = False,
    show_progress_bars: bool = False,
) -> InformationGain:
    """Lower and upper bound on the total expected information gain, from the same draws.

    With `proposal=None` contrastive samples are draws of the prior (sPCE and sNMC); memory does not grow with their
    number. Gains of more than about 8 nats are out of their reach: `proposal="posterior"` then draws them where each
    history has its posterior, and weights them (ACE and VNMC).

    Under a likelihood that a simulator of `process_design_simulator` has learned, the lower bound alone holds.

    Without a likelihood there is a lower bound alone, by a net that has learned the experiment under this policy:
    `bound=DAD(...).bound`, where `DAD` trained the policy, or trained the net alone because the policy has no weights.

    With `bound=PCE(of=...)` the gain is that about some parameters, with `bound=PCE(target_designs=...)` that about
    outcomes to be predicted, by contrastive bounds on it (`sbi_bed.objectives.targets`).

    Args:
        simulator: The experiment; with a likelihood, unless there is a `bound`.
        policy: Policy, or any callable history -> design.
        horizon: Number T of trials.
        num_rollouts: Simulated experiments.
        num_contrastive: Contrastive samples L for each; if None 100,000 of the prior, or 10,000 of the posterior. From the
            prior, the lower bound cannot exceed log(L + 1).
        seed: Seed; the global generator if None.
        prior: Where θ is drawn from, if not the simulator's prior: a distribution, or draws (N, P).
        history: Trials already done, (n, D + O + 1); the gain is that of the T − n that remain, and `prior` should then
            be the posterior.
        truth: What the experiments really follow, if not the simulator, which is then the model that is judged: the
            result is what its posterior learns about the θ_0 behind the outcomes, E[log p(θ_0 | h) − log p(θ_0)]. It can be
            negative. Both numbers are then estimates that meet as L grows, the upper one still from above.
        bound: A trained bound with a net inside. A critic is contrasted with all rollouts at once, so that InfoNCE cannot
            exceed the log of their number. The upper bound is then infinite. Or a `PCE` with `of` or `target_designs`.
        proposal: Where contrastive samples come from: None, the prior; "posterior", a proposal fitted to each history. The
            prior must then be a distribution with a density. `effective_sample_sizes` tells how well it fits.
        num_particles: Particles that each history's proposal is fitted to.
        max_gap: Double L, keeping what was done, until upper − lower is at most this many nats.
        max_contrastive: Largest L that `max_gap` may lead to.
        compile: With draws of the prior, whether to run them through `torch.compile`, which pays for large L; see
            `log_sum_likelihood`.
        show_progress_bars: Whether to show progress.

    Returns:
        Bounds with standard errors, in nats.

    Raises:
        ValueError: If there is neither likelihood nor bound, an argument is out of range, "posterior" meets a prior
            without density, or an outcome or a log-likelihood is not finite.

    Source: Foster et al. 2021 (arXiv 2103.02438), sPCE and sNMC; Foster et al. 2020 (arXiv 1911.00294), ACE and VNMC.

    Example:
        >>> from sbi_bed.simulators import LocationFinding
        >>> from sbi_bed.policies import RandomPolicy
        >>> simulator = LocationFinding()
        >>> gain = expected_information_gain(simulator, RandomPolicy(simulator), 3, 64, 1000, seed=0)
        >>> gain.lower <= gain.upper
        True
    """
    if bound is not None and bound.unit != "nats":
        raise ValueError("the utility of a decision is no information gain: use expected_utility.")
    if isinstance(bound, NeuralBound):
        if not (prior is None and history is None and truth is None and proposal is None and max_gap is None):
            raise ValueError(
                "a bound with a net inside takes no prior, history, truth, proposal or max_gap of its own."
            )
        num_rollouts = check_count(num_rollouts, "num_rollouts", 2)
        with seeded(seed):
            return _neural_gain(simulator, policy, check_count(horizon, "horizon"), num_rollouts, bound)
    _check_suits(simulator, prior, proposal, max_gap)
    target = bound.target if isinstance(bound, PCE) else None
    if target is not None and not (truth is None and proposal is None and max_gap is None):
        raise ValueError("the gain about some parameters or predictions takes no truth, proposal or max_gap.")
    warn_beyond_training(policy, check_count(horizon, "horizon"))
    history, num_trials = trials_before(history, horizon, simulator.design_dim, simulator.outcome_dim)
    num_rollouts = check_count(num_rollouts, "num_rollouts")
    if num_contrastive is None:
        num_contrastive = 100_000 if proposal is None else 10_000
    num_contrastive = check_count(num_contrastive, "num_contrastive")
    if target is not None:
        experiments = Experiments(simulator, num_trials, history, prior)
        with seeded(seed):
            gain = estimate_target_bounds(experiments, policy, target, num_rollouts, num_contrastive)
        return _lower_alone(gain) if simulator.learns_likelihood else gain
    prior = simulator.prior if prior is None else prior
    settings: dict[str, Any] = {
        "history": history,
        "truth": truth,
        "max_gap": max_gap,
        "max_contrastive": max_contrastive,
        "show_progress_bars": show_progress_bars,
    }
    if proposal is None:
        estimate = estimate_bounds
        settings |= {"sample_theta": sampler_of(prior), "compile": compile}
    else:
        from .posterior_bounds import posterior_bounds  # brings sbi, which takes seconds

        estimate, settings["prior"] = posterior_bounds, prior
        settings["num_particles"] = check_count(num_particles, "num_particles", 100)
    with seeded(seed):
        gain = estimate(simulator, policy, num_trials, num_rollouts, num_contrastive, **settings)
    return _lower_alone(gain) if simulator.learns_likelihood else gain


def _check_suits(simulator: DesignSimulator, prior: Any, proposal: str | None, max_gap: float | None) -> None:
    """Refuse what the contrastive bounds cannot be computed for."""
    if not simulator.has_likelihood:
        raise ValueError(
            "expected_information_gain needs a simulator with a log_likelihood, or bound=, one trained by DAD."
        )
    check_choice(proposal, "proposal", (None, "posterior"))
    if proposal is not None and prior is not None and not (hasattr(prior, "sample") and hasattr(prior, "log_prob")):
        raise ValueError('proposal="posterior" needs a prior with a density: a distribution with sample and log_prob.')
    if max_gap is not None and simulator.learns_likelihood:
        raise ValueError("max_gap= needs an upper bound, and under a learned likelihood there is none.")
    if max_gap is not None and max_gap != 0:
        check_positive(max_gap, "max_gap")


def _lower_alone(gain: InformationGain) -> InformationGain:
    """Contrasted under a learned likelihood, or by a net, outcomes of a simulator give a lower bound, but no upper one."""
    nothing = torch.full_like(gain.upper_samples, math.inf)
    return dataclasses.replace(gain, upper=math.inf, upper_stderr=math.nan, upper_samples=nothing)


@torch.no_grad()
def _neural_gain(
    simulator: DesignSimulator, policy: Any, horizon: int, num_rollouts: int, bound: NeuralBound
) -> InformationGain:
    theta = simulator.prior.sample((num_rollouts,))
    training = bound.training
    # `PolicySimulator` refuses outcomes that are not finite.
    terms = bound.eval()(theta, PolicySimulator(simulator, policy, horizon)(theta))
    bound.train(training)
    stderr = float(terms.std()) / math.sqrt(num_rollouts)
    mean = float(terms.mean())
    return _lower_alone(InformationGain(mean, mean, stderr, stderr, num_rollouts - 1, num_rollouts, terms, terms))
