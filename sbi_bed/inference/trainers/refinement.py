r"""Refining a policy in mid-experiment, the inner step of Step-DAD (arXiv 2507.14057).

After τ trials the gain splits, I_{1→T}(π) = I_{1→τ}(π_0) + E[I^{h_τ}_{τ+1→T}(π_τ)]. Given h_τ: **infer** p(θ | h_τ);
**refine** a copy of the policy on the gain of the remaining trials, θ_0 and contrastive samples drawn from that
posterior; **judge** both policies on held-out draws with common random numbers and keep the old one unless the new one
is better by more than the comparison's standard error.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...objectives.bounds import estimate_bounds, sampler_of
from ...policies.base import Policy
from ...simulators.base import DesignSimulator
from ...utils.checks import check_count
from ...utils.seeding import seeded
from ..posteriors.likelihood_posterior import likelihood_posterior
from .dad import DAD

__all__ = ["Refinement", "refine_policy"]


@dataclass(frozen=True)
class Refinement:
    """What a refinement did.

    Attributes:
        policy: The policy to go on with: the refined one, or the old one where that was no better.
        accepted: Whether it is the refined one.
        gain_before: Gain of the remaining trials under the old policy, nats, on held-out draws.
        gain_after: The same under the refined one.
        difference_stderr: Standard error of gain_after − gain_before, paired.
        effective_sample_size: Of the posterior draws behind all of it.
    """

    policy: Policy
    accepted: bool
    gain_before: float
    gain_after: float
    difference_stderr: float
    effective_sample_size: float


def refine_policy(
    policy: Policy,
    simulator: DesignSimulator,
    horizon: int,
    history: Tensor,
    *,
    num_steps: int = 300,
    batch_size: int = 256,
    num_contrastive: int = 255,
    learning_rate: float = 1e-3,
    sample_with: str = "smc",
    num_particles: int = 4096,
    num_held_out: int = 2048,
    seed: int | None = None,
    show_progress_bars: bool = True,
) -> Refinement:
    """Refine a copy of `policy` for the trials that remain after `history`.

    Args:
        policy: Policy to start from; it is not changed.
        simulator: Experiment with a likelihood.
        horizon: Total number T of trials.
        history: The trials so far, (n, D + O + 1), n < T.
        num_steps: Gradient steps of the refinement.
        batch_size: Experiments simulated in each step.
        num_contrastive: Contrastive posterior draws in each step.
        learning_rate: First learning rate; falls along a cosine.
        sample_with: How to infer p(θ | history): see `likelihood_posterior`.
        num_particles: Posterior draws.
        num_held_out: Simulated continuations, and contrastive draws, that judge the result.
        seed: Seed of everything; the global generator if None.
        show_progress_bars: Whether to show progress.

    Raises:
        ValueError: As `DAD` and `likelihood_posterior` do.
    """
    check_count(num_held_out, "num_held_out", 2)
    with seeded(seed):
        posterior = likelihood_posterior(simulator, history, sample_with=sample_with, num_particles=num_particles)
        draws = posterior.sample((num_particles,), show_progress_bars=False)
        trainer = DAD(
            simulator,
            horizon,
            copy.deepcopy(policy),
            show_progress_bars=show_progress_bars,
            prior=draws,
            history=history,
        )
        refined = trainer.train(num_steps, batch_size, num_contrastive, learning_rate)
        judge_seed = int(torch.randint(2**31, ()))
        before, after = (
            _held_out_gain(simulator, candidate, trainer, draws, num_held_out, judge_seed)
            for candidate in (policy, refined)
        )
    difference = after - before
    stderr = float(difference.std() / math.sqrt(len(difference)))
    accepted = float(difference.mean()) > stderr
    return Refinement(
        refined if accepted else policy,
        accepted,
        float(before.mean()),
        float(after.mean()),
        stderr,
        posterior.effective_sample_size,
    )


def _held_out_gain(
    simulator: DesignSimulator, policy: Any, trainer: DAD, draws: Tensor, num_held_out: int, seed: int
) -> Tensor:
    """Lower bound of each of `num_held_out` continuations; the same seed gives both policies the same random numbers."""
    with seeded(seed):
        gain = estimate_bounds(
            simulator,
            policy,
            trainer.num_trials,
            num_held_out,
            num_held_out,
            sample_theta=sampler_of(draws),
            history=trainer.history,
        )
    return gain.lower_samples
