r"""Posteriors of many experiments at once, by Hamiltonian Monte Carlo over all of them side by side.

Experiment i with history h_i has the posterior p(θ_i | h_i) ∝ p(θ_i) Π_t p(y_it | θ_i, ξ_it). Chains run in unconstrained
coordinates u = T(θ) with the Jacobian of T, in float64 (`sbi_bed.utils.hmc`); all chains of all experiments move in the
same tensor operations, so that a hundred people take little longer than one. Each chain starts at the best of some draws of
the prior of its own, so that chains that agree in the end (split R̂ near 1) say something.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ...simulators.base import DesignSimulator, prior_log_prob
from ...utils.checks import check_count
from ...utils.history import check_history, split_history
from ...utils.hmc import HMCChains, sample_hmc
from ...utils.seeding import seeded
from ...utils.transforms import to_unconstrained
from .likelihood_posterior import effective_sample_size

__all__ = ["ManyPosteriors", "many_posteriors", "split_rhat"]

_MAX_EVALUATIONS = 2**17  # likelihoods at a time: about what a core's cache holds
_CANDIDATES = 128  # prior draws of which each chain starts at the best
_HIGH_RHAT = 1.05


@dataclass(frozen=True)
class ManyPosteriors:
    """Draws from the posteriors of B experiments, and how far they can be trusted.

    Attributes:
        theta: Draws (num_chains · num_samples, B, P), float64, chain after chain.
        num_chains: Number C of chains of each experiment.
        rhat: Split R̂, (B, P); near 1 where chains agree.
        effective_sample_size: Independent draws that the chains are worth, (B, P).
        acceptance: Mean acceptance of trajectories, (B,).
        divergences: Trajectories that left the posterior altogether, (B,).
    """

    theta: Tensor
    num_chains: int
    rhat: Tensor
    effective_sample_size: Tensor
    acceptance: Tensor
    divergences: Tensor

    @property
    def mean(self) -> Tensor:
        """Posterior means (B, P)."""
        return self.theta.mean(0)

    @property
    def stddev(self) -> Tensor:
        """Posterior standard deviations (B, P)."""
        return self.theta.std(0)


def many_posteriors(
    simulator: DesignSimulator,
    x: Any,
    *,
    prior: Distribution | None = None,
    num_samples: int = 500,
    num_warmup: int = 400,
    num_chains: int = 4,
    max_leapfrog: int = 10,
    seed: int | None = None,
) -> ManyPosteriors:
    """Sample the posteriors of many experiments at once.

    Args:
        simulator: Experiment with a differentiable log-likelihood.
        x: Histories (B, n, D + O + 1), padded or not, or one, (n, D + O + 1).
        prior: Distribution of theta; the simulator's own if None. It must not be discrete in part.
        num_samples: Draws kept of each chain.
        num_warmup: Trajectories before.
        num_chains: Chains of each experiment.
        max_leapfrog: Most steps of a trajectory.
        seed: Seed; torch's global generator if None.

    Raises:
        ValueError: If the simulator has no likelihood, histories are not finite, not of this simulator, or without trials,
            or no prior draw explains one of them.

    Warns:
        UserWarning: If chains of an experiment disagree (R̂ above 1.05).

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
        >>> many_posteriors(line, x, seed=0).mean.round(decimals=0).tolist()  # exactly 1 and -1
        [[1.0], [-1.0]]
    """
    if not simulator.has_likelihood:
        raise ValueError("posteriors by Hamiltonian Monte Carlo need a simulator with log_likelihood=.")
    num_samples, num_chains = check_count(num_samples, "num_samples", 4), check_count(num_chains, "num_chains")
    designs, outcomes, mask = _unpacked(simulator, x)
    prior = simulator.prior if prior is None else prior
    transform = to_unconstrained(prior)
    chunk = max(1, _MAX_EVALUATIONS // (num_chains * mask.shape[-1]))
    parts = []
    with seeded(seed):
        for data in zip(designs.split(chunk), outcomes.split(chunk), mask.split(chunk), strict=True):
            target = _Target(simulator, prior, transform, *data)
            start = target.start(num_chains)
            chains = sample_hmc(target, start, num_samples, num_warmup, max_leapfrog=max_leapfrog)
            parts.append(chains._replace(draws=_to_theta(transform, chains.draws)))
    draws = torch.cat([part.draws for part in parts], 1)
    return _report(draws, parts)


def split_rhat(chains: Tensor) -> Tensor:
    """Split R̂ (...) of chains (n, ..., C): each is cut in two halves, which have to agree (Gelman et al. 2013)."""
    half = len(chains) // 2
    halves = torch.cat([chains[:half], chains[-half:]], -1)
    within, between = halves.var(0).mean(-1), halves.mean(0).var(-1)
    return ((half - 1) / half + between / within.clamp_min(1e-300)).sqrt()


def _report(draws: Tensor, parts: list[HMCChains]) -> ManyPosteriors:
    """The result for draws (n, B, C, P)."""
    num_chains = draws.shape[2]
    rhat = split_rhat(draws.transpose(-1, -2))
    size = torch.stack([effective_sample_size(one.transpose(0, 1)) for one in draws.unbind(1)])
    bad = (rhat > _HIGH_RHAT).any(-1)
    if bad.any():
        first = int(bad.nonzero()[0])
        warnings.warn(
            f"the chains of {int(bad.sum())} of {len(rhat)} experiments disagree (the first is number {first}, R-hat "
            f"{rhat[first].max():.2f}): take a longer num_warmup= and num_samples=, or look whether their posteriors have "
            "several modes.",
            stacklevel=3,
        )
    theta = draws.permute(2, 0, 1, 3).flatten(0, 1)
    acceptance, divergences = (torch.cat([part[i] for part in parts]) for i in (1, 2))
    return ManyPosteriors(theta, num_chains, rhat, size, acceptance, divergences)


class _Target:
    """Log posteriors of B experiments in unconstrained coordinates, (B, C, P) → (B, C)."""

    def __init__(
        self,
        simulator: DesignSimulator,
        prior: Any,
        transform: Any,
        designs: Tensor,
        outcomes: Tensor,
        mask: Tensor,
    ):
        self._simulator, self._prior, self._transform = simulator, prior, transform
        self._designs, self._outcomes = designs.unsqueeze(1), outcomes.unsqueeze(1)
        self._mask = mask.unsqueeze(1)

    def __call__(self, free: Tensor) -> Tensor:
        theta = _to_theta(self._transform, free)
        rows = theta.reshape(-1, theta.shape[-1]), free.reshape(-1, free.shape[-1])
        jacobian = self._transform.log_abs_det_jacobian(*rows).reshape(free.shape[:-1])
        likelihood = self._simulator.log_likelihood(theta.unsqueeze(-2), self._designs, self._outcomes)
        likelihood = torch.where(self._mask, likelihood, 0.0).sum(-1)
        return prior_log_prob(self._prior, theta) + likelihood - jacobian

    @torch.no_grad()
    def start(self, num_chains: int) -> Tensor:
        """Where chains start, (B, C, P): each at the best of prior draws of its own."""
        shape = (len(self._designs), num_chains)
        best = None
        for _ in range(_CANDIDATES):
            theta = self._prior.sample((shape[0] * shape[1],)).double()
            free = self._transform(theta).reshape(*shape, -1)
            value = self(free).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
            if best is None:
                best, best_value = free, value
            better = value > best_value  # pyright: ignore[reportPossiblyUnboundVariable]
            best = torch.where(better.unsqueeze(-1), free, best)
            best_value = torch.where(better, value, best_value)  # pyright: ignore[reportPossiblyUnboundVariable]
        bad = torch.isinf(best_value).any(-1)  # pyright: ignore[reportPossiblyUnboundVariable]
        if bad.any():
            raise ValueError(
                f"no draw of the prior explains history {int(bad.nonzero()[0])}: look at its data, or at the prior."
            )
        return best  # pyright: ignore[reportReturnType]


def _to_theta(transform: Any, free: Tensor) -> Tensor:
    return transform.inv(free.reshape(-1, free.shape[-1])).reshape(free.shape)


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
