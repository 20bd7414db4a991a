r"""Sequential Monte Carlo over plain callables, for any number of beliefs side by side (Del Moral et al. 2006).

A belief is a weighted set of particles, Σ_i W_i δ(θ − θ_i) ≈ π(θ). `assimilate` moves it from π_0 ∝ exp(log_target)
to π_1 ∝ π_0 exp(log_likelihood) along π_0 · exp(β log_likelihood), 0 = β_0 < β_1 < … = 1:

1. β rises until the effective sample size 1 / Σ W² falls to a threshold, found by bisection for each belief;
   weights are multiplied by exp(Δβ log_likelihood), and Σ_i W_i exp(Δβ log_likelihood_i) multiplies the evidence;
2. systematic resampling makes the weights equal;
3. Metropolis moves that leave the tempered target unchanged tell the copies apart again. They work in unconstrained
   space, u = transform(θ), with the Jacobian. Half of the particles moves at a time, along differences of particles of
   the other half (differential evolution, ter Braak 2006: it finds scales and ridges by itself, and a full difference
   carries a particle from one mode to another), at scales from 1/20 to full, or by a random walk. Blocks of moves are
   repeated until the particles have forgotten where they were copied.

Where one whole step leaves enough effective particles, the step is a mere reweighting. Given trial by trial, the
increments of the log evidence are the log predictive probabilities log p(y_t | h_{t−1}) of a history.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .transforms import rowwise

__all__ = [
    "ImpossibleOutcomeError",
    "ParticleBelief",
    "assimilate",
    "rejuvenate",
    "sample_populations",
    "weights_sample_size",
]

# The least temperature step, so that no likelihood can stall the ladder.
_FIRST_STEP, _STEP_GROWTH = 1e-8, 1.3


class ImpossibleOutcomeError(ValueError):
    """No particle gives the data a positive likelihood."""


class ParticleBelief(NamedTuple):
    """Weighted particles, in as many beliefs as the batch shape says.

    Attributes:
        theta: Particles, shape (*batch, N, P).
        log_weights: Logs of weights that sum to 1, shape (*batch, N), float64.
        log_evidence: Log of the total probability assimilated so far, shape (*batch), float64.
    """

    theta: Tensor
    log_weights: Tensor
    log_evidence: Tensor

    @classmethod
    def from_samples(cls, theta: Tensor) -> ParticleBelief:
        """The belief of equally weighted draws theta (*batch, N, P), with log evidence 0.

        Raises:
            ValueError: If there are fewer than 4 particles.
        """
        if theta.ndim < 2 or theta.shape[-2] < 4:
            raise ValueError(f"theta must have shape (*batch, N, P) with N of at least 4, got {tuple(theta.shape)}.")
        log_weights = theta.new_full(theta.shape[:-1], -math.log(theta.shape[-2]), dtype=torch.float64)
        return cls(theta, log_weights, log_weights.new_zeros(theta.shape[:-2]))

    @property
    def effective_sample_size(self) -> Tensor:
        """1 / Σ W², shape (*batch), where copies of one particle count as one particle with their summed weight.

        Copies show in the parameters that are not whole numbers; where all are whole numbers, none count as copies.
        """
        varied = (self.theta != self.theta.round()).flatten(0, -2).any(0)
        if not varied.any():
            return 1 / (2 * self.log_weights).exp().sum(-1)
        column = self.theta[..., int(varied.nonzero()[0])]
        order = column.argsort(-1)
        value = column.gather(-1, order)
        group = torch.nn.functional.pad((value[..., 1:] != value[..., :-1]).long(), (1, 0)).cumsum(-1)
        weights = torch.zeros_like(self.log_weights).scatter_add(-1, group, self.log_weights.gather(-1, order).exp())
        return 1 / weights.square().sum(-1)

    def mean(self) -> Tensor:
        """Posterior mean (*batch, P)."""
        return (self.log_weights.exp().unsqueeze(-1) * self.theta).sum(-2).to(self.theta)

    def stddev(self) -> Tensor:
        """Posterior standard deviation (*batch, P)."""
        deviation = self.theta - self.mean().unsqueeze(-2)
        return (self.log_weights.exp().unsqueeze(-1) * deviation.square()).sum(-2).sqrt().to(self.theta)

    def resample(self, num: int | None = None) -> ParticleBelief:
        """`num` (default N) equally weighted particles in random order, drawn systematically."""
        num = self.theta.shape[-2] if num is None else num
        index = _systematic(self.log_weights, num)
        theta = self.theta.gather(-2, index.unsqueeze(-1).expand(*index.shape, self.theta.shape[-1]))
        log_weights = self.log_weights.new_full(index.shape, -math.log(num))
        return ParticleBelief(theta, log_weights, self.log_evidence)


@torch.no_grad()
def assimilate(
    belief: ParticleBelief,
    log_likelihood: Callable[[Tensor], Tensor],
    log_target: Callable[[Tensor], Tensor],
    transform: Any,
    *,
    ess_threshold: float = 0.5,
    num_moves: int = 4,
    max_moves: int = 24,
    decorrelation: float = 0.5,
) -> ParticleBelief:
    """Multiply the target of a belief by a likelihood.

    Args:
        belief: Particles that represent exp(log_target).
        log_likelihood: Callable theta (*batch, N, P) -> (*batch, N), any number N of particles; −inf is allowed.
        log_target: Callable of the same shapes, the log density so far, up to a constant.
        transform: Torch bijection from theta to unconstrained coordinates, as `to_unconstrained(prior)`.
        ess_threshold: Share of N below which the effective sample size may not fall before particles are resampled.
        num_moves: Metropolis moves in a block.
        max_moves: Most moves after one resampling.
        decorrelation: Blocks are repeated until the mean squared distance moved, over twice the variance, has reached
            this share in every coordinate (1 would be independence), or `max_moves` is spent.

    Returns:
        The belief in exp(log_target + log_likelihood). Its log evidence has grown by
        log ∫ exp(log_target + log_likelihood) − log ∫ exp(log_target).

    Raises:
        ValueError: If the log-likelihood of a particle is NaN or +inf, or no particle of a belief has a positive one.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> prior, identity = torch.distributions.Normal(0.0, 1.0), torch.distributions.identity_transform
        >>> belief = ParticleBelief.from_samples(prior.sample((2000, 1)))
        >>> belief = assimilate(
        ...     belief,
        ...     lambda t: -50 * (t - 1).square().sum(-1),
        ...     lambda t: prior.log_prob(t).sum(-1),
        ...     torch.distributions.transforms.IndependentTransform(identity, 1),
        ... )
        >>> abs(belief.mean().item() - 100 / 101) < 0.01
        True
    """
    cloud = _Cloud(belief.theta, log_target, log_likelihood, transform)
    cloud.check()
    log_weights, log_evidence = belief.log_weights, belief.log_evidence
    num_particles = belief.theta.shape[-2]
    temperature, floor = torch.zeros_like(log_evidence), _FIRST_STEP
    while True:
        step = _next_step(log_weights, cloud.log_likelihood, 1 - temperature, ess_threshold * num_particles, floor)
        log_weights = log_weights + _times(step.unsqueeze(-1), cloud.log_likelihood)
        increment = log_weights.logsumexp(-1)
        if not torch.isfinite(increment).all():
            raise ImpossibleOutcomeError(
                "no particle has a positive likelihood: this outcome is impossible under the prior, or far too few "
                f"particles ({num_particles}) were used."
            )
        log_weights, log_evidence = log_weights - increment.unsqueeze(-1), log_evidence + increment
        temperature = torch.where(step == 1 - temperature, 1.0, temperature + step)
        floor *= _STEP_GROWTH
        low = (temperature < 1) | (weights_sample_size(log_weights) < ess_threshold * num_particles)
        if low.any():
            log_weights = cloud.resample(log_weights, low)
            cloud.decorrelate(temperature, low, num_moves, max_moves, decorrelation)
        if (temperature >= 1).all():
            return ParticleBelief(cloud.theta, log_weights, log_evidence)


@torch.no_grad()
def rejuvenate(
    belief: ParticleBelief, log_target: Callable[[Tensor], Tensor], transform: Any, num_moves: int = 8
) -> ParticleBelief:
    """Move the particles of a belief in exp(log_target) by Metropolis moves that leave it unchanged."""
    return belief._replace(theta=sample_populations(belief, log_target, transform, num_moves, num_moves)[-1])


@torch.no_grad()
def sample_populations(
    belief: ParticleBelief, log_target: Callable[[Tensor], Tensor], transform: Any, num_moves: int, thin: int = 1
) -> Tensor:
    """Draws from exp(log_target) by the same Metropolis moves of equally weighted particles.

    Args:
        belief: Particles (*batch, N, P) that start in exp(log_target), or near; they are left as they are.
        log_target: Callable theta (*batch, N, P) -> (*batch, N), any number N of particles.
        transform: As for `assimilate`.
        num_moves: Moves of every particle.
        thin: Moves between draws that are kept.

    Returns:
        Draws (num_moves // thin, *batch, N, P).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> identity = torch.distributions.transforms.IndependentTransform(torch.distributions.identity_transform, 1)
        >>> belief = ParticleBelief.from_samples(torch.randn(3, 64, 1))  # three populations
        >>> draws = sample_populations(belief, lambda theta: -0.5 * theta.square().sum(-1), identity, 100, thin=10)
        >>> draws.shape
        torch.Size([10, 3, 64, 1])
    """
    cloud = _Cloud(belief.theta.clone(), log_target, lambda theta: torch.zeros_like(theta[..., 0]), transform)
    cloud.check()
    draws = []
    for done in range(1, num_moves + 1):
        cloud.move(torch.zeros_like(belief.log_evidence))
        if done % thin == 0:
            draws.append(cloud.theta.clone())
    return torch.stack(draws)


class _Cloud:
    """Particles in both coordinates, with the log densities that the moves compare."""

    def __init__(self, theta: Tensor, log_target: Any, log_likelihood: Any, transform: Any):
        self._densities, self._transform = (log_target, log_likelihood), transform
        self.free = torch.nan_to_num(rowwise(transform, theta), nan=0.0, posinf=30.0, neginf=-30.0)  # on an edge
        self.theta = theta
        self.log_target, self.log_likelihood = self._evaluate(theta, self.free)

    def check(self) -> None:
        for name in ("log_target", "log_likelihood"):
            value = getattr(self, name)
            if value.shape != self.theta.shape[:-1]:
                raise ValueError(
                    f"{name} returned shape {tuple(value.shape)} for theta of shape {tuple(self.theta.shape)}; "
                    f"expected {tuple(self.theta.shape[:-1])}."
                )
        bad = torch.isnan(self.log_likelihood) | (self.log_likelihood == torch.inf)
        if bad.any():
            value, theta = self.log_likelihood[bad][0].item(), self.theta[bad][0].tolist()
            raise ValueError(f"the log-likelihood must be finite or -inf, got {value} at theta {theta}.")

    def _evaluate(self, theta: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = rowwise(self._transform.log_abs_det_jacobian, theta, free)
        log_target, log_likelihood = (density(theta).double() for density in self._densities)
        return log_target - jacobian, log_likelihood

    def resample(self, log_weights: Tensor, where: Tensor) -> Tensor:
        """Resample the beliefs that `where` (*batch) marks; the new log weights."""
        num = log_weights.shape[-1]
        index = torch.where(
            where.unsqueeze(-1), _systematic(log_weights, num), torch.arange(num, device=log_weights.device)
        )
        self.free, self.theta = (
            rows.gather(-2, index.unsqueeze(-1).expand_as(rows)) for rows in (self.free, self.theta)
        )
        self.log_target, self.log_likelihood = (
            self.log_target.gather(-1, index),
            self.log_likelihood.gather(-1, index),
        )
        return torch.where(where.unsqueeze(-1), -math.log(num), log_weights)

    def decorrelate(self, temperature: Tensor, where: Tensor, num_moves: int, max_moves: int, target: float) -> None:
        """Blocks of moves until the beliefs that `where` marks have forgotten where they started."""
        start = self.free.clone()
        for done in range(1, max_moves + 1):
            self.move(temperature)
            if done % num_moves == 0 and done < max_moves:
                spread = 2 * self.free.var(-2)
                moved = (self.free - start).square().mean(-2) / spread.clamp_min(1e-30)
                moved = torch.where(spread > 0, moved, torch.inf).amin(-1)  # a discrete one may have one value left
                if (moved[where] >= target).all():
                    return

    def move(self, temperature: Tensor) -> None:
        """One Metropolis move of every particle, one half after the other."""
        num = self.free.shape[-2]
        for active, other in ((slice(0, num // 2), slice(num // 2, num)), (slice(num // 2, num), slice(0, num // 2))):
            free, correction = self._propose(self.free[..., active, :], self.free[..., other, :])
            theta = rowwise(self._transform.inv, free)
            log_target, log_likelihood = self._evaluate(theta, free)
            gain = log_target - self.log_target[..., active] + correction
            gain = gain + _times(temperature.unsqueeze(-1), log_likelihood)
            gain = gain - _times(temperature.unsqueeze(-1), self.log_likelihood[..., active])
            accept = torch.rand_like(gain).log() < gain  # a NaN is a refusal
            for name, new in (("free", free), ("theta", theta)):
                old = getattr(self, name)
                old[..., active, :] = torch.where(accept.unsqueeze(-1), new, old[..., active, :])
            for name, new in (("log_target", log_target), ("log_likelihood", log_likelihood)):
                old = getattr(self, name)
                old[..., active] = torch.where(accept, new, old[..., active])

    def _propose(self, free: Tensor, other: Tensor) -> tuple[Tensor, Any]:
        """New coordinates, and the correction of the Metropolis ratio.

        With discrete parameters, a third of the moves carries a particle along the difference of two others, discrete
        parameters included; a third moves the others alone, and a third one part of the discrete ones alone.
        """
        discrete = getattr(self._transform, "discrete", None)
        jumps = _jumps(other, free.shape[-2])
        if discrete is None or not discrete.any():
            return free + jumps, 0.0
        discrete, size = discrete.to(free.device), other.shape[-2]
        first = torch.randint(size, (free.shape[-2],), device=free.device)
        second = (first + torch.randint(1, size, first.shape, device=free.device)) % size
        along = free + other[..., first, :] - other[..., second, :]
        kind = torch.randint(3, free.shape[:-1], device=free.device)
        if discrete.all():
            kind = torch.where(kind == 1, 2, kind)
        changed, correction = self._transform.propose_discrete(free, other)
        moved = torch.where((kind == 1).unsqueeze(-1), free + jumps.masked_fill(discrete, 0.0), along)
        moved = torch.where((kind == 2).unsqueeze(-1), changed, moved)
        return moved, torch.where(kind == 2, correction, 0.0)


def _jumps(other: Tensor, num: int) -> Tensor:
    """Symmetric jumps (*batch, num, P) that depend on the other half (*batch, M, P) only.

    Two thirds are differences of two particles, scaled by a random factor, a sixth of these by 1; one third is a
    random walk. Half of the jumps leave each coordinate as it is with probability 1/2.
    """
    size, dim, device = other.shape[-2], other.shape[-1], other.device
    first = torch.randint(size, (num,), device=device)
    second = (first + torch.randint(1, size, (num,), device=device)) % size
    kind = torch.rand(num, 1, device=device)
    best = 2.38 / math.sqrt(2 * dim)
    scale = best * _log_uniform(0.05, 1.0, (num, 1), device)
    scale = torch.where(kind < 1 / 9, torch.ones_like(scale), torch.where(kind < 2 / 3, scale, 0.0))
    walk = torch.where(kind < 2 / 3, 1e-4, best * _log_uniform(0.02, 1.0, (num, 1), device))
    chance = torch.rand(num, dim, device=device)
    keep = (chance < 0.5) | (chance == chance.amax(-1, keepdim=True)) | (torch.rand(num, 1, device=device) < 0.5)
    noise = torch.randn(*other.shape[:-2], num, dim, device=device).to(other) * other.std(-2, keepdim=True)
    differences = other[..., first, :] - other[..., second, :]
    return (scale.to(other) * differences + walk.to(other) * noise) * keep


def _log_uniform(low: float, high: float, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return low * (high / low) ** torch.rand(shape, device=device)


def _next_step(log_weights: Tensor, log_likelihood: Tensor, remaining: Tensor, target: float, floor: float) -> Tensor:
    """Largest temperature step (*batch) up to `remaining` that keeps `target` effective particles, at least `floor`."""

    def enough(step: Tensor) -> Tensor:
        return weights_sample_size(log_weights + _times(step.unsqueeze(-1), log_likelihood)) >= target

    whole = enough(remaining)
    if whole.all():
        return remaining
    high = remaining.clamp_min(floor).log()
    low = torch.full_like(high, math.log(floor))
    for _ in range(24):
        middle = (low + high) / 2
        fits = enough(middle.exp())
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return torch.where(whole, remaining, torch.minimum(low.exp(), remaining))


def weights_sample_size(log_weights: Tensor) -> Tensor:
    """Effective sample size (*batch) of log weights (*batch, N) that need not be normalised; 0 where all are −inf."""
    return torch.nan_to_num((2 * log_weights.logsumexp(-1) - (2 * log_weights).logsumexp(-1)).exp(), nan=0.0)


def _times(factor: Tensor, value: Tensor) -> Tensor:
    """factor · value, with 0 · (−inf) = 0."""
    return torch.where(factor == 0, torch.zeros_like(value), factor * value)


def _systematic(log_weights: Tensor, num: int) -> Tensor:
    """Systematic draws (*batch, num) from weights (*batch, N), in random order."""
    edges = log_weights.exp().cumsum(-1)
    start = torch.rand(*log_weights.shape[:-1], 1, device=log_weights.device, dtype=log_weights.dtype)
    points = (torch.arange(num, device=log_weights.device) + start) / num * edges[..., -1:]
    index = torch.searchsorted(edges, points, right=True).clamp_max(log_weights.shape[-1] - 1)
    return index[..., torch.randperm(num, device=log_weights.device)]
