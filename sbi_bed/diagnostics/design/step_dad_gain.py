r"""What refining the policy during an experiment is worth: gains with and without it, on the same experiments.

The gain of an experiment splits at the refinements τ_1 < … < τ_K (arXiv 2507.14057),

    I_{1→T} = I_{1→τ_1}(π_0) + E[I^{h_{τ_1}}_{τ_1+1→τ_2}(π_1)] + … + E[I^{h_{τ_K}}_{τ_K+1→T}(π_K)].

The first term is common to both. Each later one is estimated given h_τ, refined and unrefined with the same random
numbers, and judged by a reference posterior that neither policy was fitted to: fresh draws of the prior, weighted by the
likelihood of h_τ, or fresh particles. One half of them supplies θ_0, the other the marginal likelihood.

Where the experiments do not follow the model (`truth`), the gain is what the model's posterior learns about the θ_0 that
they were simulated from, E[log p(θ_0 | h_T) − log p(θ_0)], h_T by the truth and p by the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ...inference.trainers.design.refinement import posterior_draws, refine_policy
from ...objectives.bounds import InformationGain
from ...objectives.contrastive import log_likelihood_of_history, log_sum_likelihood
from ...simulators.base import DesignSimulator
from ...simulators.rollout import rollout
from ...utils.checks import check_choice, check_count
from ...utils.history import continue_history, empty_history
from ...utils.parallel import run_seeded
from ...utils.renamed import renamed_arguments
from ...utils.seeding import seeded
from .information_gain import expected_information_gain

__all__ = ["StepDADGain", "step_dad_information_gain"]


@dataclass(frozen=True)
class StepDADGain:
    """Paired gains of refined and unrefined policies, in nats.

    Attributes:
        shared: Bounds on the gain of the trials before the first refinement, common to both.
        refined_samples: Gain of the later trials with refinement, for each experiment, (num_experiments,).
        unrefined_samples: The same without.
        noise_samples: Standard error of each experiment's paired difference, from the finite number of continuations.
        accepted: Share of refinements that were kept.
        reference_sizes: Effective sample size of each experiment's first reference posterior.
    """

    shared: InformationGain
    refined_samples: Tensor
    unrefined_samples: Tensor
    noise_samples: Tensor
    accepted: float
    reference_sizes: Tensor

    @property
    def refined(self) -> float:
        """Total gain with refinement: the lower bound of the shared part plus the mean of the rest."""
        return self.shared.lower + float(self.refined_samples.mean())

    @property
    def unrefined(self) -> float:
        """Total gain without refinement."""
        return self.shared.lower + float(self.unrefined_samples.mean())

    @property
    def difference(self) -> float:
        """Mean paired difference, refined − unrefined."""
        return float((self.refined_samples - self.unrefined_samples).mean())

    @property
    def difference_stderr(self) -> float:
        """Standard error of `difference` over experiments."""
        difference = self.refined_samples - self.unrefined_samples
        return float(difference.std() / math.sqrt(len(difference)))

    def __str__(self) -> str:
        return (
            f"refined {self.refined:.3f}, unrefined {self.unrefined:.3f}, difference {self.difference:.3f} ± "
            f"{self.difference_stderr:.3f} nats ({len(self.refined_samples)} experiments)"
        )


@renamed_arguments(refinement="refine_settings")
@torch.no_grad()
def step_dad_information_gain(
    policy: Any,
    simulator: DesignSimulator,
    horizon: int,
    refine_after: tuple[int, ...] = (6,),
    num_experiments: int = 32,
    *,
    truth: DesignSimulator | None = None,
    reference: Literal["prior", "posterior"] = "prior",
    num_reference: int | None = None,
    num_rollouts: int = 1024,
    num_shared_rollouts: int = 1000,
    seed: int | None = None,
    num_workers: int = 1,
    refine_settings: dict[str, Any] | None = None,
    show_progress_bars: bool = True,
) -> StepDADGain:
    """Run Step-DAD in simulation and compare it with the unrefined policy on the same histories.

    Args:
        policy: The policy before refinement.
        simulator: The experiment as deployed; its prior is the one that θ is drawn from, inferred and judged with.
        horizon: Number T of trials.
        refine_after: Trials after which the policy is refined, increasing, in [0, T).
        num_experiments: Simulated deployments.
        truth: What the experiments really follow, if not the simulator, which is then the model with which the policy is
            refined and judged; it has the simulator's designs, outcomes and parameters, and need not have a likelihood.
        reference: Where the reference posterior of each comes from: weighted draws of the "prior", or, where the trials
            before the refinement tell so much that few of those are left (see `reference_sizes`), the "posterior" that
            sequential Monte Carlo carries there.
        num_reference: Draws behind the reference posterior of each; 1,000,000 of the prior or 16,384 particles if None.
        num_rollouts: Continuations that estimate each remaining gain.
        num_shared_rollouts: Rollouts behind the shared part.
        seed: Seed; the global generator if None. Each deployment has its own, so that workers change no figure.
        num_workers: Processes that share the deployments; see `run_seeded`.
        refine_settings: Arguments of `refine_policy` (num_steps, batch_size, sample_with, …).
        show_progress_bars: Whether to show progress.

    Raises:
        ValueError: If `refine_after` is empty, not increasing or outside [0, T), or `reference` is neither.

    Example:
        >>> from sbi_bed.policies import DeepSetsPolicy
        >>> from sbi_bed.simulators import LocationFinding
        >>> simulator = LocationFinding()
        >>> gain = step_dad_information_gain(
        ...     DeepSetsPolicy(simulator),
        ...     simulator,
        ...     horizon=3,
        ...     refine_after=(2,),
        ...     num_experiments=2,
        ...     num_reference=500,
        ...     num_rollouts=32,
        ...     num_shared_rollouts=32,
        ...     seed=0,
        ...     refine_settings={"num_steps": 2, "num_particles": 256},
        ...     show_progress_bars=False,
        ... )  # in earnest 32 experiments, and 300 steps
        >>> gain.refined_samples.shape
        torch.Size([2])
    """
    num_trials, stages = check_count(horizon, "horizon"), tuple(refine_after)
    if not stages or list(stages) != sorted(set(stages)) or stages[0] < 0 or stages[-1] >= num_trials:
        raise ValueError(f"refine_after must increase within [0, {horizon}), got {refine_after}.")
    check_choice(reference, "reference", ("prior", "posterior"))
    if num_reference is None:
        num_reference = 1_000_000 if reference == "prior" else 16_384
    reference_of = partial(
        _Reference, simulator, truth, reference, check_count(num_reference, "num_reference", 4), num_rollouts
    )
    quiet = {"show_progress_bars": False, **(refine_settings or {})}  # there is a bar for all deployments
    deploy = partial(_one_experiment, policy, simulator, truth or simulator, num_trials, stages, reference_of, quiet)
    with seeded(seed):
        results = run_seeded(
            deploy,
            range(num_experiments),
            num_workers=num_workers,
            description="deployments",
            show_progress_bars=show_progress_bars,
        )
        shared = _shared_gain(policy, simulator, truth, stages[0], num_shared_rollouts)
    rows, kept = zip(*results, strict=True)
    refined, unrefined, noise, sizes = torch.tensor(rows).unbind(-1)
    accepted = [one for each in kept for one in each]
    return StepDADGain(shared, refined, unrefined, noise, sum(accepted) / len(accepted), sizes)


def _shared_gain(
    policy: Any, simulator: DesignSimulator, truth: DesignSimulator | None, num_trials: int, num_rollouts: int
) -> InformationGain:
    if num_trials == 0:
        zero = torch.zeros(1)
        return InformationGain(0.0, 0.0, 0.0, 0.0, 0, 0, zero, zero)
    return expected_information_gain(simulator, policy, num_trials, num_rollouts, truth=truth)


@torch.no_grad()
def _one_experiment(
    policy: Any,
    simulator: DesignSimulator,
    truth: DesignSimulator,
    horizon: int,
    stages: tuple[int, ...],
    reference_of: Callable[[Tensor, Tensor], _Reference],
    refine_settings: dict[str, Any],
    _: int,
) -> tuple[tuple[float, float, float, float], list[bool]]:
    """(refined gain, unrefined gain, noise of their difference, reference size) after the first stage; which were kept."""
    theta = simulator.prior.sample((1,))
    history = _extend(truth, policy, theta, empty_history(simulator.design_dim, simulator.outcome_dim), stages[0])
    reference = reference_of(history, theta)
    unrefined = reference.gain(policy, horizon - stages[0])
    current, kept, refined, size = policy, [], [], reference.effective_sample_size
    for stage, end in zip(stages, (*stages[1:], horizon), strict=True):
        if stage > stages[0]:
            reference = reference_of(history, theta)
        with torch.enable_grad():
            step = refine_policy(current, simulator, horizon, history, **refine_settings)
        current = step.policy
        kept.append(step.accepted)
        # A policy that was kept as it is has the very gain of its twin.
        same = not any(kept) and len(stages) == 1
        refined.append(unrefined if same else reference.gain(current, end - stage))
        history = _extend(truth, current, theta, history, end - stage)
    num_rollouts = len(unrefined)
    if len(stages) == 1:
        noise = float((refined[0] - unrefined).std() / math.sqrt(num_rollouts))
    else:
        noise = math.sqrt(sum(float(part.var()) for part in (*refined, unrefined)) / num_rollouts)
    return (sum(float(part.mean()) for part in refined), float(unrefined.mean()), noise, size), kept


def _extend(simulator: DesignSimulator, policy: Any, theta: Tensor, history: Tensor, num_trials: int) -> Tensor:
    """The history after `num_trials` more trials of the one true theta (1, P)."""
    if num_trials == 0:
        return history
    trials = rollout(simulator, policy, theta, num_trials, history)
    return continue_history(history, *trials)[0]


class _Reference:
    """A large sample of p(θ | h), and the gain of further trials under it, with common random numbers."""

    def __init__(
        self,
        simulator: DesignSimulator,
        truth: DesignSimulator | None,
        kind: str,
        num_reference: int,
        num_rollouts: int,
        history: Tensor,
        theta: Tensor,
    ):
        self.simulator, self.truth, self.history = simulator, truth, history
        if kind == "prior" or not len(history):
            draws, self.contrastive, self.log_weights, size = _weighted_prior_draws(
                simulator, history, num_reference, num_rollouts
            )
        else:
            particles, size = posterior_draws(simulator, history, len(history), "smc", num_reference)
            half = num_reference // 2
            draws, self.contrastive = particles[torch.randint(half, (num_rollouts,))], particles[half:]
            self.log_weights = torch.full((len(self.contrastive),), -math.log(len(self.contrastive)))
        self.effective_sample_size = size
        self.theta = draws if truth is None else theta.expand(num_rollouts, -1)
        self.seed = int(torch.randint(2**31, ()))

    def gain(self, policy: Any, num_trials: int) -> Tensor:
        """Gain of each continuation (num_rollouts,), nats."""
        with seeded(self.seed):
            trials = rollout(
                self.truth or self.simulator,
                policy,
                self.theta,
                num_trials,
                self.history if len(self.history) else None,
            )
        log_likelihood = log_likelihood_of_history(self.simulator, self.theta, *trials).sum(-1)
        return log_likelihood - log_sum_likelihood(
            self.simulator, self.contrastive, *trials, log_weights=self.log_weights
        )


def _weighted_prior_draws(
    simulator: DesignSimulator, history: Tensor, num: int, num_rollouts: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Posterior draws (num_rollouts, P); others (N, P) with the logs of normalised weights (N,); how many all are worth."""
    theta = simulator.prior.sample((num,))
    log_weights = torch.zeros(num)
    if len(history):
        designs, outcomes = history[:, : simulator.design_dim], history[:, simulator.design_dim : -1]
        for part, chunk in zip(log_weights.split(50_000), theta.split(50_000), strict=True):
            part += log_likelihood_of_history(simulator, chunk, designs, outcomes).sum(-1)
    weights = (log_weights - log_weights.max()).exp()
    size = float(weights.sum().square() / weights.square().sum())
    half = num // 2
    draws = theta[:half][torch.multinomial(weights[:half], num_rollouts, replacement=True)]
    # The lightest draws, a thousandth of the weight all together, are most of the draws: leave them out.
    heaviest = weights[half:].argsort(descending=True)
    share = weights[half:][heaviest].double().cumsum(0) / weights[half:].double().sum()
    counted = heaviest[: int((share < 1 - 1e-3).sum()) + 1] + half
    return draws, theta[counted], log_weights[counted] - log_weights[half:].logsumexp(0), size
