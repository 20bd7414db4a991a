r"""Refining a policy in mid-experiment, the inner step of Step-DAD (arXiv 2507.14057).

After τ trials the gain splits, I_{1→T}(π) = I_{1→τ}(π_0) + E[I^{h_τ}_{τ+1→T}(π_τ)]. Given h_τ there are three steps:

1. Infer p(θ | h_τ).
2. Refine a copy of the policy on the gain of the remaining trials. θ_0 and contrastive samples are posterior draws.
3. Compare both policies on held-out draws with common random numbers. The old policy stays unless the new one is better
   by more than the standard error of the comparison.

Without a likelihood the posterior is a trained one of sbi's, and the bound has a net inside, whose training continues.
Both policies are compared by the trained net; for the old policy the net before the refinement counts if it gives more.

With a time budget the old policy is evaluated first, on as many draws as a share of the time allows. Training gets the rest,
less as much again. The comparison ends when the time does, with those draws that both policies have had.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....objectives.base import Bound, NeuralBound
from ....objectives.pce import PCE
from ....policies.base import Policy
from ....simulators.base import DesignSimulator
from ....simulators.experiments import Experiments
from ....utils.checks import check_count
from ....utils.history import check_history
from ....utils.seeding import seeded
from ...posteriors.likelihood_posterior import likelihood_posterior
from ...posteriors.trained_posterior import padded_for
from .dad import DAD
from .hidden_state import replay_state

__all__ = ["HeldOutGain", "Refinement", "posterior_draws", "refine_policy"]

_NO_END = 10**7  # steps, where time is what counts
_JUDGING = 0.15  # share of what a time budget leaves after inference, for each evaluation
_PARTS = 4  # of the held-out draws, between which an evaluation may end


@dataclass(frozen=True)
class Refinement:
    """Result of a refinement.

    Attributes:
        policy: The policy to continue with: the refined one, or the old one if the refined one was not better.
        accepted: Whether `policy` is the refined one.
        gain_before: Gain of the remaining trials under the old policy, nats, on held-out draws.
        gain_after: The same under the refined one.
        difference_stderr: Standard error of gain_after − gain_before, paired.
        effective_sample_size: Of the posterior draws behind all of it.
        num_steps: Gradient steps taken.
        seconds: Duration, inference and comparison included.
    """

    policy: Policy
    accepted: bool
    gain_before: float
    gain_after: float
    difference_stderr: float
    effective_sample_size: float
    num_steps: int
    seconds: float

    @classmethod
    def judged(
        cls,
        policy: Policy,
        refined: Policy,
        before: Tensor,
        after: Tensor,
        effective_sample_size: float,
        num_steps: int,
        seconds: float,
    ) -> Refinement:
        """Keep the refined policy if its held-out gains are better by more than their standard error."""
        difference = after - before
        stderr = float(difference.std() / math.sqrt(len(difference)))
        accepted = float(difference.mean()) > stderr
        kept, gains = refined if accepted else policy, (float(before.mean()), float(after.mean()))
        return cls(kept, accepted, *gains, stderr, effective_sample_size, num_steps, seconds)


def refine_policy(
    policy: Policy,
    simulator: DesignSimulator,
    horizon: int,
    history: Tensor,
    *,
    num_steps: int | None = None,
    batch_size: int = 256,
    num_contrastive: int = 255,
    learning_rate: float = 1e-3,
    sample_with: Any = "smc",
    bound: Bound | None = None,
    num_particles: int = 4096,
    num_held_out: int = 2048,
    max_seconds: float | None = None,
    seed: int | None = None,
    show_progress_bars: bool = True,
) -> Refinement:
    """Refine a copy of `policy` for the trials that remain after `history`.

    Args:
        policy: Policy to start from; it is not changed.
        simulator: The experiment.
        horizon: Total number T of trials.
        history: The trials so far, (n, D + O + 1), n < T.
        num_steps: Gradient steps of the refinement; 300 if None and there is no time budget.
        batch_size: Experiments simulated in each step.
        num_contrastive: Contrastive posterior draws in each step.
        learning_rate: First learning rate; falls along a cosine.
        sample_with: How to infer p(θ | history): a name for `likelihood_posterior`, or a trained sbi posterior over
            histories padded to the horizon, which a simulator without a likelihood needs. "mcmc" takes seconds where "smc"
            takes tens of milliseconds.
        bound: What the refinement raises and the policies are compared by: the bound that the policy was trained with
            (`DAD(...).bound`), so that its aim stays, be it some parameters, predictions or a decision; it is not changed.
            If None `PCE()`, the gain about all of theta, or without a likelihood a new `InfoNCE`.
        num_particles: Posterior draws.
        num_held_out: Simulated continuations, and contrastive draws, for the comparison; fewer where time is short.
        max_seconds: Budget for all three steps. Inference is not cut short; the old policy stays if no time is left.
        seed: Seed of everything; the global generator if None.
        show_progress_bars: Whether to show progress.

    Raises:
        ValueError: If the simulator has no likelihood and no posterior is given, or as `DAD` and `likelihood_posterior`
            do.

    Example:
        >>> from sbi_bed.policies import DeepSetsPolicy
        >>> from sbi_bed.simulators import LocationFinding, PolicySimulator
        >>> simulator = LocationFinding()
        >>> policy = DeepSetsPolicy(simulator)
        >>> history = PolicySimulator(simulator, policy, horizon=2)(simulator.prior.sample((1,)))[0]
        >>> refinement = refine_policy(
        ...     policy,
        ...     simulator,
        ...     4,
        ...     history,
        ...     num_steps=2,
        ...     batch_size=8,
        ...     num_contrastive=7,
        ...     num_particles=128,
        ...     num_held_out=16,
        ...     seed=0,
        ...     show_progress_bars=False,
        ... )
        >>> refinement.policy(history).shape
        torch.Size([2])
    """
    begin = time.perf_counter()
    check_count(num_held_out, "num_held_out", 2)
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"max_seconds must be positive, got {max_seconds}.")
    if num_steps is None:
        num_steps = 300 if max_seconds is None else _NO_END
    with seeded(seed):
        simulator = simulator.surrogate
        draws, effective_sample_size = posterior_draws(simulator, history, horizon, sample_with, num_particles)
        state = replay_state(simulator, draws, history) if simulator.has_state else None
        trainer = DAD(
            simulator,
            horizon,
            copy.deepcopy(policy),
            show_progress_bars=show_progress_bars,
            prior=draws,
            history=history,
            bound=copy.deepcopy(bound),
            state=state,
        )
        held_out = HeldOutGain(trainer.experiments, num_held_out)
        has_net = isinstance(trainer.bound, NeuralBound)
        end = math.inf if max_seconds is None else begin + max_seconds
        start = time.perf_counter()
        before = held_out.gains(policy, trainer.bound, start + _JUDGING * (end - start))
        now = time.perf_counter()
        remaining = None if max_seconds is None else end - now - 1.2 * (now - start) * (2 if has_net else 1)
        if remaining is not None and remaining <= 0:
            seconds = time.perf_counter() - begin
            return Refinement.judged(policy, policy, before, before, effective_sample_size, 0, seconds)
        refined = trainer.train(
            num_steps, batch_size, None if has_net else num_contrastive, learning_rate, max_seconds=remaining
        )
        after = held_out.gains(refined, trainer.bound, end)
        if has_net:
            again = held_out.gains(policy, trainer.bound)
            before = before if before.mean() > again.mean() else again
    seconds, common = time.perf_counter() - begin, min(len(before), len(after))
    before, after = before[:common], after[:common]
    return Refinement.judged(policy, refined, before, after, effective_sample_size, trainer.num_steps, seconds)


def posterior_draws(
    simulator: DesignSimulator, history: Tensor, horizon: int, sample_with: Any, num: int
) -> tuple[Tensor, float]:
    """Draws (N, P) of p(θ | history), and their effective sample size."""
    if isinstance(sample_with, str):
        if not simulator.has_likelihood:
            raise ValueError(
                "a simulator without a likelihood needs a trained posterior: sample_with=, e.g. sbi's NPE trained on "
                "PolicySimulator(..., min_trials=1)."
            )
        posterior = likelihood_posterior(simulator, history, sample_with=sample_with, num_particles=num)
        return posterior.sample((num,), show_progress_bars=False), posterior.effective_sample_size
    history = check_history(history, simulator.design_dim, simulator.outcome_dim)
    x = padded_for(sample_with, history, horizon)
    return sample_with.sample((num,), x=x.unsqueeze(0), show_progress_bars=False), float(num)


class HeldOutGain:
    """The gain of the remaining trials on held-out draws. All policies are compared with the same random numbers."""

    def __init__(self, experiments: Experiments, num_held_out: int):
        self.experiments, self.num = experiments, num_held_out
        self.seed = int(torch.randint(2**31, ()))

    def gains(self, policy: Policy, bound: Bound | None = None, end: float = math.inf) -> Tensor:
        """Lower bound of each held-out continuation, (num_held_out,), as `bound` judges; by `PCE()` if None.

        An evaluation that needs no net and would last longer than until `end`, a time of `time.perf_counter`, gives the
        first of them only.
        """
        bound = PCE() if bound is None else bound
        by_net = isinstance(bound, NeuralBound) and not bound.has_aim
        with seeded(self.seed):
            seeds = [int(seed) for seed in torch.randint(2**31, (1 if by_net else _PARTS,))]
        sizes = [len(part) for part in torch.arange(self.num).tensor_split(len(seeds))]
        gains, begin = [], time.perf_counter()
        for seed, size in zip(seeds, sizes, strict=True):
            now = time.perf_counter()
            if gains and now + (now - begin) / len(gains) > end:
                break
            if size:
                with seeded(seed):
                    gains.append(bound.held_out(self.experiments, policy, size, self.num))
        return torch.cat(gains)
