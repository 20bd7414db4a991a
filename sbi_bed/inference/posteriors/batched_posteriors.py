r"""Posteriors of a batch of experiments, sampled together by populations of particles.

Experiment i with history h_i has the posterior p(θ_i | h_i) ∝ p(θ_i) Π_t p(y_it | θ_i, ξ_it). For each,
several populations of particles go from the prior to the posterior by tempering, and then move along differences of
particles of their own population (`sbi_bed.utils.smc`). No gradient is needed. Tempering finds ridges and modes, and
differences of particles cross from one mode to another, where Hamiltonian chains stay with the first mode that they meet.
All experiments share the same tensor operations, in float64. A batch takes a third of the time that its experiments would
take one by one.

Populations are independent of each other: where they agree (R̂ near 1), they have found the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...simulators.base import DesignSimulator, prior_log_prob
from ...utils.checks import check_count
from ...utils.history import check_history, split_history
from ...utils.seeding import seeded
from ...utils.smc import ParticleBelief, assimilate, sample_populations
from ...utils.transforms import to_unconstrained
from ...utils.warn_user import warn_user
from .likelihood_posterior import chain_sample_size

__all__ = ["BatchedPosteriors", "batched_posteriors", "split_rhat"]

_MAX_EVALUATIONS = 2**16  # likelihoods at a time: more do not fit into the cache
_THIN = 10  # moves between kept draws
_HIGH_RHAT = 1.05


@dataclass(frozen=True)
class BatchedPosteriors:
    """Draws from the posteriors of B experiments, with measures of their convergence.

    Attributes:
        theta: Draws (K, B, P), float64, population after population.
        num_populations: Number of populations of each experiment.
        rhat: Split R̂ between populations, (B, P); near 1 where they agree.
        effective_sample_size: Number of independent draws that the particles' paths are worth, (B, P).
    """

    theta: Tensor
    num_populations: int
    rhat: Tensor
    effective_sample_size: Tensor

    @property
    def mean(self) -> Tensor:
        """Posterior means (B, P)."""
        return self.theta.mean(0)

    @property
    def stddev(self) -> Tensor:
        """Posterior standard deviations (B, P)."""
        return self.theta.std(0)


def batched_posteriors(
    simulator: DesignSimulator,
    x: Any,
    *,
    prior: Distribution | None = None,
    num_populations: int = 4,
    num_particles: int = 64,
    num_moves: int = 300,
    seed: int | None = None,
) -> BatchedPosteriors:
    """Sample the posteriors of a batch of experiments.

    Args:
        simulator: Experiment with a log-likelihood.
        x: Histories (B, n, D + O + 1), padded or not, or one, (n, D + O + 1).
        prior: Distribution of theta; the simulator's own if None. No parameter may be discrete.
        num_populations: Populations of each experiment, at least 2.
        num_particles: Particles of each, at least 8; several for each parameter.
        num_moves: Moves of each particle in the posterior, at least 80; every tenth is kept, after the first fifth.
        seed: Seed; torch's global generator if None.

    Raises:
        ValueError: If the simulator has no likelihood, histories are not finite, not of this simulator, or without trials,
            or a history is impossible under all prior draws.

    Warns:
        UserWarning: If populations of an experiment disagree (R̂ above 1.05).

    Example:
        >>> from sbi_bed.simulators import DesignSimulator
        >>> prior = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
        >>> line = DesignSimulator(
        ...     prior,
        ...     lambda theta, design: theta * design + torch.randn_like(theta * design),
        ...     torch.distributions.constraints.interval(torch.zeros(1), torch.ones(1)),
        ...     lambda theta, design, y: -0.5 * (y - theta * design).square().sum(-1),
        ... )
        >>> x = torch.tensor([[[1.0, 2.0, 1.0]], [[1.0, -2.0, 1.0]]])
        >>> batched_posteriors(line, x, seed=0).mean.round(decimals=0).tolist()  # exactly 1 and -1
        [[1.0], [-1.0]]
    """
    if not simulator.has_likelihood:
        raise ValueError("batched_posteriors needs a simulator with log_likelihood=.")
    shape = check_count(num_populations, "num_populations", 2), check_count(num_particles, "num_particles", 8)
    num_moves = check_count(num_moves, "num_moves", 80)
    designs, outcomes, mask = _unpacked(simulator, x)
    prior = simulator.prior if prior is None else prior
    transform = to_unconstrained(prior)
    chunk = max(1, 2 * _MAX_EVALUATIONS // (shape[0] * shape[1] * mask.shape[-1]))  # half of them move at a time
    parts, first = [], 0
    with seeded(seed):
        for data in zip(designs.split(chunk), outcomes.split(chunk), mask.split(chunk), strict=True):
            target = _Target(simulator, prior, *data)
            start = target.draw_prior(shape, first)
            belief = assimilate(start, target.log_likelihood, target.log_prior, transform)
            draws = sample_populations(belief.resample(), target.log_posterior, transform, num_moves, _THIN)
            parts.append(draws[len(draws) // 5 :])
            first += len(data[0])
    return _report(torch.cat(parts, 1))


def split_rhat(chains: Tensor) -> Tensor:
    """Split R̂ (...) of chains (n, ..., C): each is cut into two halves, which must agree (Gelman et al. 2013)."""
    half = len(chains) // 2
    halves = torch.cat([chains[:half], chains[-half:]], -1)
    within, between = halves.var(0).mean(-1), halves.mean(0).var(-1)
    return ((half - 1) / half + between / within.clamp_min(1e-300)).sqrt()


def _report(draws: Tensor) -> BatchedPosteriors:
    """The result for draws (n, B, populations, particles, P)."""
    populations = draws.permute(0, 3, 1, 4, 2).flatten(0, 1)  # (n · particles, B, P, populations)
    rhat = split_rhat(populations)
    size = torch.stack([chain_sample_size(one.flatten(1, 2).transpose(0, 1)) for one in draws.unbind(1)])
    bad = (rhat > _HIGH_RHAT).any(-1)
    if bad.any():
        first = int(bad.nonzero()[0])
        warn_user(
            f"the populations of {int(bad.sum())} of {len(rhat)} experiments disagree (the first is number {first}, R-hat "
            f"{rhat[first].max():.2f}): increase num_particles= and num_moves=, or check whether their posteriors have "
            "several modes."
        )
    return BatchedPosteriors(populations.permute(3, 0, 1, 2).flatten(0, 1), populations.shape[-1], rhat, size)


class _Target:
    """Log densities of B experiments for particles (B, populations, particles, P)."""

    def __init__(self, simulator: DesignSimulator, prior: Any, designs: Tensor, outcomes: Tensor, mask: Tensor):
        self._simulator, self._prior = simulator, prior
        self._data = designs[:, None, None], outcomes[:, None, None]
        self._mask = mask[:, None, None]

    def draw_prior(self, shape: tuple[int, int], first: int) -> ParticleBelief:
        """Particles of the prior; `first` is the number of the first experiment, for the error."""
        theta = self._prior.sample((len(self._mask) * shape[0] * shape[1],)).double().unflatten(0, (-1, *shape))
        hopeless = torch.isinf(self.log_likelihood(theta)).all(-1).any(-1)
        if hopeless.any():
            index = first + int(hopeless.nonzero()[0])
            raise ValueError(f"no draw of the prior explains history {index}: check its data, or the prior.")
        return ParticleBelief.from_samples(theta)

    def log_prior(self, theta: Tensor) -> Tensor:
        return prior_log_prob(self._prior, theta)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        value = self._simulator.log_likelihood(theta.unsqueeze(-2), *self._data)
        return torch.where(self._mask, value, 0.0).sum(-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)

    def log_posterior(self, theta: Tensor) -> Tensor:
        return self.log_prior(theta) + self.log_likelihood(theta)


def _unpacked(simulator: DesignSimulator, x: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Designs (B, n, D), outcomes (B, n, O) and which trials took place (B, n), float64; padding repeats a trial."""
    x = check_history(x, simulator.design_dim, simulator.outcome_dim)
    if x.ndim not in (2, 3):
        raise ValueError(
            f"histories must have shape (B, n, {simulator.design_dim + simulator.outcome_dim + 1}), got {tuple(x.shape)}."
        )
    x = x.reshape(-1, *x.shape[-2:]).double()
    empty = x[..., -1].sum(-1) == 0
    if len(x) == 0 or empty.any():
        which = f"history {int(empty.nonzero()[0])} has no trials" if len(x) else "there are no histories"
        raise ValueError(f"{which}: without data there is nothing to infer, and the posterior is the prior.")
    x = torch.where(x[..., -1:] > 0, x, torch.cat([x[:, :1, :-1], torch.zeros_like(x[:, :1, -1:])], -1))
    designs, outcomes, mask = split_history(x, simulator.design_dim)
    return designs, simulator.check_outcome(outcomes), mask > 0
