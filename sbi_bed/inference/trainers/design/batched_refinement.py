r"""Refining one policy for many deployments at once: each history gets its own weights, all in one batch.

The same steps as `refine_policy`, with the policies stacked: E experiments share every matrix product, and the time that
small tensors waste is paid once. Gradients are clipped for each deployment by itself, and Adam looks at each weight by
itself, so that deployments do not see each other.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ....objectives.losses import pathwise_loss, score_function_loss
from ....policies.base import Policy
from ....policies.design.bounded_gradients import BoundedGradients
from ....policies.design.stack import PolicyStack
from ....simulators.base import DesignSimulator
from ....simulators.rollout import Rollout, rollout
from ....utils.history import check_history, trials_before
from ....utils.seeding import seeded
from ..settings import cosine_decay
from ..steps import Steps
from .refinement import Judge, Refinement, posterior_draws

__all__ = ["refine_policies"]


def refine_policies(
    policy: Policy,
    simulator: DesignSimulator,
    horizon: int,
    histories: Tensor,
    *,
    num_steps: int = 300,
    batch_size: int = 256,
    num_contrastive: int = 255,
    learning_rate: float = 1e-3,
    max_design_gradient: float = 1.0,
    clip_max_norm: float | None = 1.0,
    sample_with: str = "smc",
    num_particles: int = 4096,
    num_held_out: int = 2048,
    seed: int | None = None,
    show_progress_bars: bool = True,
) -> list[Refinement]:
    """Refine a copy of `policy` for each of several experiments after their first trials.

    Args:
        policy: Policy to start from, a `DeepSetsPolicy` or a `TransformerPolicy`; it is not changed.
        simulator: Experiment with a likelihood.
        horizon: Total number T of trials.
        histories: The trials so far, (E, n, D + O + 1), n < T, without padding.
        num_steps: Gradient steps.
        batch_size: Continuations of each experiment simulated in each step.
        num_contrastive: Contrastive posterior draws of each experiment in each step.
        learning_rate: First learning rate; falls along a cosine to a hundredth.
        max_design_gradient: As for `DAD.train`.
        clip_max_norm: As for `DAD.train`, for each experiment by itself.
        sample_with: As for `likelihood_posterior`.
        num_particles: Posterior draws of each experiment.
        num_held_out: Simulated continuations, and contrastive draws, that judge each result.
        seed: Seed of everything; the global generator if None.
        show_progress_bars: Whether to show progress.

    Returns:
        One `Refinement` for each experiment; `seconds` is the time of all together.

    Raises:
        ValueError: If the histories are not (E, n, D + O + 1) with n < T, or padded, or as `refine_policy` does.

    Example:
        >>> from sbi_bed.policies import DeepSetsPolicy
        >>> from sbi_bed.simulators import LocationFinding, PolicySimulator
        >>> simulator = LocationFinding()
        >>> policy = DeepSetsPolicy(simulator)
        >>> histories = PolicySimulator(simulator, policy, horizon=2)(simulator.prior.sample((3,)))
        >>> refined = refine_policies(
        ...     policy,
        ...     simulator,
        ...     4,
        ...     histories,
        ...     num_steps=2,
        ...     batch_size=8,
        ...     num_contrastive=7,
        ...     num_particles=128,
        ...     num_held_out=16,
        ...     seed=0,
        ...     show_progress_bars=False,
        ... )
        >>> [type(one.policy).__name__ for one in refined]
        ['DeepSetsPolicy', 'DeepSetsPolicy', 'DeepSetsPolicy']
    """
    begin = time.perf_counter()
    histories = check_history(histories, simulator.design_dim, simulator.outcome_dim)
    if histories.ndim != 3 or not len(histories) or not bool((histories[..., -1] == 1).all()):
        raise ValueError(f"histories must be (E, n, D + O + 1) without padding, got {tuple(histories.shape)}.")
    _, num_trials = trials_before(histories[0], horizon, simulator.design_dim, simulator.outcome_dim)
    with seeded(seed):
        found = [posterior_draws(simulator, h, horizon, sample_with, num_particles) for h in histories]
        draws = torch.stack([each for each, _ in found])
        stack = PolicyStack([copy.deepcopy(policy).train() for _ in histories])
        optimizer = torch.optim.Adam(stack.parameters(), lr=learning_rate)
        rollout_policy = BoundedGradients(stack, simulator.design_space, max_design_gradient)
        for _, done in Steps(num_steps, "refining policies", show=show_progress_bars):
            loss = _loss(simulator, rollout_policy, draws, histories, num_trials, batch_size, num_contrastive)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _clip(list(stack.weights), len(histories), math.inf if clip_max_norm is None else clip_max_norm)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * cosine_decay(done)
            optimizer.step()
        results = []
        for refined, history, (own, size) in zip(stack.unstack(), histories, found, strict=True):
            judge = Judge(simulator, num_trials, history, own, None, num_held_out)
            before, after = judge.gains(policy), judge.gains(refined.eval())
            seconds = time.perf_counter() - begin
            results.append(Refinement.judged(policy, refined, before, after, size, num_steps, seconds))
    return results


def _loss(
    simulator: DesignSimulator,
    policy: BoundedGradients,
    draws: Tensor,
    histories: Tensor,
    num_trials: int,
    batch_size: int,
    num_contrastive: int,
) -> Tensor:
    """Mean loss over all histories (E · B), each contrasted with draws (E, N, P) of its own experiment."""
    num_experiments, num_draws = draws.shape[:2]
    each = torch.arange(num_experiments).unsqueeze(-1)
    theta = draws[each, torch.randint(num_draws, (num_experiments, batch_size))]
    contrastive = draws[each, torch.randint(num_draws, (num_experiments, num_contrastive))].transpose(0, 1)
    trials = rollout(simulator, policy, theta, num_trials, histories.unsqueeze(1))
    flat = Rollout(*(part.flatten(0, 1) for part in trials))
    contrastive = contrastive.unsqueeze(2).expand(-1, -1, batch_size, -1).flatten(1, 2)
    loss_of = pathwise_loss if simulator.pathwise else score_function_loss
    return loss_of(simulator, theta.flatten(0, 1), flat, contrastive)[0]


def _clip(weights: Sequence[Tensor], num_experiments: int, largest: float) -> None:
    """Make the gradients (E, ...) those of each experiment's own mean loss, and scale each down to a largest norm."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    norm = num_experiments * torch.stack([g.flatten(1).square().sum(-1) for g in gradients]).sum(0).sqrt()
    if not torch.isfinite(norm).all():
        raise ValueError("the gradient became NaN or infinite: check log_likelihood.")
    scale = num_experiments * (largest / norm.clamp_min(1e-30)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.reshape(-1, *[1] * (gradient.ndim - 1)))
